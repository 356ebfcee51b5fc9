"""I-JEPA: boxes and what is visible, the loss by loops, targets of one and of several depths, the teacher, refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import prod

import pytest
import torch
from objectives.small import SIZES, encoder, randomize, vit

from medssl.objectives.base import select_rows
from medssl.objectives.contract import example_batch
from medssl.objectives.ijepa import IJEPA
from medssl.ops.draws import Draws, keyed_generator
from medssl.ops.masking import target_boxes
from medssl.types import UserError, ViewSpec


def make(ndim=2, network=None, **arguments):
    torch.manual_seed(0)
    arguments = {"predictor_width": 32, "predictor_depth": 1} | arguments
    objective = IJEPA(network or vit(ndim), view=ViewSpec(SIZES[ndim]), **arguments).train()
    randomize(objective.teacher)
    return objective


# --- boxes


@pytest.mark.parametrize("cells", [(14, 14), (4, 8), (6, 6, 6), (2, 4, 6)])
def test_boxes_are_boxes_and_never_visible(cells):
    sizes = set()
    for step in range(30):
        boxes, hidden = target_boxes(cells, Draws(0, range(8), "boxes"), keyed_generator(0, step, "sizes"))
        assert hidden.flatten(1).gather(1, boxes.flatten(1)).all()
        assert set(hidden.flatten(1).sum(1).tolist()) == {boxes[0].numel()}
        assert boxes[0].numel() <= 0.9 * prod(cells)
        places = torch.stack(torch.unravel_index(boxes, cells), -1)
        sides = places.amax(2) - places.amin(2) + 1
        assert (sides.prod(-1) == boxes.shape[2]).all()
        assert len(sides.flatten(0, 1).unique(dim=0)) == 1  # one size for all
        assert all(len(set(box.tolist())) == boxes.shape[2] for box in boxes.flatten(0, 1))
        sizes.add(tuple(sides[0, 0].tolist()))
    assert len(sizes) > 1


def test_boxes_of_a_sample_do_not_depend_on_the_batch():
    boxes, hidden = target_boxes((14, 14), Draws(0, (3, 7, 9), "boxes"), keyed_generator(0, 1, "sizes"))
    alone, hidden_alone = target_boxes((14, 14), Draws(0, (7,), "boxes"), keyed_generator(0, 1, "sizes"))
    assert torch.equal(boxes[1:2], alone)
    assert torch.equal(hidden[1:2], hidden_alone)


def test_boxes_have_the_published_share():
    areas = [
        target_boxes((32, 32), Draws(0, (0,), "boxes"), keyed_generator(0, step, "sizes"))[0].shape[2] / 1024
        for step in range(200)
    ]
    assert 0.12 < min(areas) < 0.16
    assert 0.19 < max(areas) < 0.23


def test_a_grid_that_is_too_small_is_refused():
    with pytest.raises(
        UserError, match=r"4 boxes on a grid of \(2, 2\) cells leave too few visible: take a larger view"
    ):
        target_boxes((2, 2), Draws(0, (0,), "boxes"), keyed_generator(0, 0, "sizes"))


# --- the loss


@pytest.mark.parametrize("target_depths", [1, 2])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_that_of_loops(ndim, target_depths):
    objective = make(ndim, target_depths=target_depths)
    batch, step = example_batch(objective.needs, 1)
    view = batch.views[0]
    boxes, hidden = objective.boxes(view, step)
    patch, cells = objective.encoder.patch, objective.cells
    errors = []
    with torch.no_grad():
        whole = objective.teacher["encoder"](view.image)
        for sample in range(4):
            context = objective.encoder(view.image[sample : sample + 1], hidden[sample : sample + 1], mode="drop")
            for box in boxes[sample]:
                predicted = objective.predictor(
                    context.tokens, context.visible_cells, box[None], cells, step=objective.encoder.step
                )[0]
                for cell, guess in zip(box.tolist(), predicted, strict=True):
                    place = [int(p) for p in torch.unravel_index(torch.tensor(cell), cells)]
                    window = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, patch, strict=True))
                    scored = (view.valid & view.scored)[(sample, 0, *window)].float().mean()
                    if scored < 0.5:
                        continue
                    targets = []
                    for values in whole.maps[-target_depths:]:
                        row = values[(sample, slice(None), *place)]
                        targets.append((row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt())
                    distance = (guess - sum(targets) / target_depths).abs()
                    smooth = torch.where(distance < 1, 0.5 * distance.square(), distance - 0.5)
                    errors.append(float(smooth.mean()))
    assert 0 < len(errors) < boxes.numel()  # padding is left out
    assert objective(batch, step).total.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert int(objective.counts(batch, step)) == len(errors)


def test_hidden_cells_do_not_reach_the_prediction():
    objective = make()
    objective.teacher["encoder"].patch_embed.proj.weight.data.zero_()  # targets that no voxel changes
    batch, step = example_batch(objective.needs, 1)
    view = batch.views[0]
    _, hidden = objective.boxes(view, step)
    voxels = hidden.repeat_interleave(8, 1).repeat_interleave(6, 2)[:, None]
    other = replace(view, image=torch.where(voxels, torch.randn_like(view.image), view.image))
    assert not torch.equal(other.image, view.image)
    torch.testing.assert_close(objective(replace(batch, views=(other,)), step).total, objective(batch, step).total)


def test_micro_batches_with_counts_add_up_to_one_batch():
    objective = make()
    batch, step = example_batch(objective.needs, 1)
    parts = [select_rows(batch, step, rows) for rows in ((0, 1), (2, 3))]
    counts = sum(objective.counts(*part) for part in parts).double() / 2
    losses = [objective(part, replace(now, counts=counts, micro_batches=2)).total for part, now in parts]
    assert float(sum(losses).detach() / 2) == pytest.approx(objective(batch, step).total.item(), rel=1e-5)


def test_a_prediction_of_the_mean_target_costs_chance():
    objective = make()
    batch, step = example_batch(objective.needs, 1)
    view = batch.views[0]
    boxes, _ = objective.boxes(view, step)
    goals = objective.goals(view.image).repeat_interleave(4, 0)
    goals = goals.gather(1, boxes.flatten(0, 1)[..., None].expand(-1, -1, goals.shape[2]))
    with torch.no_grad():
        objective.predictor.predict.weight.zero_()
        objective.predictor.predict.bias.copy_(goals[objective.counted(view, boxes)].mean(0))
    loss = objective(batch, step)
    assert loss.total.item() == pytest.approx(loss.terms["chance"].item(), rel=1e-5)


# --- the teacher, and what is refused


def test_the_teacher_follows_the_encoder_and_is_what_is_saved():
    objective = make(momentum=(0.75, 1.0))
    batch, step = example_batch(objective.needs, 1)
    before = copy.deepcopy(objective.teacher["encoder"].state_dict())
    objective(batch, step).total.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    objective.after_step(step)
    for name, parameter in objective.encoder.named_parameters():
        want = 0.75 * before[name] + 0.25 * parameter
        torch.testing.assert_close(objective.teacher["encoder"].state_dict()[name], want.detach(), rtol=0, atol=1e-6)
    assert objective.exported()["encoder"] is objective.teacher["encoder"]
    assert not objective.teacher["encoder"].training


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"network": encoder(2)}, r'ResEnc has mask modes: sparse; IJEPA needs an encoder with "drop"'),
        ({"box": (0.3, 0.3)}, r"box: must be two shares above 0 to 0\.225, the lower first"),
        ({"box": (0.2, 0.1)}, r"box: must be two shares above 0 to 0\.225, the lower first"),
        ({"momentum": (0.9, 1.1)}, r"momentum: must be from 0 to 1"),
        ({"target_depths": 3}, r"target_depths: must be from 1 to 2 \(got 3\)"),
        ({"predictor_depth": 0}, r"transformer: depth: must be at least 1 \(got 0\)"),
        ({"predictor_width": 0}, r"predictor_width: must be a multiple of 32 \(got 0\)"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        make(**arguments)
