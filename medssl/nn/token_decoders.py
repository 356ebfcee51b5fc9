"""Maps at several strides out of a transformer's, which all have one: what a U-Net decoder goes on with.

Two ways: the maps of several depths, each brought to a resolution of its own (UNETR, Hatamizadeh et al., WACV 2022), or
the last map alone at several resolutions (the simple feature pyramid of Li et al., Exploring Plain Vision Transformer
Backbones for Object Detection, ECCV 2022). Factors are those of :func:`medssl.nn.decoders.upsampling_path`, so that
patches with a side per axis lead back to the voxels exactly.
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
    """Maps to maps of other strides.

    Attributes:
        channels: Channels of each map, fine to coarse.
        strides: Total stride of each map per axis, fine to coarse.
    """

    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    def forward(self, maps: Sequence[Float[Tensor, "B Cl *sl"]]) -> tuple[Float[Tensor, "B Dl *tl"], ...]:
        """Returns maps as described."""
        raise NotImplementedError


class LiftedMaps(Pyramid):
    """Maps of several depths of a transformer, the shallower the finer, as UNETR brings them into its decoder.

    The last map stays as it is. Others, of equally spaced depths, are upsampled step by step, each step a transposed
    convolution whose kernel is its factor, a 3-wide convolution, a normalization and a leaky ReLU. There are as many as
    the encoder has maps for, and no more than the steps to full resolution.

    UNETR also joins convolutions of the image at full resolution. A head sees features only: here the finest stage
    comes from maps, at full resolution where the patch has fewer factors than the encoder maps, else one step coarser.

    Args:
        channels: Channels of the encoder's maps, shallow to deep.
        strides: Their total stride per axis, the same for all.
        width: Channels at full resolution; twice as many at each coarser step.
        norm: "instance", "batch" or "layer".

    Raises:
        UserError: Maps of several strides, or one map alone.
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
        """Returns the lifted maps and the last one as it is."""
        lifted = [lift(maps[number]) for number, lift in zip(self.numbers, self.lifts, strict=True)]
        return (*reversed(lifted), maps[-1])


class PyramidMaps(Pyramid):
    """The last map of any encoder at a quarter, a half and all of its stride, with what lies around at twice of it.

    Finer maps come by transposed convolutions, with a layer norm and a GELU between two of them, and half the channels
    each time (the paper has own ones for each stride, here the finer map goes on from the other). The coarser one comes
    by maximum pooling. Each goes through a 1-wide and a 3-wide convolution with layer norms. The paper keeps the
    coarser map for its detector; here it is added to the map at the encoder's stride, so that sizes need not be a
    multiple of twice the patch.

    Args:
        channels: Channels of the encoder's last map.
        stride: Its total stride per axis.
        width: Channels of every map that comes out; 256 in the paper, which is much for volumes.

    Raises:
        UserError: A stride of 1 on every axis, or no channel.
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
        """Returns maps at the strides described."""
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
    """Layers of one lifted map."""
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
    """What each map of the pyramid goes through."""
    convolution = nn.Conv3d if volume else nn.Conv2d
    return nn.Sequential(
        convolution(in_channels, width, 1, bias=False),
        ChannelNorm(width),
        convolution(width, width, 3, padding=1, bias=False),
        ChannelNorm(width),
    )
