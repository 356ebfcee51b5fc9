r"""Global and local contrast with domain cues: crops at similar places in their volumes show similar anatomy.

A batch holds crops of several volumes, one from each of S equal parts along the volume. An embedding z of unit length
belongs to a volume, a part and a view. For an anchor a with a positive p and negatives N(a)::

    l(a, p) = -log( exp(z_a . z_p / tau) / ( exp(z_a . z_p / tau) + sum_{n in N(a)} exp(z_a . z_n / tau) ) )
    loss    = mean of l over all ordered positive pairs

Global loss, on projected pooled features: positives are other views of the crop and, with ``cross``, crops of the same
part of other volumes; both kinds together weigh the same (``balanced``). Negatives are all other crops ("all"), or
crops of other parts only ("other_part")::

    G^R  = view, all        G^D- = view, other_part        G^D = view + cross, other_part

Local loss, on regions of K voxels per axis of the decoder's map: positives are the same region in the other view (L^R)
and, with ``cross``, in other volumes (L^D). The views are two crops whose regions are tracked, and negatives are the
nearest regions in the other view; or one crop, as published, with negatives from both views. Regions that are mostly
padding, not scored or outside of the other view are left out.

Reference: Chaitanya et al., Contrastive learning of global and local features for medical image segmentation with
limited annotations, NeurIPS 2020, arXiv 2006.10511. ``docs/objectives/global_local.md`` lists the differences.
Predicts: the part of a volume that a crop is from, then regions in it (Chaitanya et al. 2020).
Encoders: any, with the U-Net decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from medssl.nn.decoders import upsampling_path
from medssl.nn.heads import Projection
from medssl.nn.unet import UNetDecoder
from medssl.objectives.base import Objective, evaluation_mode
from medssl.ops.collectives import gather
from medssl.ops.limits import expect
from medssl.ops.regions import (
    Regions,
    counted_at,
    nearest_regions,
    refuse_padding,
    refuse_partial,
    region_corners,
    rows_at,
    tracked_points,
)  # fmt: skip
from medssl.ops.similarity import contrast
from medssl.ops.tags import Cues, refuse_single_part, tags
from medssl.types import Loss, UserError, ViewPlan

if TYPE_CHECKING:
    from torch import nn

    from medssl.encoders.base import Encoder
    from medssl.nn.decoders import NormName
    from medssl.types import Batch, Step, ViewSpec

LEAST_OVERLAP = 0.25  # per axis; more leaves two crops so near each other that places are alike in both


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
        balanced: Give positives of the same volume and those of other volumes the same total weight, as published.
            False weighs every pair alike: with V volumes, V - 1 of V pairs are then across volumes.

    Raises:
        UserError: The view does not fit the encoder, or a setting is out of range.
    """

    compares_samples = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        cues: Cues = Cues(cross=True),  # noqa: B008 (frozen)
        negatives: Literal["all", "other_part"] = "other_part",
        original: bool = False,
        temperature: float = 0.1,
        projection: Sequence[int] = (1024, 128),
        balanced: bool = True,
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        self.encoder = encoder
        views = (view, view, view.plain()) if original else (view, view)
        self.needs = ViewPlan(views, cues.sampling)
        self.cues, self.negatives, self.temperature, self.balanced = cues, negatives, temperature, balanced
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
        kinds = [row_tags.same_crop(all_tags) & distinct]
        if self.cues.cross:
            kinds.append(row_tags.same_part_of_other_volume(all_tags))
        positive = kinds if self.balanced else torch.stack(kinds).any(0)
        negative = ~row_tags.same_crop(all_tags) if self.negatives == "all" else row_tags.part[:, None] != all_tags.part
        loss, terms = contrast(z, positive, negative, distinct=distinct, temperature=self.temperature)
        return Loss(loss, terms, embedding=features.pooled[: len(step.samples)].detach())


class LocalContrast(Objective):
    """Second stage: local contrast; the first steps of a U-Net decoder learn from regions. The encoder does not change.

    Args:
        encoder: The encoder of the first stage; it is frozen, including its statistics.
        view: Cropping and augmentation of the crops.
        cues: Domain cues. With ``cross``, the same region of other volumes is a positive, and scans that are smaller
            than the view are centered.
        steps: Number of decoder steps that are trained, from the coarsest map on; fine-tuning trains the rest.
        regions: Regions of the decoder's map.
        temperature: Divisor of the cosine similarity, above 0.
        norm: Normalization of the decoder; use that of the U-Net head for fine-tuning.
        crops: "two": the views are two crops, and regions are tracked from one to the other. "one": both views are the
            same crop and differ in intensity only, as published; padding then shows where a region lies, which is
            enough to tell it from others. ``cues.cross`` needs one crop.

    Raises:
        UserError: The view does not fit the encoder or the number of crops, the decoder's map is too small, or a
            setting is out of range.
    """

    compares_samples = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        cues: Cues = Cues(),  # noqa: B008 (frozen)
        steps: int = 3,
        regions: Regions = Regions(),  # noqa: B008 (frozen)
        temperature: float = 0.1,
        norm: NormName = "instance",
        crops: Literal["two", "one"] = "two",
    ) -> None:
        super().__init__()
        self.fits(encoder, view)
        expect(temperature > 0, "temperature", temperature, "above 0")
        self.encoder = encoder.requires_grad_(False)
        self.needs = _local_plan(view, cues, crops)
        self.cues, self.regions, self.temperature, self.crops = cues, regions, temperature, crops
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
            refuse_partial(batch.views[0], self.cues.axis)
        with evaluation_mode(self.encoder), torch.no_grad():
            features = self.encoder(torch.cat([view.image for view in batch.views]))
        projected = self.projection(self.decoder(features.maps)[-1])
        size = projected.shape[2:]
        corners = region_corners(size, self.regions.side)
        points = torch.cat(tracked_points(batch.views, corners, self.regions.side, size))
        z = rows_at(projected, points).flatten(0, 1)
        counted = counted_at(torch.cat([view.valid & view.scored for view in batch.views]), points, size)
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
        negative &= ~same_view if self.crops == "two" else True
        distinct = both_counted & ~(same_view & same_region)
        loss, terms = contrast(z, positive, negative, distinct=distinct, temperature=self.temperature)
        trained = projected.detach().flatten(2).mean(2)[: len(step.samples)]  # the encoder itself is frozen
        return Loss(loss, terms, embedding=trained)

    def exported(self) -> dict[str, nn.Module]:
        """The encoder, and the trained steps of the decoder."""
        return {"encoder": self.encoder, "decoder": self.decoder}


def _local_plan(view: ViewSpec, cues: Cues, crops: str) -> ViewPlan:
    """The views of the second stage: two crops that overlap, or one crop twice."""
    if crops not in ("two", "one"):
        message = "there is no such number of crops"
        raise UserError(message, key="objective.crops", got=crops, expected="two or one")
    if crops == "two":
        if cues.cross:
            message = "regions of other volumes are compared by their place in the view, which two crops do not share"
            raise UserError(message, key="objective.crops", got=crops, expected="one, or cues.cross false")
        slabs = len(view.size) == 3  # they may lie anywhere, or their place along the axis would be known
        sampling = replace(cues.sampling, stratified_axis=None) if slabs else cues.sampling
        return ViewPlan((view, replace(view, min_overlap=view.min_overlap or LEAST_OVERLAP)), sampling)
    still = view.geometry.flip == "none" and not any(view.geometry.rotation_degrees) and view.scale == (1.0, 1.0)
    if not still or view.area is not None:
        message = (
            "regions of one crop are compared at the same place: the view's geometry must be flip none, "
            f"rotation_degrees [0.0] and scale [1.0, 1.0], got {view.geometry.flip}, "
            f"{list(view.geometry.rotation_degrees)} and {list(view.scale)}"
        )
        raise UserError(message)
    return ViewPlan((view, replace(view, nested_in=0, min_overlap=0.0)), cues.sampling, centered=cues.cross)
