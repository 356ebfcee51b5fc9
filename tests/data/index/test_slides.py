"""One row a slide: size, spacing, levels, subject, and what is wrong with those that cannot be used."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import tifffile
from data.slide_files import halved, picture, write_dicom_slide, write_level, write_pyramid, write_svs

from medssl.data.formats.slide import open_slide
from medssl.data.index.label_sources import LabelOptions, SlideOptions
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.types import UserError

pytest.importorskip("openslide")

IMAGE = picture(401, 515)
KEY = b"k" * 32


def indexed(folder: Path, *, labels: LabelOptions | None = None, **files: object) -> list[dict]:
    """Rows of the scans of a folder as a list of dictionaries, by path of their first file."""
    options = IndexOptions(labels=labels or LabelOptions(), files=FileOptions(workers=0, **files))
    file = folder.parent / "index.sqlite"
    with Index.open(file, create=True, root=folder.parent) as index:
        update(index, [folder], options, key=KEY)
        query = """
            SELECT scans.*, files.path FROM scans JOIN parts ON parts.scan_id = scans.scan_id AND number = 0
            JOIN files ON files.id = parts.file ORDER BY files.path
        """
        return [dict(row) for row in index.connection.execute(query)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    return folder


def test_one_row_for_an_svs(folder: Path):
    write_svs(folder / "a.svs", IMAGE, mpp="0.2498", more="|User = someone|Filename = 4711")
    (row,) = indexed(folder)
    assert (row["kind"], row["status"], row["modality"], row["value_domain"]) == ("slide", "ok", "SM", "rgb")
    assert (row["size_i"], row["size_j"], row["levels"], row["channels"]) == (401, 515, 3, 3)
    assert (row["mpp_x"], row["mpp_y"], row["objective"], row["scanner"]) == (0.2498, 0.2498, 20.0, "Aperio")
    assert row["spacing_i_mm"] == pytest.approx(0.0002498)
    content = (folder.parent / "index.sqlite").read_bytes()
    assert b"someone" not in content
    assert b"4711" not in content


def test_the_scan_of_an_index_opens_the_slide(folder: Path):
    write_svs(folder / "a.svs", IMAGE)
    indexed(folder)
    with Index.open(folder.parent / "index.sqlite") as index:
        (scan,) = index.scans()
        slide = open_slide(*[index.root / part.path for part in scan.source.parts], spacing_mm=scan.grid.spacing_mm)
    assert (scan.source.kind, scan.grid.shape) == ("slide", slide.shape)
    assert np.array_equal(slide.read((0, 0), (64, 64), scan.grid.spacing_mm), IMAGE[:64, :64].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("mpp", "reason"),
    [
        (None, r"no pixel size in the file: give it in the column mpp of a table \(label.values, label.key\)"),
        ("25", r"pixel size of 25 um by the scanner is not plausible \(expected 0.1 to 20 um\): give it"),
        ("0", r"pixel size of 0 um by the scanner is not plausible"),
        ("unknown", "no pixel size in the file"),
    ],
)
def test_without_a_plausible_pixel_size_a_slide_needs_spacing(folder: Path, mpp: str | None, reason: str):
    write_svs(folder / "a.svs", IMAGE, mpp=mpp)
    (row,) = indexed(folder)
    assert row["status"] == "needs_spacing"
    assert (row["size_i"], row["spacing_i_mm"], row["mpp_x"]) == (401, None, None)
    assert __import__("re").match(reason, row["reason"]), row["reason"]


def test_a_table_states_pixel_sizes_and_stains_before_the_file(folder: Path):
    for name in ("a", "b", "c", "d"):
        write_svs(folder / f"{name}.svs", IMAGE, mpp=None if name == "a" else "0.5")
    table = folder.parent / "slides.csv"
    table.write_text("slide,mpp,stain\na,0.25,HE\nb.svs,0.263,Ki67\nc,25,\n")
    rows = indexed(folder, labels=LabelOptions(values=str(table), key="slide", columns="stain"))
    assert [row["status"] for row in rows] == ["ok", "ok", "needs_spacing", "ok"]
    assert [row["mpp_x"] for row in rows] == [0.25, 0.263, None, 0.5]
    assert [row["stain"] for row in rows] == ["HE", "Ki67", "", ""]
    assert "pixel size in the table is 25 um (column mpp; expected 0.1 to 20 um): correct it" in rows[2]["reason"]
    table.write_text("slide,um,stain\na,0.25,HE\nc,0.3,PAS\n")
    again = indexed(
        folder, labels=LabelOptions(values=str(table), key="slide", columns="stain"), slides=SlideOptions(mpp="um")
    )
    assert [row["mpp_x"] for row in again] == [0.25, 0.5, 0.3, 0.5]
    assert rows[0]["source_digest"] == again[0]["source_digest"]
    assert rows[1]["source_digest"] != again[1]["source_digest"]


def test_a_column_of_slides_that_is_not_there_is_named(folder: Path):
    write_svs(folder / "a.svs", IMAGE)
    table = folder.parent / "slides.csv"
    table.write_text("slide,class\na,1\n")
    labels = LabelOptions(values=str(table), key="slide", columns="class")
    with pytest.raises(UserError, match=r"slides.csv has no column 'um'; its columns are slide, class"):
        indexed(folder, labels=labels, slides=SlideOptions(mpp="um"))
    with pytest.raises(UserError, match=r"has no effect without label.values FILE.csv"):
        indexed(folder, slides=SlideOptions(mpp="um"))


def test_resolution_tags_count_within_bounds(folder: Path):
    write_pyramid(folder / "a.tif", IMAGE, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    write_pyramid(folder / "b.tif", IMAGE, resolution=(72, 72), resolutionunit="INCH")
    write_pyramid(folder / "c.tif", IMAGE, resolution=(20_000, 40_000), resolutionunit="CENTIMETER")
    rows = indexed(folder)
    assert [row["status"] for row in rows] == ["ok", "needs_spacing", "ok"]
    assert (rows[0]["mpp_x"], rows[0]["mpp_y"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert "pixel size of 352.8 um by the resolution tags is not plausible" in rows[1]["reason"]
    assert (rows[2]["mpp_x"], rows[2]["mpp_y"]) == (pytest.approx(0.5), pytest.approx(0.25))
    assert "pixels are not square: mpp-x 0.5, mpp-y 0.25" in rows[2]["reason"]


def write_ome(file: Path, sizes: dict[str, object], *, levels: int = 2) -> None:
    """OME-TIFF with its levels as children of the first page."""
    with tifffile.TiffWriter(file, ome=True) as writer:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
        writer.write(IMAGE, subifds=levels, metadata={"axes": "YXS", **sizes}, **options)
        for level in range(1, levels + 1):
            writer.write(halved(IMAGE, level), subfiletype=1, **options)


def test_ome_sizes_in_any_unit_and_levels_below_the_first_page(folder: Path):
    x, x_unit, y, y_unit = "PhysicalSizeX", "PhysicalSizeXUnit", "PhysicalSizeY", "PhysicalSizeYUnit"
    write_ome(folder / "a.ome.tif", {x: 250, x_unit: "nm", y: 0.00025, y_unit: "mm"})
    write_ome(folder / "b.ome.tif", {x: 0.5, x_unit: "µm"})
    write_ome(folder / "c.tif", {x: 1, x_unit: "pixel", y: 1, y_unit: "pixel"})
    rows = indexed(folder)
    assert [row["levels"] for row in rows] == [3, 3, 3]
    assert [row["status"] for row in rows] == ["ok", "needs_spacing", "needs_spacing"]
    assert (rows[0]["mpp_x"], rows[0]["mpp_y"]) == (0.25, 0.25)
    assert "pixel size for mpp-x alone (0.5 um by OME-XML)" in rows[1]["reason"]
    part = open_slide(folder / "a.ome.tif").read((5, 6), (30, 40), (0.0005, 0.0005)).transpose(1, 2, 0)
    assert np.array_equal(part, halved(IMAGE)[5:35, 6:46])


def test_pictures_stay_pictures(folder: Path):
    tifffile.imwrite(folder / "plain.tif", IMAGE, photometric="rgb")
    tifffile.imwrite(folder / "tiled.tif", IMAGE, photometric="rgb", tile=(64, 64))
    with tifffile.TiffWriter(folder / "thumbnail.tif") as writer:
        writer.write(IMAGE, photometric="rgb", metadata=None)
        writer.write(halved(IMAGE, 2), photometric="rgb", subfiletype=1, metadata=None)
    tifffile.imwrite(folder / "deep.tif", IMAGE.astype(np.uint16), photometric="rgb", tile=(64, 64))
    write_pyramid(folder / "slide.tif", IMAGE, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    kinds = {Path(row["path"]).stem: row["kind"] for row in indexed(folder)}
    assert kinds == {"plain": "image", "tiled": "image", "thumbnail": "image", "deep": "image", "slide": "slide"}


def test_damaged_slides_are_named_with_their_damage(folder: Path):
    write_svs(folder / "whole.svs", IMAGE)
    content = bytearray((folder / "whole.svs").read_bytes())
    with tifffile.TiffFile(folder / "whole.svs") as file:
        ends = [page.dataoffsets[-1] + page.databytecounts[-1] for page in file.pages]
        level = file.pages[1]
        damaged = [(start, length) for start, length in zip(level.dataoffsets, level.databytecounts, strict=True)]
        counts = file.pages[2].tags[325]
    (folder / "cut.svs").write_bytes(content[: max(ends) - 200])
    (folder / "empty.svs").write_bytes(b"")
    (folder / "noise.svs").write_bytes(bytes(range(1, 250)) * 20)
    (folder / "head.svs").write_bytes(content[:40])
    bad = bytearray(content)
    for start, length in damaged:
        bad[start : start + length] = bytes(length)
    (folder / "level.svs").write_bytes(bad)
    bad = bytearray(content)
    bad[counts.valueoffset : counts.valueoffset + counts.valuebytecount] = bytes(counts.valuebytecount)
    (folder / "missing.svs").write_bytes(bad)
    with tifffile.TiffFile(folder / "whole.svs") as file:
        places = [file.pages[0].tags[code].valueoffset for code in (322, 323)]
    for name, width in (("huge", 60_000), ("none", 0)):
        bad = bytearray(content)
        for place in places:
            bad[place : place + 2] = width.to_bytes(2, "little")
        (folder / f"{name}.svs").write_bytes(bad)
    reasons = {Path(row["path"]).stem: (row["status"], row["reason"]) for row in indexed(folder)}
    assert reasons.pop("whole") == ("ok", "")
    assert {status for status, _ in reasons.values()} == {"failed"}
    assert reasons["cut"][1].startswith("truncated: ")
    assert reasons["empty"][1] == "empty file"
    assert "not readable as a slide" in reasons["noise"][1]
    assert "damaged" in reasons["head"][1]
    assert "damaged: level 1" in reasons["level"][1]
    assert reasons["huge"][1] == "damaged: tiles of 3,600,000,000 pixels"
    assert "damaged" in reasons["none"][1]
    assert reasons["missing"][1] == "damaged: a level of 100x128 has no tiles"


def test_more_channels_and_deep_colors_are_listed_with_a_reason(folder: Path):
    stack = np.stack([IMAGE[..., 0]] * 4)
    with tifffile.TiffWriter(folder / "channels.ome.tif", ome=True) as writer:
        writer.write(stack, tile=(64, 64), photometric="minisblack", metadata={"axes": "CYX"})
    shutil.move(folder / "channels.ome.tif", folder / "channels.svs")
    write_pyramid(folder / "deep.svs", IMAGE, description="Aperio x")
    with tifffile.TiffWriter(folder / "deep.svs") as writer:
        writer.write(IMAGE.astype(np.uint16), tile=(64, 64), photometric="rgb", description="Aperio", metadata=None)
    rows = indexed(folder)
    assert [row["status"] for row in rows] == ["rejected", "rejected"]
    assert rows[0]["reason"].startswith("a slide of 4 channels of 8 bits (fluorescence or gray): ")
    assert rows[1]["reason"].startswith("a slide of colors of 16 bits: ")


# --- DICOM


def test_a_dicom_series_is_one_slide(folder: Path):
    write_dicom_slide(folder / "one", IMAGE)
    (row,) = indexed(folder)
    assert (row["status"], row["reason"], row["kind"], row["levels"], row["files"]) == ("ok", "", "slide", 3, 3)
    assert (row["size_i"], row["size_j"], row["mpp_x"], row["scanner"]) == (401, 515, 0.5, "Leica Biosystems")
    assert row["subject_known"] == 1
    assert b"Jane" not in (folder.parent / "index.sqlite").read_bytes()
    with Index.open(folder.parent / "index.sqlite") as index:
        (scan,) = index.scans()
        paths = [index.root / part.path for part in scan.source.parts]
    assert [path.name for path in paths] == ["level0.dcm", "level1.dcm", "level2.dcm"]
    slide = open_slide(*paths)
    assert [level.shape for level in slide.levels] == [(401, 515), (200, 257), (100, 128)]
    for times in (0, 2):
        spacing = (0.0005 * 2**times, 0.0005 * 2**times)
        part = slide.read((20, 30), (60, 70), spacing).transpose(1, 2, 0)
        assert np.array_equal(part, halved(IMAGE, times)[20:80, 30:100])


def test_files_in_several_folders_are_read_without_openslide(folder: Path):
    files = write_dicom_slide(folder / "one", IMAGE)
    (folder / "two").mkdir()
    shutil.move(files[1], folder / "two" / "level1.dcm")
    slide = open_slide(files[0], folder / "two" / "level1.dcm", files[2])
    assert [level.shape for level in slide.levels] == [(401, 515), (200, 257), (100, 128)]
    for times in (0, 1, 2):
        spacing = (0.0005 * 2**times, 0.0005 * 2**times)
        part = slide.read((20, 30), (60, 70), spacing).transpose(1, 2, 0)
        assert np.array_equal(part, halved(IMAGE, times)[20:80, 30:100])


def test_sparse_tiles_lie_at_their_places(folder: Path):
    write_level(folder / "a.dcm", IMAGE, frames=range(62, 4, -1), sparse=True)
    shutil.copy(folder / "a.dcm", folder.parent / "b.dcm")
    slide = open_slide(folder / "a.dcm", folder.parent / "b.dcm")
    part = slide.read((0, 0), (401, 515), (0.0005, 0.0005)).transpose(1, 2, 0)
    assert np.array_equal(part[64:], IMAGE[64:])
    assert (part[:64, : 5 * 64] == 255).all()


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"frames": range(60)}, "failed", "frames are missing: 60 of 63 tiles of 64x64 that 401x515 need"),
        ({"spacing": None}, "needs_spacing", "no pixel size in the file"),
        ({"spacing": (0.0, 0.0)}, "needs_spacing", "pixel size of 0 um by PixelSpacing is not plausible"),
        ({"spacing": (0.025, 0.025)}, "needs_spacing", "pixel size of 25 um by PixelSpacing is not plausible"),
        ({"SpecimenLabelInImage": "YES"}, "rejected", "burned-in annotation"),
        (
            {"InConcatenationNumber": 1, "InConcatenationTotalNumber": 2},
            "failed",
            "a file is missing: part 2 of 2 of the level of 401x515",
        ),
    ],
)
def test_what_is_wrong_with_a_dicom_slide(folder: Path, change: dict, status: str, reason: str):
    write_level(folder / "a.dcm", IMAGE, **change)
    (row,) = indexed(folder)
    assert (row["status"], row["levels"] or 1) == (status, 1)
    assert row["reason"].startswith(reason)


def test_a_missing_file_of_a_dicom_slide(folder: Path):
    files = write_dicom_slide(folder / "one", IMAGE)
    files[1].unlink()
    (row,) = indexed(folder)
    assert (row["status"], row["levels"]) == ("ok", 2)
    assert row["reason"] == "a file of the series may be missing: no instance number 2"
    files[0].unlink()
    (row,) = indexed(folder)
    assert row["status"] == "failed"
    assert row["reason"] == "a file is missing: all levels are resampled copies of one that is not there"


def test_a_damaged_file_of_a_dicom_slide(folder: Path):
    files = write_dicom_slide(folder / "one", IMAGE)
    files[0].write_bytes(files[0].read_bytes()[:-9000])
    (row,) = indexed(folder)
    assert row["status"] == "failed"
    assert row["reason"].startswith("a file of the slide cannot be read (level0.dcm: truncated: ")


def test_parts_of_a_level_are_read_as_one(folder: Path):
    about = {"InConcatenationTotalNumber": 2, "ConcatenationUID": "1.2.3"}
    write_level(folder / "a.dcm", IMAGE, frames=range(30), InConcatenationNumber=1, **about)
    write_level(folder / "b.dcm", IMAGE, frames=range(30, 63), InConcatenationNumber=2,
                ConcatenationFrameOffsetNumber=30, **about)  # fmt: skip
    (row,) = indexed(folder)
    assert (row["status"], row["files"], row["levels"]) == ("ok", 2, 1)
    part = open_slide(folder / "a.dcm", folder / "b.dcm").read((100, 0), (200, 515), (0.0005, 0.0005))
    assert np.array_equal(part.transpose(1, 2, 0), IMAGE[100:300])


# --- older indexes, missing package, real slides


def test_an_index_without_columns_of_slides_gets_them(folder: Path):
    write_svs(folder / "a.svs", IMAGE)
    indexed(folder)
    file = folder.parent / "index.sqlite"
    with sqlite3.connect(file) as connection:
        for name in ("mpp_x", "mpp_y", "stain", "scanner", "levels", "objective"):
            connection.execute(f"ALTER TABLE scans DROP COLUMN {name}")
    connection.close()
    with Index.open(file) as index:
        assert "mpp_x" not in index.columns()
        assert len(list(index.scans())) == 1
    write_svs(folder / "b.svs", IMAGE)
    assert [row["mpp_x"] for row in indexed(folder)] == [0.5, 0.5]


def test_without_openslide_slides_are_listed_and_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    write_svs(folder / "a.svs", IMAGE)
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "openslide", None)
        (row,) = indexed(folder)
        assert row["status"] == "failed"
        assert row["reason"].startswith("cannot be opened: whole slides need openslide: pip install 'medssl[slides]'")
    assert indexed(folder)[0]["status"] == "ok"


@pytest.mark.data
def test_real_slides_have_the_size_and_levels_of_openslide(real_data: Path, tmp_path: Path):
    import openslide

    folder = tmp_path / "slides"
    shutil.copytree(real_data / "slides", folder, copy_function=shutil.copyfile)
    folder.chmod(0o700)
    rows = {Path(row["path"]).name: row for row in indexed(folder)}
    assert len(rows) == len(list(folder.iterdir()))
    for name in ("small_HE.svs", "small_HE_levels.tiff", "tcga-cr-7395-01a-01-ts1.svs"):
        reference = openslide.OpenSlide(folder / name)
        assert (rows[name]["size_j"], rows[name]["size_i"]) == reference.dimensions
        assert rows[name]["levels"] == reference.level_count
        assert [level.shape[::-1] for level in open_slide(folder / name).levels] == list(reference.level_dimensions)
    assert rows["small_HE.svs"]["mpp_x"] == 0.499
    dicom = rows["small_dicom.dcm"]
    assert (dicom["size_i"], dicom["size_j"], dicom["levels"], dicom["status"]) == (2638, 3236, 1, "needs_spacing")
    assert rows["small_vectra.qptiff"]["status"] == "rejected"
    assert (rows["smalltif.tif"]["kind"], rows["smalltif.tif"]["value_domain"]) == ("image", "gray")
    assert rows["broken.svs"]["status"] == "failed"
    assert json.loads(rows["small_HE.svs"]["affine"])[0][0] == pytest.approx(0.000499)
