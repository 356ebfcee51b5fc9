"""Synthetic slides: files that other readers open, truth that fits the pixels, the same bytes for the same seed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from medssl.data.formats.slide import open_slide
from medssl.data.synthetic.outlines import outlines
from medssl.data.synthetic.slide_files import SlideRecipe, write_slides, write_svs
from medssl.data.synthetic.slides import CELL, SyntheticSlide
from medssl.types import UserError

openslide = pytest.importorskip("openslide")

SIZE = (1024, 1280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "out"
    assert write_slides(folder, SlideRecipe(4, 3, SIZE, stains="HE,IHC", layout="both")) == 8
    return folder


def test_the_folder_holds_slides_truth_and_labels(folder: Path):
    rows = list(csv.DictReader((folder / "slides.csv").read_text().splitlines()))
    assert [row["slide"] for row in rows[:3]] == ["PHANTOM-0000-1-HE", "PHANTOM-0000-1-IHC", "PHANTOM-0001-1-HE"]
    assert (folder / "slides" / "PHANTOM-0000-1-HE.svs").is_file()
    assert (folder / "slides" / "PHANTOM-0001-1-HE" / "level0.dcm").is_file()
    labels = {row["patient"]: row["tumor"] for row in rows}
    assert sorted(labels.values())[0] == ""
    assert labels["PHANTOM-0000"] != labels["PHANTOM-0001"]
    for row in rows[:6]:
        mask = np.asarray(Image.open(folder / "masks" / f"{row['slide']}.png"))
        assert mask.shape == (32, 40)
        assert int(mask.any()) == int(row["tumor"])


def test_openslide_reads_levels_and_spacing(folder: Path):
    svs = openslide.OpenSlide(folder / "slides" / "PHANTOM-0000-1-HE.svs")
    assert svs.dimensions == (1280, 1024)
    assert svs.level_dimensions == ((1280, 1024), (320, 256))
    assert (svs.properties["openslide.vendor"], svs.properties["openslide.mpp-x"]) == ("aperio", "0.5")
    assert set(svs.associated_images) == {"thumbnail", "label", "macro"}
    dicom = openslide.OpenSlide(folder / "slides" / "PHANTOM-0001-1-HE" / "level1.dcm")
    assert (dicom.level_dimensions, dicom.properties["openslide.mpp-y"]) == (((1280, 1024), (320, 256)), "0.5")
    for slide in (svs, dicom):
        level = np.asarray(slide.read_region((0, 0), 1, (320, 256)).convert("RGB")).astype(float)
        whole = slide.read_region((0, 0), 0, (1280, 1024)).convert("RGB").reduce(4)
        difference = level - np.asarray(whole)
        assert np.abs(difference.mean((0, 1))).max() < 0.5, slide.properties["openslide.vendor"]
        assert np.abs(difference).mean() < 5  # halved colors of JPEG, at both levels


def test_stains_of_a_slide_are_registered_and_only_tumor_is_brown(folder: Path):
    number = 0 if (folder / "masks" / "PHANTOM-0000-1-HE.png").stat().st_size > 110 else 1
    slides = [SyntheticSlide(0, number, SIZE, stain, tumor=True) for stain in ("HE", "IHC")]
    he, ihc = (slide.tile(0, 0, *SIZE).astype(int) for slide in slides)
    assert np.array_equal(slides[0].truth(8), slides[1].truth(8))
    truth = np.kron(slides[0].truth(8), np.ones((8, 8), bool))
    brown = (ihc[..., 0] - ihc[..., 2] > 12) & (ihc.max(-1) > 30)
    clean = np.kron(_unmarked(slides[0], 8), np.ones((8, 8), bool))
    assert brown[truth & clean].mean() > 0.9
    assert brown[~truth & clean].mean() < 0.03
    background = (he > 235).all(-1)
    assert ((ihc > 235).all(-1) == background)[clean].mean() > 0.8


def _unmarked(slide: SyntheticSlide, step: int) -> np.ndarray:
    """Blocks of pixels without pen, fold or black region, from the fields."""
    rows, columns = (np.arange(0, length, step) // CELL for length in slide.size)
    marks = np.maximum.reduce([slide.fields.pen, slide.fields.black, slide.fields.fold])
    wide = np.maximum.reduce([np.roll(marks, shift, axis) for axis in (0, 1) for shift in (-1, 0, 1)])
    return wide[np.ix_(rows, columns)] <= 0


def test_tiles_do_not_depend_on_how_they_are_cut():
    slide = SyntheticSlide(3, 1, SIZE, "HE", tumor=True)
    whole = slide.tile(256, 256, 512, 512)
    parts = [slide.tile(256 + row, 256 + column, 256, 256) for row in (0, 256) for column in (0, 256)]
    joined = np.concatenate([np.concatenate(parts[:2], 1), np.concatenate(parts[2:], 1)])
    assert np.array_equal(whole, joined)


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path):
    write_slides(tmp_path / "again", SlideRecipe(4, 3, SIZE, stains="HE,IHC", layout="both"))
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*")
                           if path.is_file())  # fmt: skip
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    write_svs(tmp_path / "other.svs", SyntheticSlide(1, 0, SIZE, "HE", tumor=True))
    assert (tmp_path / "other.svs").read_bytes() != (folder / "slides" / "PHANTOM-0000-1-HE.svs").read_bytes()


def test_an_interrupted_folder_is_completed(folder: Path, tmp_path: Path):
    recipe = SlideRecipe(1, 1, (256, 256))
    write_slides(tmp_path / "out", recipe)
    slide = tmp_path / "out" / "slides" / "PHANTOM-0000-1-HE.svs"
    content = slide.read_bytes()
    slide.unlink()
    (slide.parent / f".{slide.name}.part").write_bytes(content[:100])
    assert write_slides(tmp_path / "out", recipe) == 1
    assert slide.read_bytes() == content
    assert write_slides(tmp_path / "out", recipe) == 0
    with pytest.raises(UserError, match="holds phantoms of another recipe"):
        write_slides(tmp_path / "out", SlideRecipe(1, 1, (256, 512)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stains": "HE,PAS"}, "slides.stains: no list of stains"),
        ({"size": (100, 4096)}, "shape: size of a slide"),
        ({"size": (80, 64, 64)}, "shape: size of a slide"),
        ({"per_patient": 0}, "slides.per_patient: no slide for a patient"),
        ({"labeled": 9}, "not more labeled patients than patients"),
    ],
)
def test_recipes_that_cannot_be_are_refused(tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        write_slides(tmp_path / "out", SlideRecipe(**{"patients": 2, "labeled": 2, **change}))


def test_outlines_enclose_the_mask():
    mask = np.zeros((12, 14), bool)
    mask[2:9, 3:11] = True
    mask[4:6, 5:8] = False  # a hole
    mask[9, 11] = True  # touches at a corner
    polygons = outlines(mask, 10, (120, 140))
    assert [len(rings) for rings in polygons] == [2, 1]
    drawn = Image.new("1", (140, 120))
    for rings in polygons:
        for number, ring in enumerate(rings):
            assert ring[0] == ring[-1]
            inner = [(min(x, 139.5) - 0.5, min(y, 119.5) - 0.5) for x, y in ring]
            ImageDraw.Draw(drawn).polygon(inner, fill=int(number == 0))
    middles = np.asarray(drawn)[5::10, 5::10]
    assert np.array_equal(middles, mask)


def test_the_truth_outlines_lie_on_the_mask(folder: Path):
    for file in sorted((folder / "truth").iterdir()):
        mask = np.asarray(Image.open(folder / "masks" / f"{file.stem}.png")) > 0
        area = 0.0
        for feature in json.loads(file.read_text())["features"]:
            for number, ring in enumerate(feature["geometry"]["coordinates"]):
                x, y = np.array(ring, float).T
                area += (1 if number == 0 else -1) * abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
        assert area == mask.sum() * CELL**2


def test_the_reader_sees_what_was_drawn(folder: Path):
    slide = open_slide(folder / "slides" / "PHANTOM-0000-1-HE.svs")
    drawn = SyntheticSlide(0, 0, SIZE, "HE", tumor=_has_tumor(folder)).tile(0, 0, *SIZE).astype(int)
    read = slide.read((0, 0), SIZE, (0.0005, 0.0005)).transpose(1, 2, 0)
    assert np.abs(read - drawn).mean() < 4


def _has_tumor(folder: Path) -> bool:
    return bool(np.asarray(Image.open(folder / "masks" / "PHANTOM-0000-1-HE.png")).any())
