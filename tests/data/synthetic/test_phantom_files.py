"""Phantoms on disk: other programs read them, the same call completes and never rewrites them."""

from __future__ import annotations

import json
import os

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from medssl.data.synthetic import phantom_files
from medssl.data.synthetic.phantom_files import Recipe, write_phantoms
from medssl.data.synthetic.phantoms import phantom
from medssl.types import UserError

SMALL = Recipe(count=6, labeled=2, shape=(24, 20, 16), seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "scans"
    assert write_phantoms(folder, SMALL) == (6, 0)
    return folder


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def series_of(folder, number):
    return folder / "dicom" / f"PHANTOM-{number:04d}" / "STUDY0" / "SERIES0"


def test_layout(folder):
    assert sorted(path.name for path in (folder / "labels").iterdir()) == [f"PHANTOM-000{n}.nii.gz" for n in (0, 1)]
    assert sorted(path.name for path in (folder / "images").iterdir()) == [
        f"PHANTOM-000{n}.nii.gz" for n in (0, 1, 2, 4)
    ]
    assert sorted(path.name for path in (folder / "dicom").iterdir()) == ["PHANTOM-0003", "PHANTOM-0005"]
    assert len(list(series_of(folder, 5).iterdir())) == 16
    assert len(list(series_of(folder, 3).iterdir())) == 8  # every fourth is scanned in thick slices


@pytest.mark.parametrize("number", [0, 1])
def test_nifti_in_ras_is_the_phantom(folder, number):
    scan = phantom(1, SMALL.shape, number=number)
    for kind, expected in (("images", scan.image), ("labels", scan.label)):
        stored = nibabel.load(folder / kind / f"PHANTOM-000{number}.nii.gz")
        assert nibabel.aff2axcodes(stored.affine) == (tuple("RAS") if number == 0 else tuple("LPS"))
        turned = nibabel.as_closest_canonical(stored)
        assert np.array_equal(np.asarray(turned.dataobj), expected)
        assert stored.get_data_dtype() == expected.dtype
        assert np.allclose(turned.header.get_zooms(), scan.spacing_mm)
        middle = turned.affine @ [*((np.array(SMALL.shape) - 1) / 2), 1]
        assert np.allclose(middle, [0, 0, 0, 1], atol=1e-4)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_dicom_series_is_the_phantom(tmp_path, modality):
    recipe = Recipe(count=2, labeled=0, shape=(20, 16, 12), modality=modality, seed=4)
    write_phantoms(tmp_path / "scans", recipe)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series_of(tmp_path / "scans", 1))))
    series = reader.Execute()
    scan = phantom(4, recipe.shape, number=1, modality=modality)
    array = SimpleITK.GetArrayFromImage(series).T  # columns (to the left), rows (to the back), slices (to the head)
    assert np.array_equal(array[::-1, ::-1], scan.image)
    assert np.allclose(series.GetSpacing(), scan.spacing_mm, atol=1e-4)
    middle = series.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in series.GetSize()])
    assert np.allclose(middle, 0, atol=1e-3)
    assert np.allclose(series.GetDirection(), np.eye(3).ravel())


def test_the_same_recipe_gives_the_same_bytes(folder, tmp_path):
    write_phantoms(tmp_path / "again", SMALL)
    assert content(tmp_path / "again") == content(folder)


def test_a_second_call_writes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    names = []
    assert write_phantoms(folder, SMALL, written=names.append) == (0, 6)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len(names) == 6


@pytest.mark.parametrize("stop", [0, 1, 4, 10, 15, 30])
def test_an_interrupted_call_is_completed(folder, tmp_path, monkeypatch, stop):
    """The power fails at the n-th file: complete scans stay, half ones do not count, the next call ends as one."""
    target = tmp_path / "scans"
    calls = iter(range(1000))

    def failing(function):
        def wrapped(*args, **kwargs):
            if next(calls) == stop:
                message = "power failed"
                raise InterruptedError(message)
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", failing(os.fsync))
        patched.setattr(phantom_files, "_header", failing(phantom_files._header))
        with pytest.raises(InterruptedError, match="power failed"):
            write_phantoms(target, SMALL)
    new, old = write_phantoms(target, SMALL)
    assert new + old == SMALL.count
    assert new >= 1
    assert content(target) == content(folder)


def test_pictures(tmp_path):
    write_phantoms(tmp_path / "scans", Recipe(count=3, labeled=2, shape=(40, 48), seed=2))
    scan = phantom(2, (40, 48), number=1)
    image, label = (Image.open(tmp_path / "scans" / kind / "PHANTOM-0001.png") for kind in ("images", "labels"))
    assert np.array_equal(np.asarray(image), scan.image)
    assert np.array_equal(np.asarray(label), scan.label)
    assert (tmp_path / "scans" / "images" / "PHANTOM-0002.png").exists()
    assert not (tmp_path / "scans" / "labels" / "PHANTOM-0002.png").exists()


def test_shuffled_labels_are_those_of_another_patient(tmp_path):
    recipe = Recipe(count=5, labeled=4, shape=(24, 20, 16), seed=1, shuffle_labels=True)
    write_phantoms(tmp_path / "scans", recipe)
    for number, other in ((0, 1), (1, 2), (3, 0)):
        shape = (24, 20, 8) if number == 3 else (24, 20, 16)
        image, label = (
            nibabel.as_closest_canonical(nibabel.load(tmp_path / "scans" / kind / f"PHANTOM-000{number}.nii.gz"))
            for kind in ("images", "labels")
        )
        assert np.array_equal(np.asarray(image.dataobj), phantom(1, shape, number=number).image)
        assert np.array_equal(np.asarray(label.dataobj), phantom(1, shape, number=other).label)
        assert np.allclose(label.affine, image.affine)


def test_one_label_cannot_be_shuffled(tmp_path):
    with pytest.raises(UserError, match="labeled 1: labels can be shuffled among two or more patients"):
        write_phantoms(tmp_path / "scans", Recipe(count=2, labeled=1, shuffle_labels=True))
    assert not (tmp_path / "scans").exists()


def test_both_modalities_take_turns(tmp_path):
    write_phantoms(tmp_path / "scans", Recipe(count=2, labeled=2, shape=(16, 16, 16), modality="both"))
    lowest = [
        np.asarray(nibabel.load(tmp_path / "scans" / "images" / f"PHANTOM-000{number}.nii.gz").dataobj).min()
        for number in (0, 1)
    ]
    assert lowest[0] >= 0
    assert lowest[1] < -900


def test_another_recipe_is_refused(folder):
    before = content(folder)
    with pytest.raises(UserError, match=r"another recipe \(seed 1 there, 2 asked\)"):
        write_phantoms(folder, Recipe(count=6, labeled=2, shape=(24, 20, 16), seed=2))
    assert content(folder) == before
    assert json.loads((folder / "phantoms.json").read_text())["seed"] == 1


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        write_phantoms(tmp_path, SMALL)
    assert content(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("wrong", [{"count": 0}, {"labeled": 7}, {"labeled": -1}, {"seed": -1}])
def test_impossible_recipes_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="give at least one scan"):
        write_phantoms(tmp_path / "scans", Recipe(**{"count": 6, "labeled": 2, **wrong}))
    assert not (tmp_path / "scans").exists()
