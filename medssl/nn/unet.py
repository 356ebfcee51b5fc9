"""U-Net decoder: from the maps of any strided encoder to features at full resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.nn.decoders import NormName, norm_layers, upsampling_path
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

NARROWEST = 8  # smallest number of channels of a step: fewer cannot separate several classes


class UNetDecoder(nn.Module):
    """Decoder of the U-Net (Ronneberger et al., MICCAI 2015), in 2D or 3D and with a factor per axis.

    Each step upsamples by a transposed convolution whose kernel equals its factor. It concatenates the encoder's map of
    that resolution, if there is one (also at full resolution). 3-wide convolutions follow, each with a normalization
    and a leaky ReLU. If the encoder has no map, as between full resolution and a first stride of 4, the step has no
    skip connection.

    Args:
        channels: Channels of the encoder's maps, fine to coarse.
        strides: Total stride of every map per axis, fine to coarse.
        widths: Channels of each step, coarse to fine; None takes those of the concatenated map, or half of the
            previous step.
        convolutions: Convolutions of each step, at least 1.
        steps: Number of steps from the coarsest map on; None takes all steps to full resolution.
        norm: "instance", "batch" (statistics over the batches of all processes) or "layer".

    Attributes:
        widths: Channels of each step, coarse to fine.
        factors: Upsampling factor of each step per axis.

    Raises:
        UserError: No map is coarser than the image, the strides do not nest, or an argument is out of range.
    """

    widths: tuple[int, ...]
    factors: tuple[tuple[int, ...], ...]

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        *,
        widths: Sequence[int] | None = None,
        convolutions: int = 1,
        norm: NormName = "instance",
        steps: int | None = None,
    ) -> None:
        super().__init__()
        path = upsampling_path(strides)
        if steps is not None and not 1 <= steps <= len(path):
            message = f"{steps} steps: expected 1 to {len(path)}, which leads to full resolution"
            raise UserError(message)
        full_resolution = [number for number, stride in enumerate(strides) if max(stride) == 1]
        joined = (*(number for _, number in path[1:]), full_resolution[-1] if full_resolution else None)
        path, self.joined = path[:steps], joined[:steps]
        self.widths = _widths(channels, self.joined) if widths is None else tuple(widths)
        if len(self.widths) != len(path) or min(self.widths) < 1 or convolutions < 1:
            message = (
                f"channels {list(self.widths)} with {convolutions} convolutions: expected {len(path)} numbers, one for "
                "each step from the coarsest map to full resolution, and at least one convolution"
            )
            raise UserError(message)
        self.factors = tuple(tuple(factor) for factor, _ in path)
        in_widths = (channels[-1], *self.widths[:-1])
        skip_widths = [0 if number is None else channels[number] for number in self.joined]
        self.steps = nn.ModuleList(
            _Step((in_width, skip_width, width), factor, convolutions, norm)
            for in_width, skip_width, width, (factor, _) in zip(in_widths, skip_widths, self.widths, path, strict=True)
        )

    def forward(self, maps: Sequence[Float[Tensor, "B Cl *sl"]]) -> list[Float[Tensor, "B Dl *tl"]]:
        """Returns the features after each step, coarse to fine; the last are at full resolution."""
        x = maps[-1]
        features = []
        for step, number in zip(self.steps, self.joined, strict=True):
            x = step(x, None if number is None else maps[number])
            features.append(x)
        return features


def _widths(channels: Sequence[int], joined: Sequence[int | None]) -> tuple[int, ...]:
    """Channels of each step, coarse to fine: those of the concatenated map, or half of the previous step."""
    widths = [channels[-1]]
    for number in joined:
        widths.append(max(NARROWEST, widths[-1] // 2) if number is None else channels[number])
    return tuple(widths[1:])


class _Step(nn.Module):
    """Upsamples by ``factor``, concatenates a map, convolves; ``widths``: channels of input, map and output."""

    def __init__(
        self, widths: tuple[int, int, int], factor: tuple[int, ...], convolutions: int, norm: NormName
    ) -> None:
        super().__init__()
        volume = len(factor) == 3
        transposed = nn.ConvTranspose3d if volume else nn.ConvTranspose2d
        convolution = nn.Conv3d if volume else nn.Conv2d
        in_width, skip_width, width = widths
        self.up = transposed(in_width, width, factor, stride=factor)  # type: ignore[arg-type]
        self.convolutions = nn.ModuleList(
            convolution(conv_width, width, 3, padding=1, bias=False)
            for conv_width in (width + skip_width, *[width] * (convolutions - 1))
        )
        self.norms = norm_layers(norm, [width] * convolutions, ndim=len(factor))
        self.activation = nn.LeakyReLU(1e-2, inplace=True)
        for layer in (self.up, *self.convolutions):
            nn.init.kaiming_normal_(layer.weight, a=1e-2)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        if skip is not None:
            x = torch.cat((x, skip.to(x.dtype)), 1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.activation(norm(convolution(x)))
        return x
