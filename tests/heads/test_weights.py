"""A network as files, and folders that are broken."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from heads.made import image, schema
from safetensors import safe_open

from medssl.encoders.resenc import ResEnc
from medssl.encoders.tensors import tensor_bytes
from medssl.heads.base import Network
from medssl.heads.classification import AttentivePool, Linear
from medssl.heads.segmentation import UNet
from medssl.heads.weights import load_network, save_network
from medssl.types import Card, Imported, Preprocess, Tuned, UserError
from medssl.types.provenance import Provenance

ENCODER = {"in_channels": 1, "ndim": 2, "channels": [4, 8, 12], "blocks": [1, 1, 1], "norm": "batch"}
HEADS = {
    "unet": (UNet, {"deep_supervision": True, "loss_weights": [0.5, 1.0], "norm": "batch"}),
    "linear": (Linear, {"batch_norm": True, "class_weights": [1.0, 2.0, 3.0]}),
    "attentive": (AttentivePool, {"attention_heads": 2, "dropout": 0.5}),
}


def made(name: str) -> tuple[Network, Card]:
    """A network whose weights and statistics are away from their initialization, and its card."""
    torch.manual_seed(0)
    head, arguments = HEADS[name]
    small = ResEnc(**ENCODER)
    network = Network(small, head(small, schema(3), **arguments))
    network(image(2, rows=4))
    tuned = Tuned(Imported(f"{head.__module__}.{head.__name__}", arguments), schema(3), (32, 48), 2, ("aa",))
    card = Card(
        encoder=Imported("medssl.encoders.resenc.ResEnc", ENCODER),
        preprocess=Preprocess(),
        objective=None,
        index_digest="0123456789abcdef",
        subjects=Provenance(complete=False),
        step=40,
        versions={},
        tuned=tuned,
    )
    return network, card


@pytest.mark.parametrize("name", HEADS)
def test_a_network_comes_back_as_it_was(name, tmp_path):
    network, card = made(name)
    save_network(tmp_path, network, card)
    again, found = load_network(tmp_path)
    assert not any(module.training for module in again.modules())
    assert replace(found, tuned=None) == replace(card, tuned=None)
    assert found.tuned is not None
    assert found.tuned.schema == schema(3)
    assert found.tuned.head == card.tuned.head
    x = image(2)
    assert torch.equal(again(x), network.eval()(x))
    assert type(again.head) is HEADS[name][0]


def changed(folder: Path, **changes) -> None:
    """Replaces entries of ``tuned`` in the card; None for ``tuned`` itself takes it out."""
    content = json.loads((folder / "card.json").read_text())
    content["tuned"] = None if changes == {"tuned": None} else {**content["tuned"], **changes}
    (folder / "card.json").write_text(json.dumps(content))


BROKEN = {
    "no card": (lambda f: (f / "card.json").unlink(), "card.json"),
    "only pretrained": (lambda f: changed(f, tuned=None), "has no head: .* is a run of pretraining"),
    "no weights": (lambda f: (f / "head.safetensors").unlink(), "the head's weights could not be read"),
    "cut off": (
        lambda f: (f / "head.safetensors").write_bytes((f / "head.safetensors").read_bytes()[:50]),
        "the head's weights could not be read .*: run the fine-tuning again",
    ),
    "another head": (
        lambda f: changed(f, head={"class_path": "medssl.heads.classification.Linear", "init_args": {}}),
        "the head's weights could not be read",
    ),
    "no such class": (
        lambda f: changed(f, head={"class_path": "medssl.heads.segmentation.VNet", "init_args": {}}),
        r"tuned\.head: medssl\.heads\.segmentation\.VNet cannot be imported",
    ),
    "no head": (
        lambda f: changed(f, head={"class_path": "medssl.encoders.resenc.ResEnc", "init_args": {}}),
        "is no medssl.heads.base.Head",
    ),
    "unknown argument": (
        lambda f: changed(f, head={"class_path": "medssl.heads.segmentation.UNet", "init_args": {"depth": 3}}),
        "cannot be made .*depth",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused(name, tmp_path):
    save_network(tmp_path, *made("unet"))
    load_network(tmp_path)
    damage, match = BROKEN[name]
    damage(tmp_path)
    with pytest.raises(UserError, match=match):
        load_network(tmp_path)


def test_encoder_and_head_of_different_steps_are_refused(tmp_path):
    network, card = made("unet")
    save_network(tmp_path, network, card)
    kept = (tmp_path / "head.safetensors").read_bytes()
    save_network(tmp_path, network, replace(card, step=80))
    (tmp_path / "head.safetensors").write_bytes(kept)
    with pytest.raises(UserError, match="head of step 40, encoder of step 80: the run was stopped while"):
        load_network(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    save_network(tmp_path, *made("attentive"))
    changed(tmp_path, schema={"name": "mask", "classes": [[0, "no"], [1, "yes"]], "ignore": None})
    with pytest.raises(UserError, match="the head's weights could not be read"):
        load_network(tmp_path)


def test_a_disk_that_refuses_leaves_the_former_files(tmp_path, monkeypatch):
    network, card = made("unet")
    save_network(tmp_path, network, card)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        UserError, match=r"head\.safetensors could not be written \(No space left on device; \d+ MiB free\)"
    ):
        save_network(tmp_path, network, replace(card, step=80))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saving_leaves_the_network_as_it_was(tmp_path):
    network, card = made("unet")
    state = {key: value.clone() for key, value in network.state_dict().items()}
    save_network(tmp_path, network, card)
    assert network.training
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


SAVES = """
import hashlib, torch
from medssl.encoders.tensors import tensor_bytes
tensors = {"b": torch.ones(3), "a.weight": torch.arange(5), "c": torch.zeros((), dtype=torch.float16)}
print(hashlib.sha256(tensor_bytes(tensors, {"step": "40", "format": "pt", "other": "x"})).hexdigest())
"""


def test_equal_networks_are_equal_bytes_in_every_process():
    """Neither the hash seed of a process shows nor how often a file is written."""
    other = subprocess.run(
        [sys.executable, "-c", SAVES], env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, check=True
    )
    tensors = {"b": torch.ones(3), "a.weight": torch.arange(5), "c": torch.zeros((), dtype=torch.float16)}
    many = {tensor_bytes(tensors, {"format": "pt", "other": "x", "step": "40"}) for _ in range(50)}
    assert {hashlib.sha256(content).hexdigest() for content in many} == {other.stdout.decode().strip()}


def test_sorted_metadata_leaves_tensors_and_metadata_readable(tmp_path):
    tensors = {"b": torch.randn(3, 2), "a": torch.arange(7), "c": torch.zeros((), dtype=torch.bfloat16)}
    (tmp_path / "x.safetensors").write_bytes(tensor_bytes(tensors, {"step": "40", "näme": "größe"}))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"step": "40", "näme": "größe"}
        assert sorted(file.keys()) == ["a", "b", "c"]
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype
