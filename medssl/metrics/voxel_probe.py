"""Probe of voxels: the class of each voxel from a frozen encoder's maps, by logistic regression on a sample of voxels.

The counterpart of the head ``VoxelLinear`` without a learning rate. A voxel's features are the encoder's maps,
interpolated linearly to it. The regression is fitted on equally many voxels of each class (``metrics.scan_probe``:
convex, float64) and then put into that head, which segments whole scans by sliding windows.

With equally many voxels of each class a small structure appears as likely as the background. Bias k therefore moves by
``prior * log(share of class k among the training scans' voxels / share among the sampled)``: prior 1 gives the
probabilities of the scans themselves (Prentice & Pyke, Biometrika 1979), 0 those of the sample. Dice wants something
between, so the prior is chosen as the penalty is: by the Dice on the validation scans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from medssl.heads.segmentation import VoxelLinear
from medssl.metrics.bootstrap import mean_of_known, subject_means
from medssl.metrics.scan_probe import fit_logistic
from medssl.types import LabelSchema, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.metrics.scan_probe import Linear
    from medssl.types import Features

    Scores = list[list[float | None]]

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # from the strongest on
PRIORS = (0.0, 0.5, 1.0)
NEVER = -1e4  # logit of the value to ignore, which is never predicted


@dataclass(frozen=True)
class Candidate:
    """A regression for voxels; the weights of a value to ignore are 0, and its bias excludes it."""

    penalty: float
    prior: float
    linear: Linear


def sample_voxels(
    numbers: Int[np.ndarray, "*s"], classes: int, per_class: int, generator: np.random.Generator
) -> Int[np.ndarray, "M n"]:
    """Voxels of a scan, ``per_class`` of each class at random, all where there are fewer; in the order of the array.

    Args:
        numbers: Class numbers; negative ones are never taken.
        classes: Number of classes.
        per_class: Voxels of each.
        generator: Draws them.
    """
    flat, chosen = numbers.ravel(), []
    for number in range(classes):
        of_class = np.flatnonzero(flat == number)
        chosen.append(of_class if len(of_class) <= per_class else generator.choice(of_class, per_class, replace=False))
    places = np.sort(np.concatenate(chosen))
    coordinates: Int[np.ndarray, "M n"] = np.stack(np.unravel_index(places, numbers.shape), 1)
    return coordinates


def features_at(features: Features, size: Sequence[int], places: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
    """The channels of all maps, fine to coarse, interpolated linearly to voxels.

    The same values as ``F.interpolate`` of the maps to ``size`` would have there.

    Args:
        features: Of a batch of one.
        size: Voxels of the image per axis.
        places: Voxels of the image, axes in the image's order.
    """
    extent = torch.tensor(size, device=places.device)
    at = ((2 * places + 1) / extent - 1).flip(1).float()  # the last axis first, as grid_sample wants it
    grid = at.reshape(1, *(1,) * (len(size) - 1), len(places), len(size))
    values = [F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False) for x in features.maps]
    return torch.cat([x.reshape(x.shape[1], len(places)) for x in values]).T


def fit_candidates(
    features: Float[np.ndarray, "M D"],
    truth: Int[np.ndarray, "M"],
    voxels: Sequence[int],
    schema: LabelSchema,
) -> list[Candidate]:
    """Regressions for every penalty and prior, the strongest and the most even first.

    Args:
        features: Of the sampled voxels.
        truth: Their class numbers.
        voxels: Voxels of each class in the training scans.
        schema: The classes.

    Raises:
        UserError: A class without a sampled voxel, features that are not finite, or no penalty with which the fit
            converges.
    """
    real = [number for number, (value, _) in enumerate(schema.classes) if value != schema.ignore]
    counts = np.bincount(truth, minlength=len(schema.classes))
    refuse_absent("training", counts, schema)
    if not np.isfinite(features).all():
        message = (
            f"{(~np.isfinite(features).all(1)).sum():,} of {len(features):,} voxels have features that are NaN or "
            "infinite: the training of the encoder diverged, or the scans hold such values"
        )
        raise UserError(message, hint="Check both")
    x = features.astype(np.float64)
    fitted = fit_logistic(x, np.searchsorted(real, truth), len(real), PENALTIES)
    if not fitted:
        message = "the regression on voxels converges with no penalty"
        raise UserError(message, hint="Check the features of the encoder")
    shift = np.log(np.asarray(voxels, float)[real] / sum(voxels)) - np.log(counts[real] / len(truth))
    candidates = []
    for penalty, linear in fitted:
        weight, bias = np.zeros((x.shape[1], len(counts))), np.full(len(counts), NEVER)
        weight[:, real] = linear.weight
        for prior in PRIORS:
            bias[real] = linear.bias + prior * shift
            shifted = type(linear)(linear.mean, linear.deviation, weight, bias.copy())
            candidates.append(Candidate(penalty, prior, shifted))
    return candidates


def refuse_absent(split: str, voxels: Sequence[int] | Int[np.ndarray, "K"], schema: LabelSchema) -> None:
    """Refuses masks in which a class has no voxel.

    Raises:
        UserError: Names the classes.
    """
    pairs = zip(schema.classes, voxels, strict=True)
    lacking = [name for (value, name), count in pairs if not count and value != schema.ignore]
    if lacking:
        message = (
            f"no voxel of the {split} scans is {' or '.join(lacking)}: a probe needs voxels of every class for fitting "
            "and for choosing its settings"
        )
        raise UserError(message, hint="Take more labeled subjects, or split anew.")


class Candidates(VoxelLinear):
    """Several regressions as one head: the probabilities of each, divided by their number, one after the other."""

    def __init__(self, encoder: Encoder, schema: LabelSchema, linears: Sequence[Linear], levels: Sequence[int]) -> None:
        names = [(n, name) for n, name in enumerate(f"{g}:{k}" for g in range(len(linears)) for _, k in schema.classes)]
        super().__init__(encoder, LabelSchema("candidates", tuple(names)))
        self.count = len(linears)
        set_weights(self, linears, levels)

    def forward(self, features: Features, size: Sequence[int]) -> Float[Tensor, "B GK *s"]:
        """Logits whose softmax over all is, for each regression, its probabilities divided by their number."""
        logits = super().forward(features, size)
        parts = logits.reshape(len(logits), self.count, -1, *size)
        return parts.log_softmax(2).reshape(logits.shape)


def set_weights(head: VoxelLinear, linears: Sequence[Linear], levels: Sequence[int]) -> None:
    """Puts regressions on the maps of some levels into a head, their classes one after the other."""
    bias = np.concatenate([linear.bias for linear in linears])
    pairs: list[tuple[Any, Any]] = list(zip(head.norms, head.projections, strict=True))
    first = 0
    for level, (norm, layer) in enumerate(pairs):
        layer.weight.data.zero_()
        norm.running_var.fill_(1 - norm.eps)  # the norm subtracts the mean only
        if level in levels:
            rows = slice(first, first + layer.in_channels)
            first = rows.stop
            weight = np.concatenate([(x.weight[rows] / x.deviation[rows, None]).T for x in linears])
            layer.weight.data.copy_(torch.from_numpy(weight).reshape(layer.weight.shape))
            norm.running_mean.copy_(torch.from_numpy(linears[0].mean[rows]))
    pairs[0][1].bias.data.copy_(torch.from_numpy(bias))


def dice_of_candidates(
    blocks: Iterable[tuple[int, Float[Tensor, "GK n *rest"]]], numbers: Int[Tensor, "p *rest"], count: int
) -> Scores:
    """Dice of every class but the first, for each of ``count`` regressions; None for a class that is in neither.

    Only the voxels of one block are in memory.

    Args:
        blocks: First plane and probabilities, as ``heads.sliding.slide`` gives them.
        numbers: Class numbers of the scan, the axis along which planes are given first; negative ones do not count.
        count: How many regressions share the probabilities.
    """
    tables: list[Tensor] = []
    for first, block in blocks:
        parts = block.reshape(count, -1, *block.shape[1:])
        classes = parts.shape[1]
        true = numbers[first : first + block.shape[1]]
        known = true >= 0
        pairs = [true[known] * classes + part.argmax(0)[known] for part in parts]
        tables.append(torch.stack([torch.bincount(pair, minlength=classes**2) for pair in pairs]))
    table = torch.stack(tables).sum(0).reshape(count, classes, classes)
    both, voxels = table.diagonal(dim1=1, dim2=2), table.sum(1) + table.sum(2)
    return [
        [2 * common / total if total else None for common, total in zip(commons[1:], sizes[1:], strict=True)]
        for commons, sizes in zip(both.tolist(), voxels.tolist(), strict=True)
    ]


def choose(scores: Sequence[Scores], subjects: Sequence[str]) -> tuple[int, list[float]]:
    """Place of the best candidate, of equals the first, and the mean Dice of each over subjects.

    Args:
        scores: For each validation scan those of all candidates.
        subjects: Subject of each scan.

    Raises:
        UserError: No scan has a class to score.
    """
    means = []
    for of_candidate in zip(*scores, strict=True):
        of_subject = subject_means([mean_of_known(row) for row in of_candidate], subjects)
        means.append(mean_of_known(list(of_subject.values())))
    dice = [round(mean, 12) for mean in means if mean is not None]
    if not means or len(dice) < len(means):
        message = "no validation scan has a class to score"
        raise UserError(message, hint="Choose another split")
    return max(range(len(dice)), key=lambda place: (dice[place], -place)), dice
