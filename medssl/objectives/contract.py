"""Clauses that every objective must keep. Run them on your own class with ``objectives.base.check_objective``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from medssl.encoders.base import ContractError
from medssl.nn.drop_path import without_dropout
from medssl.objectives.base import Objective, select_rows
from medssl.ops.collectives import rank, reduce_sum, world_size
from medssl.types import Batch, Loss, Origin, Step, UserError, View, ViewPlan

if TYPE_CHECKING:
    from torch import Tensor


def check(make: Callable[[], Objective], *, scans: int, steps: int, rate: float) -> None:
    """See :func:`medssl.objectives.base.check_objective`."""
    objective = _fresh(make)
    _require("needs is a plan with a view", isinstance(objective.needs, ViewPlan) and len(objective.needs.views) > 0)
    _require('exported() has an "encoder"', isinstance(objective.exported().get("encoder"), nn.Module))
    batch, step = example_batch(objective.needs, objective.in_channels, scans=scans)
    _check_loss(objective, batch, step)
    _check_repeatable(make, batch, step)
    _check_refusals(objective, batch, step)
    _check_not_finite(_fresh(make), batch, step)
    if hasattr(objective, "pictures"):
        _check_pictures(objective, batch, step)
    _check_progress(_fresh(make), batch, step, steps=steps, rate=rate)


def loss_and_gradients(make: Callable[[], Objective], *, scans: int = 4) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one example batch that all processes share, in float64.

    They must not depend on the number of processes. Call this in every process. Gradients are averaged over processes,
    as in distributed training.

    Args:
        make: As in ``check_objective``.
        scans: Number of scans, a multiple of the number of processes.
    """
    objective = _fresh(make).double()
    batch, step = example_batch(objective.needs, objective.in_channels, scans=scans, dtype=torch.float64)
    rows = len(step.samples) // world_size()
    loss = _run(objective, *select_rows(batch, step, range(rank() * rows, (rank() + 1) * rows)))
    torch.autograd.backward(loss.total)
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return loss.total.item(), {name: reduce_sum(g) / world_size() for name, g in gradients.items()}


def example_batch(
    needs: ViewPlan, channels: int, *, scans: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Batch, Step]:
    """Smooth synthetic images with voxels of 1 x 2 x 3 mm; one has padding, one a region that is not scored."""
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


def _require(clause: str, holds: bool, detail: object = "") -> None:
    if not holds:
        message = f"broken clause: {clause}; {detail}".rstrip("; ")
        raise ContractError(message)


def _describe(term: object) -> str:
    if not isinstance(term, torch.Tensor):
        return f"a {type(term).__name__}"
    return f"of shape {tuple(term.shape)}{', with a gradient' if term.requires_grad else ''}"


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
    for bfloat16 in (False, True):
        objective.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = _run(objective, batch, step)
        _require("forward returns a medssl.types.Loss", isinstance(loss, Loss), f"got {type(loss).__name__}")
        where, value = " under bfloat16 autocast" if bfloat16 else "", loss.total.detach()
        shape = f"got shape {tuple(value.shape)}" if value.shape else f"got {value.item()}"
        _require(f"the loss is one finite number{where}", value.shape == () and bool(value.isfinite()), shape)
        torch.autograd.backward(loss.total)
        for name, p in objective.named_parameters():
            _require("trainable parameters, no others, have a gradient", p.requires_grad == (p.grad is not None), name)
            _require(f"gradients are finite{where}", p.grad is None or bool(p.grad.isfinite().all()), name)
    for name, term in loss.terms.items():
        scalar = isinstance(term, torch.Tensor) and term.shape == () and not term.requires_grad
        _require("terms are detached tensors of one number", scalar, f"{name} is {_describe(term)}")
    _require(f'terms hold the measure of progress "{objective.progress}"', objective.progress in loss.terms)
    if (rows := loss.embedding) is not None:
        is_valid = rows.ndim == 2 and len(rows) == len(step.samples) and not rows.requires_grad
        _require("the embedding is one detached row per sample", is_valid)
    unchanged = all(torch.equal(a, view.image) for a, view in zip(before, batch.views, strict=True))
    _require("the batch is left as it was", unchanged)


def _check_repeatable(make: Callable[[], Objective], batch: Batch, step: Step) -> None:
    initial_state = {name: value.clone() for name, value in _fresh(make).state_dict().items()}
    value = _run(_fresh(make), batch, step).total.item()
    _require("same seed, same value", value == _run(_fresh(make), batch, step).total.item())
    second = make().train()
    second.load_state_dict(initial_state)
    _require("the state dict holds all that the value depends on", value == _run(second, batch, step).total.item())
    second.load_state_dict(initial_state)
    group = len(step.samples) // len(set(batch.origin.scan_ids))
    order = [row + offset for row in range(len(step.samples) - group, -1, -group) for offset in range(group)]
    without_dropout(second)
    value = _run(second, batch, step).total.item()
    second.load_state_dict(initial_state)
    reordered_value = _run(second, *select_rows(batch, step, order)).total.item()
    _require(
        "the order of scans is irrelevant",
        math.isclose(value, reordered_value, rel_tol=1e-4),
        f"{value}, {reordered_value}",
    )


def _check_refusals(objective: Objective, batch: Batch, step: Step) -> None:
    view = batch.views[0]
    wide = replace(view, image=view.image.repeat_interleave(2, 1), present=view.present.repeat_interleave(2, 1))
    for what, views in {"views": (), "channels": (wide, *batch.views[1:])}.items():
        try:
            objective(replace(batch, views=views), step)
        except UserError:
            continue
        except Exception as error:
            clause = f"broken clause: a batch with other {what} is refused"
            message = f"{clause}; {type(error).__name__}: {error}; let forward begin with self.require"
            raise ContractError(message) from error
        _require(f"a batch with other {what} is refused", False, "it is taken; let forward begin with self.require")


def _check_not_finite(objective: Objective, batch: Batch, step: Step) -> None:
    """Values that are not finite must reach the loss: the training loop then names the scan in all processes."""
    views = [replace(view, image=view.image.clone()) for view in batch.views]
    for view in views:
        view.image[-1] = torch.nan
    try:
        _run(objective, replace(batch, views=tuple(views)), step)
    except Exception as error:
        message = f"broken clause: a batch with NaN gives a loss, not an error; {type(error).__name__}: {error}"
        raise ContractError(message) from error


def _check_pictures(objective: Objective, batch: Batch, step: Step) -> None:
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    modes, random = [m.training for m in objective.modules()], torch.get_rng_state()
    pictures: dict[str, Tensor] = objective.pictures(batch, step)  # type: ignore[operator]
    for name, picture in pictures.items():
        is_valid = picture.shape == batch.views[0].image.shape and bool(picture.isfinite().all())
        _require("pictures are finite and of the view's shape", is_valid and not picture.requires_grad, name)
    unchanged = all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    unchanged = (
        unchanged and modes == [m.training for m in objective.modules()] and torch.equal(random, torch.get_rng_state())
    )
    _require("pictures leave weights, statistics, modes and random state as they were", unchanged)


def _check_before_step(objective: Objective, step: Step) -> None:
    """What the hook does to gradients leaves one for every parameter that had one."""
    with_gradient = [name for name, p in objective.named_parameters() if p.grad is not None]
    objective.before_step(step)
    for name, p in objective.named_parameters():
        has_one = p.grad is not None and bool(p.grad.isfinite().all())
        _require("before_step leaves a finite gradient where there was one", has_one == (name in with_gradient), name)


def _check_after_step(objective: Objective, step: Step) -> None:
    """A second call of ``after_step`` changes no trained parameter: teachers are not trained by the optimizer."""
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    trained = {name: p.detach().clone() for name, p in objective.named_parameters() if p.requires_grad}
    objective.after_step(step)
    for name, p in objective.named_parameters():
        unchanged = name not in trained or torch.allclose(p, trained[name], rtol=1e-6, atol=1e-9)
        hint = f"{name}; a teacher has requires_grad_(False) and runs under torch.no_grad()"
        _require("after_step moves nothing that the optimizer trains", unchanged, hint)
    objective.load_state_dict(state)


def _check_progress(objective: Objective, batch: Batch, step: Step, *, steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=rate)
    values = []
    for current_step in (replace(step, index=index, total=steps) for index in range(steps)):
        loss = _run(objective, batch, current_step)
        optimizer.zero_grad()
        torch.autograd.backward(loss.total)
        _check_before_step(objective, current_step)
        optimizer.step()
        objective.after_step(current_step)
        if current_step.index == 0:
            _check_after_step(objective, current_step)
        values.append(loss.terms[objective.progress].item())
    window = max(1, steps // 6)
    first, last = sum(values[:window]) / window, sum(values[-window:]) / window
    falls = last < first - 0.02 * abs(first)
    _require(f'"{objective.progress}" falls by 2 % within {steps} steps', falls, f"from {first:.4f} to {last:.4f}")
