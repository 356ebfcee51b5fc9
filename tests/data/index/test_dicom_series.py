"""Headers, grouping and geometry of DICOM series, against SimpleITK and against what was written."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from data.make_scans import CORONAL, SAGITTAL, Series, slice_dataset, truncate, write_series, write_slice
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.header import read_slices
from medssl.data.formats.dicom.pixels import read_stack, same_pixels
from medssl.data.formats.dicom.series.volumes import stacks_of
from medssl.data.formats.dicom.slices import Stack, from_json, to_json
from medssl.data.index.pseudonyms import keyed_digest
from medssl.types import Part

DIGEST = partial(keyed_digest, b"k" * 32)


def stacks_in(folder: Path) -> list[Stack]:
    slices = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            slices += read_slices(file, file.relative_to(folder).as_posix(), DIGEST)[1]
    parts = lambda one: Part(one.path, one.frame)  # noqa: E731
    return stacks_of(slices, lambda a, b: same_pixels(folder, parts(a), parts(b)))


def array_of(stack: Stack, folder: Path) -> np.ndarray:
    return read_stack(folder, [Part(one.path, one.frame) for one in stack.slices])[..., 0]


def read_by_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (slice, row, column) and the RAS+ affine of SimpleITK's series reader."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


@settings(max_examples=15, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    shape=st.tuples(st.integers(2, 7), st.integers(2, 7), st.integers(3, 6)),
    step=st.floats(0.4, 8),
)
def test_any_orientation_agrees_with_simpleitk(tmp_path_factory, angles, shape, step):
    folder = tmp_path_factory.mktemp("series")
    matrix = rotation(angles)
    orientation = tuple(round(float(value), 9) for value in (*matrix[:, 0], *matrix[:, 1]))
    write_series(folder, Series(shape=shape, orientation=orientation, step_mm=step))
    (stack,) = stacks_in(folder)
    array, affine = read_by_itk(folder)
    assert stack.status.code == "ok"
    np.testing.assert_array_equal(array_of(stack, folder), array)
    np.testing.assert_allclose(np.array(stack.grid.affine), affine, atol=1e-4)
    assert stack.grid.shape == shape
    np.testing.assert_allclose(stack.grid.spacing_mm, (0.6, 0.8, step), atol=1e-4)


@pytest.mark.data
@pytest.mark.parametrize("name", ["11-T1post", "11_HCrop", "26401", "36468", "37830"])
def test_real_series_agree_with_simpleitk(real_data, name):
    (folder,) = (real_data / "dicom_brain_mr").glob(f"{name}*")
    (stack,) = stacks_in(folder)
    array, affine = read_by_itk(folder)
    ours = array_of(stack, folder)
    assert ours.dtype == array.dtype
    np.testing.assert_array_equal(ours, array)
    np.testing.assert_allclose(np.array(stack.grid.affine), affine, atol=1e-5)


def test_voxels_lie_where_the_header_says(tmp_path):
    series, _ = write_series(tmp_path, Series(orientation=CORONAL))
    (stack,) = stacks_in(tmp_path)
    first = stack.slices[0]
    corner = np.array(stack.grid.affine) @ [3, 2, 0, 1]
    position, right, down = (np.array(first.pose[start : start + 3]) for start in (6, 0, 3))
    expected = position + 3 * series.spacing_mm[1] * right + 2 * series.spacing_mm[0] * down
    np.testing.assert_allclose(corner[:3], expected * [-1, -1, 1], atol=1e-6)


def test_headers_survive_json(tmp_path):
    _, files = write_series(tmp_path)
    slices = read_slices(files[0], "somewhere", DIGEST)[1]
    assert from_json(*to_json(slices), "somewhere") == slices


def test_nothing_that_names_the_patient_is_kept(tmp_path):
    _, files = write_series(tmp_path)
    series, slices = read_slices(files[0], "x", DIGEST)
    text = series + "".join(to_json(slices))
    for secret in ("4711", "Doe", "Jane", "1.2.826", "045Y"):
        assert secret not in text
    assert slices[0].facts["age_band"] == "40-49"


def test_points_in_time_become_volumes(tmp_path):
    for time in range(3):
        extra = {"TemporalPositionIdentifier": time + 1}
        for number, pixels in enumerate(Series(seed=time).pixels()):
            dataset = slice_dataset(Series(extra=extra), number, pixels)
            dataset.SOPInstanceUID = f"1.2.3.{time}.{number}"
            write_slice(tmp_path / f"{time}_{number}", dataset)
    stacks = stacks_in(tmp_path)
    assert [stack.volume for stack in stacks] == [(1, 3), (2, 3), (3, 3)]
    assert len({stack.name for stack in stacks}) == 3
    for time, stack in enumerate(stacks):
        np.testing.assert_array_equal(array_of(stack, tmp_path), Series(seed=time).pixels())


def test_points_in_time_by_number_alone_are_refused(tmp_path):
    for time in range(3):
        for number, pixels in enumerate(Series(seed=time).pixels()):
            dataset = slice_dataset(Series(), number, pixels)
            dataset.SOPInstanceUID, dataset.InstanceNumber = f"1.2.3.{time}.{number}", time * 5 + number + 1
            write_slice(tmp_path / f"{9 - time}_{number}", dataset)
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "failed"
    assert "two different slices in one place: 5 times" in stack.status.reason
    assert "InstanceNumber differs, but is no proof" in stack.status.reason


def test_an_interrupted_time_series_loses_only_its_last_volume(tmp_path):
    for time in range(3):
        extra = {"TemporalPositionIdentifier": time + 1}
        for number, pixels in enumerate(Series(seed=time).pixels()[: 5 if time < 2 else 2]):
            dataset = slice_dataset(Series(extra=extra), number, pixels)
            dataset.SOPInstanceUID = f"1.2.3.{time}.{number}"
            write_slice(tmp_path / f"{time}_{number}", dataset)
    stacks = stacks_in(tmp_path)
    assert [stack.status.code for stack in stacks] == ["ok", "ok", "failed"]
    assert stacks[2].status.reason.startswith("incomplete volume: number 3 of 3 has 2 of 5 slices")


def test_copies_of_files_are_dropped_and_counted(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b")
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "ok"
    assert stack.status.reason.startswith("5 copies dropped (IM003, IM010, IM017, IM024, IM031)")
    assert len(stack.slices) == 5


def test_gantry_tilt_is_kept_in_the_affine_and_said(tmp_path):
    series = Series()
    for number, pixels in enumerate(series.pixels()):
        dataset = slice_dataset(series, number, pixels)
        dataset.ImagePositionPatient = [0.0, round(0.5 * number, 6), 2.5 * number]
        write_slice(tmp_path / f"{number}", dataset)
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "ok"
    assert "gantry tilt of 11.3 degrees" in stack.status.reason
    np.testing.assert_allclose(np.array(stack.grid.affine)[:3, 2], [0, -0.5, 2.5], atol=1e-6)


def test_three_planes_are_a_localizer(tmp_path):
    for number, orientation in enumerate(((1.0, 0, 0, 0, 1.0, 0), CORONAL, SAGITTAL)):
        series = Series(shape=(6, 6, 3), orientation=orientation)
        for index, pixels in enumerate(series.pixels()):
            dataset = slice_dataset(series, index, pixels)
            dataset.SOPInstanceUID = f"1.2.3.{number}.{index}"
            write_slice(tmp_path / f"{number}_{index}", dataset)
    (stack,) = stacks_in(tmp_path)
    assert stack.status.code == "rejected"
    assert stack.status.reason.startswith("localizer: 3 directions")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "Siemens mosaic: its number of slices"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None}, "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2", "PixelSpacing": None}, "secondary capture"),
        ({"Modality": "SR"}, "report, plan or other object"),
        ({"Modality": "SEG"}, "segmentation object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Modality": "OT"}, "encapsulated|without a picture"),
        ({"SamplesPerPixel": 3}, "screenshot or color overlay"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "color overlay"),
    ],
)
def test_what_is_no_scan_is_rejected_with_its_reason(tmp_path, extra, reason):
    series = Series(shape=(6, 6, 1), extra=extra)
    _, (file,) = write_series(tmp_path, series)
    with pytest.raises(DicomError, match=reason) as caught:
        read_slices(file, "x", DIGEST)
    assert caught.value.rejected


@pytest.mark.parametrize(
    ("found", "put"),
    [
        (b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00QQ"),  # modality in a representation that does not exist
        (b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00US\x03\x00"),  # rows in three bytes
    ],
)
def test_a_damaged_element_is_one_line(tmp_path, found, put):
    _, (file,) = write_series(tmp_path, Series(shape=(6, 6, 1)))
    data = file.read_bytes()
    assert data.count(found) == 1
    file.write_bytes(data.replace(found, put))
    with pytest.raises(DicomError, match=r"not (understood|readable as DICOM): \S|truncated in the header") as caught:
        read_slices(file, "x", DIGEST)
    assert "\n" not in str(caught.value)


def test_ct_comes_in_hounsfield_units_and_whole_numbers(tmp_path):
    extra = {"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "-1024"}
    series, _ = write_series(tmp_path, Series(dtype=np.uint16, extra=extra))
    (stack,) = stacks_in(tmp_path)
    array = array_of(stack, tmp_path)
    assert array.dtype == np.int16
    assert stack.slices[0].value_domain == "hu"
    np.testing.assert_array_equal(array, series.pixels().astype(int) - 1024)


def test_slopes_that_differ_from_slice_to_slice_are_applied_each(tmp_path):
    series = Series(extra={"Modality": "PT"})
    for number, pixels in enumerate(series.pixels()):
        dataset = slice_dataset(series, number, pixels)
        dataset.RescaleSlope, dataset.RescaleIntercept = str(0.5 * (number + 1)), "0"
        write_slice(tmp_path / f"{number}", dataset)
    (stack,) = stacks_in(tmp_path)
    expected = series.pixels() * (0.5 * np.arange(1, 6))[:, None, None]
    np.testing.assert_allclose(array_of(stack, tmp_path), expected, rtol=1e-6)


def test_inverted_gray_is_turned_round(tmp_path):
    extra = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    series, _ = write_series(tmp_path, Series(dtype=np.uint16, extra=extra))
    (stack,) = stacks_in(tmp_path)
    np.testing.assert_array_equal(array_of(stack, tmp_path), 4095 - series.pixels())


def test_bits_above_the_stored_ones_are_dropped(tmp_path):
    series = Series(dtype=np.uint16, extra={"BitsStored": 12, "HighBit": 11})
    for number, pixels in enumerate(series.pixels()):
        write_slice(tmp_path / f"{number}", slice_dataset(series, number, pixels | np.uint16(0x8000)))
    (stack,) = stacks_in(tmp_path)
    np.testing.assert_array_equal(array_of(stack, tmp_path), series.pixels())


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.5"])  # implicit; run-length coded
def test_other_transfer_syntaxes_read_equal(tmp_path, syntax):
    series = Series(dtype=np.uint16)
    for number, pixels in enumerate(series.pixels()):
        dataset = slice_dataset(series, number, pixels)
        if syntax.endswith(".5"):
            dataset.compress(syntax, generate_instance_uid=False, encoding_plugin="pydicom")
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        write_slice(tmp_path / f"{number}", dataset)
    (stack,) = stacks_in(tmp_path)
    np.testing.assert_array_equal(array_of(stack, tmp_path), series.pixels())


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.97])
def test_a_cut_file_is_seen_by_its_header_alone(tmp_path, keep):
    _, (file,) = write_series(tmp_path, Series(shape=(64, 64, 1)))
    truncate(file, keep)
    with pytest.raises(DicomError, match="truncated"):
        read_slices(file, "x", DIGEST)


def test_frames_of_one_file_make_a_volume(tmp_path):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    series = Series(dtype=np.uint16)
    dataset = slice_dataset(series, 0, series.pixels()[0])
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        delattr(dataset, name)

    def item(**values):
        made = Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    dataset.NumberOfFrames = 5
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [
            item(
                PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
                PixelMeasuresSequence=Sequence([item(PixelSpacing=[0.8, 0.6])]),
                PixelValueTransformationSequence=Sequence([item(RescaleSlope="2", RescaleIntercept="1")]),
            )
        ]
    )
    places = [4, 0, 3, 1, 2]
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [item(PlanePositionSequence=Sequence([item(ImagePositionPatient=[0, 0, 2.0 * place])])) for place in places]
    )
    dataset["PixelData"].value = series.pixels().tobytes()
    write_slice(tmp_path / "frames", dataset)
    (stack,) = stacks_in(tmp_path)
    assert [one.frame for one in stack.slices] == [1, 3, 4, 2, 0]
    np.testing.assert_allclose(array_of(stack, tmp_path), series.pixels()[[1, 3, 4, 2, 0]] * 2.0 + 1)
    assert stack.grid.spacing_mm == pytest.approx((0.6, 0.8, 2.0))


def test_an_image_without_a_place_in_space_is_an_image(tmp_path):
    series = Series(shape=(6, 4, 1), dtype=np.uint16, extra={"Modality": "DX", "ImagerPixelSpacing": [0.2, 0.3]})
    dataset = slice_dataset(series, 0, series.pixels()[0])
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        delattr(dataset, name)
    write_slice(tmp_path / "x", dataset)
    (stack,) = stacks_in(tmp_path)
    assert stack.slices[0].kind == "image"
    assert stack.grid.shape == (4, 6)
    assert stack.grid.spacing_mm == (0.2, 0.3)
