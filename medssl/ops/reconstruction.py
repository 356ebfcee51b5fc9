"""Targets, losses and pictures of masked image modeling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from medssl.ops.collectives import mean_over
from medssl.ops.masking import at_resolution
from medssl.ops.patches import cells_of, patch_moments, patchify, unpatchify

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.types import View


MEDIAN_OF = 1 << 15  # about the number of values for a median: sorting millions costs a tenth of a small step


class Target(NamedTuple):
    """Target of each cell: ``values`` = (voxels - ``mean``) / ``deviation``; ``counted`` marks values in the loss."""

    values: Float[Tensor, "B N P"]
    mean: Float[Tensor, "B N 1"]
    deviation: Float[Tensor, "B N 1"]
    counted: Bool[Tensor, "B N P"]


def counted_voxels(view: View, cell: Sequence[int]) -> Bool[Tensor, "B N P"]:
    """Voxels of each cell that are valid, scored and belong to a present channel."""
    present = view.present.reshape(*view.present.shape, *(1,) * len(cell))
    return patchify(view.valid & view.scored & present, cell)


def hidden_positions(view: View, hidden: Bool[Tensor, "B *cells"], stride: Sequence[int]) -> Bool[Tensor, "B N"]:
    """Positions of a map all of whose cells are hidden, and of whose voxels half or more are counted.

    Args:
        view: The view.
        hidden: True where a cell is hidden.
        stride: Voxels of the view per position and axis.
    """
    counted = counted_voxels(view, stride).float().mean(-1) >= 0.5
    return at_resolution(hidden, cells_of(view.image.shape[2:], stride)).flatten(1) & counted


def pixel_target(view: View, cell: Sequence[int], *, normalize: bool = True) -> Target:
    """Voxels of each cell relative to the mean and deviation of the cell (He et al., CVPR 2022), in at least float32.

    Only voxels that are valid, scored and of a present channel enter means and deviations; all others are 0. The
    variance is unbiased and at least (1 % of the sample's deviation) ** 2, so that noise in air is not amplified.

    Args:
        view: The view.
        cell: Voxels of one cell per axis.
        normalize: False keeps the voxel values (mean 0, deviation 1).
    """
    counted = counted_voxels(view, cell)
    precise = torch.promote_types(view.image.dtype, torch.float32)
    values = torch.where(counted, patchify(view.image, cell).to(precise), 0.0)
    if not normalize:
        zero = values.new_zeros(*values.shape[:2], 1)
        return Target(values, zero, zero + 1.0, counted)
    mean, variance = patch_moments(values, counted)
    _, overall = patch_moments(values.flatten(1), counted.flatten(1))
    deviation = (torch.maximum(variance, 1e-4 * overall[..., None]) + 1e-6).sqrt()
    return Target(torch.where(counted, (values - mean) / deviation, 0.0), mean, deviation, counted)


def compare(
    prediction: Float[Tensor, "B N P"],
    target: Target,
    hidden: Bool[Tensor, "B *cells"],
    distance: Literal["square", "absolute"] = "square",
    *,
    step_count: Tensor | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Mean distance over the counted voxels of hidden cells of all processes.

    Args:
        prediction: Prediction in the scale of the target.
        target: Result of :func:`pixel_target`.
        hidden: True where a cell is hidden; N cells in total.
        distance: "square" or "absolute" difference.
        step_count: Counted voxels of hidden cells of the step, if it has several micro-batches (``mean_over``).

    Returns:
        The loss, and detached terms for the log. "loss"; "chance": the loss of the best constant prediction (the mean
        for square, an estimate of the median for absolute differences); "hidden": share of the counted voxels that is
        hidden; "correlation" of prediction and target there. The last two are those of this process.
    """
    scored = target.counted & hidden.flatten(1)[..., None]
    number = scored.sum()

    def mean(values: Tensor, step_count: Tensor | None = None) -> Tensor:
        return mean_over(torch.where(scored, values, 0.0).sum(), number, step_count)

    def loss(guess: Tensor, step_count: Tensor | None = None) -> Tensor:
        difference = guess - target.values
        return mean(difference.square() if distance == "square" else difference.abs(), step_count)

    total = loss(prediction, step_count)
    constant = mean(target.values if distance == "square" else _median(target.values, scored))
    return total, {
        "loss": total.detach(),
        "chance": loss(constant),
        "hidden": number / target.counted.sum().clamp(min=1),
        "correlation": _correlation(prediction.detach(), target.values, scored),
    }


def reconstruction(
    view: View,
    prediction: Float[Tensor, "B N P"],
    target: Target,
    hidden: Bool[Tensor, "B *cells"],
    cell: Sequence[int],
) -> dict[str, Float[Tensor, "B C *s"]]:
    """Pictures in the value range of the input.

    Returns:
        "input"; "masked", hidden cells at the middle of the sample's range; "reconstruction", hidden cells as
        predicted (un-normalized by the mean and deviation of the true cell), visible cells as in the input.
    """
    size = view.image.shape[2:]
    predicted = unpatchify(prediction * target.deviation + target.mean, cell, size=size)
    covered = at_resolution(hidden, size)[:, None]
    flat = view.image.flatten(1)
    middle = ((flat.amin(1) + flat.amax(1)) / 2).reshape(-1, *(1,) * (view.image.ndim - 1))
    return {
        "input": view.image,
        "masked": torch.where(covered, middle, view.image),
        "reconstruction": torch.where(covered, predicted, view.image),
    }


def _median(values: Tensor, scored: Tensor) -> Tensor:
    """Median of the scored values of this process, of an evenly spaced subset if they are many; 0 without values."""
    step = max(1, values.numel() // MEDIAN_OF) | 1  # odd: cells have even numbers of voxels
    return torch.where(scored, values, torch.nan).flatten()[::step].nanmedian().nan_to_num()


def _correlation(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Pearson correlation over the scored voxels of this process; 0 if either is constant."""
    count = scored.sum().clamp(min=1)
    a, b = (torch.where(scored, x - torch.where(scored, x, 0.0).sum() / count, 0.0) for x in (prediction, target))
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-12)
