"""Random numbers keyed by (seed, global sample number, purpose).

The numbers of a sample depend on its key only. They do not depend on other samples of the batch, their order, the
process, the worker or the device. Keys are hashed with BLAKE2b (RFC 7693) and seed the counter-based generator Philox
(Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011). Its stream is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # data rooms use this module without importing torch
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.types import Step


def keyed_generator(seed: int, sample: int, purpose: str) -> np.random.Generator:
    """Random generator of one sample for one purpose.

    >>> int(keyed_generator(0, 5, "crop").integers(1000)) == int(keyed_generator(0, 5, "crop").integers(1000))
    True
    """
    digest = hashlib.blake2b(f"{int(seed)}:{int(sample)}:{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class Draws:
    """Random numbers for the samples of one batch: row b of every result belongs to ``samples[b]``.

    Repeated calls continue each sample's stream. Results are on the CPU, floating-point numbers in float32: they are
    the few parameters of a mask, a view or an intensity change, not images.

    Args:
        seed: Seed of the run.
        samples: Global number of each sample.
        purpose: What the numbers are used for; each purpose has separate streams.
    """

    def __init__(self, seed: int, samples: Sequence[int], purpose: str) -> None:
        self.seed = int(seed)
        self.samples = tuple(int(sample) for sample in samples)
        self.purpose = purpose

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def _generators(self) -> list[np.random.Generator]:
        return [keyed_generator(self.seed, sample, self.purpose) for sample in self.samples]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "B *shape"]:
        """Uniform numbers between ``low`` and ``high`` (both may occur by rounding).

        >>> Draws(0, [3, 4], "scale").uniform(2).shape
        torch.Size([2, 2])
        """
        return self._rows(lambda generator: generator.uniform(low, high, shape), np.float32, shape)

    def normal(self, *shape: int) -> Float[Tensor, "B *shape"]:
        """Standard normal numbers."""
        return self._rows(lambda generator: generator.standard_normal(shape), np.float32, shape)

    def integers(self, low: int, high: int, *shape: int) -> Int[Tensor, "B *shape"]:
        """Uniform integers from ``low`` to ``high`` - 1."""
        return self._rows(lambda generator: generator.integers(low, high, shape), np.int64, shape)

    def permutation(self, n: int) -> Int[Tensor, "B n"]:
        """A random permutation of ``0 .. n - 1`` in each row."""
        return self._rows(lambda generator: generator.permutation(n), np.int64, (n,))

    def bernoulli(self, p: float, *shape: int) -> Bool[Tensor, "B *shape"]:
        """True with probability ``p``."""
        return self._rows(lambda generator: generator.random(shape) < p, np.bool_, shape)

    def numpy(self) -> list[np.random.Generator]:
        """The numpy generators of the samples; draws from them advance the streams of this object."""
        return self._generators

    def generators(self, device: torch.device | str = "cpu") -> list[torch.Generator]:
        """One new torch generator for each sample, for draws of the size of an image.

        Torch's numbers differ between types of devices, so that a run is reproducible only on the same type.
        """
        import torch

        seeds = (int(generator.integers(2**63)) for generator in self._generators)
        return [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def _rows(
        self, draw: Callable[[np.random.Generator], Any], dtype: type[np.generic], shape: tuple[int, ...]
    ) -> Tensor:
        import torch

        rows = np.empty((len(self.samples), *shape), dtype=dtype)
        for row, generator in enumerate(self._generators):
            rows[row] = draw(generator)
        return torch.from_numpy(rows)


def draws(step: Step, purpose: str) -> Draws:
    """The draws of one micro-batch for one purpose."""
    return Draws(step.seed, step.samples, purpose)
