"""What encoders and objectives hand to the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the index and the command line must not pay for torch
    from jaxtyping import Float, Int
    from torch import Tensor

MaskMode = Literal["fill", "drop", "sparse"]


@dataclass(frozen=True)
class Features:
    """What an encoder returns.

    Attributes:
        maps: Feature maps, fine to coarse.
        pooled: One vector for each sample.
        tokens: Tokens of the cells, for encoders that have them.
        visible_cells: Number (in C order) of the cell of each token; None where every cell has a token.
    """

    maps: tuple[Float[Tensor, "B Cl *sl"], ...]
    pooled: Float[Tensor, "B C"]
    tokens: Float[Tensor, "B N C"] | None = None
    visible_cells: Int[Tensor, "B N"] | None = None


@dataclass(frozen=True)
class Step:
    """Where training stands: ``index`` counts optimizer steps, ``samples`` numbers this micro-batch globally.

    ``counts`` is what ``Objective.counts`` gives, as a mean over the ``micro_batches`` of the step; None for one alone.
    ``logged`` is False where no listener reads the terms of the loss: terms that cost time may then be left out.
    """

    index: int
    total: int
    seed: int
    samples: tuple[int, ...]
    counts: Tensor | None = None
    micro_batches: int = 1
    logged: bool = True

    @property
    def progress(self) -> float:
        """Share of the training done, 0 to 1."""
        return min(1.0, self.index / max(1, self.total))


@dataclass(frozen=True)
class Loss:
    """``total`` is minimized; ``terms`` are detached scalars for the log; ``embedding`` is for health measures."""

    total: Float[Tensor, ""]
    terms: dict[str, Tensor] = field(default_factory=dict)
    embedding: Float[Tensor, "B C"] | None = None
