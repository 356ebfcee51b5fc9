r"""Transformer blocks with rotary positions and gated MLPs, as EVA-02 and Primus have them.

Queries and keys are turned, pair of channels by pair of channels, by an angle that is proportional to a coordinate of
their cell; the product of a query and a key then depends on the distance of their cells alone::

    (q_2i, q_2i+1) <- (q_2i cos a - q_2i+1 sin a, q_2i sin a + q_2i+1 cos a),   a = coordinate * 10000^(-i / bands)

Each axis has the same number of pairs (bands), the first axis first. Parameters have the names of
dynamic-network-architectures.

References: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, arXiv 2104.09864; Fang et
al., EVA-02, 2023, arXiv 2303.11331 (the block); Shazeer, GLU Variants Improve Transformer, 2020, arXiv 2002.05202.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from medssl.nn.drop_path import DropPath
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

LONGEST = 10_000.0  # the longest period is 2 pi times this distance


def refuse_head_width(width: int, heads: int, axes: int) -> None:
    """Refuses numbers of heads that leave a head no whole number of pairs of channels for each axis.

    Raises:
        UserError: ``heads`` does not divide ``width``, or a head has no multiple of 2 x axes channels.
    """
    if heads < 1 or width % heads:
        message = f"must divide width {width}"
        raise UserError(message, key="encoder.heads", got=heads)
    if width // heads % (2 * axes):
        message = (
            f"width {width} and heads {heads} give each head {width // heads} channels; rotary positions on {axes} "
            f"axes need a multiple of {2 * axes}"
        )
        step = 2 * axes * heads
        near = sorted({max(1, width // step) * step, -(-width // step) * step})
        raise UserError(
            message, key="encoder.width", hint=f"With {heads} heads take {' or '.join(map(str, near))} channels."
        )


def rotary_tables(
    cells: Sequence[int], channels: int, *, step: Sequence[float] | None = None, like: Tensor | None = None
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """Cosines and sines of the angles by which the cells of a grid turn the channels of a head.

    Coordinates count from the first cell in steps of ``step``, whatever the size of the grid: in a larger window cells
    have the distances that they had in training, and only new distances are added.

    Args:
        cells: Cells per axis.
        channels: Channels of a head, a multiple of 2 x axes.
        step: Distance between neighboring cells per axis; None takes 1.
        like: Tensor with the device and the floating type of the result.

    Returns:
        Two tables with one row for each cell, in C order; both channels of a pair have the same value.
    """
    bands = channels // (2 * len(cells))
    device = None if like is None else like.device
    frequencies = LONGEST ** (-torch.arange(bands, dtype=torch.float64, device=device) / bands)
    parts = []
    for axis, count in enumerate(cells):
        distance = 1.0 if step is None else float(step[axis])
        angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * distance * frequencies
        shape = [1] * len(cells)
        shape[axis] = count
        parts.append(angles.reshape(*shape, bands).expand(*cells, bands))
    angles = torch.cat(parts, -1).reshape(prod(cells), -1).repeat_interleave(2, -1)
    kind = torch.get_default_dtype() if like is None else like.dtype
    return angles.cos().to(kind), angles.sin().to(kind)


def rotate(
    x: Float[Tensor, "B H N D"], cosines: Float[Tensor, "*B 1 N D"], sines: Float[Tensor, "*B 1 N D"]
) -> Float[Tensor, "B H N D"]:
    """Turns each pair of channels of the last cells; tokens before them, which have no place, stay."""
    first = x.shape[2] - cosines.shape[2]
    placed = x[:, :, first:]
    turned = torch.stack((-placed[..., 1::2], placed[..., ::2]), -1).flatten(-2)
    return torch.cat((x[:, :, :first], (placed * cosines + turned * sines).to(x.dtype)), 2)


def centered_tables(
    cells: Sequence[int], channels: int, *, like: Tensor
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """Cosines and sines of DINOv3 (Simeoni et al., 2025, arXiv 2508.10104): coordinates from -1 to 1 on every grid.

    The longest period is 100 times the shortest. Angles of the first half of the channels are those of the second, for
    :func:`rotate_halves`. A larger image has finer steps, so that its positions are interpolated.

    Args:
        cells: Cells per axis.
        channels: Channels of a head, a multiple of 2 x axes.
        like: Tensor with the device and the floating type of the result.
    """
    bands = channels // (2 * len(cells))
    frequencies = 100.0 ** (-torch.arange(bands, dtype=torch.float64, device=like.device) / bands)
    sides = [(torch.arange(n, dtype=torch.float64, device=like.device) + 0.5) * 2 / n - 1 for n in cells]
    grid = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).reshape(-1, len(cells))
    angles = (2 * torch.pi * grid[:, :, None] * frequencies).flatten(1).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate_halves(
    x: Float[Tensor, "B H N D"], cosines: Float[Tensor, "*B 1 N D"], sines: Float[Tensor, "*B 1 N D"]
) -> Float[Tensor, "B H N D"]:
    """As :func:`rotate`, where a pair is a channel of the first half and its neighbor in the second."""
    first = x.shape[2] - cosines.shape[2]
    placed = x[:, :, first:]
    low, high = placed.chunk(2, -1)
    turned = torch.cat((-high, low), -1)
    return torch.cat((x[:, :, :first], (placed * cosines + turned * sines).to(x.dtype)), 2)


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions, an optional norm before the projection, and dropout.

    Args:
        width: Channels of a token.
        heads: Number of heads.
        dropout: Probability of dropping a weight of the attention while training.
        norm: Normalize the attended values before they are projected.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)  # a bias of keys adds the same to all scores of a query
        self.v_proj = nn.Linear(width, width)
        self.attn_drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B M C"], cosines: Float[Tensor, "*B 1 N D"], sines: Float[Tensor, "*B 1 N D"]
    ) -> Float[Tensor, "B M C"]:
        """Attends; the last N tokens have places."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in layers)
        query, key = rotate(query, cosines, sines), rotate(key, cosines, sines)
        dropout = self.attn_drop.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        projected: Tensor = self.proj(self.norm(attended.transpose(1, 2).flatten(2)))
        return projected


class GatedMLP(nn.Module):
    """SwiGLU with a norm before the last layer: ``fc2(norm(silu(g x) * v x))``.

    Args:
        width: Channels of a token.
        inner: Channels inside.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(width, inner)
        self.fc1_x = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Applies the layers to each token."""
        out: Tensor = self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))
        return out


class RotaryBlock(nn.Module):
    """Pre-norm block: rotary attention, then a gated MLP, each with a residual connection.

    Args:
        width: Channels of a token.
        heads: Number of heads.
        attention_dropout: Probability of dropping a weight of the attention while training.
        attention_norm: Normalize the attended values before they are projected.
        drop_path: Probability of dropping a branch while training.
        layer_scale: Initial value of the factors on the branches; None adds no factors.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        attention_dropout: float = 0.0,
        attention_norm: bool = False,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = RotaryAttention(width, heads, dropout=attention_dropout, norm=attention_norm)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = GatedMLP(width, width * 8 // 3)
        self.gamma_1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.gamma_2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "B M C"], cosines: Float[Tensor, "*B 1 N D"], sines: Float[Tensor, "*B 1 N D"]
    ) -> Float[Tensor, "B M C"]:
        """Applies attention and the MLP."""
        attended = self.attn(self.norm1(x), cosines, sines)
        x = x + self.drop_path(attended if self.gamma_1 is None else self.gamma_1 * attended)
        out = self.mlp(self.norm2(x))
        x = x + self.drop_path(out if self.gamma_2 is None else self.gamma_2 * out)
        return x
