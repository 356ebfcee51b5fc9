"""Spacings that are not believed, and the option that states the unit of lengths: for the image and for its mask."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import Series, noise, write_nifti, write_picture, write_series

from medssl.cli import main
from medssl.data.formats.reading import read
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update


def index(tmp_path: Path, folder: Path, unit="", masks="") -> Path:
    options = IndexOptions(files=FileOptions(workers=0, length_unit=unit), labels=LabelOptions(masks=masks))
    with Index.open(tmp_path / "x" / "i", create=True, root=tmp_path) as opened:
        update(opened, [folder], options, key=b"k" * 32)
    return tmp_path / "x" / "i"


def micrometers(tmp_path: Path, spacing: tuple[float, ...]) -> Path:
    write_nifti(tmp_path / "d" / "images" / "a.nii", noise((4, 5, 6)), np.diag([*spacing, 1.0]))
    write_nifti(tmp_path / "d" / "labels" / "a.nii", noise((4, 5, 6), np.uint8, high=3), np.diag([*spacing, 1.0]))
    return tmp_path / "d"


@pytest.mark.parametrize("spacing", [(500.0, 500.0, 2000.0), (1.0, 1.0, 150.0), (5e-4, 5e-4, 1e-3)])
def test_a_spacing_outside_its_range_is_asked_about(tmp_path, spacing, capsys):
    folder = micrometers(tmp_path, spacing)
    with Index.open(index(tmp_path, folder)) as opened:
        assert not list(opened.scans())
        reasons = {scan.status.reason for scan in opened.scans(status="rejected")}
    shown = " x ".join(f"{step:.3g}" for step in spacing)
    assert reasons == {
        f"spacing outside 0.001 to 100 mm ({shown} mm): state the unit of its lengths with files.length_unit um, "
        "mm, cm or m (mm takes them as they are)"
    }


@pytest.mark.parametrize("spacing", [(0.001, 0.001, 0.001), (100.0, 100.0, 100.0)])
def test_the_ends_of_the_range_are_believed(tmp_path, spacing):
    with Index.open(index(tmp_path, micrometers(tmp_path, spacing))) as opened:
        assert len(list(opened.scans())) == 1  # the label map is none


@pytest.mark.parametrize(("unit", "factor"), [("um", 1e-3), ("mm", 1.0)])
def test_the_stated_unit_holds_for_the_image_and_its_mask(tmp_path, unit, factor):
    folder = micrometers(tmp_path, (500.0, 500.0, 2000.0))
    with Index.open(index(tmp_path, folder, unit, masks="images=labels")) as opened:
        (scan,) = opened.scans()
        volume = read(scan, opened.root)
    np.testing.assert_allclose(scan.grid.spacing_mm, np.multiply((500, 500, 2000), factor))
    np.testing.assert_allclose(volume.affine, np.diag([500 * factor, 500 * factor, 2000 * factor, 1.0]))
    np.testing.assert_allclose(volume.spacing_mm, scan.grid.spacing_mm)
    np.testing.assert_array_equal(volume.label[0], noise((4, 5, 6), np.uint8, high=3))


def test_a_file_that_states_its_unit_keeps_it(tmp_path):
    import nibabel

    image = nibabel.Nifti1Image(noise((4, 5, 6)), np.diag([50.0, 50.0, 100.0, 1.0]))
    image.header.set_xyzt_units("micron")
    (tmp_path / "d").mkdir()
    nibabel.save(image, tmp_path / "d" / "a.nii")
    with Index.open(index(tmp_path, tmp_path / "d", "um")) as opened:
        (scan,) = opened.scans()
    np.testing.assert_allclose(scan.grid.spacing_mm, (0.05, 0.05, 0.1))


def test_a_picture_of_unknown_size_has_no_lengths_to_change(tmp_path):
    write_picture(tmp_path / "d" / "a.png", noise((9, 8), np.uint8))
    with Index.open(index(tmp_path, tmp_path / "d", "um")) as opened:
        (scan,) = opened.scans()
    assert scan.grid.spacing_mm == (1.0, 1.0)


@pytest.mark.parametrize("series", [Series(spacing_mm=(1e-4, 1e-4)), Series(step_mm=250.0)])
def test_dicom_measures_in_mm_and_is_refused_outside_the_range(tmp_path, series):
    write_series(tmp_path / "d", series)
    with Index.open(index(tmp_path, tmp_path / "d", "um")) as opened:
        (scan,) = opened.scans(status="failed")
    assert re.search(r"0\.001 to 100 mm", scan.status.reason)


def test_an_unknown_unit_is_one_line(tmp_path, capsys):
    assert main(["index", str(tmp_path), "--files.length_unit", "inch"]) == 2
    assert re.search(r"^error: .*length_unit.*inch", capsys.readouterr().err)
