"""Tags of embeddings (crop, volume, part, view), and masks of pairs with equal tags. Batch order does not matter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from medssl.ops.collectives import gather
from medssl.ops.coordinates import part_along
from medssl.types import Sampling, UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from medssl.types import Batch, Step


@dataclass(frozen=True)
class Cues:
    """Domain cues: how places in volumes define positives.

    Attributes:
        parts: Number of equal parts of a volume along ``axis``; one crop is taken from each.
        axis: Stored axis along which volumes are aligned; in 2D, the axis across the slices.
        cross: Whether crops of the same part of other volumes are positives, too.
    """

    parts: int = 4
    axis: int = 2
    cross: bool = False

    @property
    def sampling(self) -> Sampling:
        """Sampling of one crop from each part of a volume, with volumes of different subjects."""
        return Sampling(self.parts, distinct_subjects=True, stratified_axis=self.axis, slice_axis=self.axis)


class Tags(NamedTuple):
    """Tags of M embeddings: number of the crop, of the volume, of the part of the volume, and of the view."""

    crop: Int[Tensor, "M"]
    volume: Int[Tensor, "M"]
    part: Int[Tensor, "M"]
    view: Int[Tensor, "M"]

    def repeated(self, times: int) -> Tags:
        """Tags of ``times`` consecutive embeddings for each row."""
        return Tags(*(tag.repeat_interleave(times) for tag in self))

    def gathered(self) -> Tags:
        """Tags of the embeddings of all processes, in the order of ``collectives.gather``."""
        return Tags(*gather(torch.stack(self, 1)).unbind(1))

    def same_crop(self, other: Tags) -> Bool[Tensor, "M K"]:
        """Pairs of the same crop."""
        return self.crop[:, None] == other.crop

    def same_view(self, other: Tags) -> Bool[Tensor, "M K"]:
        """Pairs of the same view of the same crop."""
        return self.same_crop(other) & (self.view[:, None] == other.view)

    def same_part_of_other_volume(self, other: Tags) -> Bool[Tensor, "M K"]:
        """Pairs of the same part and the same view number, but of different volumes."""
        same_part = (self.part[:, None] == other.part) & (self.view[:, None] == other.view)
        return same_part & (self.volume[:, None] != other.volume)


def tags(batch: Batch, step: Step, parts: int) -> Tags:
    """Tags of the crops of a batch, ordered by view.

    Args:
        batch: The batch.
        step: Its step, with the global sample numbers.
        parts: Number of equal parts of a volume.
    """
    origin, views, device = batch.origin, len(batch.views), batch.views[0].image.device
    digests = [hashlib.blake2b(name.encode(), digest_size=7).digest() for name in origin.scan_ids]
    crop = torch.tensor(step.samples, device=device)
    volume = torch.tensor([int.from_bytes(digest, "big") for digest in digests], device=device)
    part = part_along(origin.along.to(device), parts)
    view = torch.arange(views, device=device).repeat_interleave(len(crop))
    return Tags(crop.repeat(views), volume.repeat(views), part.repeat(views), view)


def refuse_single_part(row_tags: Tags, parts: int, axis: int) -> None:
    """Refuses volumes whose crops all lie in one part: domain cues would be meaningless.

    Args:
        row_tags: Tags of this process; those of all processes are checked.
        parts: Number of parts of a volume.
        axis: Stored axis that is divided into parts.

    Raises:
        UserError: A volume has several crops, all in one part.
    """
    all_tags = row_tags.gathered()
    same_volume = all_tags.volume[:, None] == all_tags.volume
    has_several_crops, in_other_part = (
        same_volume & ~all_tags.same_crop(all_tags),
        same_volume & (all_tags.part[:, None] != all_tags.part),
    )
    if parts > 1 and bool((has_several_crops.any(dim=1) & ~in_other_part.any(dim=1)).any()):
        message = (
            f"all crops of a volume lie in the same of its {parts} parts: volumes need {parts} voxels or more along "
            f"axis {axis}, which flat images lack; choose the objective's cues.parts and cues.axis, or other scans"
        )
        raise UserError(message)
