"""What every objective is, and the frame of those that hide cells and reconstruct them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from medssl.encoders.base import Encoder
from medssl.ops.draws import draws
from medssl.ops.masking import mask_cells, random_hidden
from medssl.ops.patches import cells_of, patchify
from medssl.ops.reconstruction import compare, counted_voxels, pixel_target, reconstruction
from medssl.types import Batch, Loss, MaskMode, Step, UserError, View, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.types import Features, ViewSpec


class Objective(nn.Module, ABC):
    """A self-supervised objective around one encoder.

    A subclass takes the encoder as its first argument, keeps it as ``self.encoder`` and sets ``needs``. The terms of
    its loss are logged by their names; where there are any, a few are understood (``evaluate.health``): "chance", the
    loss if nothing had been learned; "uniformity" of what is contrasted (``ops.similarity``); "teacher_entropy", nats.

    Attributes:
        encoder: The encoder that is pretrained.
        needs: The views and the sampling that ``forward`` expects.
        progress: Name of the term of ``Loss.terms`` that falls while the objective learns.
        compares_samples: Whether the loss compares the samples of a micro-batch with each other: it then depends on
            how many there are.
    """

    encoder: Encoder
    needs: ViewPlan
    progress: str = "loss"
    compares_samples: bool = False

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> Loss:
        """Returns the loss of one micro-batch; with several processes its value is that of the whole batch."""

    def counts(self, batch: Batch, step: Step) -> Tensor | None:
        """How many terms each mean of the loss is over in a micro-batch of this process; None: always as many.

        The training loop adds them over the micro-batches and processes of an optimizer step and hands them to
        ``forward`` as ``step.counts``, so that accumulation weighs every term as one large batch does.
        """
        del batch, step
        return None

    def after_load(self) -> None:
        """Called once the encoder has been filled with other weights (a teacher that is a copy is copied anew here)."""

    def after_step(self, step: Step) -> None:
        """Called once after each optimizer step (a teacher moves here)."""

    def exported(self) -> dict[str, nn.Module]:
        """The modules worth keeping, by name: always "encoder", with the keys of the plain dense network."""
        return {"encoder": self.encoder}

    @staticmethod
    def fits(encoder: Encoder, view: ViewSpec) -> None:
        """Refuses a view that the encoder cannot take; for constructors.

        Raises:
            UserError: The numbers of axes differ, or the encoder's stride does not divide the view.
        """
        if len(view.size) not in encoder.ndims:
            takes = " or ".join(f"{n}D" for n in sorted(encoder.ndims))
            message = f"view size {view.size} is {len(view.size)}D, the encoder takes {takes}: "
            message += "take encoder and objective of one recipe"
            raise UserError(message)
        cells_of(view.size, encoder.strides[-1], noun="for the encoder's stride, view size")

    def require(self, batch: Batch, step: Step) -> None:
        """Refuses a batch that is not what ``needs`` asked for.

        Raises:
            UserError: The number of views, their size, their channels or the number of samples differ.
        """
        name, specs = type(self).__name__, self.needs.views
        if len(batch.views) != len(specs):
            message = f"{name} needs {len(specs)} views, the batch has {len(batch.views)}"
            raise UserError(message)
        for number, (view, spec) in enumerate(zip(batch.views, specs, strict=True)):
            samples, channels, *size = view.image.shape
            if channels != self.encoder.in_channels:
                message = (
                    f"view {number} has {channels} channels, the encoder takes {self.encoder.in_channels}: "
                    f"set encoder.in_channels to {channels}, or choose scans with {self.encoder.in_channels}"
                )
                raise UserError(message)
            if tuple(size) != tuple(spec.size):
                message = f"view {number} has size {tuple(size)}, {name} needs {tuple(spec.size)}"
                raise UserError(message)
            if samples != len(step.samples):
                message = f"view {number} has {samples} samples, the step names {len(step.samples)}"
                raise UserError(message)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a look from outside the training; every submodule's own mode comes back afterwards."""
    training_flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in training_flags:
            submodule.training = mode


def select_rows(batch: Batch, step: Step, rows: Sequence[int]) -> tuple[Batch, Step]:
    """The given rows of a batch, with their step."""
    selected: Batch = _select_rows(batch, list(rows))
    return selected, replace(step, samples=selected.origin.samples)


def _select_rows(value: Any, rows: list[int]) -> Any:
    """Rows of everything in a batch: tensors, sequences with one item per sample, dataclasses and tuples of those."""
    if isinstance(value, torch.Tensor):
        return value[rows]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _select_rows(getattr(value, field.name), rows) for field in fields(value)})
    if not value:
        return value
    nested = isinstance(value[0], torch.Tensor | View)
    return tuple(_select_rows(item, rows) for item in value) if nested else tuple(value[row] for row in rows)


def check_objective(make: Callable[[], Objective], *, scans: int = 4, steps: int = 30, rate: float = 2e-3) -> None:
    """Checks that an objective keeps the contract; runs on the CPU with synthetic scans, on anyone's class.

    Checked: the plan; a finite loss with detached terms; a gradient for every trainable parameter and none elsewhere;
    the batch left as it was; same seed, same value; the state dict; no influence of the order of scans in a batch;
    bfloat16; refusal of other batches; a loss for a batch with NaN, not an error; pictures that disturb nothing; an
    ``after_step`` that moves nothing that the optimizer trains; and that the measure of progress falls.

    Args:
        make: Builds a fresh, small objective, with the same weights after the same ``torch.manual_seed``. Check once
            with a 2D and once with a 3D encoder, and sizes and strides that differ between axes.
        scans: Scans in the batch.
        steps: Optimizer steps (AdamW) within which ``progress`` must fall by 2 %.
        rate: Learning rate of these steps.

    Raises:
        ContractError: Names the broken clause.
    """
    from medssl.objectives.contract import check

    check(make, scans=scans, steps=steps, rate=rate)


class Reconstruction(Objective):
    """The frame of masked image modeling: hides cells of one view, and counts the error where they are hidden.

    A subclass says how it reconstructs the image, and sets ``mode``.

    Args:
        encoder: Encoder with the mask mode ``mode``.
        view: The view; its size must be a multiple of the encoder's stride and of ``cell``.
        mask_ratio: Share of cells to hide, the same number in every sample.
        cell: Voxels of one cell of the mask per axis; None takes the encoder's ``mask_cell``.
        normalise_target: Predict each cell relative to its own mean and deviation; False predicts the voxels.

    Attributes:
        mode: How the encoder hides cells; None where the objective does it by itself, for any encoder.
        distance: Error of a voxel: "square" or "absolute" difference.
        cells: Cells per axis.

    Raises:
        UserError: The encoder cannot be masked in this mode, or the view does not fit it.
    """

    mode: MaskMode | None
    distance: Literal["square", "absolute"] = "square"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        mask_ratio: float,
        cell: Sequence[int] | None = None,
        normalise_target: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.needs = ViewPlan(views=(view,))
        self.mask_ratio = mask_ratio
        self.cell = tuple(encoder.mask_cell if cell is None else cell)
        self.normalise_target = normalise_target
        if self.mode is not None and self.mode not in encoder.mask_modes:
            modes = ", ".join(sorted(encoder.mask_modes)) or "none"
            message = (
                f"{type(encoder).__name__} has mask modes: {modes}; {type(self).__name__} needs an encoder with "
                f'"{self.mode}": choose another encoder or objective'
            )
            raise UserError(message)
        self.fits(encoder, view)
        self.cells = mask_cells(view.size, self.cell, encoder.strides, mask_ratio)

    @abstractmethod
    def reconstruct(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Features]:
        """Returns the prediction, in the values of the target, and the features that it was made from."""

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Hides, reconstructs and compares; the loss is a mean over the hidden scored voxels of all processes."""
        self.require(batch, step)
        view = batch.views[0]
        hidden = self.hidden(view, step)
        prediction, features = self.reconstruct(view.image, hidden)
        target = pixel_target(view, self.cell, normalise=self.normalise_target)
        patches = patchify(prediction, self.cell).to(target.values.dtype)
        loss, terms = compare(patches, target, hidden, self.distance, step_count=step.counts)
        return Loss(total=loss, terms=terms, embedding=features.pooled.detach())

    def counts(self, batch: Batch, step: Step) -> Tensor:
        """Hidden scored voxels."""
        view = batch.views[0]
        return (counted_voxels(view, self.cell) & self.hidden(view, step).flatten(1)[..., None]).sum()

    @torch.no_grad()
    def pictures(self, batch: Batch, step: Step) -> dict[str, Float[Tensor, "B C *s"]]:
        """Input, what the encoder saw of it, and its reconstruction, all in the values of the input.

        Runs in evaluation mode and on this process alone; leaves weights, statistics and random states as they were.
        """
        self.require(batch, step)
        view = batch.views[0]
        hidden = self.hidden(view, step)
        with evaluation_mode(self):
            prediction, _ = self.reconstruct(view.image, hidden)
        target = pixel_target(view, self.cell, normalise=self.normalise_target)
        return reconstruction(view, patchify(prediction, self.cell), target, hidden, self.cell)

    def hidden(self, view: View, step: Step) -> Bool[Tensor, "B *cells"]:
        """Which cells of each sample are hidden."""
        purpose = f"{type(self).__name__.lower()}.mask"
        return random_hidden(self.cells, self.mask_ratio, draws(step, purpose)).to(view.image.device)
