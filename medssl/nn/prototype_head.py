"""Head of self-distillation: how near a feature vector lies to each of many learned directions.

References: Caron et al., Emerging Properties in Self-Supervised Vision Transformers (DINO), ICCV 2021; Zhou et al.,
iBOT, ICLR 2022 (also for the tokens of patches).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from medssl.ops.limits import expect
from medssl.ops.similarity import cosine

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Prototypes:
    """Prototype heads of an objective.

    Attributes:
        count: Number of prototypes, at least 2.
        width: Channels that are compared with the prototypes, at least 1.
        hidden: Channels of the hidden layers before them, at least 1.
        frozen: Share of the training, 0 to 1, in which the prototypes stay as they are.
        norm_last_layer: Whether only the direction of a prototype counts. False also learns a length for each one,
            which DINO reports as less stable for large networks.
        separate: Whether positions and whole images have a head each, where both are compared; False shares one.
        head_first: Share of the training, 0 to 1, in which the heads are trained on a frozen encoder. For an encoder
            that comes with weights, since random heads would change it at first.
    """

    count: int = 4096
    width: int = 256
    hidden: int = 2048
    frozen: float = 0.01
    norm_last_layer: bool = True
    separate: bool = True
    head_first: float = 0.0

    def __post_init__(self) -> None:
        expect(0 <= self.frozen <= 1, "prototypes.frozen", self.frozen, "from 0 to 1")
        expect(0 <= self.head_first <= 1, "prototypes.head_first", self.head_first, "from 0 to 1")

    def head(self, channels: int) -> PrototypeHead:
        """A head with random weights.

        Args:
            channels: Channels of the features that enter.
        """
        sizes = {"hidden": self.hidden, "width": self.width}
        return PrototypeHead(channels, self.count, **sizes, norm_last_layer=self.norm_last_layer)


class PrototypeHead(nn.Module):
    """Three linear layers with GELU between them, then the cosine between the result and each prototype.

    Scores lie between -1 and 1 and are float32 at least. Prototypes count by their direction alone, as in DINO with its
    last layer normalized. Linear layers start Xavier-uniform with biases of 0: unlike normal weights of deviation 0.02
    they keep the length of what passes whatever the width is.

    Args:
        channels: Channels that enter.
        prototypes: Number of prototypes K.
        hidden: Channels of the two hidden layers.
        width: Channels that are compared with the prototypes.
        norm_last_layer: False multiplies the score of each prototype by a learned length, 1 at first (weight
            normalization, Salimans and Kingma, NeurIPS 2016).

    Raises:
        UserError: A number below 1, or fewer than two prototypes.
    """

    def __init__(
        self, channels: int, prototypes: int, *, hidden: int = 2048, width: int = 256, norm_last_layer: bool = True
    ) -> None:
        super().__init__()
        expect(prototypes >= 2, "prototypes", prototypes, "at least 2")
        expect(min(hidden, width) >= 1, "prototypes: channels", (hidden, width), "at least 1 each")
        widths = (channels, hidden, hidden, width)
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.prototypes = nn.Parameter(nn.init.normal_(torch.empty(prototypes, width)))
        self.lengths = None if norm_last_layer else nn.Parameter(torch.ones(prototypes))

    def forward(self, rows: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Scores of each row."""
        for number, layer in enumerate(self.layers):
            rows = layer(rows if number == 0 else F.gelu(rows))
        scores = cosine(rows, self.prototypes)
        return scores if self.lengths is None else scores * self.lengths

    def hold_prototypes(self) -> None:
        """Sets the gradient of the prototypes to zero; for ``Objective.before_step`` in the first steps of a run."""
        for parameter in (self.prototypes, self.lengths):
            if parameter is not None and parameter.grad is not None:
                parameter.grad.zero_()
