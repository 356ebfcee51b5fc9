"""Bags: the tiles of a slide, or the slices of a volume, as features with coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from medssl.types.batches import Origin

CoordinateUnit = Literal["level0", "um", "slice"]


@dataclass(frozen=True)
class BagBatch:
    """Bags of several slides, padded to the largest.

    Attributes:
        features: Features of the tiles; anything at padding.
        mask: True where there is a tile, False at padding. Each bag has at least one tile.
        coords: Upper left corner of each tile, x and y; of slices their number and 0.
        origin: Which bags they are. Heads that draw at random read the sample numbers.
        values: Labels of whole slides by name.
    """

    features: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"]
    coords: Int[Tensor, "B N 2"]
    origin: Origin
    values: tuple[dict[str, str], ...] = ()

    def to(self, device: torch.device) -> BagBatch:
        """The same bags on a device."""
        features, mask, coords = (part.to(device) for part in (self.features, self.mask, self.coords))
        return replace(self, features=features, mask=mask, coords=coords)
