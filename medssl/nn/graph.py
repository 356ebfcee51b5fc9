"""Message passing on graphs: nodes aggregate the features of their neighbors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class MessagePassing(nn.Module):
    """Graph convolutions with ReLU between them: x <- D^-1/2 (A + I) D^-1/2 x W + b, D the row sums of A + I.

    Reference: Kipf and Welling, Semi-supervised classification with graph convolutional networks, ICLR 2017.

    Args:
        widths: Channels of the input, and of the output of each convolution.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = nn.ReLU()

    def forward(self, x: Float[Tensor, "G N D"], edges: Int[Tensor, "G E 2"]) -> Float[Tensor, "G N F"]:
        """Passes messages along ``edges`` (source, target); a node receives from the targets of its edges."""
        mixing = mixing_matrix(edges, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        for number, layer in enumerate(self.layers):
            x = layer(mixing @ x)
            if number < len(self.layers) - 1:
                x = self.activation(x)
        return x


def mixing_matrix(
    edges: Int[Tensor, "G E 2"], nodes: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "G N N"]:
    """D^-1/2 (A + I) D^-1/2 of graphs with ``nodes`` nodes; row: receiving node, column: sending node."""
    adjacency = torch.zeros(len(edges), nodes * nodes, dtype=dtype, device=edges.device)
    adjacency.scatter_(1, edges[..., 0] * nodes + edges[..., 1], 1.0)
    adjacency = adjacency.view(-1, nodes, nodes) + torch.eye(nodes, dtype=dtype, device=edges.device)
    weight = adjacency.sum(2).rsqrt()
    return weight[:, :, None] * adjacency * weight[:, None, :]
