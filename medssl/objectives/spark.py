r"""SparK: masked image modelling for convolutional networks, on images and volumes.

With cells :math:`c` of the image, hidden set :math:`M` drawn per sample, encoder :math:`f`, decoder :math:`g`::

    z      = f(x visible)                       sparse: hidden positions stay empty at every scale
    d_i    = project_i(norm_i(z_i), token_i at hidden positions)                 coarse to fine
    y      = g(d_0, d_1, ...)
    t_cj   = (x_cj - mean_c) / sqrt(max(var_c, (0.01 std_x)^2) + 1e-6)           voxel j of cell c
    loss   = sum_{c in M, j scored} (y_cj - t_cj)^2  /  number of terms

Reference: Tian et al., Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling, ICLR 2023,
arXiv 2301.03580. Where this differs from the paper, ``docs/objectives/spark.md`` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm, prod
from typing import TYPE_CHECKING, NamedTuple

import torch

from medssl.nn.decoders import Densify, LightDecoder, NormName, upsampling_path
from medssl.objectives.base import Objective, undisturbed
from medssl.ops.collectives import mean_over
from medssl.ops.draws import draws
from medssl.ops.masking import at_resolution, hidden_count, random_hidden
from medssl.ops.patches import cells_of, patch_moments, patchify, unpatchify
from medssl.types import Loss, UserError, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Batch, Features, Step, View, ViewSpec


class SparK(Objective):
    """Hides cells of one view from a convolutional encoder and reconstructs them from what is left.

    Args:
        encoder: Encoder with the mask mode "sparse".
        view: The view; its size must be a multiple of the encoder's stride and of ``cell``.
        mask_ratio: Share of cells to hide; None takes 0.6 (2D, as published) or 0.75 (3D).
        cell: Voxels of one cell per axis; None takes the encoder's ``mask_cell``.
        decoder_width: Channels of the decoder at the coarsest map; None takes 48 (2D) or 16 (3D) at the last step,
            doubled for each step before it: 768 for a stride of 32 in 2D, as published.
        normalise_target: Predict each cell relative to its own mean and deviation; False predicts the voxels.
        norm: Normalisation before the tokens and in the decoder; None takes "batch" in 2D and "instance" in 3D, where
            a batch is a few volumes. "layer" is for encoders with layer norms (the decoder then has batch norms).

    Raises:
        UserError: The encoder cannot be masked sparsely, or the view does not fit it.
    """

    progress = "loss"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        mask_ratio: float | None = None,
        cell: Sequence[int] | None = None,
        decoder_width: int | None = None,
        normalise_target: bool = True,
        norm: NormName | None = None,
    ) -> None:
        super().__init__()
        volume = len(view.size) == 3
        self.encoder = encoder
        self.needs = ViewPlan(views=(view,))
        self.mask_ratio = (0.75 if volume else 0.6) if mask_ratio is None else mask_ratio
        self.cell = tuple(encoder.mask_cell if cell is None else cell)
        self.normalise_target = normalise_target
        self.cells = _cells(encoder, view, self.cell, self.mask_ratio)
        norm = norm or ("instance" if volume else "batch")
        path = upsampling_path(encoder.strides)
        width = (16 if volume else 48) * 2 ** (len(path) - 1) if decoder_width is None else decoder_width
        self.decoder = LightDecoder(
            width,
            [factor for factor, _ in path],
            out_channels=encoder.in_channels,
            norm="instance" if norm == "instance" else "batch",
        )
        entering = [(number, width) for (_, number), width in zip(path, self.decoder.widths, strict=True)]
        self.densify = Densify(encoder.channels, entering, norm=norm, ndim=len(view.size))

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Hides, encodes, fills, decodes and compares; the loss is a mean over the scored voxels of all processes."""
        self.require(batch, step)
        view = batch.views[0]
        hidden = self._hidden(view, step)
        prediction, features = self._reconstruct(view, hidden)
        target = pixel_target(view, self.cell, normalise=self.normalise_target)
        scored = target.counted & hidden.flatten(1)[..., None]
        error = torch.where(scored, (prediction - target.values).square(), 0.0)
        loss = mean_over(error.sum(), scored.sum())
        terms = {
            "loss": loss.detach(),
            "hidden": scored.sum() / target.counted.sum().clamp(min=1),
            "correlation": _correlation(prediction.detach(), target.values, scored),
        }
        return Loss(total=loss, terms=terms, embedding=features.pooled.detach())

    @torch.no_grad()
    def pictures(self, batch: Batch, step: Step) -> dict[str, Float[Tensor, "B C *s"]]:
        """Input, what the encoder saw of it, and its reconstruction, all in the values of the input.

        Runs in evaluation mode and on this process alone; leaves weights, statistics and random states as they were.

        Returns:
            "input"; "masked", hidden cells at the middle of the sample's range; "reconstruction", hidden cells as
            predicted (un-normalised by the mean and deviation of the true cell), visible cells as in the input.
        """
        self.require(batch, step)
        view = batch.views[0]
        hidden = self._hidden(view, step)
        with undisturbed(self):
            prediction, _ = self._reconstruct(view, hidden)
        target = pixel_target(view, self.cell, normalise=self.normalise_target)
        size = view.image.shape[2:]
        predicted = unpatchify(prediction * target.deviation + target.mean, self.cell, size=size)
        covered = at_resolution(hidden, size)[:, None]
        flat = view.image.flatten(1)
        middle = ((flat.amin(1) + flat.amax(1)) / 2).reshape(-1, *(1,) * (view.image.ndim - 1))
        return {
            "input": view.image,
            "masked": torch.where(covered, middle, view.image),
            "reconstruction": torch.where(covered, predicted, view.image),
        }

    def _hidden(self, view: View, step: Step) -> Bool[Tensor, "B *cells"]:
        return random_hidden(self.cells, self.mask_ratio, draws(step, "spark.mask")).to(view.image.device)

    def _reconstruct(self, view: View, hidden: Bool[Tensor, "B *cells"]) -> tuple[Float[Tensor, "B N P"], Features]:
        """Prediction of every cell, in the values of the target, and the features it was made from."""
        features = self.encoder(view.image, hidden, mode="sparse")
        prediction = self.decoder(self.densify(features.maps, hidden))
        return patchify(prediction, self.cell).to(_precise(view.image)), features


class Target(NamedTuple):
    """Per cell: ``values`` = (voxels - ``mean``) / ``deviation``, and which of them may be ``counted``."""

    values: Float[Tensor, "B N P"]
    mean: Float[Tensor, "B N 1"]
    deviation: Float[Tensor, "B N 1"]
    counted: Bool[Tensor, "B N P"]


def pixel_target(view: View, cell: Sequence[int], *, normalise: bool = True) -> Target:
    """Voxels of each cell relative to the cell's own mean and deviation.

    Only voxels that are valid, scored and of a present channel are counted: nothing else enters a mean or deviation,
    and others are 0. The variance is unbiased and floored at (1 % of the sample's deviation) ** 2, so that cells of
    air do not turn into pure noise.

    Args:
        view: The view.
        cell: Voxels of one cell per axis.
        normalise: False leaves the voxels as they are (mean 0, deviation 1).
    """
    present = view.present.reshape(*view.present.shape, *(1,) * len(cell))
    counted = patchify(view.valid & view.scored & present, cell)
    values = torch.where(counted, patchify(view.image, cell).to(_precise(view.image)), 0.0)
    if not normalise:
        zero = values.new_zeros(*values.shape[:2], 1)
        return Target(values, zero, zero + 1.0, counted)
    mean, variance = patch_moments(values, counted)
    _, overall = patch_moments(values.flatten(1), counted.flatten(1))
    deviation = (torch.maximum(variance, 1e-4 * overall[..., None]) + 1e-6).sqrt()
    return Target(torch.where(counted, (values - mean) / deviation, 0.0), mean, deviation, counted)


def _correlation(prediction: Tensor, target: Tensor, scored: Tensor) -> Tensor:
    """Pearson correlation over the scored voxels of this process; 0 where either is constant."""
    count = scored.sum().clamp(min=1)
    a, b = (torch.where(scored, x - torch.where(scored, x, 0.0).sum() / count, 0.0) for x in (prediction, target))
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-12)


def _precise(image: Tensor) -> torch.dtype:
    """Losses are computed in float32 at least."""
    return torch.promote_types(image.dtype, torch.float32)


def _cells(encoder: Encoder, view: ViewSpec, cell: tuple[int, ...], ratio: float) -> tuple[int, ...]:
    """Cells per axis of the view's mask, after checking that encoder, view and cells fit."""
    ndim = len(view.size)
    if "sparse" not in encoder.mask_modes:
        modes = ", ".join(sorted(encoder.mask_modes)) or "none"
        message = f'{type(encoder).__name__} has mask modes: {modes}; SparK needs an encoder with "sparse"'
        raise UserError(message)
    if ndim not in encoder.ndims:
        takes = " or ".join(f"{n}D" for n in sorted(encoder.ndims))
        message = f"view size {view.size} is {ndim}D, the encoder takes {takes}: change either"
        raise UserError(message)
    if len(cell) != ndim or min(cell) < 1:
        message = f"cell {cell} needs one number, 1 or more, for each of the {ndim} axes of view size {view.size}"
        raise UserError(message)
    for stride in encoder.strides:
        if any(max(a, b) % min(a, b) for a, b in zip(stride, cell, strict=True)):
            message = (
                f"mask cell {cell} does not nest with the encoder's stride {stride}: one must divide the other per axis"
            )
            raise UserError(message)
    stride = encoder.strides[-1]
    what = f"with encoder stride {stride} and mask cell {cell}, view size"
    cells_of(view.size, tuple(map(lcm, stride, cell)), what=what)
    cells = cells_of(view.size, cell)
    if not 0 < (count := hidden_count(cells, ratio)) < prod(cells):
        message = (
            f"mask ratio {ratio} hides {count} of {prod(cells)} cells {cells}: some must be hidden, some visible; "
            "take a larger view or another mask_ratio"
        )
        raise UserError(message)
    return cells
