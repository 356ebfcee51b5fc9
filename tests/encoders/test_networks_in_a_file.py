"""Files that hold several networks, or parts that the encoder lacks: the right one is taken and named, or none."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

from medssl.encoders.vit import ViT
from medssl.encoders.weights import load
from medssl.types import UserError


def vit(seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    return ViT(patch=(8, 8), width=32, depth=2)


def states() -> tuple[dict, dict]:
    return vit(1).state_dict(), vit(2).state_dict()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("inner", ["", "backbone."])
def test_of_student_and_teacher_the_teacher_is_taken_and_named(tmp_path, nested, inner):
    student, teacher = ({inner + key: value for key, value in state.items()} for state in states())
    content = {"student": student, "teacher": teacher, "epoch": 3}
    if not nested:
        content = {f"{name}.{key}": v for name, state in list(content.items())[:2] for key, v in state.items()}
    torch.save(content, tmp_path / "both.pth")
    encoder = vit()
    report = load(encoder, tmp_path / "both.pth")
    assert "taken is teacher" in str(report)
    assert "not student" in str(report)
    torch.testing.assert_close(encoder.state_dict(), states()[1])


def test_networks_of_unknown_names_are_not_chosen_between(tmp_path):
    one, other = states()
    torch.save({"first": one, "second": other}, tmp_path / "both.pth")
    encoder = vit()
    message = "both.pth: 2 networks in it fit (first, second): save the one that is meant in a file of its own"
    with pytest.raises(UserError, match=re.escape(message)):
        load(encoder, tmp_path / "both.pth")
    torch.testing.assert_close(encoder.state_dict(), vit().state_dict())


def test_one_network_under_two_prefixes_is_one(tmp_path):
    state = states()[0]
    torch.save({"model": {f"module.backbone.{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    report = load(vit(), tmp_path / "x.pth")
    assert report.matched == 1
    assert "taken" not in str(report)


@pytest.mark.parametrize("name", ["extra.weight", "attn.out.weight"])
def test_weights_inside_blocks_that_the_encoder_lacks_are_refused(tmp_path, name):
    state = states()[0]
    extra = {f"blocks.{number}.{name}": torch.full((32,), 1e-3) for number in range(2)}
    assert not set(extra) & set(state)
    save_file(state | extra, tmp_path / "scaled.safetensors")
    with pytest.raises(UserError, match=r"another network: 2 of their keys belong to parts that ViT has without them"):
        load(vit(), tmp_path / "scaled.safetensors")
    report = load(vit(), tmp_path / "scaled.safetensors", minimum=0.5)
    assert len(report.unexpected) == 2


def test_tables_and_counters_inside_blocks_are_no_weights(tmp_path):
    state = states()[0]
    extra = {"blocks.0.attn.relative_position_index": torch.zeros(4), "head.weight": torch.zeros(3, 32)}
    save_file(state | extra, tmp_path / "x.safetensors")
    assert load(vit(), tmp_path / "x.safetensors").matched == 1
