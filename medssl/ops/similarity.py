r"""Cosine similarity, InfoNCE on masks of pairs, and measures of how embeddings spread.

With unit vectors :math:`z`, temperature :math:`\tau`, positives P(a) and negatives N(a) of anchor a::

    s_ak    = z_a . z_k / tau
    l(a, p) = -log( exp(s_ap) / sum_{k in {p} + N(a)} exp(s_ak) )

A candidate counts once in the sum, also if it is both p and in N(a). Everything is computed in at least float32, also
under autocast. With several processes, anchors are the rows of this process, candidates are the rows of all processes
(``collectives.gather``), and the mean is over the anchors of all processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import logsigmoid

from medssl.ops.collectives import gather, mean_over

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

_NOTHING = -1e30  # logarithm of a zero weight; finite, so that gradients are finite


def unit(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Scales vectors to length 1, in at least float32; a zero vector stays zero and gets no gradient."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, torch.inf)


def cosine(x: Float[Tensor, "*batch M D"], y: Float[Tensor, "*batch K D"]) -> Float[Tensor, "*batch M K"]:
    """Cosine of the angle between every row of x and every row of y, -1 to 1; at least float32, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return unit(x) @ unit(y).transpose(-1, -2)


def cosine_error(x: Float[Tensor, "*rows D"], y: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows"]:
    """Squared distance of unit vectors, row by row: 2 - 2 cos, from 0 to 4; 2 for directions without relation."""
    with torch.autocast(x.device.type, enabled=False):
        return 2 - 2 * (unit(x) * unit(y)).sum(-1)


def info_nce(
    anchors: Float[Tensor, "*batch M D"],
    candidates: Float[Tensor, "*batch K D"],
    positives: Bool[Tensor, "*batch M K"],
    negatives: Bool[Tensor, "*batch M K"],
    *,
    temperature: float = 0.1,
    mean: Literal["pairs", "anchors", "inside"] = "pairs",
) -> Float[Tensor, ""]:
    """InfoNCE on masks of pairs: the mean of l(a, p) over all processes; 0 if no anchor counts.

    Anchors without a positive or without a negative are left out. The masks define the loss:

    - SimCLR / NT-Xent (Chen et al. 2020): the positive is the other view, negatives are all rows but the anchor.
    - Supervised contrast (Khosla et al. 2020): positives share the class, negatives are all rows but the anchor
      (positives included), ``mean="anchors"`` (their L_out) or ``"inside"`` (L_in).
    - Global and local contrast with domain cues (Chaitanya et al. 2020): negatives are rows of other parts, or regions
      nearby, without any positive.

    SimCLR of two views, with ``z`` the embeddings of both views, ``scan`` and ``view`` the numbers of each row::

        every, scans, views = gather(z), gather(scan), gather(view)
        same, itself = scan[:, None] == scans, (scan[:, None] == scans) & (view[:, None] == views)
        loss = info_nce(z, every, same & ~itself, ~itself, temperature=0.1)

    The global loss G^D, with ``part`` the number of the part of the volume; G^D- uses ``same & ~itself`` as above::

        alike = part[:, None] == parts
        loss = info_nce(z, every, alike & ~itself, ~alike, temperature=0.1)

    The local loss of B scans, with ``x`` and ``y`` [B, A, D] the regions of two views, and ``near`` [A, A] the
    negatives of each region::

        same = torch.eye(A, dtype=torch.bool).expand(B, A, A)
        both, apart = torch.cat((y, x), 1), torch.cat((near, near), 1).expand(B, A, 2 * A)
        loss = info_nce(x, both, torch.cat((same, torch.zeros_like(same)), 2), apart)

    Args:
        anchors: Embeddings of this process, of any length.
        candidates: Embeddings of all processes, of any length.
        positives: True where the candidate is a positive of the anchor.
        negatives: True where the candidate is in the denominator.
        temperature: Divisor of the cosine, above 0; 0.01 is safe in float32.
        mean: "pairs": every positive pair has the same weight. "anchors": every anchor has the same weight, shared by
            its positives. "inside": like "anchors", with the positives averaged inside the logarithm.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        logits = cosine(anchors, candidates) / temperature
        counted = positives.any(-1) & negatives.any(-1)
        pairs = positives & counted[..., None]
        number = pairs.sum(-1).clamp(min=1).to(logits.dtype)
        if mean == "inside":
            positive_mass = logits.masked_fill(~pairs, _NOTHING).logsumexp(-1)
            all_mass = logits.masked_fill(~(negatives | pairs), _NOTHING).logsumexp(-1)
            losses = torch.where(counted, all_mass - positive_mass + number.log(), 0.0)
            return mean_over(losses.sum(), counted.sum())
        negative_mass = logits.masked_fill(~negatives, _NOTHING).logsumexp(-1, keepdim=True)
        losses = torch.where(negatives, negative_mass - logits, -logsigmoid(logits - negative_mass))
        losses = torch.where(pairs, losses, 0.0)
        if mean == "anchors":
            return mean_over((losses.sum(-1) / number).sum(), counted.sum())
        return mean_over(losses.sum(), pairs.sum())


def info_nce_chance(positives: Bool[Tensor, "*batch M K"], negatives: Bool[Tensor, "*batch M K"]) -> Float[Tensor, ""]:
    """Value of ``info_nce`` (over pairs) if all embeddings are equal: the mean of log(number of candidates)."""
    number = negatives.sum(-1).float()
    counted = positives.any(-1) & (number > 0)
    in_negatives = (positives & negatives).sum(-1) * number.clamp(min=1).log()
    outside_negatives = (positives & ~negatives).sum(-1) * (number + 1).log()
    return mean_over(
        torch.where(counted, in_negatives + outside_negatives, 0.0).sum(), (positives & counted[..., None]).sum()
    )


def contrast(
    rows: Float[Tensor, "M D"],
    positives: Bool[Tensor, "M K"] | Sequence[Bool[Tensor, "M K"]],
    negatives: Bool[Tensor, "M K"],
    *,
    distinct: Bool[Tensor, "M K"],
    temperature: float,
    candidates: Float[Tensor, "B D"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """InfoNCE (over pairs) of the rows of this process against those of all processes, and its terms for the log.

    Args:
        rows: Embeddings of this process, of any length; K in all processes.
        positives: True where the candidate is a positive of the anchor. Several masks are kinds of positives; the loss
            is the mean over the kinds that have pairs, however many pairs each has.
        negatives: True where the candidate is in the denominator.
        distinct: Which pairs say how far rows spread.
        temperature: Divisor of the cosine, above 0.
        candidates: Embeddings of this process that rows are compared with, such as a teacher's; None takes the rows.

    Returns:
        The loss, and the detached terms "loss", "chance", "alignment" (of the positives) and "uniformity".
    """
    kinds = (positives,) if isinstance(positives, torch.Tensor) else tuple(positives)
    all_rows = gather(rows if candidates is None else candidates)
    losses = torch.stack([info_nce(rows, all_rows, kind, negatives, temperature=temperature) for kind in kinds])
    chances = torch.stack([info_nce_chance(kind, negatives) for kind in kinds])
    weights = (chances > 0).to(losses.dtype)  # of a kind without pairs 0: a pair has two candidates or more
    weights = weights / weights.sum().clamp(min=1)
    loss = (losses * weights).sum()
    detached_rows, detached_all = rows.detach(), all_rows.detach()
    return loss, {
        "loss": loss.detach(),
        "chance": (chances * weights).sum(),
        "alignment": alignment(detached_rows, detached_all, torch.stack(kinds).any(0)),
        "uniformity": uniformity(detached_rows, detached_all, distinct),
    }


def contrast_with_queue(
    rows: Float[Tensor, "B D"],
    keys: Float[Tensor, "B D"],
    queue: Float[Tensor, "K D"],
    *,
    temperature: float,
    step_count: Float[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """InfoNCE of rows that have one positive each and all negatives in common (He et al., MoCo, CVPR 2020).

    Args:
        rows: Embeddings of this process, of any length.
        keys: The positive of each row.
        queue: Negatives, the same in all processes.
        temperature: Divisor of the cosine, above 0.
        step_count: As in ``collectives.mean_over``, where the number of rows varies.

    Returns:
        The mean over the rows of all processes, and the detached terms "loss", "chance", "alignment" (of the
        positives) and "uniformity" (of rows and negatives).
    """
    with torch.autocast(rows.device.type, enabled=False):
        near = (unit(rows) * unit(keys)).sum(-1, keepdim=True)
        logits = torch.cat((near, cosine(rows, queue)), 1) / temperature
        loss = mean_over((logits.logsumexp(1) - logits[:, 0]).sum(), len(rows), step_count)
    detached = rows.detach()
    distinct = torch.ones(len(rows), len(queue), dtype=torch.bool, device=rows.device)
    return loss, {
        "loss": loss.detach(),
        "chance": torch.full_like(loss.detach(), math.log(len(queue) + 1)),
        "alignment": mean_over(cosine_error(detached, keys.detach()).sum(), len(rows)),
        "uniformity": uniformity(detached, queue, distinct),
    }


def variance_term(x: Float[Tensor, "N D"], *, target: float = 1.0, eps: float = 1e-4) -> Float[Tensor, ""]:
    """Variance term of VICReg: mean over dimensions of max(0, target - standard deviation over the rows).

    Reference: Bardes et al., VICReg, ICLR 2022, with the unbiased variance. With several processes give all rows
    (``collectives.gather``).

    Raises:
        ValueError: There are fewer than two rows.
    """
    x = _rows(x)
    return (target - (x.var(0) + eps).sqrt()).relu().mean()


def covariance_term(x: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Covariance term of VICReg: sum of the squared covariances between different dimensions, divided by D.

    Raises:
        ValueError: There are fewer than two rows.
    """
    x = _rows(x)
    with torch.autocast(x.device.type, enabled=False):
        x = x - x.mean(0)
        covariance = x.T @ x / (len(x) - 1)
        return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def cross_correlation(x: Float[Tensor, "N D"], y: Float[Tensor, "N E"], *, eps: float = 1e-5) -> Float[Tensor, "D E"]:
    """Correlations over the rows of every channel of x with every channel of y, -1 to 1; 0 for a constant channel.

    Reference: Zbontar et al., Barlow Twins, ICML 2021. With several processes give all rows (``collectives.gather``).

    Args:
        x: Rows.
        y: Rows that belong to those of x.
        eps: Added to variances.

    Raises:
        ValueError: There are fewer than two rows.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = _rows(x), _rows(y)
        x, y = ((z - z.mean(0)) / (z.var(0, unbiased=False) + eps).sqrt() for z in (x, y))
        return x.T @ y / len(x)


def alignment(
    anchors: Float[Tensor, "M D"], candidates: Float[Tensor, "K D"], positives: Bool[Tensor, "M K"]
) -> Float[Tensor, ""]:
    """Alignment: mean squared distance of positive pairs on the unit sphere, over all processes; 0 to 4.

    Lower means more similar; 0 without pairs. Reference: Wang and Isola, Understanding contrastive representation
    learning, ICML 2020, with alpha = 2.

    Args:
        anchors: Embeddings of this process, of any length.
        candidates: Embeddings of all processes, of any length.
        positives: The pairs.
    """
    squared = 2 - 2 * cosine(anchors, candidates)
    return mean_over(torch.where(positives, squared, 0.0).sum(), positives.sum())


def uniformity(
    anchors: Float[Tensor, "M D"], candidates: Float[Tensor, "K D"], distinct: Bool[Tensor, "M K"], *, t: float = 2.0
) -> Float[Tensor, ""]:
    """Uniformity: log of the mean of exp(-t d^2) over pairs of rows with distance d on the unit sphere.

    The mean is over all processes. The value is 0 if all rows have the same direction, and without pairs. It is lower
    the more evenly rows spread. Reference: Wang and Isola, ICML 2020.

    Args:
        anchors: Embeddings of this process, of any length.
        candidates: Embeddings of all processes, of any length.
        distinct: The pairs: of different rows.
        t: Decay of a pair's weight with its squared distance.
    """
    squared = 2 - 2 * cosine(anchors, candidates)
    mean = mean_over(torch.where(distinct, (-t * squared).exp(), 0.0).sum(), distinct.sum())
    return (mean + (mean == 0)).log()


def _rows(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    if len(x) < 2:
        message = f"a spread takes at least 2 rows, got {len(x)}"
        raise ValueError(message)
    return x.to(torch.promote_types(x.dtype, torch.float32))
