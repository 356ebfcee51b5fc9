"""What every objective is, and a contract suite that anyone can run on an objective of their own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from medssl.encoders.base import ContractError, Encoder
from medssl.ops.collectives import rank, reduce_sum, world_size
from medssl.ops.draws import draws
from medssl.ops.masking import mask_cells, random_hidden
from medssl.ops.patches import patchify
from medssl.ops.reconstruction import compare, pixel_target, reconstruction
from medssl.types import Batch, Loss, MaskMode, Origin, Step, UserError, View, ViewPlan

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.types import Features, ViewSpec


class Objective(nn.Module, ABC):
    """A self-supervised objective around one encoder.

    A subclass takes the encoder as its first argument, keeps it as ``self.encoder`` and sets ``needs``. The terms of
    its loss are logged by their names; where there are any, a few are understood (``evaluate.health``): "chance", the
    loss if nothing had been learnt; "uniformity" of what is contrasted (``ops.similarity``); "teacher_entropy", nats.

    Attributes:
        encoder: The encoder that is pretrained.
        needs: The views and the sampling that ``forward`` expects.
        progress: Name of the term of ``Loss.terms`` that falls while the objective learns.
    """

    encoder: Encoder
    needs: ViewPlan
    progress: str = "loss"

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> Loss:
        """Returns the loss of one micro-batch; with several processes its value is that of the whole batch."""

    def after_step(self, step: Step) -> None:
        """Called once after each optimizer step (a teacher moves here)."""

    def exported(self) -> dict[str, nn.Module]:
        """The modules worth keeping, by name: always "encoder", with the keys of the plain dense network."""
        return {"encoder": self.encoder}

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
                    f"set the encoder's in_channels to {channels}, or choose scans with {self.encoder.in_channels}"
                )
                raise UserError(message)
            if tuple(size) != tuple(spec.size):
                message = f"view {number} has size {tuple(size)}, {name} needs {tuple(spec.size)}"
                raise UserError(message)
            if samples != len(step.samples):
                message = f"view {number} has {samples} samples, the step names {len(step.samples)}"
                raise UserError(message)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a look from outside the training; every submodule's own mode comes back afterwards."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


class Reconstruction(Objective):
    """The frame of masked image modelling: hides cells of one view, and counts the error where they are hidden.

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
        if len(view.size) not in encoder.ndims:
            takes = " or ".join(f"{n}D" for n in sorted(encoder.ndims))
            message = f"view size {view.size} is {len(view.size)}D, the encoder takes {takes}: change either"
            raise UserError(message)
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
        loss, terms = compare(patchify(prediction, self.cell).to(target.values.dtype), target, hidden, self.distance)
        return Loss(total=loss, terms=terms, embedding=features.pooled.detach())

    @torch.no_grad()
    def pictures(self, batch: Batch, step: Step) -> dict[str, Float[Tensor, "B C *s"]]:
        """Input, what the encoder saw of it, and its reconstruction, all in the values of the input.

        Runs in evaluation mode and on this process alone; leaves weights, statistics and random states as they were.
        """
        self.require(batch, step)
        view = batch.views[0]
        hidden = self.hidden(view, step)
        with undisturbed(self):
            prediction, _ = self.reconstruct(view.image, hidden)
        target = pixel_target(view, self.cell, normalise=self.normalise_target)
        return reconstruction(view, patchify(prediction, self.cell), target, hidden, self.cell)

    def hidden(self, view: View, step: Step) -> Bool[Tensor, "B *cells"]:
        """Which cells of each sample are hidden."""
        purpose = f"{type(self).__name__.lower()}.mask"
        return random_hidden(self.cells, self.mask_ratio, draws(step, purpose)).to(view.image.device)


# --- the contract suite


def check_objective(make: Callable[[], Objective], *, scans: int = 4, steps: int = 30, rate: float = 2e-3) -> None:
    """Checks that an objective keeps the contract; runs on the CPU with synthetic scans, on anyone's class.

    Checked: the plan; a finite loss with detached terms; a gradient for every trainable parameter and none elsewhere;
    the batch left as it was; same seed, same value; the state dict; no influence of the order of scans in a batch;
    bfloat16; refusal of other batches; pictures that disturb nothing; and that the measure of progress falls.

    Args:
        make: Builds a fresh, small objective, with the same weights after the same ``torch.manual_seed``. Check once
            with a 2D and once with a 3D encoder, and sizes and strides that differ between axes.
        scans: Scans in the batch.
        steps: Optimizer steps (AdamW) within which ``progress`` must fall by 2 %.
        rate: Learning rate of these steps.

    Raises:
        ContractError: Names the broken clause.
    """
    objective = _fresh(make)
    _require("needs is a plan with a view", isinstance(objective.needs, ViewPlan) and len(objective.needs.views) > 0)
    _require('exported() has an "encoder"', isinstance(objective.exported().get("encoder"), nn.Module))
    batch, step = example_batch(objective.needs, objective.encoder.in_channels, scans=scans)
    _check_loss(objective, batch, step)
    _check_repeatable(make, batch, step)
    _check_refusals(objective, batch, step)
    if hasattr(objective, "pictures"):
        _check_pictures(objective, batch, step)
    _check_progress(_fresh(make), batch, step, steps=steps, rate=rate)


def loss_and_gradients(make: Callable[[], Objective], *, scans: int = 4) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one example batch shared by all processes, in float64: equal whatever their number.

    To be called in every process; ``scans`` is a multiple of their number. Gradients are averaged over processes, as
    distributed training does.
    """
    objective = _fresh(make).double()
    batch, step = example_batch(objective.needs, objective.encoder.in_channels, scans=scans, dtype=torch.float64)
    rows = len(step.samples) // world_size()
    loss = _run(objective, *take(batch, step, range(rank() * rows, (rank() + 1) * rows)))
    torch.autograd.backward(loss.total)
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return loss.total.item(), {name: reduce_sum(g) / world_size() for name, g in gradients.items()}


def example_batch(
    needs: ViewPlan, channels: int, *, scans: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Batch, Step]:
    """Smooth synthetic images with voxels of 1 x 2 x 3 mm; one scan has padding, one a part that is not scored."""
    group = needs.sampling.regions_per_scan
    rows = scans * group
    generator = torch.Generator().manual_seed(seed)
    views = tuple(_example_view(spec.size, rows, channels, dtype, generator) for spec in needs.views)
    names = tuple(f"scan{row // group}" for row in range(rows))
    middle = torch.full((rows, len(needs.views[0].size)), 0.5)
    along = (torch.arange(rows) % group + 0.5) / group
    origin = Origin(names, names, tuple(range(rows)), middle, along)
    return Batch(views, origin), Step(index=0, total=100, seed=seed, samples=origin.samples)


def _example_view(
    size: tuple[int, ...], rows: int, channels: int, dtype: torch.dtype, generator: torch.Generator
) -> View:
    ndim = len(size)
    coarse = torch.randn(rows, channels, *(max(2, side // 8) for side in size), generator=generator)
    image = nn.functional.interpolate(coarse, size, mode="bilinear" if ndim == 2 else "trilinear")
    image = image + 0.05 * torch.randn(image.shape, generator=generator)
    valid = torch.ones(rows, 1, *size, dtype=torch.bool)
    scored = valid.clone()
    valid[-1, :, : size[0] // 3] = False
    scored[0, :, ..., : size[-1] // 3] = False
    spacing = torch.arange(1.0, ndim + 1).expand(rows, ndim)
    return View(
        image=torch.where(valid, image, image.amin()).to(dtype),
        affine=torch.eye(ndim + 1).expand(rows, -1, -1),
        world_affine=torch.diag_embed(nn.functional.pad(spacing, (0, 1), value=1.0)),
        spacing_mm=spacing,
        source_shape=torch.tensor(size).expand(rows, ndim),
        valid=valid,
        scored=scored,
        present=torch.ones(rows, channels, dtype=torch.bool),
    )


def take(batch: Batch, step: Step, rows: Sequence[int]) -> tuple[Batch, Step]:
    """The given rows of a batch, with their step."""
    part: Batch = _take(batch, list(rows))
    return part, replace(step, samples=part.origin.samples)


def _take(value: Any, rows: list[int]) -> Any:
    """Rows of everything in a batch: tensors, sequences with one item per sample, dataclasses and tuples of those."""
    if isinstance(value, torch.Tensor):
        return value[rows]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _take(getattr(value, field.name), rows) for field in fields(value)})
    if not value:
        return value
    nested = isinstance(value[0], torch.Tensor | View)
    return tuple(_take(item, rows) for item in value) if nested else tuple(value[row] for row in rows)


def _require(clause: str, kept: bool, found: object = "") -> None:
    if not kept:
        message = f"broken clause: {clause}; {found}".rstrip("; ")
        raise ContractError(message)


def _fresh(make: Callable[[], Objective]) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().train()


def _run(objective: Objective, batch: Batch, step: Step) -> Loss:
    """One forward; the global generator (dropout) starts at the same place each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        loss: Loss = objective(batch, step)
        return loss


def _check_loss(objective: Objective, batch: Batch, step: Step) -> None:
    before = [view.image.clone() for view in batch.views]
    for half in (True, False):
        objective.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = _run(objective, batch, step)
        where = " under bfloat16 autocast" if half else ""
        _require(f"the loss is one finite number{where}", loss.total.shape == () and bool(loss.total.isfinite()))
        torch.autograd.backward(loss.total)
        for name, p in objective.named_parameters():
            _require("trainable parameters, no others, have a gradient", p.requires_grad == (p.grad is not None), name)
            _require(f"gradients are finite{where}", p.grad is None or bool(p.grad.isfinite().all()), name)
    _require("terms are detached scalars", all(t.shape == () and not t.requires_grad for t in loss.terms.values()))
    _require(f'terms hold the measure of progress "{objective.progress}"', objective.progress in loss.terms)
    if (rows := loss.embedding) is not None:
        kept = rows.ndim == 2 and len(rows) == len(step.samples) and not rows.requires_grad
        _require("the embedding is one detached row per sample", kept)
    same = all(torch.equal(a, view.image) for a, view in zip(before, batch.views, strict=True))
    _require("the batch is left as it was", same)


def _check_repeatable(make: Callable[[], Objective], batch: Batch, step: Step) -> None:
    start = {name: value.clone() for name, value in _fresh(make).state_dict().items()}
    value = _run(_fresh(make), batch, step).total.item()
    _require("same seed, same value", value == _run(_fresh(make), batch, step).total.item())
    other = make().train()
    other.load_state_dict(start)
    _require("the state dict holds all that the value depends on", value == _run(other, batch, step).total.item())
    other.load_state_dict(start)
    group = len(step.samples) // len(set(batch.origin.scan_ids))
    order = [row + inside for row in range(len(step.samples) - group, -1, -group) for inside in range(group)]
    found = _run(other, *take(batch, step, order)).total.item()
    _require("the order of scans is irrelevant", math.isclose(value, found, rel_tol=1e-4), f"{value}, {found}")


def _check_refusals(objective: Objective, batch: Batch, step: Step) -> None:
    view = batch.views[0]
    wide = replace(view, image=view.image.repeat_interleave(2, 1), present=view.present.repeat_interleave(2, 1))
    for what, views in {"views": (), "channels": (wide, *batch.views[1:])}.items():
        try:
            objective(replace(batch, views=views), step)
        except UserError:
            continue
        _require(f"a batch with other {what} is refused with UserError", False)


def _check_pictures(objective: Objective, batch: Batch, step: Step) -> None:
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    modes, random = [m.training for m in objective.modules()], torch.get_rng_state()
    pictures: dict[str, Tensor] = objective.pictures(batch, step)  # type: ignore[operator]
    for name, picture in pictures.items():
        kept = picture.shape == batch.views[0].image.shape and bool(picture.isfinite().all())
        _require("pictures are finite and of the view's shape", kept and not picture.requires_grad, name)
    same = all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    same = same and modes == [m.training for m in objective.modules()] and torch.equal(random, torch.get_rng_state())
    _require("pictures leave weights, statistics, modes and random state as they were", same)


def _check_progress(objective: Objective, batch: Batch, step: Step, *, steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=rate)
    values = []
    for now in (replace(step, index=index, total=steps) for index in range(steps)):
        loss = _run(objective, batch, now)
        optimizer.zero_grad()
        torch.autograd.backward(loss.total)
        optimizer.step()
        objective.after_step(now)
        values.append(loss.terms[objective.progress].item())
    few = max(1, steps // 6)
    first, last = sum(values[:few]) / few, sum(values[-few:]) / few
    falls = last < first - 0.02 * abs(first)
    _require(f'"{objective.progress}" falls by 2 % within {steps} steps', falls, f"from {first:.4f} to {last:.4f}")
