r"""Global and local contrast with domain cues: crops at similar places in their volumes show similar anatomy.

A batch holds crops of several volumes, one from each of S equal parts along the volume. An embedding z of unit length
belongs to a volume, a part and a view. For an anchor a with a positive p and negatives N(a)::

    l(a, p) = -log( exp(z_a . z_p / tau) / ( exp(z_a . z_p / tau) + sum_{n in N(a)} exp(z_a . z_n / tau) ) )
    loss    = mean of l over all ordered positive pairs

Global loss, on projected pooled features: positives are other views of the crop and, with ``cross``, crops of the same
part of other volumes. Negatives are all other crops ("all"), or crops of other parts only ("other_part")::

    G^R  = view, all        G^D- = view, other_part        G^D = view + cross, other_part

Local loss, on regions of K voxels per axis of the decoder's map: positives are the same region in the other view (L^R)
and, with ``cross``, in other volumes (L^D). Negatives are the nearest regions in both views. Regions that are mostly
padding or not scored are left out.

Reference: Chaitanya et al., Contrastive learning of global and local features for medical image segmentation with
limited annotations, NeurIPS 2020, arXiv 2006.10511. ``docs/objectives/global_local.md`` lists the differences.
Predicts: the part of a volume that a crop is from, then regions in it (Chaitanya et al. 2020).
Encoders: any, with the U-Net decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from medssl.nn.decoders import upsampling_path
from medssl.nn.heads import Projection
from medssl.nn.unet import UNetDecoder
from medssl.objectives.base import Objective, evaluation_mode
from medssl.ops.collectives import gather
from medssl.ops.limits import expect
from medssl.ops.regions import counted_regions, nearest_regions, refuse_padding, region_corners, rows_of
from medssl.ops.similarity import contrast
from medssl.ops.tags import refuse_single_part, tags
from medssl.types import Loss, Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from torch import nn

    from medssl.encoders.base import Encoder
    from medssl.nn.decoders import NormName
    from medssl.types import Batch, Step, ViewSpec


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


@dataclass(frozen=True)
class Regions:
    """Regions of a map.

    Attributes:
        side: Cells along each axis of a region, at least 1.
        nearest: Number of nearest other regions to use as negatives, at least 1.
    """

    side: int = 3
    nearest: int = 5

    def __post_init__(self) -> None:
        expect(self.side >= 1, "regions.side", self.side, "at least 1")
        expect(self.nearest >= 1, "regions.nearest", self.nearest, "at least 1")


class GlobalContrast(Objective):
    """First stage: global contrast; the encoder learns from whole crops.

    Args:
        encoder: Any encoder; its pooled features are projected.
        view: Cropping and augmentation of the views.
        cues: Domain cues, which define the same part.
        negatives: "all": all other crops. "other_part": crops of other parts only.
        original: Adds a third view that is only cropped, at the largest scale.
        temperature: Divisor of the cosine similarity, above 0.
        projection: Channels of the hidden layer and of the output.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    compares_samples = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        cues: Cues = Cues(cross=True),
        negatives: Literal["all", "other_part"] = "other_part",
        original: bool = False,
        temperature: float = 0.1,
        projection: Sequence[int] = (1024, 128),
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        self.encoder = encoder
        views = (view, view, view.plain()) if original else (view, view)
        self.needs = ViewPlan(views, cues.sampling)
        self.cues, self.negatives, self.temperature = cues, negatives, temperature
        self.projection = Projection((encoder.channels[-1], *projection), norm=False)

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes all views in one batch, projects, and contrasts with the rows of all processes."""
        self.require(batch, step)
        features = self.encoder(torch.cat([view.image for view in batch.views]))
        z = self.projection(features.pooled)
        row_tags = tags(batch, step, self.cues.parts)
        if self.cues.cross or self.negatives == "other_part":
            refuse_single_part(row_tags, self.cues.parts, self.cues.axis)
        all_tags = row_tags.gathered()
        distinct = ~row_tags.same_view(all_tags)
        positive = row_tags.same_crop(all_tags) & distinct
        if self.cues.cross:
            positive |= row_tags.same_part_of_other_volume(all_tags)
        negative = ~row_tags.same_crop(all_tags) if self.negatives == "all" else row_tags.part[:, None] != all_tags.part
        loss, terms = contrast(z, positive, negative, distinct=distinct, temperature=self.temperature)
        return Loss(loss, terms, embedding=features.pooled[: len(step.samples)].detach())


class LocalContrast(Objective):
    """Second stage: local contrast; the first steps of a U-Net decoder learn from regions. The encoder does not change.

    Args:
        encoder: The encoder of the first stage; it is frozen, including its statistics.
        view: Cropping of the crops. Both views are the same crop and differ in intensity only.
        cues: Domain cues. With ``cross``, the same region of other volumes is a positive, and scans that are smaller
            than the view are centered.
        steps: Number of decoder steps that are trained, from the coarsest map on; fine-tuning trains the rest.
        regions: Regions of the decoder's map.
        temperature: Divisor of the cosine similarity, above 0.
        norm: Normalization of the decoder; use that of the U-Net head for fine-tuning.

    Raises:
        UserError: The view does not fit the encoder or has random geometry, the decoder's map is too small, or a
            setting is out of range.
    """

    compares_samples = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        cues: Cues = Cues(),
        steps: int = 3,
        regions: Regions = Regions(),
        temperature: float = 0.1,
        norm: NormName = "instance",
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        if view.geometry.flip != "none" or any(view.geometry.rotation_degrees) or view.scale != (1.0, 1.0):
            message = (
                "regions are compared at the same place: the view's geometry must be flip none, rotation_degrees [0.0] "
                f"and scale [1.0, 1.0], got {view.geometry.flip}, {list(view.geometry.rotation_degrees)} and "
                f"{list(view.scale)}"
            )
            raise UserError(message)
        self.encoder = encoder.requires_grad_(False)
        self.needs = ViewPlan((view, replace(view, nested_in=0)), cues.sampling, centered=cues.cross)
        self.cues, self.regions, self.temperature = cues, regions, temperature
        self.decoder = UNetDecoder(encoder.channels, encoder.strides, steps=steps, norm=norm)
        factors = [factor for factor, _ in upsampling_path(encoder.strides)[:steps]]
        cells = [side // stride for side, stride in zip(view.size, encoder.strides[-1], strict=True)]
        region_corners([n * math.prod(scales) for n, *scales in zip(cells, *factors, strict=True)], regions.side)
        width = self.decoder.widths[-1]
        self.projection = Projection((width, width, width), ndim=len(view.size))

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Encodes, decodes and projects both views, and contrasts their regions."""
        self.require(batch, step)
        if self.cues.cross:
            self.refuse_partial(batch)
        with evaluation_mode(self.encoder), torch.no_grad():
            features = self.encoder(torch.cat([view.image for view in batch.views]))
        projected = self.projection(self.decoder(features.maps)[-1])
        corners = region_corners(projected.shape[2:], self.regions.side)
        z = rows_of(projected, corners, self.regions.side).flatten(0, 1)
        usable = torch.cat([view.valid & view.scored for view in batch.views])
        counted = counted_regions(usable, projected.shape[2:], corners, self.regions.side)
        refuse_padding(counted, batch.views[0])
        counted = counted.flatten()
        row_tags = tags(batch, step, self.cues.parts)
        if self.cues.cross:
            refuse_single_part(row_tags, self.cues.parts, self.cues.axis)
        row_tags = row_tags.repeated(len(corners))
        all_tags = row_tags.gathered()
        is_nearest = nearest_regions(corners, self.regions.nearest).to(z.device)
        region = torch.arange(len(corners), device=z.device).repeat(len(projected))
        all_regions = gather(region)
        both_counted, same_region = counted[:, None] & gather(counted), region[:, None] == all_regions
        same_view = row_tags.same_view(all_tags)
        positive = row_tags.same_crop(all_tags) & ~same_view
        if self.cues.cross:
            positive |= row_tags.same_part_of_other_volume(all_tags)
        positive &= both_counted & same_region
        negative = both_counted & row_tags.same_crop(all_tags) & is_nearest[region[:, None], all_regions]
        distinct = both_counted & ~(same_view & same_region)
        loss, terms = contrast(z, positive, negative, distinct=distinct, temperature=self.temperature)
        trained = projected.detach().flatten(2).mean(2)[: len(step.samples)]  # the encoder itself is frozen
        return Loss(loss, terms, embedding=trained)

    def refuse_partial(self, batch: Batch) -> None:
        """Refuses crops that do not contain whole slices, where regions of different volumes are positives.

        Raises:
            UserError: A scan is larger than the view within the slices.
        """
        largest, size = batch.views[0].source_shape.amax(0).tolist(), batch.views[0].image.shape[2:]
        compared_axes = [axis for axis in range(len(size)) if len(size) == 2 or axis != self.cues.axis]
        if any(largest[axis] > size[axis] for axis in compared_axes):
            shown = [[sides[axis] for axis in compared_axes] for sides in (size, largest)]
            message = (
                "cues.cross compares regions of different volumes by their place in the view, which must hold whole "
                f"slices: the view has {shown[0]} voxels, the largest scan of this batch {shown[1]}: make the "
                "objective's view.size that large, or cues.cross false"
            )
            raise UserError(message)

    def exported(self) -> dict[str, nn.Module]:
        """The encoder, and the trained steps of the decoder."""
        return {"encoder": self.encoder, "decoder": self.decoder}
