"""Projection heads between an encoder's features and a contrastive loss; they are discarded after pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from medssl.nn.decoders import norm_layers
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Projection(nn.Module):
    """Multilayer perceptron on rows of features, or on each position of maps.

    An optional batch norm over all processes and ReLU follow each hidden layer; the last layer is linear, with a batch
    norm after it by option. Reference:
    Chen et al., A simple framework for contrastive learning of visual representations (SimCLR), ICML 2020.

    Args:
        widths: Channels of the input, of each hidden layer, and of the output.
        norm: Whether a batch norm follows each hidden layer.
        ndim: Number of spatial axes of the input; 0 for rows.
        norm_output: Whether one follows the last layer, too, where there is one after hidden layers.

    Raises:
        UserError: There are fewer than two widths, or one is below 1.
    """

    def __init__(self, widths: Sequence[int], *, norm: bool = True, ndim: int = 0, norm_output: bool = False) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            message = f"projection {list(widths)}: expected two or more numbers of channels, 1 or more each"
            raise UserError(message)
        normed = (widths[1:] if norm_output else widths[1:-1]) if norm else []
        self.rows = ndim == 0
        self.layers = nn.ModuleList(
            _linear(a, b, ndim, bias=number >= len(normed)) for number, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = norm_layers("batch", normed, ndim=ndim or 2)
        self.activation = nn.ReLU()

    def forward(self, x: Float[Tensor, "B C *s"]) -> Float[Tensor, "B D *s"]:
        """Projects each row or position."""
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number < len(self.norms):
                x = self.norms[number](x[..., None, None])[..., 0, 0] if self.rows else self.norms[number](x)
            if number < len(self.layers) - 1:
                x = self.activation(x)
        return x


def _linear(in_channels: int, out_channels: int, ndim: int, *, bias: bool) -> nn.Module:
    """A linear map of the channels at every position."""
    if ndim == 0:
        return nn.Linear(in_channels, out_channels, bias=bias)
    return (nn.Conv2d if ndim == 2 else nn.Conv3d)(in_channels, out_channels, 1, bias=bias)
