"""Fine-tuning of transformers: the recipes, drop-path, and low-rank adaptation with plain weights at the end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from dataclasses import asdict

import pytest
import torch
from commands import labeled
from heads.made import image, schema, tokens
from objectives.small import encoder

from medssl import cli
from medssl.data.store.store import Store
from medssl.encoders.tensors import read_tensors
from medssl.encoders.timm2d import Timm2d
from medssl.encoders.vit import ViT
from medssl.encoders.weights import save_encoder
from medssl.heads.base import Network
from medssl.heads.transformer import FeaturePyramid
from medssl.heads.weights import load_network
from medssl.training import lora
from medssl.training.checkpoint_writer import CheckpointWriter
from medssl.training.initial_weights import InitialWeights, with_drop_path
from medssl.training.optim import FineTuning
from medssl.types import Card, Imported, Preprocess, UserError
from medssl.types.provenance import Provenance

NEEDS_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
TIMED = {"seconds", "waiting", "samples_per_second"}
ARGUMENTS = {
    "volumes": {"in_channels": 1, "patch": (8, 8, 4), "width": 24, "depth": 2},
    "pictures": {"in_channels": 1, "patch": (8, 8), "width": 24, "depth": 2, "pool": "class"},
}
RECIPES = {"volumes": ("segment_3d_vit_small", "[16,16,8]"), "pictures": ("classify_2d_vit_small", "[32,32]")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Labeled volumes and pictures, their stores, and a transformer for each with its card."""
    folder = tmp_path_factory.mktemp("transformers")
    for name, write in (("volumes", labeled.volumes), ("pictures", labeled.pictures)):
        below = folder / name
        write(below / "scans")
        file = labeled.indexed(below / "scans", below / "index.sqlite", key=folder / "key")
        labeled.stored(file, below / "store", Preprocess(foreground_crop=False, orientation=None))
        store = Store.open(below / "store")
        torch.manual_seed(5)
        described = Imported("medssl.encoders.vit.ViT", ARGUMENTS[name])
        card = Card(described, store.preprocess, None, "digest", Provenance(store.subjects_of_split("train")), 7, {})
        save_encoder(below / "pretrained", ViT(**ARGUMENTS[name]), card)
    return folder


@pytest.fixture
def call(place, tmp_path, capsys):
    """Calls the verb with a recipe and a few steps; gives the exit code and everything it said."""

    def run(*words: str, data: str = "volumes", folder: str = "run"):
        mask, threads = os.umask(0o077), torch.get_num_threads()
        recipe, size = RECIPES[data]
        given = {
            "--config": recipe, "--store": place / data / "store", "--run": tmp_path / folder,
            "--pretrained": place / data / "pretrained", "--data.view.size": size, "--training.steps": 3,
            "--data.workers": 0, "--training.output.validate_every": 3, "--training.output.log_every": 1,
        }  # fmt: skip
        named = {word.partition("=")[0] for word in words}
        lines = [f"{key}={value}" for key, value in given.items() if key not in named]
        try:
            code = cli.main(["finetune", *lines, *words])
        finally:
            os.umask(mask)
            torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def rows(run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- recipes


@pytest.mark.parametrize("data", RECIPES)
def test_the_recipes_run(call, place, tmp_path, data):
    code, said = call(data=data)
    assert code == 0, said
    assert "weights of step 7: 100% of the keys filled" in said
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    network, card = load_network(tmp_path / "run")
    assert card.encoder.init_args["drop_path"] == 0.1  # of the recipe, and in the card for whoever goes on
    chances = [block.drop_path.chance for block in network.encoder.blocks]
    assert chances == [0.0, 0.1]
    before = read_tensors(place / data / "pretrained/encoder.safetensors")
    moved = {key for key, value in network.encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == before.keys() - {"mask_token"}  # which nothing but a mask uses


@pytest.mark.parametrize("head", ["feature_pyramid", "unet", "voxel_linear"])
def test_other_heads_run_on_transformers(call, head):
    code, said = call(f"--head={head}", "--training.steps=1")
    assert code == 0, said


# --- drop-path


def weights_of(path: str, **arguments) -> InitialWeights:
    return InitialWeights(Imported(path, arguments), None, None, "random")


def test_drop_path_is_an_argument_of_the_encoder():
    initial = weights_of("medssl.encoders.vit.ViT", patch=(8, 8), drop_path=0.0)
    assert with_drop_path(initial, None) is initial
    assert with_drop_path(initial, 0.2).encoder.init_args == {"patch": (8, 8), "drop_path": 0.2}
    assert initial.encoder.init_args["drop_path"] == 0.0
    assert (
        "drop_path"
        in with_drop_path(weights_of("medssl.encoders.timm2d.Timm2d", model="resnet18"), 0.1).encoder.init_args
    )


def test_drop_path_of_an_encoder_without(call, tmp_path):
    words = r"optimizer.drop_path 0.1: ResEnc has no drop_path, as transformers have; set it to null"
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        with_drop_path(weights_of("medssl.encoders.resenc.ResEnc"), 0.1)
    code, said = call("--pretrained=null", "--encoder=resenc_small_3d")
    assert (code, said.strip()) == (2, f"error: {words}")
    with pytest.raises(UserError, match=r"optimizer\.drop_path: must be from 0 to below 1, or null \(got 1\.0\)"):
        FineTuning(drop_path=1.0)


# --- low-rank adaptation


@NEEDS_PEFT
@pytest.mark.parametrize("ndim", [2, 3])
def test_merged_answers_as_unmerged_with_a_change_of_that_rank(ndim):
    torch.manual_seed(0)
    made = tokens(ndim)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    network = Network(made, FeaturePyramid(made, schema(2))).eval()
    x = image(ndim)
    with torch.no_grad():
        plain = network(x)
        said = lora.adapt(made, lora.LoRA(rank=3, alpha=6.0))
        assert "rank 3 beside 8 of its layers learn" in said
        assert torch.equal(network(x), plain)  # B is zero at first
        learning = {name: p for name, p in made.named_parameters() if p.requires_grad}
        assert len(learning) == 16
        assert sum(p.numel() for p in learning.values()) == 4 * 3 * ((24 + 72) + (24 + 24))
        for name, parameter in learning.items():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        changed = network(x)
        assert not torch.allclose(changed, plain, atol=1e-3)
        together = lora.merged(network)
        torch.testing.assert_close(together(x), changed, rtol=1e-4, atol=1e-5)
    state = together.encoder.state_dict()
    assert state.keys() == before.keys()
    for key, value in state.items():
        adapted = key.endswith(("qkv.weight", "attn.proj.weight"))
        assert torch.equal(value, before[key]) != adapted, key
        if adapted:
            assert torch.linalg.matrix_rank((value - before[key]).double(), rtol=1e-4) == 3
            layer = dict(network.encoder.named_modules())[key.removesuffix(".weight")]
            b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            torch.testing.assert_close(value - before[key], 2.0 * (b @ a), rtol=1e-4, atol=1e-6)
    assert any("lora_A" in key for key in network.encoder.state_dict())  # the network itself goes on learning


@NEEDS_PEFT
def test_a_transformer_of_timm_is_adapted_and_merged():
    torch.manual_seed(0)
    made = Timm2d("vit_tiny_patch16_224", in_channels=1).eval()
    keys = made.state_dict().keys()
    network = Network(made, FeaturePyramid(made, schema(2)))
    assert "beside 24 of its layers" in lora.adapt(made, lora.LoRA(rank=2))
    layers = made.layers()
    assert all(name in layers for name, p in made.named_parameters() if p.requires_grad)
    assert lora.merged(network).encoder.state_dict().keys() == keys


def test_without_adaptation_nothing_is_copied():
    made = tokens(2)
    network = Network(made, FeaturePyramid(made, schema(2)))
    assert lora.adapt(made, lora.LoRA()) == ""
    assert lora.merged(network) is network
    assert all(p.requires_grad for p in made.parameters())


@NEEDS_PEFT
def test_a_run_trains_the_small_matrices_alone_and_writes_plain_weights(call, place, tmp_path):
    code, said = call("--optimizer=lora", "--optimizer.learning_rate=0.01", "--optimizer.lora.rank=2")
    assert code == 0, said
    assert "the encoder is frozen; 576 values of rank 2 beside 4 of its layers learn" in said
    held = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["objective"]
    before = read_tensors(place / "volumes/pretrained/encoder.safetensors")
    for key, value in before.items():
        stem, last = key.rsplit(".", 1) if "." in key else ("", key)
        kept = held.get(f"encoder.{stem}.base_layer.{last}", held.get(f"encoder.{key}"))
        assert torch.equal(kept, value), key  # bit for bit
    network, card = load_network(tmp_path / "run")
    after = network.encoder.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved == {f"blocks.{n}.attn.{name}.weight" for n in (0, 1) for name in ("qkv", "proj")}
    assert "lora" not in json.dumps(asdict(card))
    assert {"head.safetensors", "encoder.safetensors", "card.json"} <= {
        file.name for file in (tmp_path / "run").iterdir()
    }


@NEEDS_PEFT
def test_averaged_adaptation_is_written_too(call, place, tmp_path):
    code, said = call("--optimizer=lora", "--optimizer.learning_rate=0.01", "--optimizer.average=0.9")
    assert code == 0, said
    assert (
        load_network(tmp_path / "run")[0].encoder.state_dict().keys()
        == read_tensors(place / "volumes/pretrained/encoder.safetensors").keys()
    )


@NEEDS_PEFT
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(call, tmp_path, monkeypatch):
    words = ["--optimizer=lora", "--optimizer.learning_rate=0.01", "--optimizer.lora.dropout=0.2"]
    often = ["--training.steps=4", "--training.output.validate_every=2"]
    assert call(*words, *often, folder="straight")[0] == 0
    kept = CheckpointWriter.on_step

    def stopped(self, loop, record):
        kept(self, loop, record)
        os.kill(os.getpid(), signal.SIGTERM)  # during the next step

    monkeypatch.setattr(CheckpointWriter, "on_step", stopped)
    assert call(*words, *often, folder="broken")[0] == 128 + signal.SIGTERM
    monkeypatch.setattr(CheckpointWriter, "on_step", kept)
    code, said = call(*words, *often, folder="broken")
    assert (code, "going on after step 2" in said) == (0, True), said
    a, b = (torch.load(tmp_path / f / "checkpoints/last.pt", weights_only=True) for f in ("straight", "broken"))
    assert a["objective"].keys() == b["objective"].keys()
    assert all(torch.equal(a["objective"][key], b["objective"][key]) for key in a["objective"])
    assert any("lora_A" in key for key in a["objective"])
    a, b = (load_network(tmp_path / f)[0].state_dict() for f in ("straight", "broken"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_an_encoder_without_such_layers():
    with pytest.raises(UserError, match=r"lora: ResEnc has no linear layers named qkv or proj \(it has: none\)"):
        lora.adapt(encoder(2), lora.LoRA(rank=2))
    with pytest.raises(UserError, match=r"ViT has no linear layers named query \(it has: fc1, fc2, proj, qkv\); name"):
        lora.adapt(tokens(2), lora.LoRA(rank=2, modules=("query",)))


def test_the_convolution_that_embeds_patches_is_left_alone():
    made = tokens(2)
    assert made.patch_embed.proj.weight.ndim == 4
    if importlib.util.find_spec("peft") is not None:
        lora.adapt(made, lora.LoRA(rank=2, modules=("proj",)))
        assert isinstance(made.patch_embed.proj, torch.nn.Conv2d)


def test_without_peft_one_line_says_what_to_install(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    code, said = call("--optimizer=lora")
    assert code == 2
    assert said.startswith("error: optimizer.lora needs the package peft (")
    assert "pip install 'medssl[lora]'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": -1}, r"optimizer\.lora\.rank: must be at least 0 \(0 leaves it out\) \(got -1\)"),
        ({"alpha": 0.0}, r"optimizer\.lora\.alpha: must be above 0 \(got 0\.0\)"),
        ({"dropout": 1.0}, r"optimizer\.lora\.dropout: must be from 0 to below 1 \(got 1\.0\)"),
        ({"modules": ()}, r"optimizer\.lora\.modules: must be one name at least \(got \(\)\)"),
    ],
)
def test_settings_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        lora.LoRA(**changes)


def test_frozen_and_adapted_exclude_each_other():
    with pytest.raises(UserError, match=r"head_first 1 leaves the encoder as it is, optimizer\.lora adapts it: choose"):
        FineTuning(head_first=1.0, lora=lora.LoRA(rank=2))
