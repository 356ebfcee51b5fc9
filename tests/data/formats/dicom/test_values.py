"""What stored numbers stand for: slopes, tables, units, padding, inverted gray, types that change within a stack."""

from __future__ import annotations

from functools import partial

import numpy as np
import pydicom
import pytest
from data.formats.dicom.pixel_files import SYNTAXES, dataset_of, item, put, write, written

from medssl.data.formats.dicom.elements import DicomError
from medssl.data.formats.dicom.header import read_slices
from medssl.data.formats.dicom.pixels import read_stack, read_values
from medssl.data.index.pseudonyms import keyed_digest
from medssl.types import Part


def gray(*numbers: int, dtype=np.int16) -> np.ndarray:
    return np.array([numbers], dtype)


def values(folder, *datasets) -> np.ndarray:
    return written(folder, *datasets).array[..., 0]


# --- slopes


def test_whole_slopes_give_whole_numbers(tmp_path):
    array = values(tmp_path, dataset_of(gray(0, 30000), RescaleSlope="3", RescaleIntercept="-7"))
    assert array.dtype == np.int32
    assert array[0].tolist() == [[-7, 89993]]


def test_counts_of_32_bits_keep_their_last_digit(tmp_path):
    array = values(tmp_path, dataset_of(gray(2**31 - 1, 5, dtype=np.int32), RescaleSlope="0.5", RescaleIntercept="0"))
    assert array[0].tolist() == [[(2**31 - 1) / 2, 2.5]]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"RescaleSlope": "0", "RescaleIntercept": "1"}, "rescale slope is 0: no value"),
        ({"RescaleSlope": "nan", "RescaleIntercept": "1"}, "rescale slope is nan"),
        ({"RescaleSlope": ["1", "2"], "RescaleIntercept": "1"}, "rescale slope is .*no value"),
        ({"RescaleSlope": "1", "RescaleIntercept": "inf"}, "rescale intercept is inf"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_slope_that_gives_no_value_is_refused(tmp_path, extra, message):
    with pytest.raises(DicomError, match=message):
        values(tmp_path, dataset_of(gray(1, 2), **extra))


def test_signs_bits_and_slopes_may_change_within_a_stack(tmp_path):
    stack = values(
        tmp_path,
        dataset_of(gray(-900, 800), "CT", RescaleSlope="1", RescaleIntercept="0"),
        dataset_of(gray(124, 1824, dtype=np.uint16), "CT", RescaleSlope="1", RescaleIntercept="-1024"),
        dataset_of(gray(0, 200, dtype=np.uint8), "CT", RescaleSlope="2", RescaleIntercept="-900"),
    )
    assert stack.dtype == np.int16
    assert stack[:, 0].tolist() == [[-900, 800], [-900, 800], [-900, -500]]


def test_a_real_slope_in_one_slice_makes_all_real(tmp_path):
    stack = values(tmp_path, dataset_of(gray(1, 2)), dataset_of(gray(1, 2), RescaleSlope="0.25", RescaleIntercept="0"))
    assert stack.dtype == np.float32
    assert stack[:, 0].tolist() == [[1, 2], [0.25, 0.5]]


def test_inverted_and_plain_gray_in_one_stack(tmp_path):
    plain = {"BitsStored": 12, "HighBit": 11}
    stack = values(
        tmp_path,
        dataset_of(gray(0, 100, dtype=np.uint16), **plain),
        dataset_of(gray(4095, 3995, dtype=np.uint16), **plain, PhotometricInterpretation="MONOCHROME1"),
    )
    assert stack[:, 0].tolist() == [[0, 100], [0, 100]]


def test_slopes_of_frames_go_before_shared_ones(tmp_path):
    rows = np.arange(4, dtype=np.uint16).reshape(2, 1, 2)
    dataset = dataset_of(rows[0], NumberOfFrames=2)
    put(dataset, rows.tobytes())
    scale = lambda slope: item(RescaleSlope=slope, RescaleIntercept="1", RescaleType="US")  # noqa: E731
    dataset.SharedFunctionalGroupsSequence = item(PixelValueTransformationSequence=scale("2"))
    frames = item(PixelValueTransformationSequence=scale("3"))
    frames.append(item()[0])
    dataset.PerFrameFunctionalGroupsSequence = frames
    write(tmp_path / "frames", dataset)
    stack = read_stack(tmp_path, [Part("frames", 1), Part("frames", 0)])[..., 0]
    assert stack[:, 0].tolist() == [[2 * 2 + 1, 3 * 2 + 1], [0 * 3 + 1, 1 * 3 + 1]]


# --- units


@pytest.mark.parametrize(
    ("modality", "extra", "domain"),
    [
        ("CT", {}, "hu"),
        ("CT", {"RescaleType": "HU"}, "hu"),
        ("CT", {"RescaleType": "ED"}, "gray"),
        ("CT", {"ModalityLUTSequence": item(ModalityLUTType="OD")}, "gray"),
        ("MR", {"RescaleType": "US"}, "mr"),
    ],
)
def test_only_hounsfield_units_are_of_their_domain(tmp_path, modality, extra, domain):
    file = write(tmp_path / "x", dataset_of(gray(1, 2), modality, **extra))
    (one,) = read_slices(file, "x", partial(keyed_digest, b"k" * 32))[1]
    assert one.value_domain == domain


def test_units_that_change_within_a_stack_are_refused(tmp_path):
    with pytest.raises(DicomError, match=r"^1\.dcm: its values are ED, those of the first slice HU"):
        values(tmp_path, dataset_of(gray(1, 2), "CT"), dataset_of(gray(1, 2), "CT", RescaleType="ED"))


def test_a_ct_without_slope_says_that_hu_are_a_guess(tmp_path):
    assert "taken for HU" in written(tmp_path, dataset_of(gray(1, 2), "CT")).notes[0]
    scaled = dataset_of(gray(1, 2), "CT", RescaleSlope="1", RescaleIntercept="0")
    assert not written(tmp_path, scaled).notes


# --- tables and real world values


def table(count=3, first=0, bits=16, data=b"\x64\x00\x32\x00\x0a\x00"):
    sequence = item(ModalityLUTType="US")
    sequence[0].add_new("LUTDescriptor", "US", [count, first, bits])
    sequence[0].add_new("LUTData", "OW", data)
    return sequence


def test_inverted_gray_is_mirrored_after_the_table(tmp_path):
    array = values(
        tmp_path,
        dataset_of(
            gray(0, 1, 2, 9, dtype=np.uint16), ModalityLUTSequence=table(), PhotometricInterpretation="MONOCHROME1"
        ),
    )
    assert array[0].tolist() == [[65535 - 100, 65535 - 50, 65535 - 10, 65535 - 10]]


def test_a_table_of_65536_entries(tmp_path):
    entries = np.arange(65536, dtype="<u2")[::-1]
    rows = gray(0, 1, 65535, dtype=np.uint16)
    array = values(tmp_path, dataset_of(rows, ModalityLUTSequence=table(0, 0, 16, entries.tobytes())))
    assert array[0].tolist() == [[65535, 65534, 0]]


def test_a_table_in_a_big_endian_file(tmp_path):
    dataset = dataset_of(gray(0, 2, dtype=np.uint16), ModalityLUTSequence=table(data=b"\x00\x64\x00\x32\x00\x0a"))
    put(dataset, b"\x00\x00\x00\x02")
    dataset.file_meta.TransferSyntaxUID = SYNTAXES["big endian"]
    assert values(tmp_path, dataset)[0].tolist() == [[100, 10]]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"ModalityLUTSequence": table(300)}, "6 bytes, its descriptor says 300 entries"),
        ({"ModalityLUTSequence": table(), "RescaleSlope": "2", "RescaleIntercept": "0"}, "both a Modality LUT and"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, extra, message):
    with pytest.raises(DicomError, match=message):
        values(tmp_path, dataset_of(gray(1, 2), **extra))


def mapping(unit="mm2/s", first=0, last=100, **values):
    made = item(MeasurementUnitsCodeSequence=item(CodeValue=unit), **values)
    for word, value in (("First", first), ("Last", last)):
        made[0].add_new(f"RealWorldValue{word}ValueMapped", "US", value)
    return made


LINEAR = {"RealWorldValueSlope": 0.5, "RealWorldValueIntercept": 1.0}


def test_a_real_world_value_mapping_gives_values_where_nothing_else_does(tmp_path):
    dataset = dataset_of(gray(2, 3, dtype=np.uint16), RealWorldValueMappingSequence=mapping(**LINEAR))
    assert values(tmp_path, dataset)[0].tolist() == [[2.0, 2.5]]


def test_a_real_world_value_table(tmp_path):
    sequence = mapping(first=1, last=3, RealWorldValueLUTData=[0.5, 7.25, -1.0])
    dataset = dataset_of(gray(3, 1, 2, dtype=np.uint16), RealWorldValueMappingSequence=sequence)
    assert values(tmp_path, dataset)[0].tolist() == [[-1.0, 0.5, 7.25]]


def test_numbers_beyond_a_real_world_value_table_are_refused(tmp_path):
    sequence = mapping(first=1, last=3, RealWorldValueLUTData=[0.5, 7.25, -1.0])
    with pytest.raises(DicomError, match="0 to 2, the real world value table covers 1 to 3"):
        values(tmp_path, dataset_of(gray(0, 2, dtype=np.uint16), RealWorldValueMappingSequence=sequence))


def test_numbers_beyond_a_real_world_value_mapping_are_said(tmp_path):
    dataset = dataset_of(gray(2, 300, dtype=np.uint16), RealWorldValueMappingSequence=mapping(**LINEAR))
    result = written(tmp_path, dataset)
    assert result.array[0, 0, :, 0].tolist() == [2.0, 151.0]
    assert "beyond" in result.notes[0]


def test_slope_and_intercept_go_before_a_real_world_value_mapping(tmp_path):
    dataset = dataset_of(
        gray(2, 3, dtype=np.uint16),
        RescaleSlope="3",
        RescaleIntercept="0",
        RealWorldValueMappingSequence=mapping(**LINEAR),
    )
    result = written(tmp_path, dataset)
    assert result.array[0, 0, :, 0].tolist() == [6, 9]
    assert "left alone" in result.notes[0]


def test_several_real_world_value_mappings_are_left_alone_and_said(tmp_path):
    both = mapping("g/ml{SUVbw}", **LINEAR)
    both.append(mapping("g/ml{SUVlbm}", **LINEAR)[0])
    result = written(tmp_path, dataset_of(gray(2, 3, dtype=np.uint16), RealWorldValueMappingSequence=both))
    assert result.array[0, 0, :, 0].tolist() == [2, 3]
    assert "2 real world value mappings were left alone" in result.notes[0]


# --- real numbers, single bits, wide numbers, bits that do not start at 0


@pytest.mark.parametrize(("element", "vr", "dtype"), [(0x7FE00008, "OF", "f4"), (0x7FE00009, "OD", "f8")])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "deflated"])
def test_real_pixels(tmp_path, element, vr, dtype, syntax):
    rows = np.array([[1.5e-8, -2.25], [3e30, 0.1]], dtype)
    dataset = dataset_of(np.zeros((2, 2), np.int16), BitsStored=None, HighBit=None, PixelRepresentation=None)
    dataset.BitsAllocated = rows.itemsize * 8
    put(dataset, rows.tobytes(), vr, element)
    dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    array = values(tmp_path, dataset)[0]
    assert array.dtype == rows.dtype
    np.testing.assert_array_equal(array, rows)
    np.testing.assert_array_equal(array, pydicom.dcmread(tmp_path / "0.dcm").pixel_array)


def test_single_bits(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    dataset = dataset_of(bits[0], "OT", BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=3)
    put(dataset, np.packbits(bits.ravel(), bitorder="little").tobytes(), "OB")
    write(tmp_path / "x", dataset)
    stack = read_stack(tmp_path, [Part("x", frame) for frame in range(3)])[..., 0]
    np.testing.assert_array_equal(stack, bits)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint32])
def test_wide_numbers(tmp_path, dtype):
    rows = gray(5, np.iinfo(dtype).max, np.iinfo(dtype).min, dtype=dtype)
    np.testing.assert_array_equal(values(tmp_path, dataset_of(rows))[0], rows)


@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_in_the_middle_of_a_word(tmp_path, signed):
    numbers = np.array([[-3, 100, -512, 511]] if signed else [[3, 100, 1023, 0]])
    rows = ((numbers & 0x3FF) << 4 | 0x8005).astype(np.uint16)
    extra = {"BitsStored": 10, "HighBit": 13, "PixelRepresentation": int(signed)}
    np.testing.assert_array_equal(values(tmp_path, dataset_of(rows, **extra))[0], numbers)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"BitsAllocated": 12}, "12 bits a pixel: only 1, 8, 16, 32 and 64"),
        ({"BitsStored": 17}, "Bits Allocated 16, Bits Stored 17 and High Bit 15 contradict"),
        ({"HighBit": 3}, "High Bit 3 contradict"),
        ({"PixelRepresentation": 2}, "Pixel Representation is 2: expected 0"),
        ({"PhotometricInterpretation": "RGB"}, "RGB, Samples per Pixel 1: expected 3"),
        ({"PhotometricInterpretation": "ARGB", "SamplesPerPixel": 4}, "stored as ARGB are not read"),
        ({"BitsAllocated": None}, "Bits Allocated is missing"),
    ],
)
def test_layouts_that_contradict_themselves_are_refused(tmp_path, extra, message):
    dataset = dataset_of(np.zeros((4, 16), np.int16), "OT")
    for name, value in extra.items():
        delattr(dataset, name) if value is None else setattr(dataset, name, value)
    dataset.PixelData = bytes(512) if "SamplesPerPixel" in extra else bytes(dataset.PixelData)
    with pytest.raises(DicomError, match=message):
        values(tmp_path, dataset)


# --- padding


@pytest.mark.parametrize(
    ("dtype", "stored", "padding", "written_as"),
    [
        (np.int16, -2000, -2000, "SS"),
        (np.int16, -2000, 63536, "US"),
        (np.uint16, 63536, 63536, "US"),
        (np.uint16, 63536, -2000, "SS"),
        (np.int16, -3024, -3024, "SS"),
    ],
)
@pytest.mark.parametrize("slope", ["1", "0.5"])
def test_padding_of_ct_becomes_air(tmp_path, dtype, stored, padding, written_as, slope):
    rows = np.array([[stored, 100, 1200], [stored, stored, 900]]).astype(dtype)
    dataset = dataset_of(rows, "CT", RescaleSlope=slope, RescaleIntercept="-1024")
    dataset.add_new("PixelPaddingValue", written_as, padding)
    result = written(tmp_path, dataset)
    scale = float(slope)
    expected = [[-1000, 100 * scale - 1024, 1200 * scale - 1024], [-1000, -1000, 900 * scale - 1024]]
    np.testing.assert_array_equal(result.array[0, ..., 0], expected)
    assert "3 voxels of padding in 1 slices were set to air" in result.notes[0]
    assert result.array.dtype == (np.int16 if slope == "1" else np.float32)


def test_padding_beside_the_stored_bits(tmp_path):
    rows = np.array([[0xF830, 0x830, 7]], np.uint16)  # -2000 in 16 bits; an ordinary 12-bit number
    dataset = dataset_of(rows, "CT", BitsStored=12, HighBit=11, RescaleSlope="1", RescaleIntercept="-1024")
    dataset.add_new("PixelPaddingValue", "US", 63536)
    assert values(tmp_path, dataset)[0].tolist() == [[-1000, 0x830 - 1024, 7 - 1024]]


@pytest.mark.parametrize(("value", "limit"), [(4000, 4095), (4095, 4000)])
def test_a_range_of_padding_becomes_the_lowest_other_value(tmp_path, value, limit):
    dataset = dataset_of(gray(4000, 4050, 4095, 30, 3999, dtype=np.uint16), "MG")
    dataset.add_new("PixelPaddingValue", "US", value)
    dataset.add_new("PixelPaddingRangeLimit", "US", limit)
    other = dataset_of(gray(20, 21, 22, 23, 24, dtype=np.uint16), "MG")
    stack = values(tmp_path, dataset, other)
    assert stack[:, 0].tolist() == [[20, 20, 20, 30, 3999], [20, 21, 22, 23, 24]]


def test_padding_of_inverted_gray_is_dark(tmp_path):
    dataset = dataset_of(
        gray(0, 0, 1000, 3000, dtype=np.uint16),
        "MG",
        BitsStored=12,
        HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
    )
    dataset.add_new("PixelPaddingValue", "US", 0)
    assert values(tmp_path, dataset)[0].tolist() == [[1095, 1095, 3095, 1095]]


def test_padding_of_slices_with_slopes_of_their_own(tmp_path):
    datasets = [dataset_of(gray(-1, 4, 8), "PT", RescaleSlope=slope, RescaleIntercept="0") for slope in ("0.5", "0.25")]
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", -1)
    assert values(tmp_path, *datasets)[:, 0].tolist() == [[1, 2, 4], [1, 1, 2]]


def test_padding_of_real_numbers(tmp_path):
    rows = np.array([[-9e9, 2.5, 1.5]], np.float32)
    dataset = dataset_of(np.zeros((1, 3), np.int16), BitsAllocated=32, FloatPixelPaddingValue=-9e9)
    put(dataset, rows.tobytes(), "OF", 0x7FE00008)
    assert values(tmp_path, dataset)[0].tolist() == [[1.5, 2.5, 1.5]]


def test_a_slice_of_padding_alone(tmp_path):
    datasets = [dataset_of(gray(*row), "MR") for row in ((-1, -1), (5, 6))]
    for dataset in datasets:
        dataset.add_new("PixelPaddingValue", "SS", -1)
    assert values(tmp_path, *datasets)[:, 0].tolist() == [[5, 5], [5, 6]]


# --- inverted gray


@pytest.mark.parametrize(("slope", "intercept"), [("2", "-10"), ("-0.5", "3"), ("1", "0")])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_inverted_gray_is_the_same_before_and_after_the_slope(tmp_path, slope, intercept, dtype):
    low = 0 if dtype == np.uint16 else -2048
    rows = gray(low, 7, low + 4095, dtype=dtype)
    extra = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": slope, "RescaleIntercept": intercept}
    array = values(tmp_path, dataset_of(rows, "CR", PhotometricInterpretation="MONOCHROME1", **extra))
    ends = (low + low + 4095) * float(slope) + 2 * float(intercept)
    np.testing.assert_allclose(array[0], ends - (rows * float(slope) + float(intercept)))


@pytest.mark.parametrize("modality", ["CT", "PT"])
def test_quantities_are_never_inverted(tmp_path, modality):
    extra = {"RescaleSlope": "1", "RescaleIntercept": "-24", "PhotometricInterpretation": "MONOCHROME1"}
    result = written(tmp_path, dataset_of(gray(24, 100), modality, **extra))
    assert result.array[0, 0, :, 0].tolist() == [0, 76]
    assert "display alone" in result.notes[0]


@pytest.mark.parametrize(("shape", "photometric"), [("IDENTITY", "MONOCHROME2"), ("INVERSE", "MONOCHROME1")])
def test_windows_and_presentation_change_no_value(tmp_path, shape, photometric):
    extra = {"BitsStored": 8, "HighBit": 7, "PhotometricInterpretation": photometric}
    shown = {"PresentationLUTShape": shape, "WindowCenter": "10", "WindowWidth": "3"}
    plain = values(tmp_path, dataset_of(gray(1, 200, dtype=np.uint16), "DX", **extra))
    np.testing.assert_array_equal(
        values(tmp_path, dataset_of(gray(1, 200, dtype=np.uint16), "DX", **extra, **shown)), plain
    )


def test_a_presentation_table_against_the_photometric_interpretation_is_said(tmp_path):
    result = written(tmp_path, dataset_of(gray(1, 200, dtype=np.uint16), "DX", PresentationLUTShape="INVERSE"))
    assert result.array[0, 0, :, 0].tolist() == [1, 200]
    assert "Presentation LUT Shape" in result.notes[0]


def test_a_missing_element_is_named(tmp_path):
    write(tmp_path / "x.dcm", dataset_of(gray(1, 2), Rows=None))
    with pytest.raises(DicomError, match=r"^x\.dcm: header not understood: Rows is missing$"):
        read_values(tmp_path, [Part("x.dcm", None)])


def test_padding_that_no_attribute_names_stays(tmp_path):
    rows = np.full((6, 8), -40, np.int16)
    rows[:2] = -2000
    dataset = dataset_of(rows, "CT", RescaleSlope="1", RescaleIntercept="0")
    np.testing.assert_array_equal(values(tmp_path, dataset)[0], rows)


def test_a_stack_of_padding_alone_is_said(tmp_path):
    assert "no voxel is anything else" in written(tmp_path, dataset_of(gray(7, 7), PixelPaddingValue=7)).notes[0]
