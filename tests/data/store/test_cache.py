"""The verb `medssl cache` on real files: complete, resumable, killable, and faithful to the index."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import noise, write_nifti, write_picture

from medssl.cli import main
from medssl.commands.cache import cache
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.data.store.coding import EXCLUDED, decode
from medssl.data.store.store import Store
from medssl.types import Preprocess, UserError

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
SLOWLY = """
import sys, time
from pathlib import Path
from medssl.data.store import writer
from medssl.commands.cache import cache

prepare = writer.prepare

def slow(*arguments, **options):
    time.sleep(0.15)
    return prepare(*arguments, **options)

writer.prepare = slow
cache(Path(sys.argv[1]), Path(sys.argv[2]), workers=0)
"""


def index_folder(folder: Path, file: Path, **labels) -> Path:
    """Indexes a folder with a fixed key, one subject a file."""
    options = IndexOptions(
        subject=r"(\w+)\.", labels=LabelOptions(**labels), files=FileOptions(modality="MR", workers=0)
    )
    with Index.open(file, create=True) as index:
        update(index, [folder], options, key=b"k" * 32)
    return file


@pytest.fixture
def scans(tmp_path):
    """Six volumes, one too small for a file of its own, each with a label; two shapes of values."""
    folder = tmp_path / "scans"
    for k in range(6):
        shape = (70, 60, 40 + k) if k else (12, 10, 8)
        write_nifti(folder / "images" / f"s{k}.nii.gz", noise(shape, np.int16, seed=k))
        write_nifti(folder / "labels" / f"s{k}.nii.gz", noise(shape, np.uint8, seed=k, high=3))
    return folder


def indexed(scans, tmp_path):
    return index_folder(scans, tmp_path / "index.sqlite", masks="images=labels", class_names="0=a,1=b,2=c")


def content(store: Path):
    """Everything in a store: bytes of every data file and every row of the table."""
    files = {
        str(p.relative_to(store)): p.read_bytes()
        for folder in ("scans", "packs")
        for p in (store / folder).rglob("*.*")
    }
    with closing(sqlite3.connect(store / "records.sqlite")) as connection:
        return files, connection.execute("SELECT * FROM scans ORDER BY scan_id").fetchall()


def test_cache_stores_every_scan_and_a_second_run_does_nothing(scans, tmp_path, capsys):
    index = indexed(scans, tmp_path)
    assert (
        main(["cache", str(index), str(tmp_path / "store"), "--workers", "2", "--preprocess.foreground_crop", "false"])
        == 0
    )
    said = capsys.readouterr().out
    assert "6 scans to store, about" in said
    assert "6 scans, " in said
    assert "(6 new, 0 stored before, 0 skipped)" in said
    store = Store.open(tmp_path / "store")
    assert store.preprocess == Preprocess(foreground_crop=False)
    assert [name for _, name in store.schema.classes] == ["a", "b", "c"]
    with Index.open(index) as opened:
        for scan in opened.scans():
            number = store.number(scan.scan_id)
            k = int(Path(scan.source.parts[0].path).name[1])
            shape = (70, 60, 40 + k) if k else (12, 10, 8)
            np.testing.assert_array_equal(store.read(number, (0, 0, 0), shape)[0], noise(shape, np.int16, seed=k))
            np.testing.assert_array_equal(
                store.read_label(number, (0, 0, 0), shape)[0], noise(shape, np.uint8, seed=k, high=3)
            )
            np.testing.assert_allclose(store.affine(number), AFFINE)
            assert store.subject(number) == scan.subject.subject_id
    before = content(tmp_path / "store")
    times = [p.stat().st_mtime_ns for p in (tmp_path / "store" / "scans").rglob("*.b2nd")]
    assert cache(index, tmp_path / "store", preprocess=Preprocess(foreground_crop=False), workers=0).exit_code == 0
    assert "(0 new, 6 stored before, 0 skipped)" in capsys.readouterr().out
    assert content(tmp_path / "store") == before
    assert [p.stat().st_mtime_ns for p in (tmp_path / "store" / "scans").rglob("*.b2nd")] == times


def test_a_killed_run_is_completed_to_the_same_bytes(scans, tmp_path):
    for k in range(20):  # pictures go into a pack
        write_picture(scans / "images" / f"p{k}.png", noise((40, 30), np.uint8, seed=k))
    index = indexed(scans, tmp_path)
    assert cache(index, tmp_path / "whole", workers=0).exit_code == 0
    store = tmp_path / "killed"
    running = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(index), str(store)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(store.rglob("*.b2nd"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    with closing(sqlite3.connect(store / "records.sqlite")) as connection:
        assert 0 < connection.execute("SELECT count(*) FROM scans").fetchone()[0] < 26
    (store / "scans" / ".left.b2nd.1.part").write_bytes(b"half")
    assert cache(index, store, workers=2).exit_code == 0
    assert content(store) == content(tmp_path / "whole")
    assert not list(store.rglob("*.part"))


def test_changed_missing_and_damaged_files_are_stored_again(scans, tmp_path, capsys):
    index = indexed(scans, tmp_path)
    store = tmp_path / "store"
    assert cache(index, store, workers=0).exit_code == 0
    files = sorted((store / "scans").rglob("*.b2nd"))
    image, label = sorted((p for p in files if p.name[:24] == files[0].name[:24]), key=lambda p: len(p.name))
    before = content(store)
    image.unlink()
    label.write_bytes(b"short")
    (next((store / "packs").iterdir())).write_bytes(b"")
    capsys.readouterr()
    assert cache(index, store, workers=0).exit_code == 0
    assert "(2 new, 4 stored before, 0 skipped)" in capsys.readouterr().out
    assert content(store) == before
    write_nifti(scans / "images" / "s3.nii.gz", noise((70, 60, 43), np.int16, seed=99))
    indexed(scans, tmp_path)
    assert cache(index, store, workers=0).exit_code == 0
    assert "(1 new, 5 stored before, 0 skipped)" in capsys.readouterr().out
    assert len(list((store / "scans").rglob("*.b2nd"))) == len(files)  # the old chunks are gone


def test_a_new_changed_or_removed_exclusion_mask_stores_the_scan_again(scans, tmp_path, capsys):
    rules = Preprocess(foreground_crop=False)
    store, file, mask = tmp_path / "store", tmp_path / "index.sqlite", np.zeros((70, 60, 41), np.uint8)

    def cached():
        options = {"masks": "images=labels", "excluded": "images=faces", "class_names": "0=a,1=b,2=c"}
        assert cache(index_folder(scans, file, **options), store, preprocess=rules, workers=0).exit_code == 0
        return capsys.readouterr().out, Store.open(store)

    assert "(6 new, 0 stored before, 0 skipped)" in cached()[0]
    before = content(store)
    for step in (1, 2):
        mask[:, :20, 5 * step : 30] = step
        write_nifti(scans / "faces" / "s1.nii.gz", mask)
        said, opened = cached()
        assert "(1 new, 5 stored before, 0 skipped)" in said
        (number,) = np.flatnonzero(opened.records.facts["excluded"])
        codes = opened.read(int(number), (0, 0, 0), (70, 60, 41))
        np.testing.assert_array_equal(codes[0] == EXCLUDED, mask != 0)
        values = decode(codes, opened.intensity(int(number)), normalize=False)[0]
        np.testing.assert_array_equal(values[mask == 0], noise((70, 60, 41), np.int16, seed=1)[mask == 0])
    files = {str(p.relative_to(store)) for p in (store / "scans").rglob("*.b2nd")}
    assert len(files) == 10  # those of the masks before are gone
    (scans / "faces" / "s1.nii.gz").unlink()
    assert "(1 new, 5 stored before, 0 skipped)" in cached()[0]
    assert content(store) == before


def test_new_splits_reach_the_store_without_new_voxels(scans, tmp_path, capsys):
    index = index_folder(scans / "images", tmp_path / "index.sqlite", split="train=1")
    store = tmp_path / "store"
    assert cache(index, store, workers=0).exit_code == 0
    assert Store.open(store).records.tables["split"] == ("train",)
    index_folder(scans / "images", tmp_path / "index.sqlite", split="val=1")
    capsys.readouterr()
    assert cache(index, store, workers=0).exit_code == 0
    said = capsys.readouterr().out
    assert "(0 new, 6 stored before, 0 skipped)" in said
    assert "6 took over a new subject, split or label value" in said
    assert Store.open(store).records.tables["split"] == ("val",)


def test_a_selection_of_nothing_makes_no_store(scans, tmp_path):
    with pytest.raises(
        UserError,
        match=r"^where: .*index.sqlite has no usable scan that meets the condition \(got .modality = 'CT'.\)$",
    ):
        cache(indexed(scans, tmp_path), tmp_path / "store", where="modality = 'CT'", workers=0)
    assert not (tmp_path / "store").exists()


def test_a_selection_is_cached_and_the_rest_is_kept(scans, tmp_path, capsys):
    index = indexed(scans, tmp_path)
    with Index.open(index) as opened:
        first = next(opened.scans()).scan_id
    store = tmp_path / "store"
    assert cache(index, store, where=f"scan_id = '{first}'", workers=0).exit_code == 0
    assert len(Store.open(store)) == 1
    assert cache(index, store, where=f"scan_id != '{first}'", tier="chunked", workers=0).exit_code == 0
    assert "1 are in the store but not in this selection of the index (kept)" in capsys.readouterr().out
    assert len(Store.open(store)) == 6


def test_the_raw_tier_holds_the_same_voxels(scans, tmp_path):
    index = indexed(scans, tmp_path)
    assert cache(index, tmp_path / "chunked", workers=0).exit_code == 0
    assert cache(index, tmp_path / "raw", tier="raw", workers=0).exit_code == 0
    chunked, raw = Store.open(tmp_path / "chunked"), Store.open(tmp_path / "raw")
    assert len(list((tmp_path / "raw" / "scans").rglob("*.npy"))) == 10
    for number in range(6):
        shape = chunked.records.shape(number)
        origin = (0, 0, 0)
        np.testing.assert_array_equal(chunked.read(number, origin, shape), raw.read(number, origin, shape))
        np.testing.assert_array_equal(chunked.read_label(number, origin, shape), raw.read_label(number, origin, shape))


@pytest.mark.data
def test_real_scans(real_data, tmp_path):
    """A slice of the hippocampus set: read back within the error that is stated."""
    import nibabel

    folder = tmp_path / "scans"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for file in sorted((real_data / "hippocampus" / part).glob("*.nii*"))[:8]:
            shutil.copy(file, folder / part)
    index = index_folder(folder, tmp_path / "index.sqlite", masks="imagesTr=labelsTr")
    assert cache(index, tmp_path / "store", preprocess=Preprocess(foreground_crop=False), workers=0).exit_code == 0
    store = Store.open(tmp_path / "store")
    with Index.open(index) as opened:
        for scan in opened.scans():
            number = store.number(scan.scan_id)
            source = nibabel.as_closest_canonical(nibabel.load(folder.parent / opened.root / scan.source.parts[0].path))
            shape = store.shape(number)
            assert shape == source.shape
            np.testing.assert_allclose(store.affine(number), source.affine, atol=1e-5)
            scale, offset, low, high, _, _ = store.intensity(number)[0].astype(np.float64)
            values = store.read(number, (0, 0, 0), shape)[0] * scale + offset
            clipped = np.clip(source.get_fdata(), low, high)
            assert np.abs(np.clip(values, low, high) - clipped).max() <= 0.51 * scale + 1e-3 * (scale < 1)


def test_empty_masks_and_classes_without_a_mask_are_noted(tmp_path, capsys):
    folder = tmp_path / "scans"
    for number in range(3):
        write_nifti(folder / "images" / f"s{number}.nii.gz", noise((6, 5, 4), seed=number))
        write_nifti(folder / "labels" / f"s{number}.nii.gz", np.full((6, 5, 4), number == 2, np.uint8))
    names = "0=background,1=organ,2=cyst"
    index = index_folder(folder, tmp_path / "i.sqlite", masks="images=labels", class_names=names, split="train=1")
    assert cache(index, tmp_path / "store", workers=0).exit_code == 0
    out = capsys.readouterr().out
    assert "  2 of 3 masks hold background (0) only\n" in out
    assert "  scans: no mask of the training split holds 2=cyst\n" in out
