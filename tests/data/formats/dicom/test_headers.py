"""What a DICOM header says of place, spacing, contrast and patient, with the oddities that writers have."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.make_scans import Series, slice_dataset, write_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.header import read_slices
from medssl.data.formats.dicom.pixels import read_stack, read_values, same_pixels
from medssl.data.formats.dicom.series.volumes import stacks_of
from medssl.data.formats.dicom.slices import Slice
from medssl.data.formats.recognition import recognize
from medssl.data.index.pseudonyms import keyed_digest, patient_digest
from medssl.types import Part

KEY = b"k" * 32
DIGEST = partial(keyed_digest, KEY)


def dataset_with(without: tuple[str, ...] = (), number: int = 0, **values: Any) -> Any:
    dataset = slice_dataset(Series(shape=(8, 6, 5)), number, Series(shape=(8, 6, 5)).pixels()[number])
    for name in without:
        delattr(dataset, name)
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def slices_of(tmp_path: Path, dataset: Any) -> list[Slice]:
    return read_slices(write_slice(tmp_path / "x", dataset), "x", DIGEST)[1]


def item(**values: Any) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, Sequence([value]) if isinstance(value, Dataset) else value)
    return made


FLAT = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")


# --- spacing


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("UT", "0.8\\0.6"),
        ("LO", "0.8\\0.6"),
        ("UN", b"0.8\\0.6 "),
        ("DS", b"0,8\\0,6 "),
        ("DS", b" 0.8 \\ 0.6 "),
        ("DS", b"0.80000000000000000001\\0.6000000000000000000000 "),
        ("UT", "0.8,0.6"),
        ("FD", [0.8, 0.6]),
        ("UN", b"8e-1\\6E-1\0"),
    ],
)
def test_pixel_spacing_is_read_whatever_its_representation(tmp_path, vr, value):
    dataset = dataset_with(("PixelSpacing",))
    dataset.add_new(
        0x00280030, "LO" if isinstance(value, bytes) else vr, value.decode() if isinstance(value, bytes) else value
    )
    file = write_slice(tmp_path / "x", dataset)
    if isinstance(value, bytes):
        raw = file.read_bytes()
        start = raw.index(b"\x28\x00\x30\x00LO") + 4
        length = int.from_bytes(raw[start + 2 : start + 4], "little")
        head = vr.encode() + (b"\0\0" + struct.pack("<I", length) if vr == "UN" else struct.pack("<H", length))
        file.write_bytes(raw[:start] + head + raw[start + 4 :])
    (one,) = read_slices(file, "x", DIGEST)[1]
    assert one.spacing_mm == pytest.approx((0.8, 0.6))


@pytest.mark.parametrize("value", [["0", "0"], ["-0.8", "0.6"], ["800", "600"], ["0.0001", "0.0001"], ["inf", "1"]])
def test_a_spacing_that_is_none_is_refused(tmp_path, value):
    dataset = dataset_with(("PixelSpacing",))
    dataset.add_new(0x00280030, "LO", value)
    with pytest.raises(DicomError, match=r"PixelSpacing of .* mm: expected 0.001 to 100 mm"):
        slices_of(tmp_path, dataset)


@pytest.mark.parametrize(
    ("values", "spacing"),
    [
        ({"PixelSpacing": [0.1, 0.2], "ImagerPixelSpacing": [0.3, 0.4]}, (0.1, 0.2)),
        ({"ImagerPixelSpacing": [0.3, 0.4]}, (0.3, 0.4)),
        ({"ImagerPixelSpacing": [0.3, 0.4], "EstimatedRadiographicMagnificationFactor": "2"}, (0.15, 0.2)),
        ({"NominalScannedPixelSpacing": [0.5, 0.5]}, (0.5, 0.5)),
        ({"PixelAspectRatio": [2, 1]}, (2.0, 1.0)),
        ({"PixelAspectRatio": [1, 4]}, (1.0, 4.0)),
        ({"PixelAspectRatio": [2, 1], "ImagerPixelSpacing": [0.3, 0.4]}, (0.3, 0.4)),
        ({"SpatialResolution": "0.3"}, None),
        ({}, None),
    ],
)
def test_the_spacing_of_a_picture(tmp_path, values, spacing):
    (one,) = slices_of(tmp_path, dataset_with(FLAT, Modality="DX", **values))
    assert one.kind == "image"
    assert one.spacing_mm == (None if spacing is None else pytest.approx(spacing))


def test_the_spacing_of_ultrasound_comes_from_its_regions(tmp_path):
    def region(**values: Any) -> Dataset:
        made = {
            "RegionSpatialFormat": 1, "PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3,
            "PhysicalDeltaX": 0.02, "PhysicalDeltaY": 0.03,
        }  # fmt: skip
        return item(**(made | values))

    doppler = region(RegionSpatialFormat=3, PhysicalUnitsXDirection=4, PhysicalDeltaX=0.001)
    for regions, spacing in (
        ([region()], (0.3, 0.2)),
        ([region(), doppler], (0.3, 0.2)),
        ([region(), region(PhysicalDeltaX=0.05)], None),
        ([region(PhysicalUnitsXDirection=0)], None),
    ):
        dataset = dataset_with(FLAT, Modality="US", SequenceOfUltrasoundRegions=Sequence(regions))
        (one,) = slices_of(tmp_path, dataset)
        assert one.spacing_mm == (None if spacing is None else pytest.approx(spacing))


# --- directions


@pytest.mark.parametrize(
    "cosines", [[1, 0, 0, 0.1, 1, 0], [1, 0, 0, 0, 0.9, 0], [2, 0, 0, 0, 2, 0], [1, 0, 0, 1, 0, 0]]
)
def test_directions_that_are_no_unit_vectors_at_right_angles_are_refused(tmp_path, cosines):
    with pytest.raises(DicomError, match="expected unit vectors at right angles"):
        slices_of(tmp_path, dataset_with(ImageOrientationPatient=cosines))


@settings(max_examples=20, deadline=None)
@given(angles=st.tuples(*[st.floats(-3, 3)] * 3), digits=st.integers(3, 6))
def test_rounded_directions_become_unit_vectors(tmp_path_factory, angles, digits):
    cos, sin = np.cos(angles), np.sin(angles)
    turn = np.array([[cos[0], -sin[0], 0], [sin[0], cos[0], 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, cos[1], -sin[1]], [0, sin[1], cos[1]]])
    rounded = [round(float(value), digits) for value in (*turn[:, 0], *turn[:, 1])]
    (one,) = slices_of(tmp_path_factory.mktemp("x"), dataset_with(ImageOrientationPatient=rounded))
    assert np.linalg.norm(one.pose[:3]) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(one.pose[:6], [*turn[:, 0], *turn[:, 1]], atol=2 * 10.0**-digits)


# --- contrasts


def enhanced(per_frame: list[Dataset], **values: Any) -> Any:
    dataset = dataset_with(FLAT, NumberOfFrames=len(per_frame), **values)
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=item(PixelSpacing=[0.8, 0.6], SliceThickness=4.0),
    )
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    dataset.PixelData = np.arange(len(per_frame) * 48, dtype=np.int16).tobytes()
    return dataset


def frames_of(tmp_path: Path, dataset: Any) -> list[tuple[str, list[int]]]:
    """Status and frames of each volume in a file."""
    slices = slices_of(tmp_path, dataset)
    part = lambda one: Part(one.path, one.frame)  # noqa: E731
    stacks = stacks_of(slices, lambda a, b: same_pixels(tmp_path, part(a), part(b)))
    return [(stack.status.code, [one.frame for one in stack.slices]) for stack in stacks]


GROUPS = {
    "b-value": lambda n: {"MRDiffusionSequence": item(DiffusionBValue=1000.0 * n)},
    "direction": lambda n: {
        "MRDiffusionSequence": item(
            DiffusionBValue=1000.0,
            DiffusionGradientDirectionSequence=item(DiffusionGradientOrientation=[float(n), 1.0 - n, 0.0]),
        )
    },
    "echo": lambda n: {"MREchoSequence": item(EffectiveEchoTime=10.0 + 20 * n)},
    "kind": lambda n: {
        "MRImageFrameTypeSequence": item(FrameType=["ORIGINAL", "PRIMARY", "DIXON", ("WATER", "FAT")[n]])
    },
    "phase": lambda n: {"MRImageFrameTypeSequence": item(ComplexImageComponent=("MAGNITUDE", "PHASE")[n])},
    "heart": lambda n: {"CardiacSynchronizationSequence": item(NominalCardiacTriggerDelayTime=400.0 * n)},
    "breath": lambda n: {"RespiratorySynchronizationSequence": item(NominalPercentageOfRespiratoryPhase=50.0 * n)},
    "time": lambda n: {"TemporalPositionSequence": item(TemporalPositionTimeOffset=3.5 * n)},
    "kernel": lambda n: {"CTReconstructionSequence": item(ConvolutionKernel="BS"[n])},
    "converted": lambda n: {"UnassignedPerFrameConvertedAttributesSequence": item(ConvolutionKernel="BS"[n])},
    "converted time": lambda n: {
        "UnassignedPerFrameConvertedAttributesSequence": item(AcquisitionTime=("100000", "110000")[n])
    },
    "voltage": lambda n: {"CTXRayDetailsSequence": item(KVP=80 + 60 * n)},
    "unit": lambda n: {
        "RealWorldValueMappingSequence": item(LUTLabel="ab"[n], MeasurementUnitsCodeSequence=item(CodeValue="xy"[n]))
    },
}


@pytest.mark.parametrize("group", GROUPS)
def test_functional_groups_of_frames_separate_volumes(tmp_path, group):
    order = [(k, n if k % 2 else 1 - n) for k in range(5) for n in (0, 1)]
    frames = [
        item(PlanePositionSequence=item(ImagePositionPatient=[0, 0, 4.0 * k]), **GROUPS[group](n)) for k, n in order
    ]
    wanted = [("ok", [i for i, (_, n) in enumerate(order) if n == kind]) for kind in (0, 1)]
    assert sorted(frames_of(tmp_path, enhanced(frames))) == sorted(wanted)


@pytest.mark.parametrize(
    ("modality", "sop"),
    [
        ("MG", "1.2.840.10008.5.1.4.1.1.13.1.3"),
        ("CT", "1.2.840.10008.5.1.4.1.1.2.2"),
        ("MR", "1.2.840.10008.5.1.4.1.1.4.4"),
    ],
)
def test_tomosynthesis_and_converted_objects_are_volumes(tmp_path, modality, sop):
    """Breast tomosynthesis, and slices that were converted to one enhanced object (legacy converted)."""
    order = [3, 0, 4, 1, 2]
    frames = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[1, 2, 4.0 * k]),
            UnassignedPerFrameConvertedAttributesSequence=item(InstanceNumber=str(k), SOPInstanceUID=f"1.2.{k}"),
        )
        for k in order
    ]
    dataset = enhanced(frames, Modality=modality, SOPClassUID=sop)
    assert frames_of(tmp_path, dataset) == [("ok", [order.index(k) for k in range(5)])]
    slices = read_slices(tmp_path / "x", "x", DIGEST)[1]
    (stack,) = stacks_of(slices, lambda _a, _b: False)
    np.testing.assert_allclose(
        stack.grid.affine, [[-0.6, 0, 0, -1], [0, -0.8, 0, -2], [0, 0, 4, 0], [0, 0, 0, 1]], atol=1e-6
    )
    array = read_stack(tmp_path, [Part("x", one.frame) for one in stack.slices])[..., 0]
    np.testing.assert_array_equal(array, np.arange(240).reshape(5, 6, 8)[[order.index(k) for k in range(5)]])


@pytest.mark.parametrize("told", [False, True])
def test_dimension_indices_separate_what_they_point_to(tmp_path, told):
    """Indices of the place in the stack separate nothing; without pointers, those that differ within a place do."""
    order = [(k, n if k % 2 else 1 - n) for k in range(5) for n in (0, 1)]
    frames = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[0, 0, 4.0 * k]),
            FrameContentSequence=item(DimensionIndexValues=[1, k + 1, n + 1]),
        )
        for k, n in order
    ]
    dataset = enhanced(frames)
    if told:
        pointers = (0x00209056, 0x00209057, 0x20051413)  # stack, place in the stack, an element of a vendor
        dataset.DimensionIndexSequence = Sequence([item(DimensionIndexPointer=pointer) for pointer in pointers])
    wanted = [("ok", [i for i, (_, n) in enumerate(order) if n == kind]) for kind in (0, 1)]
    assert frames_of(tmp_path, dataset) == wanted


def test_two_stacks_of_one_object_are_two_volumes(tmp_path):
    frames = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[0, 0, 4.0 * k + 2 * n]),
            FrameContentSequence=item(StackID=str(n)),
        )
        for n in (0, 1)
        for k in range(4)
    ]
    assert frames_of(tmp_path, enhanced(frames)) == [("ok", [0, 1, 2, 3]), ("ok", [4, 5, 6, 7])]


def private(group: int, creator: str, elements: dict[int, tuple[str, Any]]) -> dict[int, tuple[str, Any]]:
    return {group << 16 | 0x10: ("LO", creator)} | {group << 16 | 0x1000 | e: value for e, value in elements.items()}


PRIVATE = {
    "Siemens": lambda b: private(0x0019, "SIEMENS MR HEADER", {0x0C: ("IS", str(b))}),
    "Siemens, unknown": lambda b: private(0x0019, "SIEMENS MR HEADER", {0x0C: ("UN", str(b).encode().ljust(6))}),
    "Siemens, direction": lambda b: private(
        0x0019, "SIEMENS MR HEADER", {0x0C: ("IS", "1000"), 0x0E: ("FD", [b / 1000, 1 - b / 1000, 0.0])}
    ),
    "GE": lambda b: private(0x0043, "GEMS_PARM_01", {0x39: ("IS", [b, 8, 0, 0])}),
    "Philips": lambda b: private(0x2001, "Philips Imaging DD 001", {0x03: ("FL", float(b))}),
    "GE, phase": lambda b: private(0x0043, "GEMS_PARM_01", {0x2F: ("SS", 1 if b else 0)}),
    "Philips, unknown": lambda b: private(0x2001, "Philips Imaging DD 001", {0x03: ("UN", struct.pack("<f", b))}),
}


@pytest.mark.parametrize("vendor", PRIVATE)
def test_private_b_values_separate_volumes(tmp_path, vendor):
    slices = []
    for b in (0, 1000):
        for number in range(5):
            dataset = dataset_with(number=number, SOPInstanceUID=f"1.2.{b}.{number}")
            for tag, (vr, value) in PRIVATE[vendor](b).items():
                dataset.add_new(tag, vr, value)
            file = write_slice(tmp_path / f"{b}_{number}", dataset)
            slices += read_slices(file, file.name, DIGEST)[1]
    stacks = stacks_of(slices, lambda _a, _b: False)
    assert [{one.path.split("_")[0] for one in stack.slices} for stack in stacks] == [{"0"}, {"1000"}]
    assert {stack.status.code for stack in stacks} == {"ok"}


@pytest.mark.parametrize("step", [3.0, -3.0])
def test_nuclear_medicine_volumes_lie_along_their_normal(tmp_path, step):
    detector = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[-5, -6, 10])
    dataset = dataset_with(
        FLAT, Modality="NM", NumberOfFrames=5, SpacingBetweenSlices=step, PixelSpacing=[0.8, 0.6], SliceThickness=3,
        ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], SliceVector=[1, 2, 3, 4, 5],
        DetectorInformationSequence=Sequence([detector]), PixelData=Series(shape=(8, 6, 5)).pixels().tobytes(),
    )  # fmt: skip
    slices = slices_of(tmp_path, dataset)
    (stack,) = stacks_of(slices, lambda _a, _b: False)
    assert stack.status.code == "ok"
    assert [one.pose[8] for one in slices] == [10 + step * k for k in range(5)]
    array = read_stack(tmp_path, [Part("x", one.frame) for one in stack.slices])[..., 0]
    np.testing.assert_array_equal(array, Series(shape=(8, 6, 5)).pixels()[:: 1 if step > 0 else -1])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "DYNAMIC", "EMISSION"]
    (film,) = slices_of(tmp_path, dataset)  # frames in time are no places
    assert (film.kind, film.slice_attributes["frames"]) == ("image", 5)


@pytest.mark.parametrize("vector", ["EnergyWindowVector", "DetectorVector", "PhaseVector", "TimeSlotVector"])
def test_vectors_of_nuclear_medicine_separate_volumes(tmp_path, vector):
    detector = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[-5, -6, 10])
    dataset = dataset_with(
        FLAT, Modality="NM", NumberOfFrames=10, SpacingBetweenSlices=4.0, PixelSpacing=[0.8, 0.6], SliceThickness=4,
        ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], SliceVector=[1, 2, 3, 4, 5] * 2,
        DetectorInformationSequence=Sequence([detector]), PixelData=np.arange(480, dtype=np.int16).tobytes(),
        **{vector: [1] * 5 + [2] * 5},
    )  # fmt: skip
    assert sorted(frames_of(tmp_path, dataset)) == [("ok", [0, 1, 2, 3, 4]), ("ok", [5, 6, 7, 8, 9])]


# --- identifiers and syntaxes


def test_identifiers_in_another_character_set_stay_apart_and_stable(tmp_path):
    found = set()
    for name in (b"CASE_\xfc", b"CASE_\xf6", b"CASE_\xfc"):
        file = write_slice(tmp_path / "x", dataset_with(PatientID="CASE_X", SpecificCharacterSet="ISO_IR 192"))
        file.write_bytes(file.read_bytes().replace(b"CASE_X", name))
        found.add(read_slices(file, "x", DIGEST)[1][0].facts["subject"])
    assert len(found) == 2
    (one,) = slices_of(tmp_path, dataset_with(PatientID="Jos\u00e9 1", SpecificCharacterSet="ISO_IR 192"))
    assert one.facts["subject"] == patient_digest(KEY, "Jos\u00e9 1")


def test_dates_and_identifiers_do_not_enter_the_index(tmp_path):
    from medssl.data.formats.dicom.slices import to_json

    dataset = dataset_with(
        AcquisitionDateTime="20210203040506.5", AcquisitionUID="1.2.777", FrameOfReferenceUID="1.2.888",
        ContrastBolusAgent="for Jane", IssuerOfPatientID="Mercy", SequenceName="Jane", AcquisitionDate="20210203",
    )  # fmt: skip
    text = "".join(to_json(slices_of(tmp_path, dataset)))
    for secret in ("2021", "777", "888", "Jane", "Mercy", "4711"):
        assert secret not in text


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize("meta", [False, True])
def test_files_without_preamble_are_recognized_and_read(tmp_path, syntax, meta):
    pixels = Series(shape=(8, 6, 5)).pixels()[2]
    dataset = dataset_with(number=2)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax.endswith(".2.2"):
        dataset["PixelData"].value = pixels.astype(">i2").tobytes()
    file = tmp_path / "IM1"
    plain = Dataset(dict(dataset.items()))
    plain.file_meta = dataset.file_meta
    order = {"implicit_vr": syntax.endswith("1.2"), "little_endian": not syntax.endswith(".2.2")}
    dcmwrite(file, plain, enforce_file_format=True, **order)
    raw = file.read_bytes()
    length = int.from_bytes(raw[140:144], "little")
    file.write_bytes(raw[132:] if meta else raw[144 + length :])
    assert recognize(file).form == "dicom"
    (one,) = read_slices(file, "IM1", DIGEST)[1]
    assert one.shape == (6, 8, 1)
    assert one.pose[8] == pytest.approx(-7 + 5.0)
    np.testing.assert_array_equal(read_stack(tmp_path, [Part("IM1", None)])[0, :, :, 0], pixels)


@pytest.mark.parametrize(
    ("found", "put", "says"),
    [
        (b"\x28\x00\x00\x01US", b"\x28\x00\x00\x03US", "Bits ?Allocated is missing"),
        (b"\x28\x00\x30\x00DS", b"\x28\x00\x30\x00US", "PixelSpacing"),
        (b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00DS", r"wrong kind|bytes|a number is written"),
    ],
)
def test_damaged_elements_are_named_without_words_of_a_library(tmp_path, found, put, says):
    file = write_slice(tmp_path / "x", dataset_with())
    raw = file.read_bytes()
    assert raw.count(found) == 1
    file.write_bytes(raw.replace(found, put))
    with pytest.raises(DicomError, match=says) as caught:
        read_slices(file, "x", DIGEST)
    assert not any(word in str(caught.value) for word in ("object", "int()", "literal", "b'", "NoneType"))


def test_a_damaged_length_does_not_bring_the_patient_into_the_message(tmp_path):
    file = write_slice(tmp_path / "x", dataset_with())
    content = file.read_bytes()
    at = content.index(b"\x02\x00\x10\x00UI") + 6  # the length of the transfer syntax
    file.write_bytes(content[:at] + (600).to_bytes(2, "little") + content[at + 2 :])
    with pytest.raises(DicomError, match=r"no decoder for the transfer syntax 1\.2\.840") as caught:
        read_values(tmp_path, [Part("x", None)])
    assert "Jane" not in str(caught.value)
    assert len(str(caught.value)) < 150
