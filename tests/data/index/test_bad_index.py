"""Bad input to the index, one row each: what is built, the line that must be said, the exit code."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.make_scans import (
    Series,
    noise,
    slice_dataset,
    truncate,
    write_itk,
    write_nifti,
    write_picture,
    write_series,
    write_slice,
)  # fmt: skip

from medssl.cli import main
from medssl.data.index import walk as walking


def good(folder: Path) -> None:
    write_nifti(folder / "good.nii.gz", noise((5, 5, 5)))


def truncated_nifti(folder: Path) -> None:
    good(folder)
    write_nifti(folder / "bad.nii", noise((20, 20, 20)))
    truncate(folder / "bad.nii")


def truncated_packed_nifti(folder: Path) -> None:
    good(folder)
    write_nifti(folder / "bad.nii.gz", noise((20, 20, 20)))
    truncate(folder / "bad.nii.gz")


def nonsense_nifti(folder: Path) -> None:
    """A header whose number type does not exist: nibabel raises an error of its own kind."""
    good(folder)
    write_nifti(folder / "bad.nii", noise((5, 5, 5)))
    with (folder / "bad.nii").open("r+b") as file:
        file.seek(70)
        file.write(b"\xff\x30")


def nonsense_tiff(folder: Path) -> None:
    """A width of no numbers: tifffile raises a TypeError."""
    good(folder)
    write_picture(folder / "bad.tif", noise((6, 7), np.uint8))
    data = bytearray((folder / "bad.tif").read_bytes())
    data[int.from_bytes(data[4:8], "little") + 6] = 0
    (folder / "bad.tif").write_bytes(data)


def name_not_utf8(folder: Path) -> None:
    good(folder)
    (folder / "good.nii.gz").with_name(os.fsdecode(b"M\xfcller.nii.gz")).write_bytes(b"x")
    (folder / os.fsdecode(b"J\xe9r\xf4me")).mkdir()


def truncated_dicom(folder: Path) -> None:
    good(folder)
    _, files = write_series(folder / "series", Series(shape=(32, 32, 5)))
    truncate(files[2])


def missing_slice(folder: Path) -> None:
    good(folder)
    _, files = write_series(folder / "series", Series(shape=(8, 6, 9)))
    files[4].unlink()


def duplicated_slice(folder: Path) -> None:
    """The same pixels in the same place under another identifier."""
    series, _ = write_series(folder / "series")
    dataset = slice_dataset(series, 2, series.pixels()[2])
    dataset.SOPInstanceUID, dataset.InstanceNumber = "1.2.3.99", 99
    write_slice(folder / "series" / "again", dataset)


def two_slices_in_one_place(folder: Path) -> None:
    good(folder)
    series, _ = write_series(folder / "series")
    dataset = slice_dataset(series, 2, series.pixels()[3])
    dataset.SOPInstanceUID, dataset.InstanceNumber = "1.2.3.99", 99
    write_slice(folder / "series" / "again", dataset)


def uneven_slices(folder: Path) -> None:
    good(folder)
    series = Series()
    for number, (pixels, place) in enumerate(zip(series.pixels(), (0, 2.0, 5.2, 8.4, 11.6), strict=True)):
        dataset = slice_dataset(series, number, pixels)
        dataset.ImagePositionPatient = [0.0, 0.0, place]
        write_slice(folder / "series" / str(number), dataset)


def without_positions(folder: Path) -> None:
    good(folder)
    series = Series()
    for number, pixels in enumerate(series.pixels()):
        dataset = slice_dataset(series, number, pixels)
        del dataset.ImagePositionPatient
        write_slice(folder / "series" / str(number), dataset)


def zero_size(folder: Path) -> None:
    good(folder)
    write_nifti(folder / "bad.nii", np.zeros((4, 0, 4), np.int16))


def label_of_another_shape(folder: Path) -> None:
    good(folder / "images")
    write_nifti(folder / "images" / "bad.nii.gz", noise((5, 5, 5)))
    write_nifti(folder / "labels" / "bad.nii.gz", noise((5, 5, 6), np.uint8, high=2))


def label_damaged(folder: Path) -> None:
    label_of_another_shape(folder)
    truncate(folder / "labels" / "bad.nii.gz")


def excluded_of_another_shape(folder: Path) -> None:
    good(folder / "images")
    write_nifti(folder / "images" / "bad.nii.gz", noise((5, 5, 5)))
    write_nifti(folder / "faces" / "bad.nii.gz", noise((5, 5, 6), np.uint8, high=2))


def excluded_damaged(folder: Path) -> None:
    excluded_of_another_shape(folder)
    truncate(folder / "faces" / "bad.nii.gz")


def empty(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


def only_notes(folder: Path) -> None:
    (folder / "readme.txt").write_text("no scans here")


def wrong_content(folder: Path) -> None:
    good(folder)
    (folder / "bad.png").write_text("<html>not found</html>")


def truncated_picture(folder: Path) -> None:
    good(folder)
    truncate_after = write_picture(folder / "bad.png", noise((64, 64), np.uint8, high=255))
    assert truncate_after.size
    truncate(folder / "bad.png")


def truncated_tiff(folder: Path) -> None:
    good(folder)
    import tifffile

    tifffile.imwrite(
        folder / "bad.tif", noise((7, 64, 64), np.uint16), photometric="minisblack", planarconfig="separate"
    )
    truncate(folder / "bad.tif", 0.9)


def damaged_nrrd(folder: Path) -> None:
    good(folder)
    write_itk(folder / "bad.nrrd", noise((4, 4, 4)))
    (folder / "bad.nrrd").write_bytes(b"NRRD0004\ntype: what\n\n")


def not_dicom(folder: Path) -> None:
    good(folder)
    (folder / "bad.dcm").write_bytes(b"hello" * 100)


def empty_file(folder: Path) -> None:
    good(folder)
    (folder / "bad.nii.gz").touch()


def flat_affine(folder: Path) -> None:
    good(folder)
    write_nifti(folder / "bad.nii", noise((4, 4, 4)))
    content = bytearray((folder / "bad.nii").read_bytes())
    content[312:328] = bytes(16)  # the row of the affine that gives z
    (folder / "bad.nii").write_bytes(content)


def formula_folder(folder: Path) -> None:
    write_nifti(folder / "@SUM(A1)" / "good.nii.gz", noise((5, 5, 5)))


def formula_table(folder: Path) -> None:
    good(folder)
    (folder / "table.csv").write_text("scan,grade\ngood,-cmd|x\n")


@dataclass(frozen=True)
class Row:
    build: Callable[[Path], Any]
    says: str
    code: int = 0
    words: tuple[str, ...] = field(default=())
    id: str = ""


ROWS = [
    Row(truncated_nifti, r"failed: 1 .*\n  1 truncated$"),
    Row(truncated_packed_nifti, r"failed: 1 .*\n  1 truncated or damaged$"),
    Row(nonsense_nifti, r"failed: 1 .*\n  1 not readable as NIfTI$"),
    Row(nonsense_tiff, r"failed: 1 .*\n  1 not readable as a TIFF picture$"),
    Row(name_not_utf8, r"failed: 2 .*\n  2 name is not UTF-8$"),
    Row(truncated_dicom, r"failed: 1 .*\n  1 damaged slice$"),
    Row(missing_slice, r"failed: 1 .*\n  1 missing slice$"),
    Row(duplicated_slice, r"scans: 1$"),
    Row(two_slices_in_one_place, r"failed: 1 .*\n  1 two different slices in one place$"),
    Row(uneven_slices, r"failed: 1 .*\n  1 uneven slices$"),
    Row(without_positions, r"failed: 1 .*\n  1 no geometry$"),
    Row(zero_size, r"failed: 1 .*\n  1 zero-size$"),
    Row(label_of_another_shape, r"failed: 1 .*\n  1 label shape differs$", words=("--label.masks", "images=labels")),
    Row(label_damaged, r"failed: 2 .*\n  1 label unusable$", words=("--label.masks", "images=labels")),
    Row(
        excluded_of_another_shape,
        r"failed: 1 .*\n  1 mask of excluded voxels shape differs$",
        words=("--label.excluded", "images=faces"),
    ),
    Row(
        excluded_damaged,
        r"failed: 2 .*\n  1 mask of excluded voxels unusable$",
        words=("--label.excluded", "images=faces"),
    ),
    Row(empty, r"error: nothing readable in .*scans$", 1),
    Row(only_notes, r"error: nothing readable in .*scans$", 1),
    Row(wrong_content, r"failed: 1 .*\n  1 named \.png, but is an HTML page$"),
    Row(truncated_picture, r"failed: 1 .*\n  1 truncated$"),
    Row(truncated_tiff, r"failed: 1 .*\n  1 truncated$"),
    Row(damaged_nrrd, r"failed: 1 .*\n  1 not readable as NRRD$"),
    Row(not_dicom, r"failed: 1 .*\n  1 named \.dcm, but is text$"),
    Row(empty_file, r"failed: 1 .*\n  1 empty file$"),
    Row(flat_affine, r"failed: 1 .*\n  1 geometry unusable$"),
    Row(good, r"error: no such file or folder: .*nowhere$", 2, words=("{scans}/nowhere",)),
    Row(
        good,
        r"error: --subject: is no regular expression: .* \(got '\('\)",
        2,
        words=("--subject", "("),
        id="subject no regex",
    ),
    Row(
        good,
        r"error: --subject: has 0 groups \(got 'p'; expected one group",
        2,
        words=("--subject", "p"),
        id="subject no group",
    ),
    Row(
        good,
        r"error: --label.values: column:x needs a table",
        2,
        words=("--subject", "column:x"),
        id="subject without table",
    ),
    Row(
        good,
        r"error: --label.masks: a replacement .* \(got 'x'; expected TEXT=TEXT",
        2,
        words=("--label.masks", "x"),
        id="masks",
    ),
    Row(
        good,
        r"^error: --label.excluded: a replacement .* \(got 'x'; expected TEXT=TEXT, as in images=excluded\)$",
        2,
        words=("--label.excluded", "x"),
        id="excluded",
    ),
    Row(
        good,
        r"error: --label.class_names: .* \(got 'a'; expected VALUE=NAME",
        2,
        words=("--label.class_names", "a"),
        id="names",
    ),
    Row(
        good,
        r"error: --label.class_names: '=1\+1' begins with '=', which spreadsheets take for a formula. Rename it",
        2,
        words=("--label.class_names", "0=background,1==1+1"),
        id="class name that is a formula",
    ),
    Row(
        formula_folder,
        r"error: --label.classes: a folder: '@SUM\(A1\)' begins with '@', which spreadsheets take for a",
        2,
        words=("--label.classes", "folder"),
        id="folder that is a formula",
    ),
    Row(
        formula_table,
        r"error: --label.columns: table.csv, column 'grade': '-cmd\|x' begins with '-', which spreadsheets take for",
        2,
        words=("--label.values", "{scans}/table.csv", "--label.key", "scan", "--label.columns", "grade"),
        id="value that is a formula",
    ),
    Row(good, r"error: .*add up to 0.5, expected 1", 2, words=("--label.split", "train=0.5"), id="split"),
    Row(
        good, r"error: .*lies inside .*scans, which may be passed on", 2, words=("--files.key", "{scans}/key"), id="key"
    ),
]


def index(tmp_path: Path, *words: str) -> int:
    scans = tmp_path / "scans"
    file = tmp_path / "index" / "index.sqlite"
    key = [] if "--files.key" in words else ["--files.key", str(tmp_path / "keys" / "key")]
    return main(
        ["index", *(word.format(scans=scans) for word in words), "--index", str(file), "--files.workers", "0", *key]
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id or row.build.__name__)
def test_bad_input_gives_one_line_and_other_files_are_read(tmp_path, capsys, row):
    scans = tmp_path / "scans"
    scans.mkdir()
    row.build(scans)
    code = index(tmp_path, str(scans), *row.words)
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert re.search(row.says, text, re.MULTILINE), text
    assert code == row.code
    assert "Traceback" not in text
    if not row.code:
        assert re.search(r"^scans: 1$", text, re.MULTILINE), "the good scan must not be lost"


DETAILS = [
    (truncated_nifti, r"bad\.nii: truncated: [\d,]+ of 16,352 bytes"),
    (truncated_dicom, r"damaged slice: IM\d+ truncated: [\d,]+ of 2,048 bytes of pixels \(1 of 5 files\)"),
    (missing_slice, r"missing slice: a gap of 5\.00 mm between .* mm \(IM\d+\) where the step is 2\.50 mm; 1 missing"),
    (two_slices_in_one_place, r"two different slices in one place: 1 times, first at -2\.00 mm \(\w+, \w+\)"),
    (uneven_slices, r"uneven slices: steps of 2\.00 to 3\.20 mm, up to 0\.90 mm off a straight line"),
    (without_positions, r"no geometry: 5 of 5 slices without position or spacing \(0\)"),
    (zero_size, r"bad\.nii: zero-size: shape 4x0x4"),
    (truncated_tiff, r"bad\.tif: truncated: [\d,]+ of at least [\d,]+ bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "says"), DETAILS, ids=lambda value: getattr(value, "__name__", ""))
def test_show_failed_names_file_and_cause(tmp_path, capsys, build, says):
    (tmp_path / "scans").mkdir()
    build(tmp_path / "scans")
    index(tmp_path, str(tmp_path / "scans"))
    capsys.readouterr()
    assert index(tmp_path, "--show", "failed") == 0
    text = capsys.readouterr().out
    assert re.search(says, text), text
    assert text.endswith("1 failed\n")


def test_a_dropped_duplicate_is_noted(tmp_path, capsys):
    duplicated_slice(tmp_path / "scans")
    index(tmp_path, str(tmp_path / "scans"))
    capsys.readouterr()
    index(tmp_path, "--export", str(tmp_path / "x.csv"))
    row = (tmp_path / "x.csv").read_text().splitlines()[1]
    assert ",ok,1 copy dropped" in row
    assert "IM017" not in row  # names of files stay in the index
    index(tmp_path, "--show", row.split(",")[0])
    assert "1 copy dropped (IM017)" in capsys.readouterr().out


def test_a_label_of_another_shape_names_both(tmp_path, capsys):
    label_of_another_shape(tmp_path / "scans")
    index(tmp_path, str(tmp_path / "scans"), "--label.masks", "images=labels")
    capsys.readouterr()
    index(tmp_path, "--show", "failed")
    assert "label shape differs: bad.nii.gz has 5x5x6, its image 5x5x5" in capsys.readouterr().out


def test_an_unreadable_folder_is_listed_and_the_rest_goes_on(tmp_path, capsys, monkeypatch):
    good(tmp_path / "scans")
    good(tmp_path / "scans" / "closed")
    original = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(walking.os, "scandir", closed)
    assert index(tmp_path, str(tmp_path / "scans")) == 0
    text = capsys.readouterr().out
    assert re.search(r"scans: 1\n(.*\n)+failed: 1 .*\n  1 folder cannot be opened$", text, re.MULTILINE), text


def test_an_unreadable_file_is_tried_again(tmp_path, capsys, monkeypatch):
    good(tmp_path / "scans")
    with monkeypatch.context() as patched:

        def denied(*_args):
            raise PermissionError(13, "Permission denied")

        patched.setattr("medssl.data.index.entries.read_header", denied)
        assert index(tmp_path, str(tmp_path / "scans")) == 1
        assert "1 cannot be opened" in capsys.readouterr().out
    assert index(tmp_path, str(tmp_path / "scans")) == 0


def test_an_unknown_column_is_named_with_the_known_ones(tmp_path, capsys):
    good(tmp_path / "scans")
    index(tmp_path, str(tmp_path / "scans"))
    assert index(tmp_path, "--where", "modlity = 'MR'") == 2
    assert re.search(
        r"error: --where: not a valid condition \(no such column: modlity\) \(expected an SQL condition on the columns "
        r"scan_id, .*modality.*\)\. Put text in 'single quotes'",
        capsys.readouterr().err,
    )


def test_the_summary_counts_channels_of_several(tmp_path, capsys):
    import tifffile

    (tmp_path / "scans").mkdir()
    for name, channels in (("a", 7), ("b", 64)):
        values = noise((channels, 9, 8), np.uint16)
        tifffile.imwrite(tmp_path / "scans" / f"{name}.tif", values, photometric="minisblack", metadata={"axes": "CYX"})
    assert index(tmp_path, "{scans}") == 0
    assert "scans: 2 image, 9 x 8, 7 to 64 channels, 2 subjects" in capsys.readouterr().out


def test_no_index_yet(tmp_path, capsys):
    assert index(tmp_path, "--where", "1") == 2
    assert re.search(r"error: no index at .*index\.sqlite: index a folder of scans", capsys.readouterr().err)


def test_a_file_that_is_no_index(tmp_path, capsys):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.sqlite").write_text("hello" * 1000)
    assert index(tmp_path, "--where", "1") == 2
    assert "is no index" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "words", "says"),
    [
        (
            "id,state\na,b\n",
            ("--label.key", "no", "--label.columns", "state"),
            r"t\.csv has no column 'no'.*id, state",
        ),
        (
            "id,state\na,b\n",
            ("--label.key", "id"),
            r"--label\.columns: no column of t\.csv is chosen \(expected some of id, state\)",
        ),
        ("id,state\na,b\n", ("--label.columns", "state"), r"--label\.key: no column of t\.csv is chosen as key"),
        (
            "id,state\na,b\na,c\n",
            ("--label.key", "id", "--label.columns", "state"),
            r"t\.csv has two rows of id 'a' with different values",
        ),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, capsys, table, words, says):
    good(tmp_path / "scans")
    (tmp_path / "t.csv").write_text(table)
    assert index(tmp_path, str(tmp_path / "scans"), "--label.values", str(tmp_path / "t.csv"), *words) == 2
    assert re.search(says, capsys.readouterr().err)


def test_show_resolves_an_identifier_to_files(tmp_path, capsys):
    write_series(tmp_path / "scans")
    index(tmp_path, str(tmp_path / "scans"))
    capsys.readouterr()
    index(tmp_path, "--where", "1")
    scan_id = capsys.readouterr().out.splitlines()[1].split("\t")[0]
    assert index(tmp_path, "--show", scan_id) == 0
    text = capsys.readouterr().out
    assert text.count(f"file {tmp_path}/scans/IM") == 5
    assert "shape 8 x 6 x 5, spacing 0.6 x 0.8 x 2.5 mm" in text
