"""Computes maps of several strides from the maps of a transformer, which all have one stride, for a U-Net decoder.

UNETR (Hatamizadeh et al., WACV 2022) brings the maps of several depths to different resolutions. The simple feature
pyramid (Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022) brings the last map to
several resolutions. Factors are those of :func:`medssl.nn.decoders.upsampling_path`, so that any patch size leads back
to the voxels exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F

from medssl.nn.decoders import NormName, norm_layers, upsampling_path
from medssl.nn.sparse import ChannelNorm
from medssl.ops.limits import expect
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


class Pyramid(nn.Module):
    """Base class of modules that compute maps of other strides.

    Attributes:
        channels: Channels of each map, fine to coarse.
        strides: Total stride of each map per axis, fine to coarse.
    """

    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    def forward(self, maps: Sequence[Float[Tensor, "B Cl *sl"]]) -> tuple[Float[Tensor, "B Dl *tl"], ...]:
        """Returns maps with the described channels and strides."""
        raise NotImplementedError


class LiftedMaps(Pyramid):
    """Maps of UNETR: shallower maps of a transformer at finer resolutions.

    The last map does not change. Maps of other, equally spaced depths are upsampled step by step: a transposed
    convolution whose kernel equals its factor, a 3-wide convolution, a normalization and a leaky ReLU. Their number is
    limited by the encoder's maps and by the steps to full resolution.

    UNETR also uses convolutions of the image at full resolution. A head receives features only. Here the finest stage
    comes from maps: at full resolution if the patch has fewer factors than the encoder has maps, else one step coarser.

    Args:
        channels: Channels of the encoder's maps, shallow to deep.
        strides: Their total stride per axis, the same for all.
        width: Channels at full resolution; twice as many at each coarser step.
        norm: "instance", "batch" or "layer".

    Raises:
        UserError: The maps have several strides, or there is only one map.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[Sequence[int]], *, width: int, norm: NormName = "instance"
    ) -> None:
        super().__init__()
        distinct_strides = sorted({tuple(stride) for stride in strides})
        if len(distinct_strides) > 1 or len(strides) < 2:
            message = (
                f"UNETR takes encoders with several maps of one stride, as transformers do; got {len(strides)} map(s) "
                f"of strides {distinct_strides}: use the head unet, or feature_pyramid"
            )
            raise UserError(message)
        expect(width >= 1, "UNETR: channels at full resolution", width, "at least 1")
        factors = [factor for factor, _ in upsampling_path(strides[:1])]
        count = min(len(factors), len(strides) - 1)
        depth_ranks = range(count, 0, -1)  # deep to shallow, which is coarse to fine
        self.numbers = tuple(len(strides) * depth_rank // (count + 1) - 1 for depth_rank in depth_ranks)
        widths = [width * 2 ** (len(factors) - step) for step in range(1, count + 1)]
        self.lifts = nn.ModuleList(
            nn.Sequential(*_lift(channels[number], lift_width, factors[:step], norm))
            for step, (number, lift_width) in enumerate(zip(self.numbers, widths, strict=True), 1)
        )
        fine_to_coarse = [tuple(strides[0])]
        for factor in factors[:count]:
            fine_to_coarse.insert(0, tuple(a // b for a, b in zip(fine_to_coarse[0], factor, strict=True)))
        self.strides = tuple(fine_to_coarse)
        self.channels = (*reversed(widths), channels[-1])

    def forward(self, maps: Sequence[Float[Tensor, "B Cl *sl"]]) -> tuple[Float[Tensor, "B Dl *tl"], ...]:
        """Returns the upsampled maps and the unchanged last one."""
        lifted = [lift(maps[number]) for number, lift in zip(self.numbers, self.lifts, strict=True)]
        return (*reversed(lifted), maps[-1])


class PyramidMaps(Pyramid):
    """Simple feature pyramid: the last map of any encoder at a quarter, half, all and twice of its stride.

    Transposed convolutions compute the finer maps, each with half the channels; a layer norm and a GELU stand between
    two of them. (The paper has separate ones for each stride; here the finest map continues from the finer one.)
    Maximum pooling computes the coarser map. Each map passes a 1-wide and a 3-wide convolution with layer norms. The
    paper keeps the coarser map for its detector. Here it is added to the map at the encoder's stride, so that sizes
    need not be a multiple of twice the patch.

    Args:
        channels: Channels of the encoder's last map.
        stride: Its total stride per axis.
        width: Channels of every returned map, at least 1; 256 in the paper, which needs much memory for volumes.

    Raises:
        UserError: The stride is 1 on every axis, or ``width`` is below 1.
    """

    def __init__(self, channels: int, stride: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        expect(width >= 1, "feature pyramid: channels", width, "at least 1")
        volume = len(stride) == 3
        transposed = nn.ConvTranspose3d if volume else nn.ConvTranspose2d
        factors = [factor for factor, _ in upsampling_path([stride])][:2]
        self.halved = tuple(2 if side > 1 else 1 for side in stride)
        map_widths, strides = [channels], [tuple(stride)]
        self.finer = nn.ModuleList()
        for factor in factors:
            map_widths.append(max(1, map_widths[-1] // 2))
            strides.append(tuple(a // b for a, b in zip(strides[-1], factor, strict=True)))
            up = transposed(map_widths[-2], map_widths[-1], factor, stride=factor)  # type: ignore[arg-type]
            first = len(self.finer) == 0
            self.finer.append(up if first else nn.Sequential(ChannelNorm(map_widths[-2]), nn.GELU(), up))
        self.coarser = _level(channels, width, volume=volume)
        self.levels = nn.ModuleList(_level(map_width, width, volume=volume) for map_width in map_widths)
        self.strides = tuple(reversed(strides))
        self.channels = (width,) * len(strides)

    def forward(self, maps: Sequence[Float[Tensor, "B Cl *sl"]]) -> tuple[Float[Tensor, "B Dl *tl"], ...]:
        """Returns maps with the described strides."""
        x = maps[-1]
        pool = F.max_pool3d if x.ndim == 5 else F.max_pool2d
        context = self.coarser(pool(x, self.halved, ceil_mode=True))
        for axis, (factor, length) in enumerate(zip(self.halved, x.shape[2:], strict=True), 2):
            context = context.repeat_interleave(factor, axis).narrow(axis, 0, length)
        pyramid = [self.levels[0](x) + context]
        for up, level in zip(self.finer, self.levels[1:], strict=True):
            x = up(x)
            pyramid.append(level(x))
        return tuple(reversed(pyramid))


def _lift(in_channels: int, width: int, factors: Sequence[tuple[int, ...]], norm: NormName) -> list[nn.Module]:
    """Layers that upsample one map."""
    volume = len(factors[0]) == 3
    transposed, convolution = (nn.ConvTranspose3d, nn.Conv3d) if volume else (nn.ConvTranspose2d, nn.Conv2d)
    layers: list[nn.Module] = []
    for step, factor in enumerate(factors):
        step_channels = in_channels if step == 0 else width
        up = transposed(step_channels, width, factor, stride=factor)  # type: ignore[arg-type]
        mix = convolution(width, width, 3, padding=1, bias=False)
        for layer in (up, mix):
            nn.init.kaiming_normal_(layer.weight, a=1e-2)
        layers += [up, mix, *norm_layers(norm, [width], ndim=len(factor)), nn.LeakyReLU(1e-2, inplace=True)]
    return layers


def _level(in_channels: int, width: int, *, volume: bool) -> nn.Sequential:
    """Convolutions of one map of the pyramid."""
    convolution = nn.Conv3d if volume else nn.Conv2d
    return nn.Sequential(
        convolution(in_channels, width, 1, bias=False),
        ChannelNorm(width),
        convolution(width, width, 3, padding=1, bias=False),
        ChannelNorm(width),
    )
