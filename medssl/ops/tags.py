"""What each embedding of a batch is of, and which pairs are of the same: as masks, never by places in a batch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import torch

from medssl.ops.collectives import gather
from medssl.ops.coordinates import part_along
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from medssl.types import Batch, Step


class Tags(NamedTuple):
    """What each embedding is of: its crop, the volume and the part of the volume, and the number of its view."""

    crop: Int[Tensor, "M"]
    volume: Int[Tensor, "M"]
    part: Int[Tensor, "M"]
    view: Int[Tensor, "M"]

    def each(self, times: int) -> Tags:
        """The tags of ``times`` embeddings of each row, one after the other."""
        return Tags(*(tag.repeat_interleave(times) for tag in self))

    def of_all(self) -> Tags:
        """The tags of the embeddings of all processes, in the order of ``collectives.gather``."""
        return Tags(*gather(torch.stack(self, 1)).unbind(1))

    def same(self, other: Tags) -> Bool[Tensor, "M K"]:
        """Of the same crop."""
        return self.crop[:, None] == other.crop

    def itself(self, other: Tags) -> Bool[Tensor, "M K"]:
        """Of the same view of the same crop."""
        return self.same(other) & (self.view[:, None] == other.view)

    def across(self, other: Tags) -> Bool[Tensor, "M K"]:
        """Of the same part and the same kind of view, but of different volumes."""
        same_part = (self.part[:, None] == other.part) & (self.view[:, None] == other.view)
        return same_part & (self.volume[:, None] != other.volume)


def tags(batch: Batch, step: Step, parts: int) -> Tags:
    """Tags of the crops of a batch, first those of its first view."""
    origin, views, device = batch.origin, len(batch.views), batch.views[0].image.device
    digests = [hashlib.blake2b(name.encode(), digest_size=7).digest() for name in origin.scan_ids]
    crop = torch.tensor(step.samples, device=device)
    volume = torch.tensor([int.from_bytes(digest, "big") for digest in digests], device=device)
    part = part_along(origin.along.to(device), parts)
    view = torch.arange(views, device=device).repeat_interleave(len(crop))
    return Tags(crop.repeat(views), volume.repeat(views), part.repeat(views), view)


def refuse_single_part(row_tags: Tags, parts: int, axis: int) -> None:
    """Refuses volumes whose crops all lie in one part: they would be alike, or told apart, for no reason.

    Args:
        row_tags: The crops of this process; those of all are looked at.
        parts: Number of parts of a volume.
        axis: Stored axis that is parted.

    Raises:
        UserError: Says what volumes must be like.
    """
    all_tags = row_tags.of_all()
    same_volume = all_tags.volume[:, None] == all_tags.volume
    has_several_crops, in_other_part = (
        same_volume & ~all_tags.same(all_tags),
        same_volume & (all_tags.part[:, None] != all_tags.part),
    )
    if parts > 1 and bool((has_several_crops.any(dim=1) & ~in_other_part.any(dim=1)).any()):
        message = (
            f"all crops of a volume lie in the same of its {parts} parts: volumes need {parts} voxels or more along "
            f"axis {axis}, which flat images lack; choose the objective's cues.parts and cues.axis, or other scans"
        )
        raise UserError(message)
