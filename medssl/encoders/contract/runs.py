"""Test images, masks and comparisons that the clauses of the encoder contract share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medssl.encoders.base import ContractError
from medssl.ops.patches import cells_of
from medssl.types import Features

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.types import MaskMode


def image_for(encoder: Encoder, size: tuple[int, ...]) -> Tensor:
    """Three samples of noise [3, C, *size], the same at each call."""
    parameter = next(encoder.parameters())
    noise = torch.randn(3, encoder.in_channels, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter)


def unequal_hidden(encoder: Encoder, size: tuple[int, ...]) -> Tensor:
    """Mask that hides about half of the first sample's cells, one cell of the second and all of the third."""
    cells = cells_of(size, encoder.mask_cell)
    hidden = torch.zeros(3, *cells, dtype=torch.bool)
    hidden[0].view(-1)[::2] = True
    hidden[1].view(-1)[-1] = True
    hidden[2] = True
    return hidden.to(next(encoder.parameters()).device)


def equal_hidden(encoder: Encoder, size: tuple[int, ...]) -> Tensor:
    """Mask that hides half of the cells of each sample, different ones in each."""
    cells = cells_of(size, encoder.mask_cell)
    first = torch.arange(prod(cells)) < prod(cells) // 2
    hidden = torch.stack([first, first.roll(1), ~first if prod(cells) % 2 == 0 else first.roll(2)])
    return hidden.reshape(3, *cells).to(next(encoder.parameters()).device)


def run(encoder: nn.Module, image: Tensor, hidden: Tensor | None = None, mode: MaskMode | None = None) -> Features:
    """One forward with the same random numbers each time (dropout, drop-path)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features: Features = encoder(image, hidden, mode)
        return features


def select(part: Any, rows: Sequence[int]) -> Any:
    """Rows of a tensor, or of each tensor of a tuple; None stays."""
    if isinstance(part, tuple):
        return tuple(select(one, rows) for one in part)
    return None if part is None else part[list(rows)]


def outputs(features: Features) -> tuple[Tensor, ...]:
    """Every tensor of features."""
    token_outputs = [x for x in (features.tokens, features.visible_cells) if x is not None]
    return (*features.maps, features.pooled, *token_outputs)


def total(features: Features) -> Tensor:
    """One number that depends on every output."""
    floating = [x.float() for x in outputs(features) if x.is_floating_point()]
    return torch.stack([x.square().mean() + x.mean() for x in floating]).sum()


def gradient(tensor: Tensor) -> Tensor:
    """Gradient of a tensor; zeros where it has none."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def same(a: Features, b: Features, what: str, tolerance: float = 1e-5) -> None:
    """Raises unless all outputs agree within ``tolerance``; 0 compares bit by bit."""
    clause(len(outputs(a)) == len(outputs(b)), what)
    for x, y in zip(outputs(a), outputs(b), strict=True):
        scale = max(1.0, float(y.detach().abs().max()))
        exact = tolerance == 0 or not y.is_floating_point()
        same_shape = x.shape == y.shape
        equal = same_shape and (torch.equal(x, y) if exact else torch.allclose(x, y, 1e-4, tolerance * scale))
        clause(equal, what)


def clause(holds: bool, what: str) -> None:
    """Raises unless a clause holds."""
    if not holds:
        raise ContractError(what)
