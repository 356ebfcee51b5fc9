"""Compressed pixels: every codec, fragments and offset tables, codestreams that are cut or contradict the header."""

from __future__ import annotations

import re
import zlib
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from data.formats.dicom.pixel_files import SYNTAXES, dataset_of, encapsulate, encode, put, write, written

from medssl.data.formats.dicom.elements import PIXEL_TAGS, DicomError, parse
from medssl.data.formats.dicom.header import read_slices
from medssl.data.formats.dicom.pixels import read_stack
from medssl.data.formats.dicom.pixels.extent import check_length
from medssl.data.index.pseudonyms import keyed_digest
from medssl.types import Part

CODED = ("rle", "jpeg", "jpeg extended", "jpeg lossless", "jpeg-ls", "jpeg 2000", "htj2k")


def smooth(rows=24, columns=20, top=4000) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, top // 50, (rows, columns))
    return (np.add.outer(np.arange(rows) * (top // 80), np.arange(columns) * (top // 80)) + noise).astype(np.uint16)


def stream_of(syntax: str) -> tuple[np.ndarray, bytes, int]:
    """Rows, one compressed frame, and how far decoded values may lie off."""
    if syntax == "jpeg":
        rows = smooth(top=200).astype(np.uint8)
        return rows, imagecodecs.jpeg8_encode(rows, level=98), 4
    rows = smooth()
    if syntax == "jpeg extended":
        return rows, imagecodecs.jpeg8_encode(rows, level=98, bitspersample=12), 20
    if syntax == "rle":
        from pydicom.pixels.encoders import RLELosslessEncoder

        dataset = dataset_of(rows)
        return rows, next(RLELosslessEncoder.iter_encode(dataset, encoding_plugin="pydicom")), 0
    return rows, encode(rows, syntax, 16 if syntax in ("jpeg-ls", "htj2k") else 12), 0


def coded(rows: np.ndarray, syntax: str, frames: list[bytes], **options):
    extra = {"BitsStored": 12, "HighBit": 11} if rows.dtype.itemsize > 1 else {}
    dataset = encapsulate(dataset_of(rows, "CR", **extra), syntax, frames, **options)
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    return dataset


def index(file: Path):
    return read_slices(file, file.name, partial(keyed_digest, b"k" * 32))


@pytest.mark.parametrize("syntax", CODED)
def test_every_codec_gives_what_was_coded(tmp_path, syntax):
    rows, stream, off = stream_of(syntax)
    values = written(tmp_path, coded(rows, syntax, [stream])).array[0, ..., 0]
    assert values.dtype == rows.dtype
    assert np.abs(values.astype(int) - rows).max() <= off


@pytest.mark.parametrize("syntax", ["jpeg", "jpeg lossless", "jpeg-ls", "jpeg 2000"])
def test_codecs_agree_with_gdcm(tmp_path, syntax):
    import gdcm

    rows, stream, off = stream_of(syntax)
    write(tmp_path / "x", coded(rows, syntax, [stream]))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "x"))
    assert reader.Read()
    text = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    known = np.frombuffer(text, rows.dtype).reshape(rows.shape)
    values = read_stack(tmp_path, [Part("x", None)])[0, ..., 0]
    assert np.abs(values.astype(int) - known).max() <= (2 if off else 0)


def renamed(file: Path, uid: str, other: str) -> Path:
    """Put another transfer syntax, of at most the same length, into a file: pydicom writes only those that it knows."""
    old, new = (text.encode() + b"\0" * (len(text) % 2) for text in (uid, other))
    file.write_bytes(file.read_bytes().replace(old, new.ljust(len(old), b"\0"), 1))
    return file


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"])
def test_frames_in_fragments_without_a_codec(tmp_path, syntax):
    """Encapsulated uncompressed, and deflated one by one."""
    frames = [smooth() + 10 * number for number in range(3)]
    streams = [rows.tobytes() for rows in frames]
    if syntax.endswith("8.1"):
        streams = [zlib.compress(stream, wbits=-15) for stream in streams]
    dataset = coded(frames[0], "rle", streams)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.98"
    assert index(renamed(write(tmp_path / "x", dataset), "1.2.840.10008.1.2.1.98", syntax))[1]
    stack = read_stack(tmp_path, [Part("x", number) for number in (2, 0, 1)])[..., 0]
    np.testing.assert_array_equal(stack, [frames[2], frames[0], frames[1]])


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.94", "JPIP"), ("1.2.840.10008.1.2.4.110", "JPEG XL"),
        ("1.2.840.10008.1.2.4.92", "JPEG 2000 of several components"), ("1.2.3.4.5", "the transfer syntax 1.2.3.4.5"),
    ],
)  # fmt: skip
def test_syntaxes_without_a_decoder_are_named(tmp_path, syntax, name):
    rows, stream, _ = stream_of("jpeg 2000")
    file = renamed(write(tmp_path / "0.dcm", coded(rows, "htj2k", [stream])), SYNTAXES["htj2k"], syntax)
    for act in (lambda: index(file), lambda: read_stack(tmp_path, [Part("0.dcm", None)])):
        with pytest.raises(DicomError, match=f"no decoder for {re.escape(name)}.*: convert the files first"):
            act()


# --- what is cut


@pytest.mark.parametrize("syntax", CODED)
@pytest.mark.parametrize("share", [0.5, 0.97])
@pytest.mark.parametrize("ended", [False, True])
def test_a_cut_codestream_in_a_whole_file_is_refused(tmp_path, syntax, share, ended):
    rows, stream, _ = stream_of(syntax)
    cut = stream[: int(len(stream) * share) // 2 * 2] + (b"\xff\xd9" if ended else b"")
    file = write(tmp_path / "0.dcm", coded(rows, syntax, [cut]))
    assert index(file)[1]
    with pytest.raises(
        DicomError, match=r"^0\.dcm: (truncated: the .* codestream ends early|(truncated or )?damaged: )"
    ):
        read_stack(tmp_path, [Part("0.dcm", None)])


@pytest.mark.parametrize("syntax", CODED)
@pytest.mark.parametrize("share", [0.6, 0.97])
def test_a_cut_file_is_refused_by_the_index_and_by_the_reader(tmp_path, syntax, share):
    rows, stream, _ = stream_of(syntax)
    file = write(tmp_path / "0.dcm", coded(rows, syntax, [stream]))
    whole = file.read_bytes()
    header = len(whole) - len(stream)
    file.write_bytes(whole[: header + int(len(stream) * share)])
    with pytest.raises(DicomError, match=r"truncated: .* of .* bytes of a compressed fragment"):
        index(file)
    with pytest.raises(DicomError, match=r"^0\.dcm: truncated"):
        read_stack(tmp_path, [Part("0.dcm", None)])


def test_a_missing_end_mark_alone_is_no_truncation(tmp_path):
    rows, stream, _ = stream_of("jpeg 2000")
    file = write(tmp_path / "0.dcm", coded(rows, "jpeg 2000", [stream]))
    file.write_bytes(file.read_bytes()[:-8])
    assert index(file)[1]
    np.testing.assert_array_equal(read_stack(tmp_path, [Part("0.dcm", None)])[0, ..., 0], rows)


def test_elements_behind_the_pixels_are_no_truncation(tmp_path):
    rows, stream, _ = stream_of("jpeg 2000")
    dataset = coded(rows, "jpeg 2000", [stream])
    dataset.add_new(0xFFFCFFFC, "OB", bytes(300))
    assert index(write(tmp_path / "0.dcm", dataset))[1]


def test_missing_frames_are_seen_by_the_index(tmp_path):
    rows, stream, _ = stream_of("jpeg-ls")
    dataset = coded(rows, "jpeg-ls", [stream] * 4)
    file = write(tmp_path / "x", dataset)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - 8 - (len(stream) + len(stream) % 2 + 8)])
    with file.open("rb") as stream_of_file:
        header = parse(stream_of_file, PIXEL_TAGS)
        with pytest.raises(DicomError, match="truncated: the compressed pixels end after"):
            check_length(header, stream_of_file, file.stat().st_size)


# --- fragments


@pytest.mark.parametrize("table", ["basic", "none", "extended"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_frames_of_fragments(tmp_path, table, pieces):
    frames = [smooth() + 10 * number for number in range(3)]
    streams = [encode(rows, "jpeg 2000", 12) for rows in frames]
    dataset = coded(frames[0], "jpeg 2000", streams, fragments_per_frame=pieces, has_bot=table == "basic")
    if table == "extended" and pieces == 1:
        from pydicom.encaps import encapsulate_extended

        data, offsets, lengths = encapsulate_extended(streams)
        put(dataset, data, "OB")
        dataset["PixelData"].is_undefined_length = True
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    write(tmp_path / "x", dataset)
    stack = read_stack(tmp_path, [Part("x", number) for number in (2, 0, 1)])[..., 0]
    np.testing.assert_array_equal(stack, [frames[2], frames[0], frames[1]])


def test_fragments_that_no_table_puts_together_are_refused(tmp_path):
    rows, stream, _ = stream_of("rle")
    write(tmp_path / "x", coded(rows, "rle", [stream] * 2, fragments_per_frame=2, has_bot=False))
    with pytest.raises(DicomError, match="4 fragments and 2 frames: no offset table says"):
        read_stack(tmp_path, [Part("x", 1)])


# --- header and bytes


def test_compressed_pixels_under_a_plain_syntax_are_refused(tmp_path):
    rows, stream, _ = stream_of("jpeg 2000")
    dataset = coded(rows, "jpeg 2000", [stream])
    file = write(tmp_path / "x", dataset)
    plain, right = SYNTAXES["explicit"].encode() + b"\0", SYNTAXES["jpeg 2000"].encode()
    data = file.read_bytes()
    place = data.index(right)
    file.write_bytes(data[:place] + plain.ljust(len(right), b"\0") + data[place + len(right) :])
    for act in (lambda: index(file), lambda: read_stack(tmp_path, [Part("x", None)])):
        with pytest.raises(DicomError, match="says that pixels are not compressed, but Pixel Data holds compressed"):
            act()


def test_plain_pixels_under_a_compressed_syntax_are_refused(tmp_path):
    file = write(tmp_path / "x", dataset_of(smooth(), "CR"))
    data = file.read_bytes()
    length = data.index(SYNTAXES["explicit"].encode()) - 2
    uid = SYNTAXES["jpeg 2000"].encode()  # four bytes longer, as the group of meta information then is too
    group = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    longer = (int.from_bytes(data[group : group + 4], "little") + len(uid) - 20).to_bytes(4, "little")
    data = data[:group] + longer + data[group + 4 : length] + len(uid).to_bytes(2, "little") + uid + data[length + 22 :]
    file.write_bytes(data)
    with pytest.raises(DicomError, match="says JPEG 2000, but Pixel Data holds no compressed fragments"):
        index(file)


@pytest.mark.parametrize(
    ("rows", "syntax", "extra", "message"),
    [
        (
            smooth(30),
            "jpeg 2000",
            {"Rows": 24},
            "30 x 20 x 1 in the JPEG 2000 codestream and 24 x 20 x 1 in the header",
        ),
        (
            smooth(),
            "jpeg-ls",
            {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
            "16 bits a sample, the header says 8 of 8",
        ),
        (smooth().astype(np.int16) - 90, "jpeg 2000", {"PixelRepresentation": 0}, "signed numbers, the header says"),
        (
            smooth(),
            "jpeg lossless",
            {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1},
            "the sign bit is not known",
        ),
    ],
)
def test_a_codestream_that_contradicts_the_header_is_refused(tmp_path, rows, syntax, extra, message):
    dataset = coded(rows, syntax, [encode(rows, syntax, 16 if syntax == "jpeg-ls" else 12)])
    for name, value in extra.items():
        setattr(dataset, name, value)
    with pytest.raises(DicomError, match=re.escape(message)):
        written(tmp_path, dataset)


def test_another_codec_than_the_syntax_says_is_named(tmp_path):
    rows, stream, _ = stream_of("jpeg-ls")
    with pytest.raises(DicomError, match="transfer syntax says JPEG 2000, but the pixels are a JPEG-LS codestream"):
        written(tmp_path, coded(rows, "jpeg 2000", [stream]))


def test_video_is_named(tmp_path):
    file = write(tmp_path / "x", coded(smooth(), "mpeg-4", [bytes(100)]))
    with pytest.raises(DicomError, match=r"^no decoder for MPEG-4 video$") as caught:
        index(file)
    assert caught.value.rejected


@pytest.mark.parametrize("syntax", ["jpeg 2000", "jpeg lossless", "rle"])
def test_overlays_beside_the_stored_bits_are_dropped(tmp_path, syntax):
    rows = smooth()
    dirty = rows | (np.random.default_rng(1).integers(0, 2, rows.shape) << 13).astype(np.uint16)
    if syntax == "rle":
        dataset = dataset_of(dirty)
        dataset.compress(SYNTAXES["rle"], generate_instance_uid=False, encoding_plugin="pydicom")
        dataset.BitsStored, dataset.HighBit = 12, 11
    else:
        dataset = coded(rows, syntax, [encode(dirty, syntax, 16)])
    values = written(tmp_path, dataset)
    np.testing.assert_array_equal(values.array[0, ..., 0], rows)
    assert "numbers in the bits beyond Bits Stored 12 were dropped" in " ".join(values.notes)


@pytest.mark.parametrize("syntax", ["jpeg-ls", "jpeg lossless", "jpeg 2000"])
def test_signs_survive_codecs_that_know_none(tmp_path, syntax):
    rows = smooth().astype(np.int16) - 1500
    dataset = coded(rows, syntax, [encode(rows.view(np.uint16) & 0xFFF, syntax, 12)])
    values = written(tmp_path, dataset)
    np.testing.assert_array_equal(values.array[0, ..., 0], rows)
    assert not values.notes


def test_signed_jpeg_2000(tmp_path):
    rows = smooth().astype(np.int16) - 1500
    np.testing.assert_array_equal(
        written(tmp_path, coded(rows, "jpeg 2000", [encode(rows, "jpeg 2000", 12)])).array[0, ..., 0], rows
    )


# --- lengths of plain pixels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data * 3, "has the bytes of 3 frames of 24 rows x 20 columns, the header says 1"),
        (lambda data: data[:-100], "Pixel Data has 860 bytes: 1 x 24 rows x 20 columns need 960"),
    ],
)
def test_another_number_of_bytes_than_the_header_asks_for_is_refused(tmp_path, change, message):
    rows = smooth()
    file = write(tmp_path / "x", put(dataset_of(rows), change(rows.tobytes())))
    for act in (lambda: index(file), lambda: read_stack(tmp_path, [Part("x", None)])):
        with pytest.raises(DicomError, match=message):
            act()


def test_bytes_after_the_pixels_are_said_and_one_of_padding_is_not(tmp_path):
    rows = np.arange(15, dtype=np.uint8).reshape(3, 5)
    assert not written(tmp_path, dataset_of(rows)).notes
    assert (
        "7 bytes after the pixels" in written(tmp_path, put(dataset_of(rows), rows.tobytes() + bytes(7), "OB")).notes[0]
    )


def test_a_cut_deflated_file_is_refused(tmp_path):
    dataset = dataset_of(np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16))
    dataset.file_meta.TransferSyntaxUID = SYNTAXES["deflated"]
    file = write(tmp_path / "x", dataset)
    assert index(file)[1]
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(DicomError, match="truncated"):
        index(file)


# --- colors


def picture() -> np.ndarray:
    coarse = np.random.default_rng(3).integers(0, 256, (4, 6, 3))
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)


@pytest.mark.parametrize("said", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("held", ["jfif", "adobe rgb", "unmarked ybr"])
def test_the_codestream_says_what_the_components_of_a_jpeg_are(tmp_path, said, held):
    rows = picture()
    if held == "adobe rgb":
        stream = imagecodecs.jpeg8_encode(rows, level=97, colorspace="RGB", outcolorspace="RGB")
    else:
        stream = imagecodecs.jpeg8_encode(rows, level=97, subsampling="422" if held == "unmarked ybr" else "444")
    if held == "unmarked ybr":
        assert stream[6:10] == b"JFIF"
        stream = stream[:2] + stream[20:]
    result = written(tmp_path, encapsulate(dataset_of(rows, "US", PhotometricInterpretation=said), "jpeg", [stream]))
    assert np.abs(result.array[0].astype(int) - rows).mean() < 8
    odd = (said == "RGB") == (held != "adobe rgb")
    assert ("that is taken" in " ".join(result.notes)) == odd


def test_halved_colors_of_plain_pixels_agree_with_pydicom(tmp_path):
    ybr = np.random.default_rng(0).integers(0, 256, (3, 4, 2, 2)).astype(np.uint8)  # y y, b r for two pixels
    dataset = dataset_of(np.zeros((3, 8, 3), np.uint8), "US", PhotometricInterpretation="YBR_FULL_422")
    values = written(tmp_path, put(dataset, ybr.tobytes(), "OB")).array[0]
    known = pydicom.pixels.pixel_array(tmp_path / "0.dcm")
    assert np.abs(values.astype(int) - known).max() <= 1


@pytest.mark.parametrize("said", ["RGB", "YBR_RCT"])
def test_the_transform_of_jpeg_2000_is_turned_back_once(tmp_path, said):
    rows = picture()
    stream = imagecodecs.jpeg2k_encode(rows, codecformat="j2k", level=0, reversible=True, mct=True)
    dataset = encapsulate(dataset_of(rows, "XC", PhotometricInterpretation=said), "jpeg 2000", [stream])
    np.testing.assert_array_equal(written(tmp_path, dataset).array[0], rows)


def test_a_transform_that_the_codestream_does_not_have_is_refused(tmp_path):
    rows = picture()
    stream = imagecodecs.jpeg2k_encode(rows, codecformat="j2k", level=0, reversible=True, mct=False)
    dataset = encapsulate(dataset_of(rows, "XC", PhotometricInterpretation="YBR_RCT"), "jpeg 2000", [stream])
    with pytest.raises(DicomError, match="is YBR_RCT, but the JPEG 2000 codestream has no color transform"):
        written(tmp_path, dataset)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("coding", ["plain", "rle"])
def test_palettes_become_colors(tmp_path, bits, coding):
    palette = np.random.default_rng(0).integers(0, 1 << bits, (3, 40)).astype(f"u{bits // 8}")
    rows = np.random.default_rng(1).integers(0, 60, (5, 6)).astype(np.uint8)
    dataset = dataset_of(rows, "US", PhotometricInterpretation="PALETTE COLOR")
    for name, entries in zip(("Red", "Green", "Blue"), palette, strict=True):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [40, 5, bits])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", entries.tobytes())
    if coding == "rle":
        dataset.compress(SYNTAXES["rle"], generate_instance_uid=False, encoding_plugin="pydicom")
    values = written(tmp_path, dataset).array[0]
    known = pydicom.pixels.apply_color_lut(rows, dataset)
    np.testing.assert_array_equal(values, known >> (bits - 8))
    np.testing.assert_array_equal(values, palette.T[np.clip(rows.astype(int) - 5, 0, 39)] >> (bits - 8))
    (one,) = index(tmp_path / "0.dcm")[1]
    assert (one.shape, one.value_domain) == ((5, 6, 3), "rgb")


def test_segmented_palettes_are_refused(tmp_path):
    dataset = dataset_of(np.zeros((4, 4), np.uint8), "US", PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
        dataset.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", bytes(8))
    with pytest.raises(DicomError, match="segmented palettes is not read: convert to RGB first"):
        written(tmp_path, dataset)
