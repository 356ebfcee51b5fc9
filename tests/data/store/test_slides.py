"""Whole slides in a store: where crops lie, what they show, and slides that moved, changed or are blank."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat

import numpy as np
import pytest
import torch
from data.slide_files import RULES, area_mean, tissue_slide, write_svs

from medssl import cli
from medssl.data.loading.loader import make_loader
from medssl.data.store.store import Store
from medssl.types import Sampling, UserError, ViewPlan, ViewSpec

KEY: list[Path] = []  # of the pseudonyms


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    (folder / "in").mkdir()
    for number in range(3):
        write_svs(folder / f"in/case{number}_a.svs", tissue_slide(number))
    write_svs(folder / "in/case3_blank.svs", np.full((640, 768, 3), 245, np.uint8))
    KEY.append(folder.parent / "key-of-slides")
    KEY[-1].write_text("0" * 64)
    KEY[-1].chmod(0o600)
    return folder


def run(*words: object) -> int:
    mask = os.umask(0o077)
    try:
        return cli.main([str(word) for word in words])
    finally:
        os.umask(mask)


@pytest.fixture(scope="module")
def store(place):
    index = ("index", place / "in", f"--index={place / 'index.sqlite'}", f"--files.key={KEY[-1]}")
    assert run(*index, "--subject=(case[0-9])", "--files.workers=0") == 0
    assert run("cache", place / "index.sqlite", place / "store", *RULES, "--workers=0") == 0
    return Store.open(place / "store")


def test_a_store_of_slides_holds_their_tissue_and_no_pixels(place, store, capsys):
    assert len(store) == 3
    assert store.tier == "slides"
    assert {store.shape(number) for number in range(3)} == {(320, 384)}  # 0.5 -> 1.0 micrometers
    for number in range(3):
        tiles = store.tiles(number)
        assert len(tiles) == (384 // 64) * (448 // 64)
        assert (tiles.share == 1).all()
        assert tiles.level0 == (64, 64)
        np.testing.assert_array_equal(tiles.coords, tiles.start[:, ::-1] * 2)
        assert tiles.coords.min(0).tolist() == [192, 128]
        assert tiles.coords.max(0).tolist() == [576, 448]
    assert sum(path.stat().st_size for path in (place / "store/scans").rglob("*.npy")) < 3000
    assert run("cache", place / "index.sqlite", place / "store", *RULES, "--workers=0") == 0
    said = capsys.readouterr()
    assert "3 scans, " in said.out
    assert "(0 new, 3 stored before, 1 skipped)" in said.out
    assert "no tissue: no pixel reaches the saturation" in said.out + said.err


def test_boxes_show_the_slide_at_the_resolution_of_the_store(store):
    for number in range(3):
        truth = next(image for image in map(tissue_slide, range(3)) if np.allclose(store.read(number, (64, 96), (8, 8)),
                     area_mean(image, (64, 96), (8, 8), 2.0).transpose(2, 0, 1), atol=1))  # fmt: skip
        for start, size in (((64, 96), (64, 64)), ((100, 201), (31, 40)), ((-8, 300), (64, 100))):
            box = store.read(number, start, size)
            padded = np.pad(truth, ((64, 64), (64, 64), (0, 0)), constant_values=255)
            expected = area_mean(padded, (start[0] + 32, start[1] + 32), size, 2.0)
            assert np.abs(box.astype(float) - expected.transpose(2, 0, 1)).max() <= 1.0


def test_crops_lie_over_tissue_whatever_reads_them(store):
    plan = ViewPlan((ViewSpec((32, 32)),), Sampling(distinct_subjects=True))
    batches = {}
    for workers in (0, 2):
        loader = iter(make_loader(store, plan=plan, read_size=(32, 32), batch_size=3, seed=5, workers=workers))
        batches[workers] = [next(loader) for _ in range(12)]
    for one, two in zip(batches[0], batches[2], strict=True):
        assert torch.equal(one.image, two.image)
        assert len(set(one.origin.subject_ids)) == 3
        middle = one.placement.start + 16
        low, high = torch.tensor([[64, 96]]) - 8, torch.tensor([[256, 320]]) + 8  # crops start on multiples of 16
        assert ((middle >= low) & (middle <= high)).all()
    values = torch.cat([batch.image.flatten(2) for batch in batches[0]]).float()
    assert values.mean((0, 2))[1] < 170  # green: tissue, not glass


def test_pretraining_reads_the_slides(place, store, capsys):
    run_folder = place / "run"
    words = (
        "pretrain", "--config=simclr_2d_small", f"--store={place / 'store'}", f"--run={run_folder}",
        "--encoder.in_channels=3",
        "--objective.view.size=[32,32]", "--objective.view.area=null", "--training.batch_size=3", "--data.split=null",
        "--data.workers=0", "--training.steps=2", "--training.output.log_every=1", "--training.precision=fp32",
    )  # fmt: skip
    assert run(*words) == 0
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["pretrain", "--config=simclr_2d_small", "--run={place}/other", "--encoder.in_channels=3"],
            "--objective.view.area: is a share of a whole slide. Set it to null, and scale to a range in stored pixels",
        ),
        (
            ["probe", "{place}/run", "--out={place}/probe", "--target=tumor"],
            "--store: holds whole slides (got 'store'). Embed its slides first, and give the folder of bags instead",
        ),
    ],
)
def test_what_goes_through_whole_scans_is_refused(place, store, words, message, capsys):
    test_pretraining_reads_the_slides(place, store, capsys)
    assert run(*(word.format(place=place) for word in words), f"--store={place / 'store'}") == 2
    assert message in capsys.readouterr().err


def test_only_the_table_of_sources_names_files(place, store):
    sources = place / "store/sources.sqlite"
    assert stat.S_IMODE(sources.stat().st_mode) == 0o600
    for path in (place / "store").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            named = b"case0" in content or str(place).encode() in content
            assert named == (path == sources), path


def test_a_reader_is_pickled_and_opens_few_files(store):
    other = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(other.read(0, (64, 96), (8, 8)), store.read(0, (64, 96), (8, 8)))


def test_verification_finds_a_damaged_table_of_tiles(place, store, tmp_path, capsys):
    copied = tmp_path / "store"
    shutil.copytree(place / "store", copied)
    assert run("cache", place / "index.sqlite", copied, "--verify=true") == 0
    table = next((copied / "scans").rglob("*.npy"))
    content = bytearray(table.read_bytes())
    content[-3] ^= 4
    table.write_bytes(content)
    capsys.readouterr()
    assert run("cache", place / "index.sqlite", copied, "--verify=true") == 1
    assert "3 scans, 1 damaged" in capsys.readouterr().out
    damaged = Store.open(copied)
    with pytest.raises(UserError, match="its table of tiles is damaged"):
        [damaged.tiles(number) for number in range(3)]
    assert run("cache", place / "index.sqlite", copied, *RULES, "--workers=0") == 0
    assert [len(Store.open(copied).tiles(number)) for number in range(3)] == [42, 42, 42]


@pytest.fixture
def moved(place, store, tmp_path):
    """A copy of the slides, with an index and a store of its own."""
    shutil.copytree(place / "in", tmp_path / "in")
    index = ("index", tmp_path / "in", f"--index={tmp_path / 'index.sqlite'}", f"--files.key={KEY[-1]}")
    assert run(*index, "--subject=(case[0-9])", "--files.workers=0") == 0
    assert run("cache", tmp_path / "index.sqlite", tmp_path / "store", *RULES, "--workers=0") == 0
    return tmp_path


def test_a_slide_that_changed_or_is_gone_is_refused(moved):
    files = sorted((moved / "in").glob("case*_a.svs"))
    os.utime(files[0], ns=(0, 10**18))
    files[1].unlink()
    opened, said = Store.open(moved / "store"), []
    for number in range(3):
        try:
            opened.read(number, (64, 96), (8, 8))
        except UserError as error:
            said.append(str(error))
    assert len(said) == 2
    assert any(
        "its slide cannot be read: the slide has changed since it was indexed: index and cache again" in s for s in said
    )
    assert any("the slide is not there (No such file or directory): cache the index of its present" in s for s in said)
    assert not any("case" in text for text in said)


def test_slides_that_moved_are_read_after_caching_their_index_again(moved, place):
    (moved / "in").rename(moved / "elsewhere")
    index = ("index", moved / "elsewhere", f"--index={moved / 'new.sqlite'}", f"--files.key={KEY[-1]}")
    assert run(*index, "--subject=(case[0-9])", "--files.workers=0") == 0
    assert run("cache", moved / "new.sqlite", moved / "store", *RULES, "--workers=0") == 0
    assert Store.open(moved / "store").read(0, (64, 96), (8, 8)).shape == (3, 8, 8)


def test_a_store_without_its_sources_says_so(moved):
    (moved / "store/sources.sqlite").unlink()
    with pytest.raises(UserError, match=r"sources\.sqlite, which says where the slides are, is missing from the store"):
        Store.open(moved / "store").read(0, (0, 0), (8, 8))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--preprocess=tiles", "--tier=slides"],
            r"--preprocess\.tiles\.mpp: tier slides reads slides at a resolution",
        ),
        (["--preprocess=slides"], r"--tier: preprocess\.tiles\.mpp is a resolution for whole slides \(got 'chunked'"),
        (["--preprocess=slides", "--tier=slides", "--preprocess.stain.method=macenko"], r"stains are normalized when"),
    ],
)
def test_rules_that_do_not_suit_slides_are_refused(place, store, tmp_path, words, message, capsys):
    assert run("cache", place / "index.sqlite", tmp_path / "store", *words) == 2
    said = capsys.readouterr()
    assert re.search(message, said.err + said.out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*RULES, "--preprocess.tiles.size=512"],
            "the slide has 320 x 384 pixels at this resolution, and a tile 512 x 512",
        ),
        ([*RULES, "--preprocess.tissue.smallest_mm2=1"], "no tissue: the largest piece above saturation"),
        (
            ["--preprocess=tiles"],
            "a whole slide: cache slides into a store of their own (tier slides, preprocess slides)",
        ),
    ],
)
def test_why_a_slide_is_left_out(place, store, tmp_path, words, message, capsys):
    assert run("cache", place / "index.sqlite", tmp_path / "store", *words, "--workers=0") == 1
    said = capsys.readouterr()
    assert message in said.err + said.out


def test_other_scans_are_left_out_of_a_store_of_slides(place, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.fromarray(tissue_slide(0)[:200, :200]).save(tmp_path / "in/picture.png")
    index = ("index", tmp_path / "in", f"--index={tmp_path / 'index.sqlite'}", f"--files.key={KEY[-1]}")
    assert run(*index, "--files.workers=0") == 0
    assert run("cache", tmp_path / "index.sqlite", tmp_path / "store", *RULES, "--workers=0") == 1
    assert "an image, and no whole slide: cache it into another store (tier chunked)" in capsys.readouterr().out
