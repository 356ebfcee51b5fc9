r"""Regularizers that keep the embeddings of different images apart on the unit sphere.

With unit vectors :math:`z_i` of n images::

    KoLeo = - mean_i log( max(|z_i - z_n(i)|, e) ),  n(i) the nearest other row
    KDE   =   mean_i log( mean_{j != i} exp(c (z_i . z_j - 1)) )

Both fall as rows spread. KoLeo looks at the nearest row alone, so that one pair of equal images has a large share of
it; KDE looks at all rows with a kernel of concentration c. Rows are those of all processes, everything is computed in
at least float32, and equal rows give a finite value.

References: Sablayrolles et al., Spreading vectors for similarity search, ICLR 2019 (KoLeo); Oquab et al., DINOv2, TMLR
2024; Zimmermann et al., Virchow2, 2024, arXiv 2408.00738 (KDE in place of KoLeo); Wang and Isola, Understanding
contrastive representation learning through alignment and uniformity, ICML 2020.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from medssl.ops.collectives import gather, mean_over, rank, world_size
from medssl.ops.similarity import uniformity, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

CLOSEST = 1e-8  # distance; below it rows count as this far apart


def koleo(rows: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean of the negative logarithm of the distance to the nearest other row; 0 with fewer than two rows.

    It does not depend on lengths of rows or on their order. Of two rows, opposite directions give -log 2.

    Args:
        rows: Embeddings of one view of each image of this process.
    """
    with torch.autocast(rows.device.type, enabled=False):
        z, every, itself = _all_rows(rows)
        if len(every) < 2:
            return (z * 0).sum()
        with torch.no_grad():
            nearest = (z @ every.mT).masked_fill(itself, -math.inf).argmax(1)
        squares = (z - every[nearest]).square().sum(1)
        return mean_over(-0.5 * squares.clamp(min=CLOSEST**2).log().sum(), len(z))


def kde(rows: Float[Tensor, "B D"], concentration: float = 5.0) -> Float[Tensor, ""]:
    """Mean log density of each row among the others, on a scale where equal rows have 0; 0 with fewer than two rows.

    Args:
        rows: Embeddings of one view of each image of this process.
        concentration: Of the von Mises-Fisher kernel, above 0; the larger, the more local.
    """
    with torch.autocast(rows.device.type, enabled=False):
        z, every, itself = _all_rows(rows)
        if len(every) < 2:
            return (z * 0).sum()
        logs = (concentration * (z @ every.mT - 1)).masked_fill(itself, -math.inf).logsumexp(1)
        return mean_over((logs - math.log(len(every) - 1)).sum(), len(z))


@torch.no_grad()
def spread(rows: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Uniformity (``ops.similarity``) of one row of each image: 0 if all have one direction, lower as they spread.

    Args:
        rows: Embeddings of one view of each image of this process.
    """
    z, every, itself = _all_rows(rows)
    return uniformity(z, every, ~itself)


def _all_rows(
    rows: Float[Tensor, "B D"],
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "N D"], Bool[Tensor, "B N"]]:
    """Unit rows of this process, of all processes, and where one of each is the same row."""
    z = unit(rows)
    every = gather(z)
    owner = gather(torch.full((len(z),), rank(), device=z.device))
    first = int((owner < rank()).sum()) if world_size() > 1 else 0
    own = torch.arange(first, first + len(z), device=z.device)
    return z, every, own[:, None] == torch.arange(len(every), device=z.device)
