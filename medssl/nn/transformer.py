"""Parts of transformers for any number of axes: pre-norm blocks, sine-cosine positions, and visible tokens.

References: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021 (blocks); Vaswani et al., Attention Is All You
Need, NeurIPS 2017 (sines and cosines); He et al., Masked Autoencoders, CVPR 2022 (their form in two axes, and tokens
that are left out); Touvron et al., Going deeper with Image Transformers, ICCV 2021 (layer scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from medssl.nn.drop_path import DropPath
from medssl.nn.rotary import rotate_halves
from medssl.ops.limits import expect
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

LONGEST = 10_000.0  # the longest period is 2 pi times this distance


def sincos_positions(
    cells: Sequence[int],
    width: int,
    *,
    step: Sequence[float] | None = None,
    like: Tensor | None = None,
    grid: Sequence[int] | None = None,
) -> Float[Tensor, "N width"]:
    """Fixed position embedding of the cells of a grid: sines and cosines of their coordinates, axis by axis.

    Every axis has the same number of channels, the last axis first (as in the published weights of masked
    autoencoders). The first half of them are sines, the second half cosines, of the coordinate times
    10000^(-i / half). Remaining channels are 0 and come last. Nothing is learned, so that any grid size works.

    Args:
        cells: Cells per axis.
        width: Channels of a token.
        step: Distance between the centers of neighboring cells per axis, in any unit; None takes 1. Coordinates start
            at the center of the first cell.
        like: Tensor with the device and the floating type of the result.
        grid: Cells per axis of the grid whose field of view the cells share, so that coordinates are those of places in
            it; None counts cells from the first one.

    Returns:
        One row for each cell, in C order; the squares of each row sum to half of the channels in use.

    Raises:
        UserError: There are too few channels for a sine and a cosine for each axis.
    """
    ndim = len(cells)
    half = width // (2 * ndim)
    if half < 1:
        message = f"positions on {ndim} axes need at least {2 * ndim} channels, got {width}"
        raise UserError(message)
    device = None if like is None else like.device
    frequencies = LONGEST ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    parts = []
    for axis in reversed(range(ndim)):
        distance = 1.0 if step is None else float(step[axis])
        coordinates = torch.arange(cells[axis], dtype=torch.float64, device=device)
        if grid is not None:
            coordinates = (coordinates + 0.5) * grid[axis] / cells[axis] - 0.5
        coordinates = coordinates * distance
        angles = coordinates[:, None] * frequencies
        table = torch.cat((angles.sin(), angles.cos()), 1)
        shape = [1] * ndim
        shape[axis] = cells[axis]
        parts.append(table.reshape(*shape, 2 * half).expand(*cells, 2 * half))
    zeros = frequencies.new_zeros(*cells, width - 2 * half * ndim)
    table_of_cells = torch.cat((*parts, zeros), -1).reshape(prod(cells), width)
    return table_of_cells.to(torch.get_default_dtype() if like is None else like.dtype)


def resampled(grid: Float[Tensor, "B C *s"], cells: Sequence[int]) -> Float[Tensor, "B C *cells"]:
    """Values of a grid on another grid of the same field of view.

    Two axes are resampled bicubically with anti-aliasing; three trilinearly, or by means where one shrinks.
    """
    if tuple(grid.shape[2:]) == tuple(cells):
        return grid
    flat = len(cells) == 2
    shrinks = any(new < old for new, old in zip(cells, grid.shape[2:], strict=True))
    mode = "bicubic" if flat else "area" if shrinks else "trilinear"
    return F.interpolate(grid, tuple(cells), mode=mode, antialias=flat)


def visible_numbers(hidden: Bool[Tensor, "B *cells"]) -> Int[Tensor, "B K"]:
    """Numbers of the visible cells of each sample, in C order, ascending.

    Raises:
        UserError: Samples have different numbers of visible cells, or none.
    """
    visible = ~hidden.flatten(1)
    counts = visible.sum(1)
    smallest, largest = int(counts.min()), int(counts.max())
    if smallest != largest or largest == 0:
        message = (
            'mode "drop" needs equally many visible cells in every sample, and at least one: '
            f"got {smallest} to {largest}; draw masks of an exact count"
        )
        raise UserError(message)
    return visible.nonzero()[:, 1].reshape(len(visible), largest)


def gather_tokens(tokens: Float[Tensor, "B N C"], cells: Int[Tensor, "B K"]) -> Float[Tensor, "B K C"]:
    """Selects the tokens of the given cells of each sample, in their order."""
    return tokens.gather(1, cells[..., None].expand(-1, -1, tokens.shape[2]))


class LayerScale(nn.Module):
    """One learned factor for each channel."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Multiplies each channel by its factor."""
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N C"], *rotations: Float[Tensor, "*B 1 M D"]) -> Float[Tensor, "B N C"]:
        """Computes softmax(q k' / sqrt(d)) v of all tokens for each head, and projects.

        Args:
            x: Tokens.
            rotations: Cosines and sines for queries and keys of the last M tokens; none where positions are added.
        """
        batch, count, width = x.shape
        parts = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if rotations:
            query, key = (rotate_halves(part, *rotations) for part in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, count, width))
        return mixed


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Applies the layers to each token."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP, each with a residual connection.

    Parameters have the names of timm's vision transformers.

    Args:
        width: Channels of a token.
        heads: Number of attention heads.
        mlp_ratio: Inner channels of the MLP as a multiple of ``width``.
        drop_path: Probability of dropping a branch while training.
        layer_scale: Initial value of the factors on the branches; None adds no factors.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, round(width * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B N C"], *rotations: Float[Tensor, "*B 1 M D"]) -> Float[Tensor, "B N C"]:
        """Applies attention, with rotary positions if there are any, and the MLP."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), *rotations)))
        x = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return x


def transformer_blocks(
    width: int,
    depth: int,
    heads: int,
    *,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
) -> nn.Sequential:
    """Stack of transformer blocks, for an encoder or for the decoder of a masked autoencoder.

    Linear layers are initialized as in masked autoencoders (He et al., CVPR 2022): weights Xavier-uniform, biases 0.

    Args:
        width: Channels of a token.
        depth: Number of blocks, at least 1.
        heads: Number of attention heads; must divide ``width``.
        mlp_ratio: Inner channels of each MLP as a multiple of ``width``.
        drop_path: Probability of dropping a branch of the last block, 0 to below 1; it rises linearly from 0 at the
            first block.
        layer_scale: Initial value of the factors on the branches; None adds no factors.

    Raises:
        UserError: ``heads`` does not divide ``width``, or an argument is out of range.
    """
    if heads < 1 or width % heads:
        message = f"transformer: heads {heads} must divide width {width}"
        raise UserError(message)
    expect(depth >= 1, "transformer: depth", depth, "at least 1")
    expect(0 <= drop_path < 1, "transformer: drop_path", drop_path, "from 0 to below 1")
    blocks = nn.Sequential(
        *(
            Block(
                width,
                heads,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path * number / max(1, depth - 1),
                layer_scale=layer_scale,
            )
            for number in range(depth)
        )
    )
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return blocks
