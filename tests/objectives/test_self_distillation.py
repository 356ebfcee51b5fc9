"""DINO, iBOT and DINOv2: losses by loops, the teacher, heads, masks, the Gram stage, collapse that health reports."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from objectives.small import LOCAL, SIZES, encoder, randomize, vit

from medssl.metrics.health import alarms
from medssl.nn.prototype_head import Prototypes
from medssl.nn.self_distillation import PATCH, POOLED
from medssl.nn.teacher import Teaching
from medssl.objectives.base import join_views
from medssl.objectives.contract import example_batch
from medssl.objectives.dino import DINO
from medssl.objectives.dinov2 import DINOv2, Gram, Regularization
from medssl.objectives.ibot import IBOT
from medssl.ops.draws import draws
from medssl.ops.gram import gram_distance
from medssl.ops.masking import Masks
from medssl.ops.spreading import kde, koleo
from medssl.types import UserError, ViewSpec

K = 6
KINDS = pytest.mark.parametrize("kind", [DINO, IBOT, DINOv2])
MASKED = pytest.mark.parametrize("kind", [IBOT, DINOv2])


def make(kind, ndim=2, **arguments):
    """Small, with weights away from their start and a teacher that is another network."""
    torch.manual_seed(0)
    network = arguments.pop("encoder", None) or vit(ndim, pool="class")
    arguments = {"prototypes": Prototypes(K, 8, 16)} | arguments
    objective = kind(
        network, view=ViewSpec(SIZES[ndim]), local_view=ViewSpec(LOCAL[ndim]), local_views=2, **arguments
    ).train()
    randomize(objective.heads)
    randomize(objective.teacher)
    return objective


def run(objective, scans=4, index=0, total=100):
    batch, step = example_batch(objective.needs, 1, scans=scans)
    return objective(batch, replace(step, index=index, total=total))


def log_softmax(scores, temperature):
    total = math.log(sum(math.exp(float(s) / temperature) for s in scores))
    return [float(s) / temperature - total for s in scores]


def entropy(target, scores):
    """Cross-entropy of a row, in Python floats, with the temperatures of teacher and student at the first step."""
    goal = [math.exp(log) for log in log_softmax(target, 0.04)]
    return -sum(q * log for q, log in zip(goal, log_softmax(scores, 0.1), strict=True))


# --- the losses


@pytest.mark.parametrize("ndim", [2, 3])
def test_dino_is_the_mean_over_pairs_of_views(ndim):
    objective = make(DINO, ndim)
    batch, step = example_batch(objective.needs, 1)
    with torch.no_grad():
        student = [objective.heads[POOLED](objective.encoder(view.image).pooled) for view in batch.views]
        teacher = [
            objective.teacher[POOLED](objective.teacher["encoder"](view.image).pooled) for view in batch.views[:2]
        ]
    pairs = [(u, v) for u in range(2) for v in range(4) if u != v]
    values = [entropy(teacher[u][row], student[v][row]) for u, v in pairs for row in range(4)]
    assert objective(batch, step).total.item() == pytest.approx(sum(values) / len(values), rel=1e-5)


@MASKED
def test_positions_count_by_images_and_views_are_masked(kind):
    objective = make(kind, **({"regularization": Regularization(weight=0.0)} if kind is DINOv2 else {}))
    batch, step = example_batch(objective.needs, 1)
    whole = join_views(batch.views[:2])
    hidden = objective.masks.draw(objective.cells, draws(step, f"{kind.__name__.lower()}.mask"), 2)
    assert 0 < int(hidden.flatten(1).any(1).sum()) < 8  # some views are whole
    with torch.no_grad():
        features = objective.encoder(whole.image, hidden, mode="fill")
        teacher = objective.teacher["encoder"](whole.image)
        patch, grid = [], features.maps[-1].shape[2:]
        counted = (whole.valid & whole.scored).float()
        for image in range(8):
            values = []
            for place in hidden[image].nonzero().tolist():
                window = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, objective.encoder.patch, strict=True))
                if counted[(image, 0, *window)].mean() < 0.5:
                    continue
                at = (image, slice(None), *place)
                goal = objective.teacher[PATCH if PATCH in objective.heads else POOLED](teacher.maps[-1][at][None])[0]
                values.append(entropy(goal, objective.scores(PATCH, features.maps[-1][at][None])[0]))
            patch.append(sum(values) / len(values) if values else 0.0)
        local = [objective.encoder(view.image).pooled for view in batch.views[2:]]
        rows = [*features.pooled.split(4), *local]
        student = [objective.scores(POOLED, part) for part in rows]
        goals = objective.teacher[POOLED](teacher.pooled).split(4)
        pairs = [(u, v) for u in range(2) for v in range(4) if u != v]
        pooled = [entropy(goals[u][row], student[v][row]) for u, v in pairs for row in range(4)]
    loss = objective(batch, step)
    assert tuple(grid) == objective.cells
    assert loss.terms[PATCH].item() == pytest.approx(sum(patch) / 8, rel=1e-4)
    assert loss.terms[POOLED].item() == pytest.approx(sum(pooled) / len(pooled), rel=1e-4)
    assert loss.total.item() == pytest.approx(sum(patch) / 8 + sum(pooled) / len(pooled), rel=1e-4)


@KINDS
def test_a_student_and_a_teacher_that_know_nothing_cost_chance(kind):
    objective = make(kind)
    with torch.no_grad():
        for head in (*objective.heads.values(), *(objective.teacher[name] for name in objective.heads)):
            head.prototypes.copy_(torch.ones(K, 8))
    terms = run(objective).terms
    assert terms.get(POOLED, terms["loss"]).item() == pytest.approx(math.log(K), rel=1e-5)
    predicted = terms["loss"] - 0.1 * terms["spread"] if kind is DINOv2 else terms["loss"]
    assert predicted.item() == pytest.approx(terms["chance"].item(), rel=1e-5)


@MASKED
def test_positions_that_are_not_hidden_get_no_gradient_of_the_patch_loss(kind):
    objective = make(kind)
    batch, step = example_batch(objective.needs, 1)
    whole = join_views(batch.views[:2])
    hidden = objective.masks.draw(objective.cells, draws(step, "any"), 2)
    captured = []
    handle = objective.encoder.register_forward_hook(lambda module, given, out: captured.append(out.maps[-1]))
    compared = objective.compare_masked(whole, batch.views[2:], hidden, step)
    handle.remove()
    (gradient,) = torch.autograd.grad(compared.losses[PATCH], captured[0])
    at = gradient.abs().sum(1).bool()
    assert at.any()
    assert not (at & ~hidden).any()


@MASKED
def test_without_masks_the_patch_loss_is_zero_and_finite(kind):
    loss = run(make(kind, masks=Masks((0.1, 0.5), 1.0)))
    loss.total.backward()
    assert loss.terms[PATCH].item() == 0
    assert loss.total.isfinite()


@pytest.mark.parametrize(("spread", "function"), [("koleo", koleo), ("kde", kde)])
def test_embeddings_of_each_global_view_are_spread(spread, function):
    objective = make(DINOv2, regularization=Regularization(spread, 0.3), masks=Masks((0.1, 0.5), 1.0))
    batch, step = example_batch(objective.needs, 1)
    loss = objective(batch, step)
    with torch.no_grad():
        want = sum(function(objective.encoder(view.image).pooled) for view in batch.views[:2])
    torch.testing.assert_close(loss.terms["spread"], want)
    predicted = loss.terms[POOLED] + loss.terms[PATCH]
    torch.testing.assert_close(loss.total.detach(), predicted + 0.3 * want)


# --- heads and the teacher


@MASKED
@pytest.mark.parametrize("separate", [False, True])
def test_heads_are_shared_by_option_and_targets_never(kind, separate):
    objective = make(kind, prototypes=Prototypes(K, 8, 16, separate=separate))
    assert len(objective.heads) == 1 + separate
    assert set(objective.targets) == {POOLED, PATCH}
    run(objective)
    objective.after_step(example_batch(objective.needs, 1)[1])
    assert not torch.equal(objective.targets[POOLED].center, objective.targets[PATCH].center)


@KINDS
def test_the_teacher_follows_by_the_momentum_and_is_what_is_saved(kind):
    objective = make(kind, teaching=Teaching(momentum=(0.9, 0.9)))
    step = example_batch(objective.needs, 1)[1]
    before = copy.deepcopy(dict(objective.teacher.named_parameters()))
    run(objective).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    objective.after_step(step)
    students = {f"{n}.{k}": p for n, m in objective.students().items() for k, p in m.named_parameters()}
    for name, parameter in objective.teacher.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * before[name] + 0.1 * students[name], rtol=0, atol=1e-6)
    assert objective.exported()["encoder"] is objective.teacher["encoder"]
    objective.after_load()
    for name, parameter in objective.teacher.named_parameters():
        assert torch.equal(parameter, students[name])


@KINDS
def test_the_teacher_drops_no_branch_and_stays_in_evaluation_mode(kind):
    objective = make(kind, encoder=vit(2, pool="class", drop_path=0.9)).train()
    assert not any(module.training for module in objective.teacher.modules())
    image = torch.randn(2, 1, *SIZES[2])
    outputs = [objective.teacher["encoder"](image).pooled for _ in range(2)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_dino_takes_convnets_whose_running_statistics_the_teacher_copies(norm):
    objective = make(DINO, encoder=encoder(2, norm=norm))
    run(objective).total.backward()
    objective.after_step(example_batch(objective.needs, 1)[1])
    for mine, its in zip(objective.encoder.buffers(), objective.teacher["encoder"].buffers(), strict=True):
        assert torch.equal(mine, its)


@KINDS
def test_heads_are_trained_first_on_a_frozen_encoder(kind):
    objective = make(kind, prototypes=Prototypes(K, 8, 16, frozen=0.02, head_first=0.1))
    optimizer = torch.optim.AdamW((p for p in objective.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.5)
    batch, step = example_batch(objective.needs, 1)
    moved = []
    for index in (0, 5, 10):
        encoder_before = copy.deepcopy(objective.encoder.state_dict())
        head_before = copy.deepcopy(objective.heads[POOLED].state_dict())
        now = replace(step, index=index)
        optimizer.zero_grad()
        objective(batch, now).total.backward()
        objective.before_step(now)
        optimizer.step()
        of_encoder = any(not torch.equal(v, encoder_before[k]) for k, v in objective.encoder.state_dict().items())
        layers = not torch.equal(objective.heads[POOLED].layers[0].weight, head_before["layers.0.weight"])
        moved.append((of_encoder, layers))
    assert moved == [(False, True), (False, True), (True, True)]


# --- the Gram stage


def test_the_gram_distance_is_that_of_loops_and_free_of_rotations():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    total = 0.0
    for a, b in zip(x, y, strict=True):
        for i in range(3):
            for j in range(3):
                one = float(a[i] @ a[j] / (a[i].norm() * a[j].norm()))
                other = float(b[i] @ b[j] / (b[i].norm() * b[j].norm()))
                total += (one - other) ** 2
    assert gram_distance(x, y).item() == pytest.approx(total / 18, rel=1e-12)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert gram_distance(x, x @ rotation).item() == pytest.approx(0, abs=1e-24)
    counted = torch.tensor([[True, True, False], [False, False, False]])
    assert gram_distance(x, y, counted).item() == pytest.approx(gram_distance(x[:1, :2], y[:1, :2]).item() / 2)


@pytest.mark.parametrize("resolution", [1, 2])
def test_the_gram_teacher_is_the_teacher_of_an_earlier_step(resolution):
    regularization = Regularization(gram=Gram(2.0, start=0.5, every=0.2, resolution=resolution))
    objective = make(DINOv2, regularization=regularization)
    batch, step = example_batch(objective.needs, 1)
    renewed = []
    for index in range(10):
        now = replace(step, index=index, total=10)
        loss = objective(batch, now)
        assert ("gram" in loss.terms) == (index >= 5)
        if "gram" in loss.terms:
            rest = loss.terms[POOLED] + loss.terms[PATCH] + 0.1 * loss.terms["spread"]
            torch.testing.assert_close(loss.total.detach(), rest + 2 * loss.terms["gram"])
            assert loss.terms["gram"] > 0
        with torch.no_grad():
            for parameter in objective.encoder.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        before = copy.deepcopy(objective.gram_teacher.state_dict())
        objective.after_step(now)
        state = objective.gram_teacher.state_dict()
        if any(not torch.equal(state[key], before[key]) for key in state):
            renewed.append(index + 1)
            assert all(torch.equal(value, objective.teacher.state_dict()[key]) for key, value in state.items())
    assert renewed == [5, 7, 9]


# --- collapse, and what is refused


@KINDS
@pytest.mark.parametrize(("collapse", "kind_of_alarm"), [("one prototype", "prototypes"), ("uniform", "teacher")])
def test_health_reports_a_collapsed_teacher(kind, collapse, kind_of_alarm):
    objective = make(kind)
    with torch.no_grad():
        for name in objective.heads:
            head = objective.teacher[name]
            for layer in head.layers:
                layer.weight.zero_()
                layer.bias.fill_(1.0)
            head.prototypes.fill_(1.0)
            if collapse == "one prototype":
                head.prototypes[1:] *= -1
    rows = []
    for index in range(4):
        terms = {key: float(value) for key, value in run(objective, scans=8).terms.items()}
        rows.append({"step": 100.0 * index + 1, "gradient_norm": 1.0, "learning_rate": 1e-3, **terms})
    assert kind_of_alarm in {alarm.kind for alarm in alarms(rows, settled=200)}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (lambda: Gram(weight=-1.0), r"regularization\.gram\.weight: must be 0 or more \(got -1\.0\)"),
        (lambda: Gram(start=1.5), r"regularization\.gram\.start: must be from 0 to 1 \(got 1\.5\)"),
        (lambda: Gram(every=0.0), r"regularization\.gram\.every: must be above 0 to 1 \(got 0\.0\)"),
        (lambda: Gram(resolution=0), r"regularization\.gram\.resolution: must be a whole number of at least 1"),
        (lambda: Regularization(weight=-0.1), r"regularization\.weight: must be 0 or more \(got -0\.1\)"),
        (lambda: Prototypes(head_first=2.0), r"prototypes\.head_first: must be from 0 to 1 \(got 2\.0\)"),
        (lambda: make(IBOT, encoder=encoder(2)), r'ResEnc has mask modes: sparse; IBOT needs an encoder with "fill"'),
        (lambda: make(DINOv2, encoder=encoder(2)), r'DINOv2 needs an encoder with "fill": choose another encoder'),
        (lambda: make(DINO, prototypes=Prototypes(1)), r"prototypes: must be at least 2 \(got 1\)"),
        (
            lambda: DINO(vit(2), view=ViewSpec(SIZES[2]), local_view=ViewSpec((12, 12)), local_views=1),
            r"for the encoder's stride, view size \(12, 12\)",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        arguments()
