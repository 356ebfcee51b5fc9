"""Random layouts and transfer syntaxes, compared with pydicom and with arithmetic."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from data.formats.dicom.pixel_files import SYNTAXES, dataset_of, encapsulate, encode, item, put, write, written
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydicom.pixels import apply_modality_lut

LOSSLESS = ("implicit", "explicit", "big endian", "deflated", "rle", "jpeg lossless", "jpeg-ls", "jpeg 2000")


@st.composite
def stored_slices(draw):
    """A gray slice of any bits and sign, in a syntax that can hold it, with a modality transform or none."""
    allocated = draw(st.sampled_from([8, 16, 16, 16, 32]))
    stored = draw(st.integers(max(2, allocated - 7), allocated)) if allocated < 32 else draw(st.sampled_from([20, 32]))
    signed = draw(st.booleans())
    syntax = draw(st.sampled_from(LOSSLESS if allocated < 32 else LOSSLESS[:4]))
    if syntax in ("jpeg lossless", "jpeg-ls", "jpeg 2000"):
        assume(stored > 8 or allocated == 8)
    if syntax == "jpeg-ls":
        assume(stored == allocated)  # the encoder at hand takes the depth of the container
    shape = draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    generator = np.random.default_rng(draw(st.integers(0, 9)))
    low = -(1 << stored - 1) if signed else 0
    rows = generator.integers(low, low + (1 << stored), shape).astype(f"{'i' if signed else 'u'}{allocated // 8}")
    slope = draw(st.sampled_from([None, 1.0, 2.0, -1.0, 0.5, 1e-8, 0.037]))
    intercept = draw(st.sampled_from([0.0, -1024.0, 12.0, 0.25])) if slope is not None else 0.0
    inverted = draw(st.booleans())
    return rows, stored, syntax, slope, intercept, inverted


@settings(max_examples=60, deadline=None)
@given(one=stored_slices())
def test_values_agree_with_pydicom(one):
    rows, stored, syntax, slope, intercept, inverted = one
    extra = {"BitsStored": stored, "HighBit": stored - 1}
    if slope is not None:
        extra |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    if inverted:
        extra["PhotometricInterpretation"] = "MONOCHROME1"
    dataset = dataset_of(rows, "CR", **extra)
    if syntax in LOSSLESS[:4]:
        dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
        if syntax == "big endian":
            put(dataset, rows.byteswap().tobytes(), "OW" if rows.dtype.itemsize > 1 else "OB")
    elif syntax == "rle":
        dataset.compress(SYNTAXES["rle"], generate_instance_uid=False, encoding_plugin="pydicom")
    else:
        encapsulate(dataset, syntax, [encode(rows, syntax, stored)])
    with tempfile.TemporaryDirectory() as folder:
        values = written(Path(folder), dataset).array[0, ..., 0]
        if syntax in LOSSLESS[:5]:
            known = pydicom.dcmread(Path(folder) / "0.dcm")
            np.testing.assert_array_equal(known.pixel_array, rows)
            scaled = apply_modality_lut(known.pixel_array.astype(np.float64), known)
            if not inverted:
                np.testing.assert_allclose(values, scaled, rtol=2e-7)
    ends = np.array([0, (1 << stored) - 1]) - (1 << stored - 1 if rows.dtype.kind == "i" else 0)
    numbers = ends.sum() - rows.astype(np.int64) if inverted else rows.astype(np.int64)
    expected = numbers * (1.0 if slope is None else slope) + intercept
    np.testing.assert_allclose(values, expected, rtol=2e-7, atol=1e-12 if slope == 1e-8 else 1e-3)
    whole = slope in (None, 1.0, 2.0, -1.0) and intercept != 0.25
    assert values.dtype.kind in ("iu" if whole else "f")
    if whole:
        np.testing.assert_array_equal(values, expected)


@settings(max_examples=25, deadline=None)
@given(
    planar=st.integers(0, 1),
    photometric=st.sampled_from(["RGB", "YBR_FULL"]),
    syntax=st.sampled_from(["explicit", "implicit", "rle", "jpeg-ls", "jpeg lossless", "jpeg 2000"]),
    seed=st.integers(0, 9),
)
def test_colors_agree_with_pydicom(planar, photometric, syntax, seed):
    rows = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    dataset = dataset_of(rows, "US", PhotometricInterpretation=photometric, PlanarConfiguration=planar)
    if planar and syntax in ("explicit", "implicit"):
        put(dataset, np.ascontiguousarray(rows.transpose(2, 0, 1)).tobytes(), "OB")
    if syntax in ("explicit", "implicit"):
        dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    elif syntax == "rle":
        dataset.PlanarConfiguration = 0
        dataset.compress(SYNTAXES["rle"], generate_instance_uid=False, encoding_plugin="pydicom")
        dataset.PlanarConfiguration = planar  # says nothing about the segments
    else:
        import imagecodecs

        stream = encode(rows, syntax, 8)
        if syntax == "jpeg 2000":  # without a color transform in the codestream
            stream = imagecodecs.jpeg2k_encode(rows, codecformat="j2k", level=0, reversible=True, mct=False)
        encapsulate(dataset, syntax, [stream])
    with tempfile.TemporaryDirectory() as folder:
        values = written(Path(folder), dataset).array[0]
    expected = rows
    if photometric == "YBR_FULL":
        expected = pydicom.pixels.convert_color_space(rows, "YBR_FULL", "RGB")
    assert values.dtype == np.uint8
    assert np.abs(values.astype(int) - expected).max() <= (1 if photometric == "YBR_FULL" else 0)


@settings(max_examples=25, deadline=None)
@given(
    first=st.integers(-20, 20),
    count=st.integers(2, 60),
    depth=st.sampled_from([8, 16]),
    packed=st.booleans(),
    signed=st.booleans(),
    vr=st.sampled_from(["OW", "US"]),
)
def test_a_modality_table_agrees_with_arithmetic(first, count, depth, packed, signed, vr):
    first = first if signed else abs(first)
    rows = np.random.default_rng(count).integers(-40 if signed else 0, 100, (7, 5)).astype("i2" if signed else "u2")
    table = np.random.default_rng(first % 7).integers(0, 1 << depth, count).astype("u2")
    entries = table.astype("u1") if depth == 8 and packed else table
    data = entries.tobytes() + b"\0" * (entries.nbytes % 2)
    sequence = item(ModalityLUTType="US")
    sequence[0].add_new("LUTDescriptor", "SS" if signed else "US", [count, first, depth])
    if vr == "US":
        sequence[0].add_new("LUTData", "US", np.frombuffer(data, "<u2").tolist())
    else:
        sequence[0].add_new("LUTData", "OW", data)
    with tempfile.TemporaryDirectory() as folder:
        values = written(Path(folder), dataset_of(rows, "CR", ModalityLUTSequence=sequence)).array[0, ..., 0]
    np.testing.assert_array_equal(values, table[np.clip(rows.astype(int) - first, 0, count - 1)])


@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("width", [6, 7])
def test_big_endian_bytes_and_words(tmp_path, vr, width):
    rows = np.arange(3 * width, dtype=np.uint8).reshape(3, width)
    data = rows.tobytes() + b"\0" * (rows.size % 2)
    if vr == "OW":
        data = np.frombuffer(data, "u2").byteswap().tobytes()
    dataset = put(dataset_of(rows, "CR"), data, vr)
    dataset.file_meta.TransferSyntaxUID = SYNTAXES["big endian"]
    np.testing.assert_array_equal(written(tmp_path, dataset).array[0, ..., 0], rows)
    np.testing.assert_array_equal(pydicom.dcmread(write(tmp_path / "x", dataset)).pixel_array, rows)
