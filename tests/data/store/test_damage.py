"""Flipped bits in a store: each is noticed by `medssl cache --verify` and by reading, and mended by the next cache."""

from __future__ import annotations

import random
import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import noise, write_nifti
from data.store.test_cache import content, index_folder
from data.stores import PLAIN, fill_store, numbered, scan_of, volume

from medssl.cli import main
from medssl.data.store import checksums, chunks, records, writer
from medssl.data.store.checksums import MARKS, SEAL
from medssl.data.store.store import Store
from medssl.data.store.verify import mend, verify
from medssl.types import UserError

TIERS = ["chunked", "raw"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of each tier with two volumes of several chunks, a pack of two small ones, and labels; and its index."""
    folder = tmp_path_factory.mktemp("damage")
    for k, shape in enumerate([(70, 66, 40), (40, 66, 70), (12, 10, 8), (9, 9, 9)]):
        write_nifti(folder / "scans/images" / f"s{k}.nii.gz", noise(shape, np.int16, seed=k))
        write_nifti(folder / "scans/labels" / f"s{k}.nii.gz", noise(shape, np.uint8, seed=k, high=3))
    index = index_folder(folder / "scans", folder / "index.sqlite", masks="images=labels", class_names="0=a,1=b,2=c")
    for tier in TIERS:
        assert run(index, folder / tier, "--tier", tier) == 0
    return folder


def run(index: Path, store: Path, *more: str) -> int:
    return main(["cache", str(index), str(store), "--workers", "0", *more])


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def read_all(store: Path) -> None:
    opened = Store.open(store)
    for number in range(len(opened)):
        opened.read(number, (0, 0, 0), opened.shape(number))
        opened.read_label(number, (0, 0, 0), opened.shape(number))


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)


def flips(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, seed: int) -> None:
    """Flips one bit after the other; every third is in the table or the description, the others in data."""
    chance = random.Random(seed)
    for turn in range(count):
        tier = TIERS[turn % 2]
        store = tmp_path / f"{turn}"
        shutil.copytree(made / tier, store)
        data = [path for path in files_of(store) if path.suffix in (".b2nd", ".npy", ".pack")]
        others = [path for path in files_of(store) if path not in data]
        path = chance.choice(others if turn % 3 == 2 else data)
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit)
        where = f"{tier}: bit {bit} of {path.relative_to(store)}"
        capsys.readouterr()
        assert run(made / "index.sqlite", store, "--verify") == 1, where
        assert "damaged" in capsys.readouterr().out, where
        if path.name != SEAL:
            with pytest.raises(UserError, match=r"^[^\n]*cache (the|an) index [^\n]*$"):
                read_all(store)
        assert run(made / "index.sqlite", store, "--tier", tier) == 0, where
        said = capsys.readouterr().out
        assert run(made / "index.sqlite", store, "--verify") == 0, (where, said)
        read_all(store)
        assert {**content(store)[0]}.items() >= {
            name: data for name, data in content(made / tier)[0].items() if not name.startswith("packs")
        }.items(), where
        shutil.rmtree(store)


def test_flipped_bits_are_detected_and_repaired(made, tmp_path, capsys):
    flips(made, tmp_path, capsys, 15, seed=0)


@pytest.mark.slow
def test_a_hundred_flipped_bits_are_detected_and_repaired(made, tmp_path, capsys):
    flips(made, tmp_path, capsys, 100, seed=1)


@pytest.mark.parametrize("tier", TIERS)
def test_boxes_without_damaged_pieces_are_read(made, tmp_path, tier):
    """Only the pieces that a box touches are compared: what is whole of a damaged scan could be read."""
    shutil.copytree(made / tier, tmp_path / "store")
    number = int(np.argmax(np.prod(Store.open(tmp_path / "store").records.facts["shape"], axis=1)))
    path = Store.open(tmp_path / "store").file(number)
    flip(path, 8 * path.stat().st_size - 8 * 300)  # in the last chunk
    store = Store.open(tmp_path / "store")
    assert store.read(number, (0, 0, 0), (8, 8, 8)).shape == (1, 8, 8, 8)
    end = store.shape(number)
    with pytest.raises(UserError, match=f"scan {store.scan_id(number)}: its stored voxels are damaged .the checksum"):
        store.read(number, tuple(n - 4 for n in end), (4, 4, 4))
    assert [path.name for path in (tmp_path / "store" / MARKS).iterdir()] == [store.scan_id(number)]


def test_verify_lists_every_damaged_scan(made, tmp_path, capsys):
    shutil.copytree(made / "chunked", tmp_path / "store")
    flip(next((tmp_path / "store/packs").iterdir()), 100)
    one, two = sorted((tmp_path / "store/scans").rglob("*.label.b2nd"))
    flip(one, 9000)
    two.unlink()
    assert run(made / "index.sqlite", tmp_path / "store", "--verify") == 1
    out = capsys.readouterr().out
    assert out.count("damaged ") == 3, out
    assert "its file is missing" in out
    assert "4 scans, 3 damaged: cache the index again into this store, which stores them anew" in out
    assert run(made / "index.sqlite", tmp_path / "store") == 0
    assert "(3 new, 1 stored before, 0 skipped)" in capsys.readouterr().out
    assert run(made / "index.sqlite", tmp_path / "store", "--verify") == 0
    assert "4 scans, none damaged" in capsys.readouterr().out


def test_a_store_without_checksums_is_read_and_verify_says_so(made, tmp_path, capsys):
    shutil.copytree(made / "chunked", tmp_path / "store")
    (tmp_path / "store" / SEAL).unlink()
    with closing(sqlite3.connect(tmp_path / "store/records.sqlite")) as connection:
        connection.execute("DROP TABLE checksums")
    read_all(tmp_path / "store")
    assert run(made / "index.sqlite", tmp_path / "store", "--verify") == 0
    assert "4 of 4 scans were stored without checksums: only sizes are compared" in capsys.readouterr().out
    path = next((tmp_path / "store/scans").rglob("*.b2nd"))
    path.write_bytes(path.read_bytes()[:-1])
    assert run(made / "index.sqlite", tmp_path / "store", "--verify") == 1
    assert "bytes, " in capsys.readouterr().out


def test_a_run_that_was_killed_leaves_rows_that_are_compared(made, tmp_path):
    """Without the checksum of the whole table its rows have theirs."""
    shutil.copytree(made / "chunked", tmp_path / "store")
    (tmp_path / "store" / SEAL).unlink()
    with closing(sqlite3.connect(tmp_path / "store/records.sqlite")) as connection, connection:
        scan_id = connection.execute("SELECT min(scan_id) FROM scans").fetchone()[0]
        connection.execute("UPDATE scans SET subject_id = 'other' WHERE scan_id = ?", (scan_id,))
    with pytest.raises(UserError, match=f"scan {scan_id}: its row in the store's table records.sqlite is damaged"):
        Store.open(tmp_path / "store")
    assert verify(tmp_path / "store").damaged == {scan_id: "its row in the table is damaged"}
    assert mend(tmp_path / "store") == (f"scan {scan_id} is stored anew: its row in the table is damaged",)
    assert len(Store.open(tmp_path / "store")) == 3


def test_checksums_of_rows_follow_new_labels_and_splits(tmp_path, monkeypatch):
    store = fill_store(tmp_path / "store", {"a": volume(numbered((9, 9, 9)))}, monkeypatch, subject="one")
    again = scan_of("a", volume(numbered((9, 9, 9))), subject="two")
    plan = writer.StorePlan(store.path, store.path, PLAIN, "chunked", {})
    with closing(records.connect(store.path / "records.sqlite")) as connection:
        assert writer.refresh(plan, [again], connection) == 1
    assert Store.open(store.path).records.tables["subject"] == ("two",)
    assert verify(store.path).damaged == {}


def test_checksums_of_a_frame_cover_every_byte_and_name_every_chunk():
    """Zeros take no chunk in the file; the pieces are the header, each chunk, the trailer, one after the other."""
    image = numbered((70, 70, 70), channels=2)
    image[0, :64, :64, :64] = 0
    (content_,), known = chunks.with_checksums(image, "chunked")
    ends = np.frombuffer(known[:-4], checksums.ENTRY)["end"].astype(int)
    assert len(ends) == 2 * 8 + 2
    assert ends[-1] == len(content_)
    assert (np.diff(ends) >= 0).all()
    assert np.diff(ends)[0] == 0  # the chunk of zeros
    sums = np.frombuffer(known[:-4], checksums.ENTRY)["sum"]
    assert [zlib.crc32(content_[a:b]) for a, b in zip([0, *ends], ends, strict=False)] == sums.tolist()
