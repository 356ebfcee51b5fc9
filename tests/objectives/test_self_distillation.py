"""Every objective with a momentum teacher of prototypes: chance, the teacher, frozen parts, collapse, refusals."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from objectives.distilled import KINDS, K, make, run
from objectives.small import SIZES, encoder, vit

from medssl.metrics.health import alarms
from medssl.nn.prototype_head import Prototypes
from medssl.nn.self_distillation import POOLED
from medssl.nn.teacher import Teaching
from medssl.objectives.contract import example_batch
from medssl.objectives.dino import DINO
from medssl.objectives.dinov2 import DINOv2, Gram, Regularization
from medssl.objectives.ibot import IBOT
from medssl.types import UserError, ViewSpec


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
