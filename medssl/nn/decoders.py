"""Light decoder of masked image modeling: from the sparse maps of an encoder to the voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from medssl.nn.sparse import ChannelNorm, sparsify, visible
from medssl.ops.masking import at_resolution
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

NormName = Literal["batch", "instance", "layer"]
Factors = tuple[int, ...]


def upsampling_path(strides: Sequence[Sequence[int]], *, first: int = 0) -> tuple[tuple[Factors, int | None], ...]:
    """Steps from the coarsest map to full resolution, as small as the strides allow.

    >>> upsampling_path([(1, 1), (4, 2), (8, 2)])
    (((2, 1), 2), ((2, 2), 1), ((2, 1), None))

    Args:
        strides: Total stride of every map per axis, fine to coarse.
        first: Number of the finest map that is used, from 0.

    Returns:
        For each step, coarse to fine: the factor per axis (a prime number or 1), and the number of the map at the
        resolution where the step starts (None without a map). A map at full resolution is not used. Of several maps at
        one resolution, the deepest is used.

    Raises:
        UserError: No map is coarser than the image, or the stride of a map does not divide that of the next one.
    """
    deepest = {tuple(stride): number for number, stride in enumerate(strides) if number >= first}
    coarse_to_fine = [(stride, number) for stride, number in reversed(deepest.items()) if max(stride) > 1]
    if not coarse_to_fine:
        message = f"no map is coarser than the image: got strides {list(deepest)}, expected one above 1"
        raise UserError(message)
    finer = [*(stride for stride, _ in coarse_to_fine[1:]), (1,) * len(coarse_to_fine[0][0])]
    path: list[tuple[Factors, int | None]] = []
    for (stride, number), target in zip(coarse_to_fine, finer, strict=True):
        if any(coarse % fine for coarse, fine in zip(stride, target, strict=True)):
            message = f"strides {target} of a map do not divide those of the next coarser one, {stride}"
            raise UserError(message)
        primes = [_primes(coarse // fine) for coarse, fine in zip(stride, target, strict=True)]
        factors = list(zip_longest(*primes, fillvalue=1))
        path += zip(factors, [number, *[None] * (len(factors) - 1)], strict=True)
    return tuple(path)


def _primes(number: int) -> list[int]:
    """Prime factors, smallest first."""
    for factor in range(2, number + 1):
        if number % factor == 0:
            return [factor, *_primes(number // factor)]
    return []


def norm_layers(norm: NormName, channels: Sequence[int], *, ndim: int) -> nn.ModuleList:
    """Normalization layers; inside ``nn.sparse.visible`` they take statistics over visible positions only.

    Args:
        norm: "batch" (over the batches of all processes), "instance" or "layer" (over channels, per position).
        channels: Channels of each layer.
        ndim: Number of spatial axes.

    Raises:
        UserError: The normalization is not known.
    """
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d,
        "instance": partial(nn.InstanceNorm2d if ndim == 2 else nn.InstanceNorm3d, affine=True),
        "layer": ChannelNorm,
    }
    if norm not in kinds:
        message = f'norm "{norm}" is unknown: expected one of {", ".join(kinds)}'
        raise UserError(message)
    layers = nn.ModuleList(kinds[norm](width) for width in channels)
    sparsify(layers)
    return layers


class Densify(nn.Module):
    """Makes sparse maps dense: normalizes visible positions, puts a learned token at hidden ones, and projects.

    Args:
        channels: Channels of the encoder's maps, fine to coarse.
        entering: For each step of the decoder: the number of its input map (None without one), and its channels.
        norm: Normalization, over visible positions only.
        ndim: Number of spatial axes.
    """

    def __init__(
        self, channels: Sequence[int], entering: Sequence[tuple[int | None, int]], *, norm: NormName, ndim: int
    ) -> None:
        super().__init__()
        self.numbers = tuple(number for number, _ in entering)
        entering_maps = [(channels[number], width) for number, width in entering if number is not None]
        self.norms = norm_layers(norm, [in_width for in_width, _ in entering_maps], ndim=ndim)
        self.tokens = nn.ParameterList(
            nn.init.trunc_normal_(torch.empty(in_width), std=0.02) for in_width, _ in entering_maps
        )
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        kernels = (1, *(3,) * (len(entering_maps) - 1))
        self.projections = nn.ModuleList(
            nn.Identity()
            if kernel == 1 and in_width == width
            else convolution(in_width, width, kernel, padding=kernel // 2)
            for (in_width, width), kernel in zip(entering_maps, kernels, strict=True)
        )

    def forward(
        self, maps: Sequence[Float[Tensor, "B Cl *sl"]], hidden: Bool[Tensor, "B *cells"]
    ) -> list[Float[Tensor, "B Dl *sl"] | None]:
        """Returns one dense map for each step of the decoder, coarse to fine; None for steps without one."""
        layers = iter(zip(self.norms, self.tokens, self.projections, strict=True))
        dense: list[Tensor | None] = []
        with visible(self.norms, hidden):
            for number in self.numbers:
                if number is None:
                    dense.append(None)
                    continue
                norm, token, project = next(layers)
                dense.append(project(with_token(norm(maps[number]), token, hidden)))
        return dense


class HiddenTokens(nn.Module):
    """Puts a learned token at the hidden positions of maps. Visible positions stay as the encoder returns them.

    Args:
        channels: Channels of the encoder's maps, fine to coarse.
        numbers: Numbers of the maps that get tokens; the others are returned as they are.
    """

    def __init__(self, channels: Sequence[int], numbers: Sequence[int]) -> None:
        super().__init__()
        self.numbers = tuple(numbers)
        self.tokens = nn.ParameterList(
            nn.init.trunc_normal_(torch.empty(channels[number]), std=0.02) for number in self.numbers
        )

    def forward(
        self, maps: Sequence[Float[Tensor, "B Cl *sl"]], hidden: Bool[Tensor, "B *cells"]
    ) -> list[Float[Tensor, "B Cl *sl"]]:
        """Returns all maps, fine to coarse."""
        filled = list(maps)
        for number, token in zip(self.numbers, self.tokens, strict=True):
            filled[number] = with_token(maps[number], token, hidden)
        return filled


def with_token(
    x: Float[Tensor, "B C *s"], token: Float[Tensor, " C"], hidden: Bool[Tensor, "B *cells"]
) -> Float[Tensor, "B C *s"]:
    """A map with a token at its hidden positions."""
    empty = at_resolution(hidden, x.shape[2:])[:, None]
    return torch.where(empty, token.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 2)), x)


class LightDecoder(nn.Module):
    """Plain convolutional decoder of SparK (Tian et al., ICLR 2023), in 2D or 3D and with a factor per axis.

    Each step adds its input map and upsamples by a transposed convolution with the same number of channels (kernel
    factor + 2 and padding 1). Two 3-wide convolutions with normalization then halve the channels; ReLU6 follows the
    first. A final 1-wide convolution computes the channels of the image.

    Args:
        width: Channels at the coarsest resolution, a multiple of 2 ** (number of steps).
        factors: Upsampling factor of each step per axis, coarse to fine.
        out_channels: Channels of the image.
        norm: "batch" (as published; statistics over all processes) or "instance" (for batches of a few volumes).

    Attributes:
        widths: Input channels of each step, coarse to fine.

    Raises:
        UserError: ``width`` cannot be halved in every step.
    """

    widths: tuple[int, ...]

    def __init__(
        self, width: int, factors: Sequence[Sequence[int]], *, out_channels: int, norm: NormName = "batch"
    ) -> None:
        super().__init__()
        if width < 1 or width % 2 ** len(factors):
            divisor = 2 ** len(factors)
            message = f"decoder width {width} is halved {len(factors)} times: expected a multiple of {divisor}"
            raise UserError(message)
        self.widths = tuple(width // 2**step for step in range(len(factors)))
        self.steps = nn.ModuleList(_Step(w, tuple(f), norm) for w, f in zip(self.widths, factors, strict=True))
        convolution = nn.Conv2d if len(factors[0]) == 2 else nn.Conv3d
        self.projection = convolution(self.widths[-1] // 2, out_channels, 1)
        # predictions start near zero, the mean of a normalized target
        nn.init.trunc_normal_(self.projection.weight, std=0.02)

    def forward(self, entering: Sequence[Float[Tensor, "B Cl *sl"] | None]) -> Float[Tensor, "B C *s"]:
        """Decodes maps into an image.

        Args:
            entering: One map with ``widths`` channels for each step, coarse to fine; None for steps without one (not
                for the first).
        """
        x = entering[0]
        if x is None or len(entering) != len(self.steps):
            message = f"expected {len(self.steps)} maps (None where none enters, not first), got {len(entering)}"
            raise ValueError(message)
        for number, step in enumerate(self.steps):
            skip = entering[number]
            x = step(x if number == 0 or skip is None else x + skip)
        image: Tensor = self.projection(x)
        return image


class _Step(nn.Module):
    """Upsamples by ``factor`` and halves the number of channels."""

    def __init__(self, width: int, factor: Factors, norm: NormName) -> None:
        super().__init__()
        volume = len(factor) == 3
        transposed = nn.ConvTranspose3d if volume else nn.ConvTranspose2d
        convolution = nn.Conv3d if volume else nn.Conv2d
        kernel = tuple(axis + 2 for axis in factor)
        self.up = transposed(width, width, kernel, stride=factor, padding=1)  # type: ignore[arg-type]
        self.convolutions = nn.ModuleList(
            convolution(width, out, 3, padding=1, bias=False) for out in (width, width // 2)
        )
        self.norms = norm_layers(norm, (width, width // 2), ndim=len(factor))
        self.activation = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        x = self.activation(self.norms[0](self.convolutions[0](x)))
        out: Tensor = self.norms[1](self.convolutions[1](x))
        return out
