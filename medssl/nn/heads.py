"""Projection heads: what stands between an encoder's features and a contrastive loss, and is thrown away afterwards."""

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
    """A multilayer perceptron on rows of features or, position by position, on maps.

    Between its layers stand a batch norm over the batches of all processes (optional) and ReLU; the last layer is
    linear. Reference: Chen et al., A simple framework for contrastive learning of visual representations (SimCLR),
    ICML 2020.

    Args:
        widths: Channels that enter, of each hidden layer, and that leave.
        norm: Batch norm behind each hidden layer.
        ndim: Spatial axes of what it is given; 0 for rows.

    Raises:
        UserError: Fewer than two widths, or one below 1.
    """

    def __init__(self, widths: Sequence[int], *, norm: bool = True, ndim: int = 0) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            message = f"projection {list(widths)}: expected two or more numbers of channels, 1 or more each"
            raise UserError(message)
        hidden = widths[1:-1]
        self.rows = ndim == 0
        self.layers = nn.ModuleList(
            _linear(a, b, ndim, bias=not (norm and number < len(hidden)))
            for number, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = norm_layers("batch", hidden if norm else [], ndim=ndim or 2)
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
