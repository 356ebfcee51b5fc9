"""The teacher: follows by the momentum, copies buffers, stays in evaluation mode, has no gradient and clean keys."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from objectives.small import encoder, randomize, vit
from torch import nn

from medssl.nn.teacher import Teacher, teacher_terms


def students():
    torch.manual_seed(0)
    return {"encoder": encoder(2), "head": nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))}


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        for name, module in students().items():
            self.add_module(name, module)
        self.teacher = Teacher(dict(self.named_children()))


def test_it_starts_as_a_copy_that_shares_nothing():
    networks = students()
    teacher = Teacher(networks)
    before = copy.deepcopy(teacher.state_dict())
    randomize(networks["encoder"])
    after = teacher.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_parameters_follow_by_the_momentum_and_buffers_are_copied():
    networks = students()
    teacher = Teacher(networks)
    old = {key: value.clone() for key, value in teacher.state_dict().items()}
    for network in networks.values():
        randomize(network)
    networks["head"][1].running_mean.fill_(7.0)
    networks["head"][1].num_batches_tracked.fill_(5)
    teacher.follow(networks, 0.75)
    for name, network in networks.items():
        trained = dict(network.named_parameters(remove_duplicate=False))
        for key, value in network.state_dict().items():
            found = teacher.state_dict()[f"{name}.{key}"]
            want = 0.75 * old[f"{name}.{key}"] + 0.25 * value if key in trained else value
            torch.testing.assert_close(found, want)
    assert teacher["head"][1].running_mean.tolist() == [7.0] * 4
    assert int(teacher["head"][1].num_batches_tracked) == 5


def test_momentum_1_leaves_and_0_copies_exactly():
    networks = students()
    teacher = Teacher(networks)
    old = [parameter.clone() for parameter in teacher.parameters()]
    randomize(networks["encoder"])
    teacher.follow(networks, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(old, teacher.parameters(), strict=True))
    teacher.copy_from(networks)
    same = [
        torch.equal(a, b)
        for a, b in zip(networks["encoder"].parameters(), teacher["encoder"].parameters(), strict=True)
    ]
    assert all(same)


def test_it_stays_in_evaluation_mode_without_gradient():
    student = Student().train()
    assert student.head.training
    assert not any(module.training for module in student.teacher.modules())
    student.eval().train()
    assert not any(module.training for module in student.teacher.modules())
    assert not any(parameter.requires_grad for parameter in student.teacher.parameters())
    assert {"teacher.head.0.weight", "teacher.head.1.running_mean"} <= set(student.state_dict())
    assert all(key.removeprefix("teacher.") in student.state_dict() for key in student.state_dict())


def test_drop_path_and_batch_statistics_are_off_while_the_student_trains():
    network = vit(2, drop_path=0.9, depth=3)
    teacher = Teacher({"encoder": network})
    teacher.train()
    network.train()
    image = torch.randn(4, 1, 32, 48)
    with torch.no_grad():
        assert torch.equal(teacher["encoder"](image).pooled, network.eval()(image).pooled)
        assert not torch.equal(teacher["encoder"](image).pooled, network.train()(image).pooled)
    convolutions = encoder(2, norm="batch").train()
    teacher = Teacher({"encoder": convolutions})
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    with torch.no_grad():
        teacher["encoder"](image)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"the teacher holds \['encoder', 'head'\], got students \['head'\]"):
        Teacher(students()).follow({"head": nn.Linear(1, 1)}, 0.5)


def test_the_entropy_of_the_mean_target_counts_prototypes_in_use():
    """One head that names one of 8 prototypes for all, one that names two in turn: 0 and log 2, by hand."""
    one, two = torch.zeros(10, 8), torch.zeros(10, 8)
    one[:, 3] = 1
    two[::2, 1] = two[1::2, 4] = 1
    few = torch.full((2, 8), 1 / 8)
    terms = {name: float(term) for name, term in teacher_terms({"patch": two, "pooled": few}).items()}
    assert terms["teacher_mean_entropy"] == pytest.approx(math.log(2))
    assert terms["teacher_information"] == pytest.approx(math.log(2))
    for name in ("teacher_entropy", "teacher_chance"):  # of the two rows that say nothing
        assert terms[name] == pytest.approx(math.log(8))
    assert float(teacher_terms({"patch": two, "pooled": one})["teacher_mean_entropy"]) == 0
    assert "teacher_mean_entropy" not in teacher_terms({"pooled": few})  # too few rows to say
