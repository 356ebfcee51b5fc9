"""Every recipe of fine-tuning, every head and every way to move weights runs on phantoms for two steps."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medssl import cli
from medssl.encoders.weights import load_card
from medssl.heads.weights import load_network
from medssl.io import configurations

COUNT = 12
SPLITS = ("train",) * 8 + ("val",) * 4
RESENC = {
    "class_path": "medssl.encoders.resenc.ResEnc",
    "init_args": {"ndim": 3, "channels": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]], "blocks": [1, 1]},
}
DEEPER = {
    "class_path": RESENC["class_path"],
    "init_args": RESENC["init_args"]
    | {"channels": [4, 8, 8, 8], "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 1], [2, 2, 2]], "blocks": [1, 1, 1, 1]},
}
FLAT = {"class_path": RESENC["class_path"], "init_args": RESENC["init_args"] | {"ndim": 2, "strides": [[1, 1], [2, 2]]}}
VIT = {"class_path": "medssl.encoders.vit.ViT", "init_args": {"patch": [8, 8, 4], "width": 64, "depth": 4}}
FLAT_VIT = {"class_path": VIT["class_path"], "init_args": VIT["init_args"] | {"patch": [8, 8]}}
WITHOUT_MASKS = "--data.sampling.labeled=0"  # the recipe is for segmentations
TOKENS = {"unetr", "feature_pyramid", "patch_decoder"}
SEGMENT = {"unet", "voxel_linear", *TOKENS}
TARGETS = {"multi_label": "large,low", "regression": "share", "ordinal": "grade", "survival": "share,large"}
OF_BAGS = {"abmil", "clam", "ins", "max_pool", "mean_pool", "mhim", "transmil"}
RECIPES = [name for name in configurations.config_names("recipes") if name.startswith(("segment", "classify"))]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twelve labeled phantoms; how much of them is liver, and where it lies, makes numbers, grades and findings."""
    place = tmp_path_factory.mktemp("recipes") / "place"
    call("phantoms", place / "scans", f"--count={COUNT}", f"--labeled={COUNT}", "--shape=[24,24,20]")
    files = sorted((place / "scans/labels").glob("*.nii.gz"))
    masks = [np.asarray(nibabel.load(file).dataobj) == 1 for file in files]
    shares = np.array([mask.mean() for mask in masks])
    heights = np.array([np.argwhere(mask)[:, 2].mean() / mask.shape[2] for mask in masks])
    order = shares.argsort().argsort()
    with (place / "values.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("name", "split", "share", "grade", "large", "low"))
        for number, file in enumerate(files):
            large, low = (values[number] > np.median(values) for values in (shares, -heights))
            table.writerow((file.name, SPLITS[order[number] * 5 % COUNT], f"{100 * shares[number]:.3f}",
                            order[number] % 3, int(large), int(low)))  # fmt: skip
    key = place.parent / "key"
    key.write_text("0" * 64)
    key.chmod(0o600)
    call("index", place / "scans", f"--index={place / 'index.sqlite'}", f"--files.key={key}", "--files.modality=MR",
         r"--subject=(PHANTOM-\d+)", "--label.masks=images=labels", f"--label.values={place / 'values.csv'}",
         "--label.key=name", "--label.columns=share,grade,large,low", "--label.split=column:split",
         "--label.class_names=0=background,1=liver,2=spleen,3=kidneys")  # fmt: skip
    call("cache", place / "index.sqlite", place / "store", "--preprocess=mr", "--workers=0")
    return place / "store"


def call(verb: str, *words: object) -> str:
    """Calls a verb, which must succeed; returns what it said."""
    mask, threads, text = os.umask(0o077), torch.get_num_threads(), io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = cli.main([verb, *map(str, words)])
    finally:
        os.umask(mask)
        torch.set_num_threads(threads)
    assert code == 0, text.getvalue()
    return text.getvalue()


def tune(store: Path, run: Path, recipe: str, encoder: dict, *words: str) -> list[dict[str, float]]:
    """Fine-tunes for two steps and returns the rows of the log."""
    size = "[16,16]" if encoder in (FLAT, FLAT_VIT) else "[16,16,8]"
    said = call(
        "finetune", f"--config={recipe}", f"--encoder={json.dumps(encoder)}", f"--store={store}", f"--run={run}",
        f"--data.view.size={size}", "--training.steps=2", "--training.batch_size=2", "--training.precision=fp32",
        "--training.output.validate_every=2", "--training.output.picture_every=2", "--training.output.log_every=1",
        "--data.workers=0", *words,
    )  # fmt: skip
    assert "2 steps done" in said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert any(name.startswith("validation_") for name in rows[-1])
    network, card = load_network(run)  # what is written can be loaded
    assert card.tuned.window == tuple(json.loads(size))
    assert all(torch.isfinite(value).all() for value in network.state_dict().values() if value.is_floating_point())
    return rows


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(store, tmp_path, recipe):
    flat = "2d" in recipe
    encoder = (FLAT_VIT if flat else VIT) if "vit" in recipe else (FLAT if flat else RESENC)
    tune(store, tmp_path / "run", recipe, encoder, *(["--data.target=grade"] if "classify" in recipe else []))


@pytest.mark.parametrize("head", sorted(set(configurations.config_names("heads")) - OF_BAGS))
def test_heads(store, tmp_path, head):
    encoder = VIT if head in TOKENS else RESENC
    target = "mask" if head in SEGMENT else TARGETS.get(head, "grade")
    words = [f"--head={head}", f"--data.target={target}", *([] if head in SEGMENT else [WITHOUT_MASKS])]
    tune(store, tmp_path / "run", "segment_3d_small", encoder, *words)
    assert load_card(tmp_path / "run").tuned.schema.name == target


@pytest.mark.parametrize("head", sorted(OF_BAGS))
def test_heads_of_bags_refuse_scans(store, tmp_path, head):
    words = ("--config=segment_3d_small", f"--encoder={json.dumps(RESENC)}", "--data.target=large", WITHOUT_MASKS)
    with pytest.raises(AssertionError, match=r"error: --head: pools the tiles of bags \(got '\w+'\)\. Embed the scans"):
        call("finetune", *words, f"--head={head}", f"--store={store}", f"--run={tmp_path / 'run'}")


@pytest.mark.parametrize("optimizer", configurations.config_names("optimizers"))
def test_ways_to_move_weights(store, tmp_path, optimizer):
    if optimizer == "lora":
        pytest.importorskip("peft", reason="the extra lora is not installed")
    encoder, head = (VIT, "feature_pyramid") if optimizer in {"lora", "layer_decay"} else (RESENC, "unet")
    tune(store, tmp_path / "run", "segment_3d_small", encoder, f"--head={head}", f"--optimizer={optimizer}")


OPTIONS = {
    "deep supervision": ["--head.deep_supervision=true"],
    "batch Dice of a step": ["--head.batch_dice=true", "--training.batch_size=1", "--training.accumulate=2"],
    "final weights": ["--optimizer.keep=final"],
    "averaged weights": ["--optimizer.average=0.9"],
    "mixed samples": ["--mixing.mixup=0.4", "--mixing.cutmix=1.0"],
    "foreground": ["--data.sampling.foreground=0.5"],
    "labeled structures": ["--data.sampling.labeled=0.5"],
    "a slower encoder": ["--optimizer.encoder_rate=0.1"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(store, tmp_path, name):
    tune(store, tmp_path / "run", "segment_3d_small", DEEPER if "deep" in name else RESENC, *OPTIONS[name])


def test_classes_that_come_equally_often_and_weigh_alike(store, tmp_path):
    words = ["--head=linear", "--data.target=large", "--data.sampling.balance=equal", "--head.class_weights=balanced"]
    words += [WITHOUT_MASKS]
    tune(store, tmp_path / "run", "segment_3d_small", RESENC, *words)
