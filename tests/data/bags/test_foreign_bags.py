"""Features of TRIDENT, CLAM and STAMP become bags, with labels and subjects of a table."""

from __future__ import annotations

import stat

import numpy as np
import pytest
from data.bags.made import bag, write_h5, write_table

from medssl.data.bags.files import read_bag
from medssl.data.bags.foreign import BagTable, bags_from_files, names_file
from medssl.data.bags.store import BagStore
from medssl.data.formats.base import FormatError
from medssl.types import UserError

KEY = b"k" * 32
TRIDENT = {"patch_size": 256, "level0_width": 5000, "level0_height": 4000, "level0_magnification": "None"}


def features_folder(path, count=4, **attributes):
    path.mkdir(exist_ok=True)
    for number in range(count):
        made = bag(3 + number, seed=number)
        write_h5(path / f"SMITH-{number}.h5", made.features, made.coords, TRIDENT | {"encoder": "uni"} | attributes)
    return path


def table_of(path, count=4, **columns):
    rows = [
        {"slide_id": f"SMITH-{n}", "case_id": f"smith{n // 2}", "tumor": "yn"[n % 2]}
        | {name: values[n] for name, values in columns.items()}
        for n in range(count)
    ]
    return BagTable(write_table(path / "labels.csv", rows), "tumor")


def test_files_of_three_programs_are_read_alike(tmp_path):
    made = bag(4)
    write_h5(tmp_path / "trident.h5", made.features, made.coords, TRIDENT)
    write_h5(tmp_path / "clam.h5", made.features, made.coords.astype(np.int32))
    write_h5(tmp_path / "three.h5", made.features[None], made.coords[None])
    stamp = {"unit": "um", "extractor": "chief", "tile_size_px": 224, "tile_size_um": 256.0}
    write_h5(tmp_path / "stamp.h5", made.features.astype(np.float16), made.coords * 1.5, stamp, "feats", "file")
    for name in ("trident", "clam", "three"):
        read = read_bag(tmp_path / f"{name}.h5")
        assert np.array_equal(read.features, made.features)
        assert np.array_equal(read.coords, made.coords)
        assert read.unit == "level0"
    read = read_bag(tmp_path / "stamp.h5")
    assert (read.unit, read.facts["encoder"], read.facts["tile_px"]) == ("um", "chief", 224)
    assert read.facts["spacing_mm"] == pytest.approx(256 / 224 / 1000)
    assert np.array_equal(read.coords, np.rint(made.coords * 1.5))


@pytest.mark.parametrize(
    ("features", "coords", "attributes", "message"),
    [
        (np.zeros((0, 8)), np.zeros((0, 2)), {}, "an empty bag"),
        (np.zeros(0), np.zeros((0, 2)), {}, "an empty bag"),
        (np.zeros((3, 8)), np.zeros((4, 2)), {}, "3 rows of features, and coordinates of shape"),
        (np.zeros((2, 8)), np.array([[0, 0], [9000, 0]]), TRIDENT, "the coordinates are of another slide"),
        (np.zeros((2, 8)), np.zeros((2, 2)), {"unit": "inch"}, r"coordinates in 'inch': expected um \(micrometers\)"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, features, coords, attributes, message):
    write_h5(tmp_path / "a.h5", features, coords, attributes)
    with pytest.raises(FormatError, match=f"^a.h5: .*{message}"):
        read_bag(tmp_path / "a.h5")


def test_files_without_features_are_refused(tmp_path):
    write_h5(tmp_path / "a.h5", np.zeros((2, 8)), np.zeros((2, 2)), name="image")
    with pytest.raises(FormatError, match=r"a.h5: holds coords, image: expected features \(or feats\) and coords"):
        read_bag(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"b.h5: damaged or no file of features"):
        read_bag(tmp_path / "b.h5")


def test_a_folder_becomes_bags_that_name_nobody(tmp_path):
    folder, out = features_folder(tmp_path / "features"), tmp_path / "out"
    table = table_of(tmp_path)
    made = bags_from_files(folder, table, out, key=KEY)
    assert (made.written, made.there, made.skipped) == (4, 0, ())
    store = BagStore.open(out)
    assert (store.facts.encoder.name, store.facts.tile_px, store.facts.features) == ("uni", 256, 8)
    assert not store.facts.encoder.subjects.complete
    assert len(store.subjects_of_split(None)) == 2
    assert sorted(store.values(n)["tumor"] for n in range(4)) == ["n", "n", "y", "y"]
    content = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"SMITH" not in content
    assert b"smith" not in content
    names = names_file(out)
    assert "SMITH-0" in names.read_text()
    assert stat.S_IMODE(names.stat().st_mode) == 0o600
    again = bags_from_files(folder, table, out, key=KEY)
    assert (again.written, again.there) == (0, 4)


def test_files_that_cannot_be_read_are_listed(tmp_path):
    folder = features_folder(tmp_path / "features")
    write_h5(folder / "SMITH-1.h5", np.full((2, 8), np.inf), np.zeros((2, 2)), {"encoder": "uni"})
    write_h5(folder / "SMITH-2.h5", np.zeros((2, 8)), np.zeros((2, 2)), {"encoder": "conch"})
    made = bags_from_files(folder, table_of(tmp_path), tmp_path / "out", key=KEY)
    assert made.written == 2
    reasons = dict(made.skipped)
    assert "2 of 2 tiles have features that are not finite" in reasons["SMITH-1"]
    assert "features of another encoder (conch; the first file has uni)" in reasons["SMITH-2"]


def test_tables_that_do_not_fit_are_refused(tmp_path):
    folder = features_folder(tmp_path / "features")
    message = r"2 of 6 rows of labels.csv name slides that are not there \(first: SMITH-4, SMITH-5\)"
    with pytest.raises(UserError, match=message):
        bags_from_files(folder, table_of(tmp_path, 6), tmp_path / "out", key=KEY)
    assert bags_from_files(folder, table_of(tmp_path, 6), tmp_path / "out", key=KEY, missing=True).written == 4
    table = table_of(tmp_path)
    with pytest.raises(UserError, match=r"has no column 'slide'"):
        bags_from_files(folder, BagTable(table.file, "tumor", slide="slide"), tmp_path / "o", key=KEY)
    other = table_of(tmp_path, code=["a", "b", "c", "d"])
    with pytest.raises(UserError, match=r"none of the 4 files has a row in labels.csv"):
        bags_from_files(folder, BagTable(other.file, "tumor", slide="code"), tmp_path / "o", key=KEY)
    with pytest.raises(UserError, match=r"there is no file of features"):
        bags_from_files(tmp_path / "nowhere", table, tmp_path / "o", key=KEY)


def test_splits_of_a_table_keep_subjects_together(tmp_path):
    folder = features_folder(tmp_path / "features")
    table = table_of(tmp_path, split=["train", "test", "val", "val"])
    wrong = BagTable(table.file, "tumor", split="column:split")
    message = r"1 of 2 subjects have slides in two splits \(first: 'smith0' in 'test' and 'train'\)"
    with pytest.raises(UserError, match=message):
        bags_from_files(folder, wrong, tmp_path / "out", key=KEY)
    table = table_of(tmp_path, split=["train", "train", "val", "val"])
    bags_from_files(folder, BagTable(table.file, "tumor", split="column:split"), tmp_path / "out", key=KEY)
    assert BagStore.open(tmp_path / "out").splits == {"train": 2, "val": 2}


def test_the_encoder_must_be_named(tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    for number in range(4):
        write_h5(folder / f"SMITH-{number}.h5", np.zeros((2, 8)), np.zeros((2, 2)))
    with pytest.raises(UserError, match=r"encoder: the files do not name the encoder"):
        bags_from_files(folder, table_of(tmp_path), tmp_path / "out", key=KEY)
    made = bags_from_files(folder, table_of(tmp_path), tmp_path / "out", key=KEY, encoder="mine")
    assert made.written == 4
    with pytest.raises(UserError, match=r"holds features of another encoder \(mine\)"):
        bags_from_files(folder, table_of(tmp_path), tmp_path / "out", key=KEY, encoder="other")
