r"""Mixup and cutmix: mix the samples of a batch when there are few labels.

With a sample :math:`x` and the one before it in the batch :math:`x'` (of the first, the last), share
:math:`\lambda \sim Beta(\alpha, \alpha)`, one for a whole step::

    mixup    lambda x + (1 - lambda) x'                  loss = lambda L(y) + (1 - lambda) L(y')
    cutmix   a box of x' in x, 1 - lambda of its volume  classes of scans: as mixup, by the share of voxels that is left
                                                         classes of voxels: the box of y' in y

References: Zhang et al., mixup, ICLR 2018; Yun et al., CutMix, ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medssl.types import UserError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Shaped
    from torch import Tensor

    from medssl.ops.draws import Draws


@dataclass(frozen=True)
class Mixing:
    """Settings of mixup and cutmix.

    Attributes:
        mixup: Alpha of the distribution Beta(alpha, alpha) of mixup, such as 0.2; 0 disables mixup.
        cutmix: Alpha of the distribution Beta(alpha, alpha) of cutmix, such as 1.0; 0 disables cutmix. If both are
            enabled, each step chooses one of them with equal probability.
        share: Share of the steps that mix, 0 to 1.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0:
            key, value = ("mixup", self.mixup) if self.mixup < 0 else ("cutmix", self.cutmix)
            message = "must be at least 0"
            raise UserError(message, key=f"mixing.{key}", got=value)
        if not 0 <= self.share <= 1:
            message = "must be from 0 to 1"
            raise UserError(message, key="mixing.share", got=self.share)

    @property
    def enabled(self) -> bool:
        """Whether any step mixes samples."""
        return max(self.mixup, self.cutmix) > 0 and self.share > 0


@dataclass(frozen=True)
class Mixed:
    """Mixed images, and their targets with weights that sum to 1."""

    image: Float[Tensor, "B C *s"]
    targets: tuple[tuple[float, Tensor], ...]


def mix(image: Float[Tensor, "B C *s"], target: Shaped[Tensor, "B *t"], mixing: Mixing, draws: Draws) -> Mixed:
    """Mixes each sample with the one before it in the batch.

    Args:
        image: Images.
        target: Labels of the voxels [B, *s], of the images [B], or findings of the images [B, K].
        mixing: Settings.
        draws: Random numbers with one row, keyed by the step, so that all processes mix in the same way.
    """
    generator = draws.numpy()[0]
    if not mixing.enabled or len(image) < 2 or generator.random() >= mixing.share:
        return Mixed(image, ((1.0, target),))
    use_cutmix = mixing.cutmix > 0 and (mixing.mixup == 0 or generator.random() < 0.5)
    alpha = mixing.cutmix if use_cutmix else mixing.mixup
    share = float(generator.beta(alpha, alpha))
    other_image, other_target = image.roll(1, 0), target.roll(1, 0)
    if not use_cutmix:
        return Mixed(share * image + (1 - share) * other_image, ((share, target), (1 - share, other_target)))
    box = _box(image, 1 - share, generator)
    image = torch.where(box, other_image, image)
    if target.ndim > 2:
        return Mixed(image, ((1.0, torch.where(box, other_target, target)),))
    share = 1 - float(box.float().mean())
    return Mixed(image, ((share, target), (1 - share, other_target)))


def _box(image: Float[Tensor, "B C *s"], share: float, generator: np.random.Generator) -> Bool[Tensor, "*s"]:
    """Mask of a box with about ``share`` of the volume and the proportions of the image, at a random place inside."""
    size = image.shape[2:]
    box = torch.ones(size, dtype=torch.bool, device=image.device)
    for axis, length in enumerate(size):
        side = round(length * share ** (1 / len(size)))
        first = int(generator.integers(length - side + 1))
        position = torch.arange(length, device=image.device)
        inside = (position >= first) & (position < first + side)
        box &= inside.reshape([-1 if each_axis == axis else 1 for each_axis in range(len(size))])
    return box
