"""Embedding: features of the tiles of slides, of slices of volumes and of images, as folders of bags."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from commands.labeled import indexed, pictures, stored, volumes
from data.slide_files import RULES, tissue_slide, write_svs

from medssl import cli
from medssl.api import load_encoder
from medssl.data.bags.store import BagStore
from medssl.data.store.store import Store
from medssl.views.intensity import decode


def run(*words: object) -> int:
    mask = os.umask(0o077)
    try:
        return cli.main([str(word) for word in words])
    finally:
        os.umask(mask)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Four slides, their store, and an encoder that was pretrained on them for a step."""
    folder = tmp_path_factory.mktemp("embed")
    (folder / "in").mkdir()
    for number in range(4):
        write_svs(folder / f"in/case{number}_a.svs", tissue_slide(number))
    key = folder.parent / "key-of-embed"
    key.write_text("0" * 64)
    key.chmod(0o600)
    index = ("index", folder / "in", f"--index={folder / 'index.sqlite'}", f"--files.key={key}")
    assert run(*index, "--subject=(case[0-9])", "--files.workers=0", "--label.split=train=0.5,test=0.5") == 0
    assert run("cache", folder / "index.sqlite", folder / "store", *RULES, "--workers=0") == 0
    assert run(
        "pretrain", "--config=simclr_2d_small", f"--store={folder / 'store'}", f"--run={folder / 'run'}",
        "--encoder.in_channels=3", "--encoder.channels=[4,8,8,8]", "--encoder.blocks=[1,1,1,1]",
        "--objective.view.size=[32,32]", "--objective.view.area=null", "--training.batch_size=2",
        "--data.split=null", "--data.workers=0", "--training.steps=1", "--training.precision=fp32",
    ) == 0  # fmt: skip
    return folder


def test_a_bag_holds_the_features_of_the_tiles_of_a_slide(place, capsys):
    out = place / "bags"
    words = ("embed", place / "run", f"--store={place / 'store'}", f"--out={out}", "--half=false")
    assert run(*words) == 0
    assert "4 bags (4 new, 0 already present), 0 skipped" in capsys.readouterr().out
    store, bags, encoder = Store.open(place / "store"), BagStore.open(out), load_encoder(place / "run")
    assert bags.facts.tile_px == 32
    assert bags.facts.spacing_mm == 0.001
    assert (bags.facts.features, bags.facts.unit) == (8, "level0")
    for number in range(4):
        bag = bags.bag(number)
        assert bags.scan_id(number) == store.scan_id(number)
        assert bags.subject(number) == store.subject(number)
        tiles = store.tiles(number)
        np.testing.assert_array_equal(bag.coords, tiles.coords)
        codes = np.stack([store.read(number, (row, column), (32, 32)) for row, column in tiles.start])
        images = decode(
            torch.from_numpy(codes), torch.from_numpy(store.intensity(number))[None].expand(len(codes), -1, -1)
        )
        with torch.inference_mode():
            expected = encoder.eval()(images).pooled.numpy()
        np.testing.assert_allclose(bag.features, expected, atol=1e-5)
    assert sorted(bags.splits.items()) == sorted(
        {split: sum(store.split(n) == split for n in range(4)) for split in ("train", "test")}.items()
    )
    before = {path: path.read_bytes() for path in (out / "bags").iterdir()}
    assert run(*words) == 0
    assert "4 bags (0 new, 4 already present), 0 skipped" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (out / "bags").iterdir()} == before
    for path in out.rglob("*"):
        assert not path.is_file() or (
            b"case0" not in path.read_bytes() and str(place).encode() not in path.read_bytes()
        )


def test_the_other_layout_is_read_by_h5py_with_the_fields_of_trident(place):
    h5py = pytest.importorskip("h5py")
    out = place / "bags_h5"
    assert (
        run("embed", place / "run", f"--store={place / 'store'}", f"--out={out}", "--layout=hdf5", "--split=train") == 0
    )
    files = sorted((out / "bags").iterdir())
    assert len(files) == len(BagStore.open(out)) < 4
    with h5py.File(files[0]) as file:
        assert file["features"].dtype == np.float16
        assert file["features"].shape == (42, 8)
        assert file["coords"].dtype == np.int64
        attributes = dict(file["coords"].attrs)
    assert (attributes["patch_size"], attributes["patch_size_level0"], attributes["savetodir"]) == (32, 64, "")


def test_one_slide_that_cannot_be_read_costs_one_bag(place, tmp_path, capsys):
    shutil.copytree(place / "store", tmp_path / "store")
    file = place / "in/case1_a.svs"
    state = file.stat()
    os.utime(file, ns=(0, 10**18))
    try:
        assert run("embed", place / "run", f"--store={tmp_path / 'store'}", f"--out={tmp_path / 'bags'}") == 0
    finally:
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    said = capsys.readouterr().out
    assert "3 bags (3 new, 0 already present), 1 skipped" in said
    assert "its slide cannot be read: the slide has changed since it was indexed" in said
    assert run("embed", place / "run", f"--store={tmp_path / 'store'}", f"--out={tmp_path / 'bags'}") == 0
    assert "4 bags (1 new, 3 already present), 0 skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--window=[64,64]"], "--window: the tiles of the store are 32 x 32 (got [64, 64]). Give the size"),
        (["--window=[32,64]"], "--window: tiles are square (got [32, 64]; expected two equal numbers, such as"),
        (["--from_scratch=true", "--seed=1"], "holds features of another encoder"),
    ],
)
def test_what_does_not_fit_is_refused(place, tmp_path, words, message, capsys):
    command = ("embed", place / "run", f"--store={place / 'store'}", f"--out={tmp_path / 'bags'}")
    assert run(*command) == 0
    capsys.readouterr()
    assert run(*command, *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("make", "unit", "rows"), [(volumes, "slice", 14), (pictures, "level0", 4)])
def test_slices_and_images_are_bags_too(make, unit, rows, tmp_path, tmp_path_factory, place):
    (tmp_path / "data").mkdir()
    key = tmp_path_factory.mktemp("key") / "key"
    index = indexed(make(tmp_path / "data/in"), tmp_path / "index.sqlite", key=key)
    store = stored(index, tmp_path / "store")
    words = ("--encoder=resenc_small_2d", "--from_scratch=true", "--window=[16,16]", "--allow=preprocess,channels")
    assert run("embed", place / "run", f"--store={store}", f"--out={tmp_path / 'bags'}", *words, "--split=test") == 0
    bags = BagStore.open(tmp_path / "bags")
    assert bags.facts.unit == unit
    assert {len(bags.bag(number)) for number in range(len(bags))} == {rows}
    assert bags.bag(0).features.dtype == np.float16
    assert bags.facts.encoder.card is not None


def test_heat_maps_of_a_network_for_bags(place, tmp_path, capsys):
    """From slides to pictures: the weights of the head, over the tiles, where the tissue is."""
    from PIL import Image

    store = Store.open(place / "store")
    bags, network = tmp_path / "bags", tmp_path / "abmil"
    assert run("embed", place / "run", f"--store={place / 'store'}", f"--out={bags}") == 0
    label_bags(bags)
    words = ("--data.target=tumor", "--training.steps=2", "--training.batch_size=2", "--allow=seen")
    assert run("finetune", "--config=bags_small", f"--store={bags}", f"--run={network}", *words) == 0
    command = ("predict", network, bags, f"--out={tmp_path / 'out'}")
    capsys.readouterr()
    assert run(*command, f"--heat_maps={place / 'store'}") == 0
    assert "heat_maps: 4 drawn now, 0 left out" in capsys.readouterr().out
    for number in range(4):
        name = store.scan_id(number)
        picture = np.asarray(Image.open(tmp_path / f"out/heat_maps/{name}.png"))
        assert picture.shape == (320, 384, 3)
        changed = (picture != store.thumbnail(number, 1600)[0].transpose(1, 2, 0)).any(-1)
        rows, columns = np.nonzero(changed)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64, 255, 96, 319)
        features = json.loads((tmp_path / f"out/heat_maps/{name}.geojson").read_text())["features"]
        assert len(features) == 42
        assert sum(one["properties"]["measurements"]["attention"] for one in features) == pytest.approx(1, abs=1e-4)
    assert run(*command, f"--heat_maps={place / 'store'}") == 0
    assert "heat_maps: 0 drawn now, 0 left out" in capsys.readouterr().out
    assert run(*command, f"--heat_maps={bags}") == 2
    assert run("predict", place / "run", place / "in", f"--out={tmp_path / 'other'}", f"--heat_maps={bags}") == 2


def label_bags(folder):
    """Gives two of four bags to training and two to validation, with a label each."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(folder / "records.sqlite")) as connection, connection:
        names = [row[0] for row in connection.execute("SELECT scan_id FROM bags ORDER BY scan_id")]
        for number, name in enumerate(names):
            values = (("train", "train", "val", "val")[number], json.dumps({"tumor": str(number % 2)}), name)
            connection.execute("UPDATE bags SET split = ?, scores = ? WHERE scan_id = ?", values)
