"""Stochastic depth whose draws belong to samples: neither their order nor the number of processes changes a sample.

Reference: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.ops.draws import Draws

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

CHUNK = 64  # numbers of a sample that are drawn at once


class SampleNumbers:
    """Uniform numbers for the branches of a forward pass, from one stream for each sample.

    The key of a stream is (seed, sample number, "drop_path"). A batch of several views of the samples has the rows of
    the first view first (``objectives.base.join_views``); each view takes numbers of its own.

    Args:
        seed: Seed of the run.
        samples: Global number of each sample.

    Attributes:
        used: Numbers of each stream that were taken so far.
    """

    def __init__(self, seed: int, samples: Sequence[int]) -> None:
        self.samples = len(samples)
        self.used = 0
        self._draws = Draws(seed, samples, "drop_path")
        self._numbers = torch.empty(self.samples, 0)

    def take(self, rows: int, device: torch.device) -> Float[Tensor, "rows"] | None:
        """The next numbers, one for each row; None where the rows are no whole number of views of the samples."""
        views, rest = divmod(rows, max(1, self.samples))
        if rest or views == 0:
            return None
        while self._numbers.shape[1] < self.used + views:
            fresh = self._draws.uniform(CHUNK).to(device)
            self._numbers = torch.cat((self._numbers.to(device), fresh), 1)
        taken = self._numbers[:, self.used : self.used + views].to(device)
        self.used += views
        return taken.mT.reshape(rows)


class DropPath(nn.Module):
    """While training, drops the branch of a sample with probability ``chance``, and scales the remaining branches.

    Inside :func:`keyed_by_sample`, as whenever an objective is called, draws belong to samples. Elsewhere, and for
    batches of other rows, they come from torch's global generator.
    """

    def __init__(self, chance: float = 0.0) -> None:
        super().__init__()
        self.chance = chance
        self.numbers: SampleNumbers | None = None

    def forward(self, x: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        """Drops or scales the branch of each sample."""
        if self.chance == 0 or not self.training:
            return x
        numbers = None if self.numbers is None else self.numbers.take(len(x), x.device)
        if numbers is None:
            numbers = torch.rand(len(x), device=x.device)
        is_active = (numbers >= self.chance).reshape(-1, *[1] * (x.ndim - 1))
        return x * (is_active / (1 - self.chance)).to(x.dtype)

    def extra_repr(self) -> str:
        """Shows the probability when printed."""
        return f"{self.chance:g}"


def drop_paths(module: nn.Module) -> list[DropPath]:
    """All layers of a module that drop branches."""
    return [part for part in module.modules() if isinstance(part, DropPath)]


@contextmanager
def numbers_from(layers: Sequence[DropPath], numbers: SampleNumbers | None) -> Iterator[None]:
    """Lets layers take their numbers from one source until the block ends, also if it raises."""
    former = [layer.numbers for layer in layers]
    for layer in layers:
        layer.numbers = numbers
    try:
        yield
    finally:
        for layer, source in zip(layers, former, strict=True):
            layer.numbers = source


@contextmanager
def keyed_by_sample(module: nn.Module, seed: int, samples: Sequence[int]) -> Iterator[None]:
    """Lets every :class:`DropPath` of a module draw by (seed, sample number) until the block ends.

    Args:
        module: Holds the layers.
        seed: Seed of the run.
        samples: Global number of each sample of the batch, in the order of its rows.
    """
    layers = drop_paths(module)
    with numbers_from(layers, SampleNumbers(seed, samples) if layers else None):
        yield


def without_dropout(module: nn.Module) -> None:
    """Sets every dropout of a module to 0, since dropout draws by the row of a batch."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0  # a layer may read the rate of a dropout while the layer around it trains
