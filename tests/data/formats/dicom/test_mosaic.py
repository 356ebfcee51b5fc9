"""Siemens mosaics: tiles become slices in their places, as nibabel's reader of mosaics has them."""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from data.formats.dicom.mosaics import Mosaic, csa_header
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.header import read_slices
from medssl.data.formats.dicom.mosaic import parse_csa
from medssl.data.formats.dicom.pixels import read_stack, same_pixels
from medssl.data.formats.dicom.series.volumes import stacks_of
from medssl.data.index.pseudonyms import keyed_digest
from medssl.types import Part

DIGEST = partial(keyed_digest, b"k" * 32)


def stacks_in(folder: Path) -> list[Stack]:
    slices = []
    for file in sorted(folder.rglob("*.dcm")):
        slices += read_slices(file, file.relative_to(folder).as_posix(), DIGEST)[1]
    part = lambda one: Part(one.path, one.frame)  # noqa: E731
    return stacks_of(slices, lambda a, b: same_pixels(folder, part(a), part(b)))


def voxels_of(stack: Stack, folder: Path) -> np.ndarray:
    """(column, row, slice), as the affine of the stack has it."""
    return read_stack(folder, [Part(one.path, one.frame) for one in stack.slices])[..., 0].transpose(2, 1, 0)


def read_by_nibabel(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (row, column, tile) and its affine in RAS+."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom import dicomwrappers

        wrapper = dicomwrappers.wrapper_from_data(pydicom.dcmread(file))
        return np.asarray(wrapper.get_data()), np.diag([-1.0, -1.0, 1.0, 1.0]) @ wrapper.affine


def check_same_in_the_world(stack: Stack, folder: Path, file: Path) -> None:
    """Every voxel has the value that nibabel finds at its place."""
    array, affine = voxels_of(stack, folder), np.array(stack.grid.affine)
    theirs, their_affine = read_by_nibabel(file)
    assert theirs.size == array.size
    voxels = np.array([*np.ndindex(array.shape)])
    places = voxels @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(their_affine)
    there = places @ inverse[:3, :3].T + inverse[:3, 3]
    np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
    np.testing.assert_array_equal(array.ravel(), theirs[tuple(np.rint(there).astype(int).T)])


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    a, b, c = angles
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return turn_z @ turn_y @ turn_x


@settings(max_examples=15, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    shape=st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(3, 17)),
    against=st.booleans(),
    second=st.booleans(),
)
def test_any_mosaic_agrees_with_nibabel(tmp_path_factory, angles, shape, against, second):
    folder = tmp_path_factory.mktemp("mosaic")
    matrix = rotation(angles)
    orientation = tuple(round(float(value), 9) for value in (*matrix[:, 0], *matrix[:, 1]))
    mosaic = Mosaic(shape, orientation, reversed_normal=against, second=second)
    mosaic.write(folder / "1.dcm")
    (stack,) = stacks_in(folder)
    assert stack.grid.shape == shape
    np.testing.assert_allclose(stack.grid.spacing_mm, (0.6, 0.8, 4.0), atol=1e-6)
    check_same_in_the_world(stack, folder, folder / "1.dcm")


@pytest.mark.parametrize("against", [False, True])
def test_tiles_lie_where_arithmetic_puts_them(tmp_path, against):
    volume = Mosaic(reversed_normal=against).write(tmp_path / "1.dcm")
    (stack,) = stacks_in(tmp_path)
    affine = np.array(stack.grid.affine)
    # 3 x 3 tiles of 6 x 4: the corner moves by (18 - 6) / 2 columns of 0.6 mm and (12 - 4) / 2 rows of 0.8 mm
    first = np.array([-30 + 6 * 0.6, -20 + 4 * 0.8, 10.0])
    lowest = first - [0, 0, 6 * 4.0 if against else 0]
    np.testing.assert_allclose(affine[:3, 3], lowest * [-1, -1, 1], atol=1e-9)
    np.testing.assert_allclose(affine[:3, 2], [0, 0, 4.0], atol=1e-9)
    expected = volume[::-1] if against else volume
    np.testing.assert_array_equal(voxels_of(stack, tmp_path), expected.transpose(2, 1, 0))


@pytest.mark.parametrize("same_acquisition", [False, True])
def test_each_mosaic_of_a_series_is_one_volume(tmp_path, same_acquisition):
    extra = {"AcquisitionNumber": 1} if same_acquisition else {}
    volumes = [Mosaic(seed=n, extra=extra).write(tmp_path / f"{9 - n}.dcm", number=n + 1) for n in range(3)]
    stacks = stacks_in(tmp_path)
    assert [stack.volume for stack in stacks] == [(1, 3), (2, 3), (3, 3)]
    for stack, volume in zip(stacks, volumes, strict=True):
        assert stack.status.code == "ok"
        np.testing.assert_array_equal(voxels_of(stack, tmp_path), volume.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"csa": {"SliceNormalVector": []}}, "without slice normal"),
        ({"csa": {"SliceNormalVector": ["0", "1", "0"]}}, "does not stand on its slices"),
        ({"csa": {"NumberOfImagesInMosaic": ["9"]}}, "number of slices .* is 7 and 9"),
        ({"csa": {"ProtocolSliceNumber": ["7"]}}, "first tile is not the first slice"),
        ({"extra": {"SpacingBetweenSlices": None}}, "without SpacingBetweenSlices"),
        ({"extra": {"PixelSpacing": None}}, "without position, orientation or spacing"),
        ({"extra": {"Rows": 11, "Columns": 18}}, "do not fit 3 x 3 tiles"),
    ],
)
def test_a_mosaic_whose_places_are_not_known_is_refused(tmp_path, changes, reason):
    Mosaic(**changes).write(tmp_path / "1.dcm")
    with pytest.raises(DicomError, match=reason):
        read_slices(tmp_path / "1.dcm", "x", DIGEST)


def test_a_mosaic_without_private_elements_is_refused(tmp_path):
    Mosaic().write(tmp_path / "1.dcm")
    dataset = pydicom.dcmread(tmp_path / "1.dcm")
    dataset.remove_private_tags()
    dataset.save_as(tmp_path / "1.dcm")
    with pytest.raises(DicomError, match=r"number of slices .* is nothing; export") as caught:
        read_slices(tmp_path / "1.dcm", "x", DIGEST)
    assert caught.value.rejected


@settings(max_examples=60, deadline=None)
@given(data=st.data(), second=st.booleans())
def test_damaged_private_headers_are_named_errors(data, second):
    whole = csa_header({"NumberOfImagesInMosaic": ["7"], "SliceNormalVector": ["0", "0", "1"]}, second=second)
    assert parse_csa(whole) == {"NumberOfImagesInMosaic": ["7"], "SliceNormalVector": ["0", "0", "1"]}
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    with suppress(DicomError):
        assert isinstance(parse_csa(bytes(damaged)), dict)


@pytest.mark.data
@pytest.mark.parametrize("series", ["mr_0003", "mr_0004", "mr_0005", "mr_0006"])
def test_real_mosaics_agree_with_nibabel(real_data, series):
    folder = real_data / "dicom_epi_mixed" / "20180918Si" / series
    stacks = stacks_in(folder)
    assert [stack.grid.shape for stack in stacks] == [(72, 72, 5)] * 2
    for stack in stacks:
        np.testing.assert_allclose(stack.grid.spacing_mm, (3, 3, 12), atol=1e-9)
        check_same_in_the_world(stack, folder, folder / stack.slices[0].path)
        center = np.array(stack.grid.affine) @ [35.5, 35.5, 2, 1]
        np.testing.assert_allclose(center[:2], 1.5, atol=1e-6)  # a field of view of 216 mm around the isocenter
