"""Strays, copies, missing slices and the places of slices, on files and against SimpleITK's series reader."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from data.formats.dicom.test_separation import slice_at
from data.make_scans import CORONAL, SAGITTAL, Series, slice_dataset, truncate, write_series, write_slice
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medssl.data.formats.dicom.header import read_slices
from medssl.data.formats.dicom.pixels import read_stack, same_pixels
from medssl.data.formats.dicom.series.volumes import SeriesFiles, stacks_of
from medssl.data.formats.dicom.slices import Stack
from medssl.data.formats.reading import read
from medssl.data.index.pseudonyms import keyed_digest
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.types import Part

KEY = b"k" * 32
DIGEST = partial(keyed_digest, KEY)


def stacks_in(folder: Path, files: SeriesFiles | None = None) -> list[Stack]:
    slices = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            slices += read_slices(file, file.relative_to(folder).as_posix(), DIGEST)[1]
    part = lambda one: Part(one.path, one.frame)  # noqa: E731
    return stacks_of(slices, lambda a, b: same_pixels(folder, part(a), part(b)), files)


def array_of(stack: Stack, folder: Path) -> np.ndarray:
    return read_stack(folder, [Part(one.path, one.frame) for one in stack.slices])[..., 0]


def indexed(folder: Path, **files: Any) -> Index:
    """The index of a folder, brought up to date."""
    index = Index.open(folder.parent / "index.sqlite", create=True, root=folder.parent)
    update(index, [folder], IndexOptions(files=FileOptions(workers=0, **files)), key=KEY)
    return index


def write(folder: Path, series: Series | None = None, names: str = "", **changes: Any) -> list[Path]:
    """A series whose elements are ``changes``: values, or functions of the number of the slice."""
    series = series or Series()
    files = []
    for number, pixels in enumerate(series.pixels()):
        dataset = slice_dataset(series, number, pixels)
        for name, value in changes.items():
            setattr(dataset, name, value(number) if callable(value) else value)
        files.append(write_slice(folder / f"{names}IM{number}", dataset))
    return files


# --- strays


def test_a_stray_image_costs_itself_alone(tmp_path):
    write(tmp_path)
    odd = Series(shape=(8, 6, 1), orientation=CORONAL)
    write(tmp_path, odd, "coronal_", SOPInstanceUID="1.2.3.1")
    write(tmp_path, Series(shape=(5, 5, 1), seed=3), "small_", SOPInstanceUID="1.2.3.2")
    derived = {"SOPInstanceUID": "1.2.3.3", "ImageType": ["DERIVED", "SECONDARY", "MIP"]}
    write(tmp_path, Series(shape=(8, 6, 1), seed=5), "derived_", **derived)
    good, *strays = stacks_in(tmp_path)
    assert good.status.code == "ok"
    np.testing.assert_array_equal(array_of(good, tmp_path), Series().pixels())
    reasons = {stray.slices[0].path: stray.status.reason for stray in strays}
    assert {stray.status.code for stray in strays} == {"rejected"}
    assert "ImageOrientationPatient" in reasons["coronal_IM0"]
    assert "Rows or Columns" in reasons["small_IM0"]
    assert "ImageType" in reasons["derived_IM0"]


def test_a_derived_image_without_a_place_costs_itself_alone(tmp_path):
    write(tmp_path)
    gone = {"ImagePositionPatient": None, "ImageType": ["DERIVED", "SECONDARY", "MIP"], "SOPInstanceUID": "1.2.3"}
    write(tmp_path, Series(shape=(8, 6, 1)), "mip_", **gone)
    assert [stack.status.code for stack in stacks_in(tmp_path)] == ["ok", "rejected"]


def test_a_slice_that_lost_its_place_fails_its_series(tmp_path):
    write(tmp_path, ImagePositionPatient=lambda n: None if n == 2 else [0, 0, 2.5 * n])
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "failed"
    assert "no geometry: 1 of 5 slices without position or spacing (IM2)" in stack.status.reason


def test_too_few_slices_name_the_option(tmp_path):
    write(tmp_path, Series(shape=(8, 6, 2)))
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "rejected"
    assert "too few slices for a volume: 2 of at least 3; files.slices image" in stack.status.reason


# --- copies


def test_copies_are_equal_pixels_in_one_place_whatever_their_identifiers_say(tmp_path):
    write(tmp_path, SOPInstanceUID="1.2.3")  # one identifier in all slices
    write(tmp_path / "again", SOPInstanceUID=lambda n: f"1.2.4.{n}")  # the same slices with new identifiers
    write(tmp_path / "third", Series(shape=(8, 6, 1)))
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "ok"
    assert stack.status.reason == "6 copies dropped (IM0 x2, IM1, IM2, IM3, IM4)"
    np.testing.assert_array_equal(array_of(stack, tmp_path), Series().pixels())


def test_equal_identifiers_and_places_with_other_pixels_are_no_copies(tmp_path):
    write(tmp_path, SOPInstanceUID="1.2.3")
    write(tmp_path / "other", Series(seed=9), SOPInstanceUID="1.2.3")
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "failed"
    assert "two different slices in one place: 5 times" in stack.status.reason
    assert "none of the attributes that can tell volumes apart differs" in stack.status.reason


def test_copies_under_other_numbers_are_dropped_too(tmp_path):
    write(tmp_path)
    write(tmp_path / "again", InstanceNumber=lambda n: 100 + n, SOPInstanceUID=lambda n: f"1.2.4.{n}")
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "ok"
    assert "5 copies dropped" in stack.status.reason


def test_copies_of_a_series_that_was_renamed_are_dropped_too(tmp_path):
    write(tmp_path, SeriesDescription="thorax", SeriesNumber=2)
    write(tmp_path / "again", SeriesDescription="copy", SeriesNumber=3, SOPInstanceUID=lambda n: f"1.2.4.{n}")
    (stack,) = stacks_in(tmp_path)
    assert "5 copies dropped" in stack.status.reason


def test_units_that_some_slices_leave_out_do_not_tear_a_volume(tmp_path):
    write(tmp_path, RescaleSlope="1", RescaleIntercept="0", RescaleType=lambda n: ("HU", "US", None)[n % 3])
    (stack,) = stacks_in(tmp_path)
    assert (stack.status.code, len(stack.slices)) == ("ok", 5)


def test_volumes_of_two_patients_say_what_split_them(tmp_path):
    write(tmp_path, PatientID="A")
    write(tmp_path / "other", Series(seed=2), PatientID="B", SOPInstanceUID=lambda n: f"1.2.4.{n}")
    assert [stack.status.reason for stack in stacks_in(tmp_path)] == ["split by PatientID"] * 2


def test_pixels_are_read_only_for_equal_headers_in_one_place(tmp_path):
    write(tmp_path, TemporalPositionIdentifier=1)
    write(tmp_path / "t2", Series(seed=2), TemporalPositionIdentifier=2)
    slices = [
        one
        for file in sorted(tmp_path.rglob("*"))
        if file.is_file()
        for one in read_slices(file, file.relative_to(tmp_path).as_posix(), DIGEST)[1]
    ]

    def refuse(_a, _b):
        pytest.fail("pixels were asked for")

    assert [stack.status.code for stack in stacks_of(slices, refuse)] == ["ok", "ok"]


# --- what could not be read


def test_a_truncated_slice_fails_its_own_volume_alone(tmp_path):
    for time in (1, 2):
        change = {"TemporalPositionIdentifier": time, "SOPInstanceUID": lambda n, t=time: f"1.2.{t}.{n}"}
        write(tmp_path / "scans", Series(seed=time), f"t{time}_", **change)
    truncate(tmp_path / "scans" / "t2_IM3", 0.9)
    with indexed(tmp_path / "scans") as index:
        assert len(list(index.scans())) == 1
        (failed,) = index.scans(status="failed")
    assert "damaged slice: t2_IM3 truncated" in failed.status.reason
    assert len(failed.source.parts) == 5


def test_every_second_slice_without_a_readable_header_is_never_a_volume_of_twice_the_step(tmp_path):
    files = write(tmp_path / "scans", Series(shape=(8, 6, 9)), SliceThickness=None)
    whole = {file: file.read_bytes() for file in files[1::2]}
    for file in whole:
        file.write_bytes(b"\0" * 1000)
    with indexed(tmp_path / "scans") as index:
        assert not list(index.scans())
        (failed,) = index.scans(status="failed")
    assert "missing slices: steps of 5.00 mm, InstanceNumber goes in steps of 2" in failed.status.reason
    for file, content in whole.items():
        file.write_bytes(content)
    with indexed(tmp_path / "scans") as index:
        (scan,) = index.scans()
    assert scan.grid.spacing_mm[2] == pytest.approx(2.5)


@pytest.mark.parametrize("kernels", [1, 2])
def test_a_header_that_cannot_be_read_fails_every_volume_of_its_series(tmp_path, kernels):
    for kernel in range(kernels):
        change = {"ConvolutionKernel": "AB"[kernel], "SOPInstanceUID": lambda n, k=kernel: f"1.2.{k}.{n}"}
        write(tmp_path / "scans", Series(seed=kernel), f"k{kernel}_", **change)
    write(tmp_path / "scans", Series(uid="1.2.3.4", seed=9), "other_")
    lost = tmp_path / "scans" / "k0_IM4"
    lost.write_bytes(lost.read_bytes().replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00DS"))
    with indexed(tmp_path / "scans") as index:
        (scan,) = index.scans()
        failed = list(index.scans(status="failed"))
    assert scan.source.parts[0].path.rsplit("/", 1)[-1].startswith("other_")
    assert len(failed) == kernels
    assert all("k0_IM4" in one.status.reason for one in failed)


def test_unread_files_beside_a_series_count_only_where_they_may_fill_each_gap(tmp_path):
    def doubtful(unknown: int, **hints: float) -> str:
        names = [f"X{n}" for n in range(unknown)]
        slices = [slice_at(5 * k, facts={"apart": hints}) for k in range(5)]
        (stack,) = stacks_of(slices, lambda _a, _b: False, SeriesFiles(unassigned=lambda: names))
        return stack.status.reason if stack.status.code == "failed" else ""

    assert "4 files beside this series could not be read (first: X0)" in doubtful(4)
    assert not doubtful(3)
    assert not doubtful(4, SliceThickness=5.0)
    assert not doubtful(4, SpacingBetweenSlices=5.0)
    assert doubtful(4, SliceThickness=2.5)


def test_a_file_that_cannot_be_read_any_more_makes_its_neighbors_due(tmp_path):
    write(tmp_path / "scans", InstanceNumber=1, SliceThickness=None)
    with indexed(tmp_path / "scans") as index:
        assert len(list(index.scans())) == 1
    bad = [tmp_path / "scans" / f"X{n}" for n in range(4)]
    for file in bad:
        file.write_bytes(b"\0" * 300)
    with indexed(tmp_path / "scans") as index:
        assert not list(index.scans())
    for file in bad:
        file.unlink()
    with indexed(tmp_path / "scans") as index:
        assert len(list(index.scans())) == 1


@pytest.mark.parametrize(
    ("hints", "step", "says"),
    [
        ({"SpacingBetweenSlices": 2.5}, 5.0, "steps of 5.00 mm where SpacingBetweenSlices is 2.50 mm"),
        ({"SpacingBetweenSlices": 5.0, "SliceThickness": 5.0}, 10.0, "1 of 2 slices are missing"),
        ({"SpacingBetweenSlices": 2.0, "SliceThickness": 5.0}, 6.0, "2 of 3 slices are missing"),
        ({"SpacingBetweenSlices": 1.0, "SliceThickness": 5.0}, 6.0, ""),  # the gap instead of the distance
        ({"SpacingBetweenSlices": 5.0, "SliceThickness": 3.0}, 5.0, ""),
        ({"SliceThickness": 5.0}, 2.5, ""),  # overlapping
        ({"SliceThickness": 1.0}, 10.0, ""),  # high-resolution CT with gaps
    ],
)
def test_steps_are_checked_against_what_the_header_declares(hints, step, says):
    slices = [slice_at(step * k, facts={"apart": hints}, number=k) for k in range(6)]
    (stack,) = stacks_of(slices, lambda _a, _b: False)
    assert stack.status.code == ("failed" if says else "ok")
    assert says in stack.status.reason
    assert ("gaps between slices: 1 mm thick, 10 mm apart" in stack.status.reason) == (step == 10 and not says)


def test_numbers_with_holes_are_refused_only_where_the_steps_have_gaps():
    def status(numbers: range, **hints: float) -> str:
        slices = [slice_at(5 * k, number=number, facts={"apart": hints}) for k, number in enumerate(numbers)]
        return stacks_of(slices, lambda _a, _b: False)[0].status.code

    assert status(range(1, 13, 2)) == "failed"
    assert status(range(1, 13, 2), SliceThickness=2.5) == "failed"
    assert status(range(1, 13, 2), SliceThickness=5.0) == "ok"
    assert status(range(1, 13, 2), SpacingBetweenSlices=5.0) == "ok"
    assert status(range(12, 0, -2)) == "failed"
    assert status(range(1, 7)) == "ok"
    water_and_fat = [slice_at(5 * (k // 2), number=k, ImageType=["WF"[k % 2]]) for k in range(12)]
    assert {stack.status.code for stack in stacks_of(water_and_fat, lambda _a, _b: False)} == {"ok"}


@pytest.mark.parametrize("place", [1e-5, 500.0])
def test_steps_of_another_unit_are_refused(place):
    slices = [slice_at(place * k) for k in range(6)]
    small = [one.__class__(**{**vars(one), "spacing_mm": (0.01, 0.01), "pose": one.pose}) for one in slices]
    (stack,) = stacks_of(small, lambda _a, _b: False)
    assert stack.status.code in ("failed", "rejected")


# --- options


def test_slices_as_images(tmp_path):
    write(tmp_path / "scans", SOPInstanceUID="1.2.3")
    (tmp_path / "scans" / "IM3").unlink()
    write(tmp_path / "scans", Series(shape=(8, 6, 1)), "copy_")
    with indexed(tmp_path / "scans", slices="image") as index:
        scans = list(index.scans())
        arrays = [read(scan, index.root).image[0] for scan in scans]
    assert len({scan.scan_id for scan in scans}) == 4
    assert {(scan.source.kind, scan.grid.shape, scan.grid.spacing_mm) for scan in scans} == {
        ("image", (6, 8), (0.8, 0.6))
    }
    assert len({scan.subject.subject_id for scan in scans}) == 1
    expected = [Series().pixels()[n] for n in (0, 1, 2, 4)]
    assert sorted(array.tobytes() for array in arrays) == sorted(pixels.tobytes() for pixels in expected)


def test_secondary_captures_with_a_place_come_by_option(tmp_path):
    write(tmp_path / "scans", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    with indexed(tmp_path / "scans") as index:
        (rejected,) = index.scans(status="rejected")
    assert "files.captures true" in rejected.status.reason
    with indexed(tmp_path / "scans", captures=True) as index:
        (scan,) = index.scans()
    assert scan.grid.shape == (8, 6, 5)
    assert scan.source.value_domain == "gray"


# --- where slices lie


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), CORONAL, SAGITTAL, (-1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0)]
)
@pytest.mark.parametrize("backwards", [False, True])
def test_every_position_of_the_patient_and_order_of_slices_agrees_with_simpleitk(tmp_path, orientation, backwards):
    series = Series(orientation=tuple(map(float, orientation)))
    steps = -1 if backwards else 1
    places = [[round(float(v), 6) for v in series.normal() * series.step_mm * steps * n - 7] for n in range(5)]
    write(tmp_path, series, ImagePositionPatient=lambda n: places[n])
    (stack,) = stacks_in(tmp_path)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_array_equal(array_of(stack, tmp_path), SimpleITK.GetArrayFromImage(image))
    corner = np.array(stack.grid.affine) @ [7, 5, 4, 1]
    np.testing.assert_allclose(corner[:3] * [-1, -1, 1], image.TransformIndexToPhysicalPoint((7, 5, 4)), atol=1e-6)


@settings(max_examples=15, deadline=None)
@example(step=0.625, count=27, digits=1)
@given(
    step=st.floats(0.5, 3),
    count=st.integers(5, 40),
    digits=st.sampled_from([1, 2, 3]),
)
def test_rounded_positions_stay_one_volume_near_the_true_places(step, count, digits):
    slices = [slice_at(round(step * k, digits)) for k in range(count)]
    (stack,) = stacks_of(slices, lambda _a, _b: False)
    assert stack.status.code == "ok"
    ends = np.array(stack.grid.affine)[2, 2:] @ [[0, count - 1], [1, 1]]
    np.testing.assert_allclose(ends, [0, step * (count - 1)], atol=0.15 * step)


def test_frames_of_two_orientations_and_any_order(tmp_path):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    series = Series(shape=(8, 6, 10), dtype=np.uint16)
    dataset = slice_dataset(series, 0, series.pixels()[0])
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        delattr(dataset, name)

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    order = np.random.default_rng(0).permutation(10)
    groups = []
    for number in order:
        turned, k = divmod(int(number), 5)
        orientation, position = (CORONAL, [0, 4.0 * k, 0]) if turned else ([1, 0, 0, 0, 1, 0], [0, 0, 4.0 * k])
        groups.append(
            item(
                PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=list(orientation))]),
                PlanePositionSequence=Sequence([item(ImagePositionPatient=position)]),
                PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.8, 0.6], SliceThickness=4.0)]),
            )
        )
    dataset.NumberOfFrames = 10
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset["PixelData"].value = series.pixels()[order].tobytes()
    write_slice(tmp_path / "frames", dataset)
    stacks = stacks_in(tmp_path)
    assert [stack.status.code for stack in stacks] == ["ok", "ok"]
    arrays = [array_of(stack, tmp_path) for stack in stacks]
    wanted = [series.pixels()[:5], series.pixels()[5:][:: 1 if places_rise(stacks[1]) else -1]]
    if stacks[0].slices[0].pose[:6] != (1, 0, 0, 0, 1, 0):
        arrays = arrays[::-1]
        wanted[1] = series.pixels()[5:][:: 1 if places_rise(stacks[0]) else -1]
    for array, pixels in zip(arrays, wanted, strict=True):
        np.testing.assert_array_equal(array, pixels)


def places_rise(stack: Stack) -> bool:
    """Whether the slices of a coronal stack go from front to back."""
    return stack.slices[0].pose[7] < stack.slices[-1].pose[7]


def test_the_order_of_files_and_their_names_change_nothing(tmp_path):
    rng = np.random.default_rng(1)
    for folder in ("a", "b"):
        for kind in ("WATER", "FAT"):
            names = rng.permutation(1000)
            for number, pixels in enumerate(Series(seed=len(kind)).pixels()):
                dataset = slice_dataset(Series(extra={"ImageType": ["ORIGINAL", "PRIMARY", kind]}), number, pixels)
                write_slice(tmp_path / folder / str(names[number]), dataset)
    first, second = stacks_in(tmp_path / "a"), stacks_in(tmp_path / "b")
    assert [stack.name for stack in first] == [stack.name for stack in second] == ["0.0", "0.1"]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(array_of(one, tmp_path / "a"), array_of(other, tmp_path / "b"))


def test_two_patients_under_one_series_are_two_subjects(tmp_path):
    for n in (0, 1):
        write(tmp_path / "scans", Series(seed=n), f"p{n}_", PatientID=f"P{n}")
    with indexed(tmp_path / "scans") as index:
        scans = list(index.scans())
    assert len({scan.subject.subject_id for scan in scans}) == 2


@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_files_are_found_again_with_the_same_identifiers(tmp_path, suffix):
    write_series(tmp_path / "scans" / f"x{suffix}")
    with indexed(tmp_path / "scans") as index:
        first = [(scan.scan_id, scan.digests.source) for scan in index.scans()]
    (tmp_path / "index.sqlite").unlink()
    with indexed(tmp_path / "scans") as index:
        assert [(scan.scan_id, scan.digests.source) for scan in index.scans()] == first
