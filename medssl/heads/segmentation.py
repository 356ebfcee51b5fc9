r"""Segmentation heads on the maps of any encoder (U-Net decoder, linear probe), trained by Dice and cross-entropy.

With probabilities :math:`p`, one-hot truth :math:`t`, labeled voxels :math:`j`, foreground classes :math:`k`::

    dice_k = (2 sum_j p_kj t_kj + e) / (sum_j p_kj + sum_j t_kj + e)             per sample, or over the batch
    loss   = w_dice mean_k (1 - dice_k) + w_entropy mean_j -log p_j(true class)

References: Milletari et al., V-Net, 3DV 2016 (Dice); Isensee et al., nnU-Net, Nature Methods 2021 (the sum, and deep
supervision with weights that halve from one resolution to the next).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from medssl.heads.base import UNLABELED, Head, require_classes
from medssl.nn.unet import UNetDecoder
from medssl.ops.collectives import mean_over, reduce_sum
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.nn.decoders import NormName
    from medssl.nn.token_decoders import Pyramid
    from medssl.types import Features, LabelSchema

SMOOTH = 1e-5  # in numerator and denominator of the Dice: an absent class that is not predicted has Dice 1


class StepSums(NamedTuple):
    """Soft intersections and totals of the foreground classes of a whole step, and its number of micro-batches."""

    intersection: Float[Tensor, "C"]
    total: Float[Tensor, "C"]
    micro_batches: Float[Tensor, ""]


class LevelCounts(NamedTuple):
    """Counts of a step at one resolution: labeled samples times classes, labeled voxels, sums of the batch Dice."""

    samples: Float[Tensor, ""] | None = None
    voxels: Float[Tensor, ""] | None = None
    sums: StepSums | None = None


class SegmentationHead(Head):
    """Base class of segmentation heads: Dice loss and cross-entropy.

    Args:
        schema: Classes, the background first.
        axes: Axes of the image, 2 or 3.
        loss_weights: Weights of the Dice loss and of the cross-entropy, 0 or more, not both 0.
        batch_dice: Compute the Dice over the voxels of the whole optimizer step, of all micro-batches and processes,
            instead of per sample. This is more stable if many crops lack a class. With several micro-batches each is
            computed twice: once without a gradient, for the sums of the step.

    Raises:
        UserError: Fewer than two classes, or weights out of range.
    """

    kind = "segmentation"

    def __init__(
        self,
        schema: LabelSchema,
        *,
        axes: int,
        loss_weights: tuple[float, float] = (1.0, 1.0),
        batch_dice: bool = False,
    ) -> None:
        super().__init__()
        require_classes(schema, "a segmentation needs the background and at least one class more")
        if len(loss_weights) != 2 or min(loss_weights) < 0 or max(loss_weights) == 0:
            message = f"loss_weights {list(loss_weights)}: expected two numbers from 0 up, one of them above 0"
            raise UserError(message)
        self.schema = schema
        self.loss_weights = tuple(loss_weights)
        self.batch_dice = self.counts_predictions = batch_dice
        self.deep_supervision = False
        self.level_strides: tuple[tuple[int, ...], ...] = ((1,) * axes,)  # of the predictions while training

    def counts(self, target: Int[Tensor, "B *s"]) -> Float[Tensor, "T"]:
        """For each resolution: samples with a labeled voxel times foreground classes, and labeled voxels."""
        term_counts = []
        for at_level in self._targets(target):
            labeled = at_level != UNLABELED
            term_counts += [labeled.flatten(1).any(1).sum() * (len(self.schema.classes) - 1), labeled.sum()]
        return torch.stack(term_counts).double()

    def prediction_counts(
        self, prediction: Tensor | tuple[Tensor, ...], target: Int[Tensor, "B *s"]
    ) -> Float[Tensor, "S"]:
        """For each resolution the sums of the batch Dice: intersections, then totals, of the foreground classes."""
        levels = (prediction,) if isinstance(prediction, torch.Tensor) else prediction
        sums = []
        for logits, at_level in zip(levels, self._targets(target), strict=True):
            labeled = (at_level != UNLABELED)[:, None]
            probabilities = torch.where(labeled, _log_probabilities(logits, at_level).exp(), 0.0)
            sums.append(_overlaps(probabilities, at_level).sum(1).flatten())
        return torch.cat(sums).double()

    def _targets(self, target: Int[Tensor, "B *s"]) -> Iterator[Int[Tensor, "B *t"]]:
        """The target at each resolution of the predictions."""
        for stride in self.level_strides:
            size = [length // step for length, step in zip(target.shape[1:], stride, strict=True)]
            yield target if stride == self.level_strides[0] else coarser(target, size)

    def loss(
        self,
        prediction: Tensor | tuple[Tensor, ...],
        target: Int[Tensor, "B *s"],
        counts: Float[Tensor, "T"] | None = None,
    ) -> Float[Tensor, ""]:
        """Dice loss and cross-entropy over the labeled voxels of all processes; 0 if there are none.

        Args:
            prediction: Logits [B, K, *s], or several tensors, the full resolution first.
            target: Class numbers, ``UNLABELED`` for voxels that do not enter the loss.
            counts: As in :meth:`Head.loss`.
        """
        levels = (prediction,) if isinstance(prediction, torch.Tensor) else prediction
        weights = [0.5**level for level in range(len(levels))]
        losses = [
            self._level_loss(logits, coarser(target, logits.shape[2:]), self._counts_of(counts, level))
            for level, logits in enumerate(levels)
        ]
        return torch.stack([loss * w / sum(weights) for loss, w in zip(losses, weights, strict=True)]).sum()

    def _counts_of(self, counts: Float[Tensor, "T"] | None, level: int) -> LevelCounts:
        """What ``counts`` says of one resolution."""
        if counts is None:
            return LevelCounts()
        samples, voxels = counts[2 * level : 2 * level + 2]
        levels = len(self.level_strides)
        sums = counts[2 * levels :]
        if not self.batch_dice or not len(sums):
            return LevelCounts(samples, voxels)
        micro_batches = sums[-1]
        intersection, total = sums[:-1].reshape(levels, 2, -1)[level] * micro_batches
        return LevelCounts(samples, voxels, StepSums(intersection, total, micro_batches))

    def _level_loss(
        self, logits: Float[Tensor, "B K *s"], target: Int[Tensor, "B *s"], counts: LevelCounts
    ) -> Float[Tensor, ""]:
        """Loss at one resolution, in at least float32."""
        labeled = (target != UNLABELED)[:, None]
        logarithms = _log_probabilities(logits, target)
        entropy = F.nll_loss(logarithms, target, ignore_index=UNLABELED, reduction="sum")
        probabilities = torch.where(labeled, logarithms.exp(), 0.0)
        if self.batch_dice:
            dice = batch_dice_loss(probabilities, target, counts.sums)
        else:
            dice = dice_loss(probabilities, target, counts.samples)
        dice_weight, entropy_weight = self.loss_weights
        return dice_weight * dice + entropy_weight * mean_over(entropy, labeled.sum(), counts.voxels)


class UNet(SegmentationHead):
    """U-Net decoder on the encoder's maps, with any strides, in 2D or 3D.

    Args:
        encoder: Its ``channels`` and ``strides`` determine the decoder.
        schema: Classes, the background first.
        channels: Channels of each step, coarse to fine; None takes those of the encoder at that resolution.
        convolutions: Convolutions of each step, at least 1.
        norm: "instance", "batch" or "layer".
        deep_supervision: Also train the coarser steps, except the coarsest one. Weights halve from one step to the
            next and sum to 1.
        loss_weights: Weights of the Dice loss and of the cross-entropy, 0 or more.
        batch_dice: Compute the Dice over the voxels of the whole optimizer step, of all micro-batches and processes,
            instead of per sample.

    Raises:
        UserError: As :class:`SegmentationHead`; or the arguments do not fit the encoder's maps.
    """

    def __init__(
        self,
        encoder: Encoder | Pyramid,
        schema: LabelSchema,
        *,
        channels: Sequence[int] | None = None,
        convolutions: int = 1,
        norm: NormName = "instance",
        deep_supervision: bool = False,
        loss_weights: tuple[float, float] = (1.0, 1.0),
        batch_dice: bool = False,
    ) -> None:
        axes = len(encoder.strides[0])
        super().__init__(schema, axes=axes, loss_weights=loss_weights, batch_dice=batch_dice)
        self.decoder = UNetDecoder(
            encoder.channels, encoder.strides, widths=channels, convolutions=convolutions, norm=norm
        )
        widths, self.deep_supervision = self.decoder.widths, deep_supervision
        supervised_levels = max(1, len(widths) - 1) if deep_supervision else 1
        convolution = nn.Conv2d if axes == 2 else nn.Conv3d
        self.projections = nn.ModuleList(
            convolution(width, len(schema.classes), 1) for width in reversed(widths[-supervised_levels:])
        )
        for factor in list(reversed(self.decoder.factors))[: supervised_levels - 1]:
            self.level_strides += (tuple(a * b for a, b in zip(self.level_strides[-1], factor, strict=True)),)

    def forward(
        self, features: Features, size: Sequence[int]
    ) -> Float[Tensor, "B K *s"] | tuple[Float[Tensor, "B K *sl"], ...]:
        """Returns logits at full resolution; with deep supervision, while training, of all steps, fine to coarse.

        Args:
            features: Features of the encoder.
            size: Voxels per axis of the image.

        Raises:
            ValueError: The decoded maps do not have ``size``: the encoder's ``strides`` are wrong.
        """
        fine_to_coarse = self.decoder(features.maps)[::-1]
        if (decoded_size := tuple(fine_to_coarse[0].shape[2:])) != tuple(size):
            message = (
                f"the decoder leads to {decoded_size}, the image has {tuple(size)}: the encoder's strides are wrong"
            )
            raise ValueError(message)
        if len(self.projections) == 1 or not self.training:
            logits: Tensor = self.projections[0](fine_to_coarse[0])
            return logits
        return tuple(project(x) for project, x in zip(self.projections, fine_to_coarse, strict=False))


class VoxelLinear(SegmentationHead):
    """Linear probe: one linear map from the encoder's maps at a voxel to the logits of the voxel.

    Channels are standardized by batch norm without learned parameters, as in the linear probes of masked autoencoders
    (He et al., Masked Autoencoders, CVPR 2022, appendix A.1). Maps are interpolated linearly to the image. The linear
    map is applied before the interpolation, which gives the same result at lower cost.

    Args:
        encoder: Its ``channels`` determine the probe. Freeze it with the optimizer preset ``frozen``.
        schema: Classes, the background first.
        loss_weights: Weights of the Dice loss and of the cross-entropy, 0 or more.
        batch_dice: Compute the Dice over the voxels of the whole optimizer step, of all micro-batches and processes,
            instead of per sample.

    Raises:
        UserError: As :class:`SegmentationHead`.
    """

    def __init__(
        self,
        encoder: Encoder,
        schema: LabelSchema,
        *,
        loss_weights: tuple[float, float] = (1.0, 1.0),
        batch_dice: bool = False,
    ) -> None:
        axes = len(encoder.strides[0])
        super().__init__(schema, axes=axes, loss_weights=loss_weights, batch_dice=batch_dice)
        volume = len(encoder.strides[0]) == 3
        norm, convolution = (nn.BatchNorm3d, nn.Conv3d) if volume else (nn.BatchNorm2d, nn.Conv2d)
        self.norms = nn.ModuleList(norm(width, affine=False) for width in encoder.channels)
        self.projections = nn.ModuleList(
            convolution(width, len(schema.classes), 1, bias=level == 0) for level, width in enumerate(encoder.channels)
        )

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B K *s"]:
        """Returns logits at full resolution."""
        mode = "trilinear" if len(size) == 3 else "bilinear"
        levels = zip(features.maps, self.norms, self.projections, strict=True)
        logits = [F.interpolate(project(norm(x)), tuple(size), mode=mode) for x, norm, project in levels]
        return torch.stack(logits).sum(0)


def dice_loss(
    probabilities: Float[Tensor, "B K *s"],
    target: Int[Tensor, "B *s"],
    step_count: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Mean of 1 - Dice over the foreground classes and the samples with a labeled voxel, 0 to 1.

    Args:
        probabilities: Probability of each class; 0 for all classes where the target is ``UNLABELED``.
        target: Class numbers; class 0 is the background.
        step_count: Labeled samples times classes of the whole step, if it has several micro-batches (``mean_over``).
    """
    intersection, total = _overlaps(probabilities, target)
    losses = 1.0 - (2.0 * intersection + SMOOTH) / (total + SMOOTH)
    labeled = (target != UNLABELED).flatten(1).any(1).sum()  # samples without a label have a loss of exactly 0
    return mean_over(losses.sum(), labeled * losses.shape[1], step_count)


def batch_dice_loss(
    probabilities: Float[Tensor, "B K *s"],
    target: Int[Tensor, "B *s"],
    step: StepSums | None = None,
) -> Float[Tensor, ""]:
    """Mean of 1 - Dice over the foreground classes, each over all voxels of all samples and processes, 0 to 1.

    Args:
        probabilities: As in :func:`dice_loss`.
        target: As in :func:`dice_loss`.
        step: Sums of the whole step, if it has several micro-batches. The loss of each micro-batch then has the value
            of the step, and the mean of their gradients is the gradient of the step.
    """
    intersection, total = reduce_sum(_overlaps(probabilities, target).sum(1)).unbind()
    if step is None:
        return (1.0 - (2.0 * intersection + SMOOTH) / (total + SMOOTH)).mean()
    return _tangent(intersection, total, step)


def _tangent(intersection: Float[Tensor, "C"], total: Float[Tensor, "C"], step: StepSums) -> Float[Tensor, ""]:
    """Batch Dice loss of a step, with the gradient that one micro-batch adds to it.

    A ratio of sums is no mean over micro-batches. Its derivative at the sums of the step is.
    """
    numerator, denominator = 2.0 * step.intersection + SMOOTH, step.total + SMOOTH
    share = numerator / denominator.square() * total - 2.0 / denominator * intersection
    return (1.0 - numerator / denominator + step.micro_batches * (share - share.detach())).mean()


def _log_probabilities(logits: Float[Tensor, "B K *s"], target: Int[Tensor, "B *s"]) -> Float[Tensor, "B K *s"]:
    """Logarithms of probabilities in at least float32; unlabeled voxels have no gradient."""
    labeled = (target != UNLABELED)[:, None]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.where(labeled, logits, 0.0).log_softmax(1)


def _overlaps(probabilities: Float[Tensor, "B K *s"], target: Int[Tensor, "B *s"]) -> Float[Tensor, "2 B C"]:
    """Soft intersection and total of each sample and foreground class."""
    classes = torch.arange(1, probabilities.shape[1], device=target.device)
    truth = target[:, None] == classes.reshape(-1, *(1,) * (target.ndim - 1))
    foreground = probabilities[:, 1:]
    intersection = torch.where(truth, foreground, 0.0).flatten(2).sum(2)
    return torch.stack((intersection, foreground.flatten(2).sum(2) + truth.flatten(2).sum(2)))


def coarser(target: Int[Tensor, "B *s"], size: Sequence[int]) -> Int[Tensor, "B *t"]:
    """Class numbers at a lower resolution: each coarse voxel takes the class of the fine voxel in its middle."""
    for axis, (fine, coarse) in enumerate(zip(target.shape[1:], size, strict=True), 1):
        factor = fine // coarse
        middle_voxels = torch.arange(coarse, device=target.device) * factor + factor // 2
        target = target if factor == 1 else target.index_select(axis, middle_voxels)
    return target
