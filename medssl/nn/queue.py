"""Rows of earlier batches, first in, first out: negatives, neighbors or more rows to divide among prototypes.

References: He et al., Momentum contrast for unsupervised visual representation learning (MoCo), CVPR 2020, arXiv
1911.05722; Dwibedi et al., With a little help from my friends (NNCLR), ICCV 2021; Caron et al., SwAV, NeurIPS 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.ops.collectives import gather
from medssl.ops.limits import expect
from medssl.ops.similarity import unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


class Queue(nn.Module):
    """The newest rows of all processes, the oldest first. It is part of the state dict, so that runs resume exactly.

    Rows that are added wait until :meth:`after_step`: those of the present batch are never among ``rows``, and with
    several micro-batches all of them see the same queue. They enter in the order of their sample numbers, whatever the
    number of processes. In evaluation mode nothing is added.

    Args:
        size: Number of rows, at least 1.
        width: Channels of a row, at least 1.

    Attributes:
        rows: The queue; random unit vectors at first, as in MoCo.
        filled: How many of the rows were added and are not random, at most ``size``.

    Raises:
        UserError: ``size`` or ``width`` is below 1.
    """

    rows: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        expect(size >= 1, "queue", size, "at least 1")
        expect(width >= 1, "queue: channels", width, "at least 1")
        self.register_buffer("rows", unit(torch.randn(size, width)))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._waiting: list[tuple[Tensor, Tensor]] = []

    @property
    def full(self) -> bool:
        """Whether no random row is left."""
        return int(self.filled) == len(self.rows)

    @torch.no_grad()
    def add(self, rows: Float[Tensor, "B D"], samples: Sequence[int]) -> None:
        """Takes rows of a micro-batch of this process; call it in ``forward``, in every process.

        Args:
            rows: One row for each sample.
            samples: Their global numbers.
        """
        if self.training:
            numbers = torch.tensor(samples, device=rows.device)
            self._waiting.append((gather(numbers), gather(rows.detach().to(self.rows.dtype))))

    @torch.no_grad()
    def after_step(self) -> None:
        """Appends the rows that wait and drops the oldest; call it once in each optimizer step."""
        if not self._waiting:
            return
        numbers, rows = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        newest = rows[numbers.argsort(stable=True)][-len(self.rows) :]
        self.rows.copy_(torch.cat((self.rows[len(newest) :], newest)))
        self.filled.add_(len(newest)).clamp_(max=len(self.rows))
