"""Attention of one long sequence: exact up to a length, by landmarks above it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from medssl.ops.limits import expect

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

ITERATIONS = 6  # of the pseudo-inverse, as published
KERNEL = 33  # tokens of the convolution along the sequence, as published


class NystromAttention(nn.Module):
    """Layer norm, multi-head attention with a depthwise convolution of the values, and a linear layer.

    Args:
        width: Features of a token.
        heads: Attention heads; must divide the width.
        landmarks: Landmarks of the approximation, at least 1.
        exact: Tokens up to which attention is exact.
        dropout: Probability of dropping a feature of the output, 0 to below 1.
    """

    def __init__(
        self, width: int, *, heads: int = 8, landmarks: int = 256, exact: int = 8192, dropout: float = 0.0
    ) -> None:
        super().__init__()
        expect(landmarks >= 1, "head.landmarks", landmarks, "at least 1")
        expect(0 <= dropout < 1, "head.dropout", dropout, "from 0 to below 1")
        self.heads, self.landmarks, self.exact = heads, landmarks, exact
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Linear(width, 3 * width, bias=False)
        self.along = nn.Conv1d(heads, heads, KERNEL, padding=KERNEL // 2, groups=heads, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, tokens: Float[Tensor, "N W"]) -> Float[Tensor, "N W"]:
        """Returns what is added to the tokens."""
        query, key, value = self.split(tokens)
        if len(tokens) <= self.exact:
            attended = F.scaled_dot_product_attention(query[None], key[None], value[None], scale=1.0)[0]
        else:
            attended = nystrom(query, key, value, self.landmarks)
        # the convolution is the same for all features of a head: they are its batch
        attended = attended + self.along(value.permute(2, 0, 1)).permute(1, 2, 0)
        added: Tensor = self.out(attended.transpose(0, 1).flatten(1))
        return added

    def of_first(self, tokens: Float[Tensor, "N W"]) -> Float[Tensor, "N"]:
        """Exact attention of the first token, as a mean over the heads."""
        query, key, _ = self.split(tokens)
        scores = (query[:, :1] @ key.mT)[:, 0]
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(1).mean(0)

    def split(self, tokens: Float[Tensor, "N W"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values [H, N, W / H]."""
        parts = self.queries(self.norm(tokens)).unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        query, key, value = parts.unbind(0)
        return query * query.shape[-1] ** -0.5, key, value


def nystrom(
    query: Float[Tensor, "H N E"],
    key: Float[Tensor, "H N E"],
    value: Float[Tensor, "H N E"],
    landmarks: int,
    iterations: int = ITERATIONS,
) -> Float[Tensor, "H N E"]:
    """Nystrom's approximation of attention; queries are scaled.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        landmarks: Segments of the sequence whose means are landmarks; each token is one where there are as many.
        iterations: Steps of the pseudo-inverse.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    few_queries, few_keys = (segment_means(part.to(wide), landmarks) for part in (query, key))
    to_landmarks = (query.to(wide) @ few_keys.mT).softmax(2)
    between = (few_queries @ few_keys.mT).softmax(2)
    from_landmarks = (few_queries @ key.to(wide).mT).softmax(2) @ value.to(wide)
    return (to_landmarks @ (pseudo_inverse(between, iterations) @ from_landmarks)).to(value)


def segment_means(tokens: Float[Tensor, "H N E"], segments: int) -> Float[Tensor, "H M E"]:
    """Means of so many segments, as equal as can be."""
    count = tokens.shape[1]
    segments = min(segments, count)
    number = torch.arange(count, device=tokens.device) * segments // count
    sums = tokens.new_zeros(len(tokens), segments, tokens.shape[2]).index_add(1, number, tokens)
    return sums / number.bincount(minlength=segments)[:, None]


def pseudo_inverse(matrix: Float[Tensor, "H M M"], iterations: int = ITERATIONS) -> Float[Tensor, "H M M"]:
    """Moore-Penrose inverse by an iteration of third order (Razavi et al., 2014)."""
    rows, columns = matrix.abs().sum(2).amax(1), matrix.abs().sum(1).amax(1)
    inverse = matrix.mT / (rows * columns)[:, None, None]
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product))) / 4
    return inverse
