"""Head of self-distillation: how near a feature vector lies to each of many learned directions.

References: Caron et al., Emerging Properties in Self-Supervised Vision Transformers (DINO), ICCV 2021; Zhou et al.,
iBOT, ICLR 2022 (also for the tokens of patches).
"""

from __future__ import annotations

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

    Raises:
        UserError: A number below 1, or fewer than two prototypes.
    """

    def __init__(self, channels: int, prototypes: int, *, hidden: int = 2048, width: int = 256) -> None:
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

    def forward(self, rows: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Scores of each row."""
        for number, layer in enumerate(self.layers):
            rows = layer(rows if number == 0 else F.gelu(rows))
        return cosine(rows, self.prototypes)

    def hold_prototypes(self) -> None:
        """Sets the gradient of the prototypes to zero; for ``Objective.before_step`` in the first steps of a run."""
        if self.prototypes.grad is not None:
            self.prototypes.grad.zero_()
