"""Masked self-distillation: each term by loops, what the student must not see, the teacher, the masked autoencoder."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import ddp
import pytest
import torch
from objectives.small import SIZES, encoder, randomize, vit

from medssl.objectives.base import check_objective, join_views, select_rows
from medssl.objectives.contract import example_batch, loss_and_gradients
from medssl.objectives.masked_distillation import MaskedDistillation, Masks, Prototypes, Teaching
from medssl.objectives.spark import SparK
from medssl.ops.masking import at_resolution
from medssl.ops.patches import patchify
from medssl.ops.reconstruction import hidden_positions, pixel_target
from medssl.types import UserError, ViewSpec

KINDS = pytest.mark.parametrize("kind", ["convolutional", "transformer"])
DIMS = pytest.mark.parametrize("ndim", [2, 3])
COUNT = 6


def make(ndim, kind, **arguments):
    network = encoder(ndim, norm="instance") if kind == "convolutional" else vit(ndim)
    arguments = {"prototypes": Prototypes(COUNT, 8, 16), "decoder_width": 32} | arguments
    return MaskedDistillation(network, view=ViewSpec(size=SIZES[ndim]), **arguments)


def setting(ndim, kind, **arguments):
    """An objective with weights away from their start and another teacher, two different views, and their masks."""
    torch.manual_seed(0)
    objective = make(ndim, kind, **arguments).train()
    randomize(objective.heads)
    randomize(objective.teacher)
    batch, step = example_batch(objective.needs, 1)
    second = batch.views[1]
    batch = replace(batch, views=(batch.views[0], replace(second, image=second.image.flip(-1) + 0.1)))
    view = join_views(batch.views)
    return objective, batch, step, view, objective.hidden(view, step)


def entropy(goal, scores, temperature):
    """Cross-entropy of one row, in Python floats."""
    total = math.log(sum(math.exp(float(s) / temperature) for s in scores))
    return -sum(float(q) * (float(s) / temperature - total) for q, s in zip(goal, scores, strict=True))


def softmax(scores, temperature):
    weights = [math.exp(float(s) / temperature) for s in scores]
    return [w / sum(weights) for w in weights]


# --- the terms


@KINDS
@DIMS
def test_every_term_is_that_of_plain_loops(ndim, kind):
    objective, batch, step, view, hidden = setting(ndim, kind)
    loss = objective(batch, step)
    stride = objective.encoder.strides[-1]
    student, teacher = {name: objective.heads[name] for name in objective.heads}, objective.teacher
    with torch.no_grad():
        prediction, filled, features = objective.predicted(view.image, hidden)
        whole = [teacher["encoder"](one.image) for one in batch.views]
        counted = patchify(view.valid & view.scored, stride).double().mean(-1) >= 0.5
        grid = filled.shape[2:]
        positions = at_resolution(hidden, grid)
        patch, pooled = [], []
        for number, one in enumerate(whole):
            for sample in range(4):
                row = 4 * number + sample
                for place in positions[row].nonzero().tolist():
                    if counted[row].reshape(grid)[tuple(place)]:
                        goal = softmax(teacher["patch"](one.maps[-1][(sample, slice(None), *place)][None])[0], 0.04)
                        scores = student["patch"](filled[(row, slice(None), *place)][None])[0]
                        patch.append(entropy(goal, scores, 0.1))
                other = whole[1 - number].pooled[sample][None]
                goal = softmax(teacher["pooled"](other)[0], 0.04)
                pooled.append(entropy(goal, student["pooled"](features.pooled[row][None])[0], 0.1))
        assert 0 < len(patch) < int(positions.sum())  # padding is left out
        target = pixel_target(view, objective.cell)
        errors = (patchify(prediction, objective.cell) - target.values).square()
        voxels = errors[target.counted & hidden.flatten(1)[..., None]].double().mean()
    terms = {name: float(term) for name, term in loss.terms.items()}
    assert terms["reconstruction"] == pytest.approx(float(voxels), rel=1e-5)
    assert terms["patch"] == pytest.approx(sum(patch) / len(patch), rel=1e-4)
    assert terms["pooled"] == pytest.approx(sum(pooled) / len(pooled), rel=1e-4)
    want = terms["reconstruction"] + 0.1 * terms["patch"] + 0.1 * terms["pooled"]
    assert terms["loss"] == loss.total.item() == pytest.approx(want, rel=1e-5)
    assert loss.embedding.shape == (4, objective.encoder.channels[-1])


def test_without_distillation_it_is_spark_bit_for_bit():
    objective, batch, step, view, hidden = setting(2, "convolutional", patch_weight=0.0, pooled_weight=0.0)
    assert list(objective.teacher) == ["encoder"]
    assert not objective.heads
    plain = SparK(
        copy.deepcopy(objective.encoder), view=objective.needs.views[0], mask_ratio=0.75, decoder_width=32, norm="batch"
    )
    plain.decoder.load_state_dict(objective.predict.decoder.state_dict())
    plain.densify.load_state_dict(objective.predict.densify.state_dict())
    plain.hidden = lambda view, step: hidden
    twice = replace(step, samples=tuple(range(8)))
    want = plain(replace(batch, views=(view,)), twice)
    found = objective(batch, step)
    assert torch.equal(found.total, want.total)
    assert found.terms["chance"] == want.terms["chance"]
    gradients = [
        torch.autograd.grad(loss.total, list(one.encoder.parameters()))
        for loss, one in ((found, objective), (want, plain))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@KINDS
@DIMS
def test_nothing_hidden_leaves_the_pooled_term_alone(ndim, kind):
    objective, batch, step, _, hidden = setting(ndim, kind, masks=Masks(unmasked=1.0))
    assert not hidden.any()
    terms = objective(batch, step).terms
    assert terms["reconstruction"] == terms["patch"] == 0
    assert terms["loss"] == pytest.approx(0.1 * float(terms["pooled"]))


@KINDS
def test_the_order_of_prototypes_is_irrelevant(kind):
    objective, batch, step, *_ = setting(2, kind)
    want = objective(batch, step).total
    order = torch.randperm(COUNT)
    for heads in (objective.heads, objective.teacher):
        for name in ("patch", "pooled"):
            heads[name].prototypes.data = heads[name].prototypes.data[order]
    torch.testing.assert_close(objective(batch, step).total, want)


def test_a_teacher_that_is_the_student_costs_its_entropy_and_no_gradient():
    """Equal crops, nothing hidden, equal temperatures: the pooled term is the entropy of the targets."""
    objective = make(2, "transformer", masks=Masks(unmasked=1.0), patch_weight=0.0, pooled_weight=1.0,
                     teaching=Teaching(temperature=(0.1, 0.1)))  # fmt: skip
    batch, step = example_batch(objective.needs, 1)
    batch = replace(batch, views=(batch.views[0], batch.views[0]))
    loss = objective(batch, step)
    assert loss.terms["pooled"] == pytest.approx(float(loss.terms["teacher_entropy"]), rel=1e-5)
    loss.total.backward()
    assert objective.heads["pooled"].prototypes.grad.abs().max() < 1e-6


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.1, 0.9])
def test_the_teachers_temperature_rises_during_the_warm_up(progress):
    objective, batch, step, view, hidden = setting(2, "transformer")
    step = replace(step, index=int(1000 * progress), total=1000)
    with torch.no_grad():
        scores = objective.teacher["pooled"](objective.teacher["encoder"](batch.views[1].image).pooled)
        found = objective.goals(view, hidden_positions(view, hidden, (8, 6)), step)["pooled"][:4]
    temperature = 0.04 + 0.03 * min(1.0, progress / 0.1)
    torch.testing.assert_close(found, (scores / temperature).softmax(-1), rtol=1e-4, atol=1e-6)


# --- who sees what


@KINDS
@DIMS
def test_the_student_sees_nothing_of_hidden_voxels_and_the_teacher_does(ndim, kind):
    objective, _, step, view, hidden = setting(ndim, kind)
    covered = at_resolution(hidden, SIZES[ndim])[:, None]
    changed = replace(view, image=torch.where(covered, 5.0, view.image))
    with torch.no_grad():
        for a, b in zip(*(objective.predicted(one.image, hidden)[:2] for one in (view, changed)), strict=True):
            assert torch.equal(a, b)
        positions = hidden_positions(view, hidden, objective.encoder.strides[-1])
        goals, others = (objective.goals(one, positions, step) for one in (view, changed))
    assert not torch.equal(goals["patch"], others["patch"])


@DIMS
def test_convolutions_carry_what_is_visible_to_hidden_positions(ndim):
    objective, _, _, view, hidden = setting(ndim, "convolutional")
    image = view.image.clone().requires_grad_()
    _, filled, features = objective.predicted(image, hidden)
    covered = at_resolution(hidden, filled.shape[2:])
    assert (features.maps[-1].movedim(1, -1)[covered] == 0).all()
    (gradient,) = torch.autograd.grad(filled.movedim(1, -1)[covered].square().sum(), image)
    assert (gradient != 0).any()


def test_the_views_of_a_sample_have_masks_of_their_own_and_pictures_show_the_first():
    objective, batch, step, view, hidden = setting(2, "transformer")
    assert not torch.equal(hidden[:4], hidden[4:])
    assert torch.equal(objective.hidden(batch.views[0], step), hidden[:4])
    part, part_step = select_rows(batch, step, [2, 0])
    assert torch.equal(objective.hidden(join_views(part.views), part_step), hidden[[2, 0, 6, 4]])
    share = objective.hidden(view, replace(step, seed=5)).flatten(1).double().mean(1)
    assert 0.5 - 1 / 24 <= share.min() < share.max() <= 0.75 + 1 / 24
    pictures = objective.pictures(batch, step)
    covered = at_resolution(hidden[:4], SIZES[2])[:, None]
    assert torch.equal(
        torch.where(covered, 0, pictures["reconstruction"]), torch.where(covered, 0, batch.views[0].image)
    )


# --- the teacher, the hooks, accumulation


@KINDS
def test_the_teacher_follows_after_the_step_and_has_no_gradient(kind):
    objective, batch, step, *_ = setting(2, kind)
    step = replace(step, index=50)
    objective(batch, step).total.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    old = objective.teacher["patch"].prototypes.clone()
    objective.after_step(step)
    momentum = (0.996 + 1.0) / 2  # half of the cosine is done
    want = momentum * old + (1 - momentum) * objective.heads["patch"].prototypes
    torch.testing.assert_close(objective.teacher["patch"].prototypes, want.detach())
    objective.after_load()
    assert torch.equal(objective.teacher["patch"].prototypes, objective.heads["patch"].prototypes)


def test_the_center_moves_by_what_the_teacher_said_in_a_step_of_several_batches():
    objective, batch, step, view, hidden = setting(2, "transformer")
    for rows in ([0, 1], [2, 3]):
        objective(*select_rows(batch, step, rows))
    with torch.no_grad():
        scores = objective.teacher["pooled"](objective.teacher["encoder"](view.image).pooled)
    assert (objective.targets["pooled"].center == 0).all()
    objective.after_step(step)
    torch.testing.assert_close(objective.targets["pooled"].center, 0.1 * scores.mean(0))
    objective.eval()(batch, step)  # validation leaves no trace
    objective.train().after_step(step)
    torch.testing.assert_close(objective.targets["pooled"].center, 0.1 * scores.mean(0))
    del hidden


@KINDS
def test_prototypes_are_held_for_a_share_of_the_training(kind):
    objective, batch, step, *_ = setting(2, kind, prototypes=Prototypes(COUNT, 8, 16, frozen=0.1))
    for index, held in ((0, True), (9, True), (10, False)):
        objective.zero_grad()
        objective(batch, replace(step, index=index)).total.backward()
        objective.before_step(replace(step, index=index))
        for head in objective.heads.values():
            assert bool((head.prototypes.grad == 0).all()) is held
            assert (head.layers[0].weight.grad != 0).any()


@KINDS
def test_accumulation_weighs_as_one_large_batch_does(kind):
    """Samples differ in how much is scored and hidden; the mean over two batches is the loss of all."""
    objective, batch, step, *_ = setting(3 if kind == "convolutional" else 2, kind)  # no batch norm
    parts = [select_rows(batch, step, rows) for rows in ([0, 1], [2, 3])]
    counts = torch.stack([objective.counts(*part) for part in parts])
    assert (counts[0] != counts[1]).all()
    mean = counts.double().mean(0)
    found = [objective(part, replace(part_step, counts=mean)).total for part, part_step in parts]
    torch.testing.assert_close(torch.stack(found).mean(), objective(batch, step).total, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weights", [(0.0, 0.1), (0.1, 0.0), (0.0, 0.0)])
@KINDS
def test_every_parameter_learns_whatever_is_left_out(kind, weights):
    objective, batch, step, *_ = setting(2, kind, patch_weight=weights[0], pooled_weight=weights[1])
    objective(batch, step).total.backward()
    assert not [name for name, p in objective.named_parameters() if p.requires_grad is (p.grad is None)]


CONTRACT = [("transformer", "center"), ("transformer", "sinkhorn"), ("convolutional", "sinkhorn")]


@DIMS
@pytest.mark.parametrize(("kind", "assignment"), CONTRACT)
def test_it_keeps_the_contract(ndim, kind, assignment):
    """Convolutional with centering: the presets, in test_contract.py."""
    check_objective(partial(make, ndim, kind, teaching=Teaching(assignment=assignment)))


def two(makes):
    return [loss_and_gradients(make) for make in makes]


@pytest.mark.ddp
def test_two_processes_equal_one():
    makes = [partial(make, ndim, k, teaching=Teaching(assignment=a)) for ndim in (2, 3) for k, a in CONTRACT]
    shared = ddp.run_two(two, makes)
    for number, one in enumerate(makes):
        loss, gradients = loss_and_gradients(one)
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        for results in shared:
            assert results[number][0] == pytest.approx(loss, rel=1e-10)
            for name, gradient in results[number][1].items():
                torch.testing.assert_close(gradient, gradients[name], rtol=1e-9, atol=1e-9 * scale, msg=name)


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"patch_weight": -0.1}, r"patch_weight: must be 0 or more"),
        ({"pooled_weight": -1.0}, r"pooled_weight: must be 0 or more"),
        ({"masks": Masks(ratio=(0.5, 1.0))}, r"mask ratio 1\.0 hides 24 of 24 cells"),
        ({"prototypes": Prototypes(1)}, "prototypes: must be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        make(2, "convolutional", **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"ratio": (0.75, 0.5)}, r"masks\.ratio: must be two shares, the lower first"),
        ({"unmasked": 1.5}, r"masks\.unmasked: must be from 0 to 1"),
        ({"temperature": (0.0, 0.07)}, r"teaching\.temperature: must be above 0"),
        ({"student_temperature": -1.0}, r"teaching\.student_temperature: must be above 0"),
        ({"momentum": (0.9, 1.1)}, r"teaching\.momentum: must be from 0 to 1"),
        ({"warmup": 2.0}, r"teaching\.warmup: must be from 0 to 1"),
    ],
)
def test_masks_and_teaching_out_of_range_are_refused(arguments, match):
    kind = Masks if set(arguments) & {"ratio", "unmasked"} else Teaching
    with pytest.raises(UserError, match=match):
        kind(**arguments)
