"""Base class of objectives, and base class of those that hide cells and reconstruct them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from medssl.encoders.base import Encoder
from medssl.nn.drop_path import keyed_by_sample
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
    """Base class of self-supervised objectives.

    A subclass takes the encoder as its first argument, stores it as ``self.encoder`` and sets ``needs``. The terms of
    its loss are logged by their names. ``metrics.health`` interprets some of them: "chance" (the loss of an untrained
    network), "uniformity" of the contrasted embeddings (``ops.similarity``), "correlation" of predicted and hidden
    voxels, and those of a teacher (``nn.teacher.teacher_terms``).

    Layers of ``nn.drop_path`` draw by the numbers of the samples whenever an objective is called. Rows of several views
    are joined with the rows of the first view first (``join_views``).

    Attributes:
        encoder: The encoder that is pretrained.
        needs: The views and the sampling that ``forward`` expects.
        progress: Name of the term in ``Loss.terms`` that falls while the objective learns.
        compares_samples: Whether the loss compares samples of a micro-batch with each other, so that it depends on
            their number.
    """

    encoder: Encoder
    needs: ViewPlan
    progress: str = "loss"
    compares_samples: bool = False

    def __call__(self, batch: Batch, step: Step) -> Loss:
        """Runs ``forward``; layers with drop-path draw by the numbers of the samples."""
        with keyed_by_sample(self, step.seed, step.samples):
            loss: Loss = super().__call__(batch, step)
            return loss

    @property
    def in_channels(self) -> int:
        """Channels of a view; several times those of the encoder where it encodes groups of channels one by one."""
        return self.encoder.in_channels

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> Loss:
        """Computes the loss of one micro-batch. With several processes, its value is that of the whole batch.

        Args:
            batch: Views as described by ``needs``.
            step: Number of the optimizer step, and the global numbers of the samples.

        Raises:
            UserError: The batch does not have the views that ``needs`` describes.
        """

    def counts(self, batch: Batch, step: Step) -> Tensor | None:
        """Number of terms of each mean in the loss, in a micro-batch of this process; None if it is constant.

        The training loop sums them over the micro-batches and processes of an optimizer step, and passes them to
        ``forward`` as ``step.counts``. Accumulation then weights every term as one large batch does.
        """
        del batch, step
        return None

    def after_load(self) -> None:
        """Called after other weights were loaded into the encoder. A teacher copies the encoder again here."""

    def before_step(self, step: Step) -> None:
        """Called once in each optimizer step, when its gradients are complete and before they are clipped.

        A layer that is not to move yet has its gradient set to zero here. It must not be detached in ``forward``, since
        several processes wait for a gradient of every trained parameter.
        """

    def after_step(self, step: Step) -> None:
        """Called once after each optimizer step. A teacher is updated here."""

    def rate_of(self, name: str) -> float:
        """Share of the learning rate, 0 or more, with which a parameter moves; by default 1 for all.

        It multiplies the shares that ``optimizer.layer_decay`` and ``optimizer.rates`` give.

        Args:
            name: As in ``named_parameters``, such as "encoder.patch_embed.proj.weight".
        """
        del name
        return 1.0

    def exported(self) -> dict[str, nn.Module]:
        """Modules to save, by name: always "encoder", with the state-dict keys of the dense network."""
        return {"encoder": self.encoder}

    def filled_modules(self) -> tuple[nn.Module, ...]:
        """Exported modules that learn from images with hidden cells filled in.

        Their batch-norm statistics are measured on whole images before they are written or probed.
        """
        return ()

    def encode_whole(self, image: Float[Tensor, "B C *s"]) -> None:
        """Passes whole images through all of ``filled_modules``."""
        self.encoder(image)

    @staticmethod
    def fits(encoder: Encoder, view: ViewSpec) -> None:
        """Refuses a view that does not fit the encoder. Call it in constructors.

        Raises:
            UserError: The numbers of axes differ, or the view is not a multiple of the encoder's stride.
        """
        if len(view.size) not in encoder.ndims:
            takes = " or ".join(f"{n}D" for n in sorted(encoder.ndims))
            message = f"view size {view.size} is {len(view.size)}D, the encoder takes {takes}: "
            message += "take encoder and objective of one recipe"
            raise UserError(message)
        cells_of(view.size, encoder.strides[-1], noun="for the encoder's stride, view size")

    @staticmethod
    def masks_with(encoder: Encoder, mode: MaskMode, name: str) -> None:
        """Refuses an encoder without the mask mode that the objective ``name`` needs. Call it in constructors.

        Raises:
            UserError: The encoder does not support the mode.
        """
        if mode not in encoder.mask_modes:
            modes = ", ".join(sorted(encoder.mask_modes)) or "none"
            message = (
                f"{type(encoder).__name__} has mask modes: {modes}; {name} needs an encoder with "
                f'"{mode}": choose another encoder or objective'
            )
            raise UserError(message)

    def require(self, batch: Batch, step: Step) -> None:
        """Refuses a batch that does not match ``needs``. Call it first in ``forward``.

        Raises:
            UserError: The number of views, their size, their channels or the number of samples differ.
        """
        name, specs = type(self).__name__, self.needs.views
        if len(batch.views) != len(specs):
            message = f"{name} needs {len(specs)} views, the batch has {len(batch.views)}"
            raise UserError(message)
        for number, (view, spec) in enumerate(zip(batch.views, specs, strict=True)):
            samples, channels, *size = view.image.shape
            if channels != self.in_channels:
                raise self.wrong_channels(number, channels)
            if tuple(size) != tuple(spec.size):
                message = f"view {number} has size {tuple(size)}, {name} needs {tuple(spec.size)}"
                raise UserError(message)
            if samples != len(step.samples):
                message = f"view {number} has {samples} samples, the step names {len(step.samples)}"
                raise UserError(message)

    def wrong_channels(self, number: int, channels: int) -> UserError:
        """The error of a view with other channels than the encoder takes."""
        expected = self.encoder.in_channels
        groups = self.in_channels // expected
        if groups > 1:
            message = f"view {number} has {channels} channels, and {groups} groups of {expected} are {self.in_channels}"
            hint = f"Choose scans with {self.in_channels} channels, or change the number of groups"
            return UserError(message, hint=hint)
        return UserError(
            f"view {number} has {channels} channels, the encoder takes {expected}: set encoder.in_channels to "
            f"{channels}, or choose scans with {expected}"
        )


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Sets a module to evaluation mode for the block; afterwards every submodule has its former mode."""
    training_flags = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in training_flags:
            submodule.training = mode


def join_views(views: Sequence[View]) -> View:
    """Views of one size as one, the rows of the first view first."""
    return View(**{field.name: torch.cat([getattr(view, field.name) for view in views]) for field in fields(View)})


def select_rows(batch: Batch, step: Step, rows: Sequence[int]) -> tuple[Batch, Step]:
    """Selects rows of a batch, and the matching step."""
    selected: Batch = _select_rows(batch, list(rows))
    return selected, replace(step, samples=selected.origin.samples)


def _select_rows(value: Any, rows: list[int]) -> Any:
    """Selects rows of tensors, of sequences with one item per sample, and of dataclasses and tuples of those."""
    if isinstance(value, torch.Tensor):
        return value[rows]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _select_rows(getattr(value, field.name), rows) for field in fields(value)})
    if not value:
        return value
    nested = isinstance(value[0], torch.Tensor | View)
    return tuple(_select_rows(item, rows) for item in value) if nested else tuple(value[row] for row in rows)


def check_objective(make: Callable[[], Objective], *, scans: int = 4, steps: int = 30, rate: float = 2e-3) -> None:
    """Checks that an objective keeps the contract, on the CPU with synthetic scans. Run it on your own class.

    Clauses:

    - The plan has a view. The loss is one finite number, also under bfloat16, and its terms are detached.
    - Every trainable parameter has a gradient, and nothing else has one. The batch is not changed.
    - The same seed gives the same value. The state dict restores the value. The order of scans does not matter.
    - Other batches are refused. A batch with NaN gives a loss, not an error.
    - Pictures change no state. ``after_step`` changes nothing that the optimizer trains.
    - The term ``progress`` falls.

    Args:
        make: Builds a new, small objective, with the same weights after the same ``torch.manual_seed``. Check once
            with a 2D and once with a 3D encoder, with sizes and strides that differ between axes.
        scans: Number of scans in the batch.
        steps: Optimizer steps (AdamW) within which ``progress`` must fall by 2 %.
        rate: Learning rate of these steps.

    Raises:
        ContractError: Names the violated clause.
    """
    from medssl.objectives.contract import check

    check(make, scans=scans, steps=steps, rate=rate)


class Reconstruction(Objective):
    """Base class of masked image modeling: hides cells of one view; the loss is the error in the hidden cells.

    A subclass defines ``reconstruct`` and sets ``mode``.

    Args:
        encoder: Encoder that supports the mask mode ``mode``.
        view: The view; its size must be a multiple of the encoder's stride and of ``cell``.
        mask_ratio: Share of cells to hide, above 0 and below 1; every sample hides the same number of cells.
        cell: Voxels of one cell of the mask per axis; None takes the encoder's ``mask_cell``.
        normalize_target: Predict each cell relative to its own mean and deviation; False predicts the voxel values.

    Attributes:
        mode: Mask mode of the encoder; None if the objective hides cells itself, for any encoder.
        distance: Error of a voxel: "square" or "absolute" difference.
        cells: Number of cells per axis.

    Raises:
        UserError: The encoder does not support the mask mode, or the view does not fit it.
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
        normalize_target: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.needs = ViewPlan(views=(view,))
        self.mask_ratio = mask_ratio
        self.cell = tuple(encoder.mask_cell if cell is None else cell)
        self.normalize_target = normalize_target
        if self.mode is not None:
            self.masks_with(encoder, self.mode, type(self).__name__)
        self.fits(encoder, view)
        self.cells = mask_cells(view.size, self.cell, encoder.strides, mask_ratio)

    def filled_modules(self) -> tuple[nn.Module, ...]:
        """The encoder, unless it leaves hidden cells out."""
        return (self.encoder,) if self.mode in (None, "fill") else ()

    @abstractmethod
    def reconstruct(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Features]:
        """Reconstructs images from their visible cells.

        Args:
            image: Images.
            hidden: True where a cell is hidden.

        Returns:
            The prediction in the scale of the target, and the features that it was computed from.
        """

    def forward(self, batch: Batch, step: Step) -> Loss:
        """Hides cells, reconstructs and compares; the loss is a mean over hidden scored voxels of all processes."""
        self.require(batch, step)
        view = batch.views[0]
        hidden = self.hidden(view, step)
        prediction, features = self.reconstruct(view.image, hidden)
        target = pixel_target(view, self.cell, normalize=self.normalize_target)
        patches = patchify(prediction, self.cell).to(target.values.dtype)
        loss, terms = compare(patches, target, hidden, self.distance, step_count=step.counts)
        return Loss(total=loss, terms=terms, embedding=features.pooled.detach())

    def counts(self, batch: Batch, step: Step) -> Tensor:
        """Number of hidden scored voxels."""
        view = batch.views[0]
        return (counted_voxels(view, self.cell) & self.hidden(view, step).flatten(1)[..., None]).sum()

    @torch.no_grad()
    def pictures(self, batch: Batch, step: Step) -> dict[str, Float[Tensor, "B C *s"]]:
        """Pictures of the input, the masked input and the reconstruction, all in the value range of the input.

        Runs in evaluation mode, on this process only. Weights, statistics and random states do not change.
        """
        self.require(batch, step)
        view = batch.views[0]
        hidden = self.hidden(view, step)
        with evaluation_mode(self):
            prediction, _ = self.reconstruct(view.image, hidden)
        target = pixel_target(view, self.cell, normalize=self.normalize_target)
        return reconstruction(view, patchify(prediction, self.cell), target, hidden, self.cell)

    def hidden(self, view: View, step: Step) -> Bool[Tensor, "B *cells"]:
        """Draws which cells of each sample are hidden."""
        purpose = f"{type(self).__name__.lower()}.mask"
        return random_hidden(self.cells, self.mask_ratio, draws(step, purpose)).to(view.image.device)
