"""Segmentation objects written by highdicom, against the masks that went in and against highdicom's own reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from data.formats.dicom.label_objects import datasets_of, grid_of, segmentation
from data.make_scans import AXIAL, CORONAL, SAGITTAL, Series
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.label_objects.segmentation import read_segmentation

hd = pytest.importorskip("highdicom")

OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)
SHAPE = (7, 5, 4)  # columns, rows, slices: 35 pixels a frame, so frames of bits begin inside bytes


def segments(shape: tuple[int, int, int] = SHAPE, count: int = 3, seed: int = 1) -> np.ndarray:
    """Numbers of segments (slice, row, column), 0 where there is none."""
    columns, rows, slices = shape
    return np.random.default_rng(seed).integers(0, count + 1, (slices, rows, columns)).astype(np.uint8)


def write(folder: Path, series: Series, pixels: np.ndarray, kind: str, count: int = 3, **more: Any) -> Path:
    names = [f"part {number + 1}" for number in range(count)]
    dataset = segmentation(datasets_of(series), pixels, names, kind, **more)
    dataset.save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


def one_hot(numbers: np.ndarray, count: int = 3) -> np.ndarray:
    return np.stack([numbers == number for number in range(1, count + 1)], axis=-1)


def by_highdicom(file: Path, series: Series) -> np.ndarray:
    """Numbers of segments (column, row, slice) by highdicom, whose volume is turned to the scan's grid."""
    read = hd.seg.segread(file).get_volume(combine_segments=True)
    result = np.zeros(series.shape, np.int64)
    to_voxel = np.linalg.inv(np.array(grid_of(series).affine)) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ read.affine
    places = np.argwhere(read.array > 0)
    voxels = np.rint(places @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
    result[tuple(voxels.T)] = read.array[tuple(places.T)]
    return result


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE])
def test_segments_become_the_classes_of_their_voxels(tmp_path, kind, orientation):
    series, numbers = Series(SHAPE, orientation), segments()
    numbers[1] = 0  # a slice without any segment has no frame
    pixels = one_hot(numbers).astype(float) if kind == "FRACTIONAL" else numbers
    file = write(tmp_path, series, pixels, kind)
    result = read_segmentation(file, {1: 4, 2: 7, 3: 300}, grid_of(series))
    expected = np.array([0, 4, 7, 300])[numbers].transpose(2, 1, 0)
    np.testing.assert_array_equal(result.array, expected)
    if kind != "FRACTIONAL":  # of which highdicom makes no numbers of segments
        np.testing.assert_array_equal(np.array([0, 4, 7, 300])[by_highdicom(file, series)], expected)
    assert bool(result.notes) == (kind == "FRACTIONAL")


@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(2, 4)),
    orientation=st.sampled_from([AXIAL, CORONAL, SAGITTAL, OBLIQUE]),
    kind=st.sampled_from(["BINARY", "LABELMAP"]),
    seed=st.integers(0, 99),
)
def test_any_segmentation_agrees_with_highdicom(tmp_path_factory, shape, orientation, kind, seed):
    folder, series = tmp_path_factory.mktemp("seg"), Series(shape, orientation)
    numbers = segments(shape, seed=seed)
    numbers[0, 0, 0] = 1
    file = write(folder, series, numbers, kind)
    result = read_segmentation(file, {1: 1, 2: 2, 3: 3}, grid_of(series))
    np.testing.assert_array_equal(result.array, by_highdicom(file, series))


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize(
    ("syntax", "encoder"), [("1.2.840.10008.1.2.5", "pydicom"), ("1.2.840.10008.1.2.4.80", "pyjpegls")]
)
def test_compressed_segments_are_the_same(tmp_path, kind, syntax, encoder):
    series, numbers = Series(SHAPE), segments()
    pixels = one_hot(numbers).astype(float) if kind == "FRACTIONAL" else numbers
    dataset = pydicom.dcmread(write(tmp_path, series, pixels, kind))
    dataset.compress(syntax, encoding_plugin=encoder, generate_instance_uid=False)
    dataset.save_as(tmp_path / "compressed.dcm")
    result = read_segmentation(tmp_path / "compressed.dcm", {1: 1, 2: 2, 3: 3}, grid_of(series))
    np.testing.assert_array_equal(result.array, numbers.transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"])
def test_segments_of_other_syntaxes_are_the_same(tmp_path, syntax):
    import zlib

    from pydicom.encaps import encapsulate

    series, numbers = Series(SHAPE), segments(count=1)
    dataset = pydicom.dcmread(write(tmp_path, series, numbers, "BINARY", count=1))
    if not syntax.endswith(".8.1"):
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        packed = [np.packbits(frame, bitorder="little").tobytes() for frame in dataset.pixel_array]
        deflated = []
        for data in packed:
            stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            deflated.append(stream.compress(data) + stream.flush())
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"  # pydicom writes no syntax that it has not
        dataset.PixelData = encapsulate(deflated)
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "other.dcm")
    data = (tmp_path / "other.dcm").read_bytes()
    (tmp_path / "other.dcm").write_bytes(data.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.8.1\0"))
    result = read_segmentation(tmp_path / "other.dcm", {1: 1}, grid_of(series))
    np.testing.assert_array_equal(result.array, numbers.transpose(2, 1, 0))


def test_fractions_from_half_on_belong_to_the_segment(tmp_path):
    series = Series(SHAPE)
    fractions = np.random.default_rng(3).random((4, 5, 7, 1))
    file = write(tmp_path, series, fractions, "FRACTIONAL", count=1, max_fractional_value=200)
    result = read_segmentation(file, {1: 1}, grid_of(series))
    stored = np.around(fractions[..., 0] * 200)
    np.testing.assert_array_equal(result.array, (stored >= 100).transpose(2, 1, 0))
    assert result.notes == ["fractional segments: voxels from half of 200 on belong to the segment"]


def test_segments_without_a_class_are_background(tmp_path):
    series, numbers = Series(SHAPE), segments()
    for kind in ("BINARY", "LABELMAP"):
        result = read_segmentation(write(tmp_path, series, numbers, kind), {2: 1}, grid_of(series))
        np.testing.assert_array_equal(result.array, (numbers == 2).transpose(2, 1, 0))


def test_a_segmentation_of_part_of_the_slices_lies_where_it_says(tmp_path):
    series, numbers = Series(SHAPE), segments()
    dataset = segmentation(datasets_of(series)[1:3], numbers[1:3], ["a", "b", "c"], "BINARY")
    dataset.save_as(tmp_path / "seg.dcm")
    result = read_segmentation(tmp_path / "seg.dcm", {1: 1, 2: 2, 3: 3}, grid_of(series))
    expected = numbers.copy()
    expected[[0, 3]] = 0
    np.testing.assert_array_equal(result.array, expected.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (Series(SHAPE, spacing_mm=(0.8, 0.7)), "on another grid: frame 1 has 5 x 7 pixels of 0.8 x 0.6 mm"),
        (Series(SHAPE, CORONAL), "on another grid"),
        (Series((7, 5, 3)), "labeled voxels lie outside of the scan"),
        (Series(SHAPE, step_mm=2.0), r"frame \d of the segmentation lies between slices"),
    ],
)
def test_a_segmentation_of_another_grid_is_refused(tmp_path, grid, reason):
    file = write(tmp_path, Series(SHAPE), segments(), "BINARY")
    with pytest.raises(DicomError, match=reason):
        read_segmentation(file, {1: 1, 2: 2, 3: 3}, grid_of(grid))


def test_segments_that_overlap_are_refused(tmp_path):
    series, pixels = Series(SHAPE), one_hot(segments())
    pixels[2, 3, 4] = True
    file = write(tmp_path, series, pixels, "BINARY")
    with pytest.raises(DicomError, match="segments overlap at 2 voxels: a voxel has one class"):
        read_segmentation(file, {1: 1, 2: 2, 3: 3}, grid_of(series))
    assert read_segmentation(file, {1: 1, 2: 1, 3: 1}, grid_of(series)).overlap == 0  # parts of one class may


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: setattr(one, "PixelData", one.PixelData[:8]), "truncated: 8 of"),
        (lambda one: setattr(one, "NumberOfFrames", 3), "of 3 frames describes"),
        (lambda one: setattr(one, "SegmentationType", "OTHER"), "segmentation of type OTHER"),
        (lambda one: setattr(one, "BitsAllocated", 32), "pixels of 32 bits: not read"),
        (lambda one: setattr(one, "SegmentSequence", one.SegmentSequence[:1]), "segment 2, which the object does not"),
        (lambda one: delattr(one, "PixelData"), "without pixels"),
        (lambda one: delattr(one, "SharedFunctionalGroupsSequence"), "where its frames lie is not known"),
    ],
)
def test_a_damaged_segmentation_is_one_line(tmp_path, change, reason):
    series = Series(SHAPE)
    dataset = pydicom.dcmread(write(tmp_path, series, segments(), "BINARY"))
    change(dataset)
    dataset.save_as(tmp_path / "damaged.dcm")
    with pytest.raises(DicomError, match=reason) as caught:
        read_segmentation(tmp_path / "damaged.dcm", {1: 1, 2: 2, 3: 3}, grid_of(series))
    assert "\n" not in str(caught.value)
