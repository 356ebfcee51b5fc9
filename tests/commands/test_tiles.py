"""Recipes for tiles on rendered pictures, from files to weights; gray pictures are refused; the rules of the preset."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from commands.test_recipes import call
from data.histology import tile

from medssl import cli
from medssl.data.store.store import Store
from medssl.io.configurations import config_file, config_names
from medssl.types import Preprocess

TILES = [name for name in config_names("recipes") if name.endswith("_tiles")]
SMALL = {
    "simclr": ["--objective.projection=[16,8]"],
    "mae": ["--encoder.width=32", "--encoder.depth=1", "--objective.decoder_width=32", "--objective.decoder_depth=1"],
    "spark": ["--objective.decoder_width=8"],
    "masked_distillation": ["--objective.decoder_width=8", "--objective.prototypes.count=16"],
}
CONVOLUTIONS = ["--encoder.channels=[4,4,8,8]", "--encoder.blocks=[1,1,1,1]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Stores of twelve tiles of 48 x 48, in color and in gray."""
    from PIL import Image

    place = tmp_path_factory.mktemp("tiles")
    for kind in ("color", "gray"):
        (place / kind).mkdir()
        for number in range(12):
            image = Image.fromarray(tile(number, 48).transpose(1, 2, 0))
            (image if kind == "color" else image.convert("L")).save(place / kind / f"{number:02}.png")
        call("index", place / kind, f"--index={place / kind}.sqlite", "--files.modality=SM", "--label.split=train=1.0")
    call("cache", place / "color.sqlite", place / "store", "--preprocess=tiles", "--workers=0")
    call("cache", place / "gray.sqlite", place / "gray_store", "--preprocess=image", "--preprocess.image_size=[48,48]",
         "--workers=0")  # fmt: skip
    return place


def pretrain(recipe, store, run, *words):
    small = SMALL[recipe.removesuffix("_tiles_small")]
    return [
        "pretrain", f"--config={recipe}", f"--store={store}", f"--run={run}", "--objective.view.size=[32,32]",
        "--training.steps=2", "--training.batch_size=4", "--training.output.log_every=1", "--data.workers=0",
        "--training.output.whole_image_batches=1", "--training.output.picture_every=100",
        *small, *([] if recipe.startswith("mae") else CONVOLUTIONS), *words,
    ]  # fmt: skip


def test_each_recipe_for_tiles_has_a_small_form_with_the_same_objective():
    assert len(TILES) == 4
    for name in TILES:
        small = yaml.safe_load(config_file(f"{name}_small", "recipes").read_text())
        assert small["objective"]["base"] == name


@pytest.mark.parametrize("name", TILES)
def test_small_recipes_train_on_tiles_of_color(place, tmp_path, name):
    verb, *words = pretrain(f"{name}_small", place / "store", tmp_path / "run")
    assert "2 steps done" in call(verb, *words)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in rows)
    view = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["objective"]["init_args"]["view"]
    assert view["geometry"]["quarter_turns"] == 1.0
    assert view["intensity"]["hed_jitter"][0] > 0


def test_gray_tiles_are_refused_before_anything_is_written(place, tmp_path, capfd):
    words = pretrain("simclr_tiles_small", place / "gray_store", tmp_path / "run", "--encoder.in_channels=1")
    assert cli.main(words) == 2
    message = "view 0: stain jitter refuses a value domain that is not rgb (got 'gray'; expected rgb). Set intensity."
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_preset_keeps_the_colors_and_the_size_and_allows_every_mirror(place):
    store = Store.open(place / "store")
    assert store.preprocess.mirror == "all"
    assert store.preprocess.stain == Preprocess().stain
    stored = {store.read(number, (0, 0), (48, 48)).tobytes() for number in range(len(store))}
    assert stored == {tile(number, 48).tobytes() for number in range(12)}


def test_stains_are_normalized_where_a_store_asks_for_it(place, tmp_path):
    said = call("cache", place / "color.sqlite", tmp_path / "store", "--preprocess=tiles", "--workers=0",
                "--preprocess.stain.method=macenko")  # fmt: skip
    assert "12 scans" in said
    assert Store.open(tmp_path / "store").preprocess.stain.method == "macenko"


def test_registered_stains_of_a_case_are_channels_of_one_scan(tmp_path):
    """Files of each stain by the layout of nnU-Net; a case without one stain has a white picture in its place."""
    from PIL import Image

    folder = tmp_path / "Dataset001_stains"
    (folder / "imagesTr").mkdir(parents=True)
    about = {"channel_names": {"0": "HE", "1": "Ki67"}, "labels": {"background": 0}, "numTraining": 6}
    (folder / "dataset.json").write_text(json.dumps(about | {"file_ending": ".png"}))
    pictures = {}
    for number in range(6):
        pair = [tile(number, 48), tile(number, 48, strength=0.5) if number else np.full((3, 48, 48), 255, np.uint8)]
        for stain, picture in enumerate(pair):
            Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"imagesTr/case{number}_{stain:04}.png")
        pictures[number] = np.concatenate(pair)
    call("index", folder, f"--index={tmp_path / 'index.sqlite'}", "--layout=nnunet", "--label.split=train=1.0")
    call("cache", tmp_path / "index.sqlite", tmp_path / "store", "--preprocess=tiles", "--workers=0")
    store = Store.open(tmp_path / "store")
    stored = {store.read(number, (0, 0), (48, 48)).tobytes() for number in range(len(store))}
    assert stored == {picture.tobytes() for picture in pictures.values()}
    said = call(
        "pretrain", "--config=multistain_2d_small", f"--store={tmp_path / 'store'}", f"--run={tmp_path / 'run'}",
        "--objective.view.size=[32,32]", "--objective.projection=[16,8]", "--objective.tokens=2", *CONVOLUTIONS,
        "--training.steps=2", "--training.batch_size=4", "--training.output.log_every=1", "--data.workers=0",
        "--training.output.picture_every=100", "--training.output.whole_image_batches=1",
    )  # fmt: skip
    assert "2 steps done" in said
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all({"contrast", "transport", "retrieval"} <= row.keys() and np.isfinite(row["loss"]) for row in rows)
