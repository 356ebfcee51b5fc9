"""What a file is: by its first bytes, whatever its name says; what is named and not read; one opening a file."""

from __future__ import annotations

import gzip
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import Series, noise, write_itk, write_nifti, write_picture, write_series

from medssl.data.formats.recognition import Recognition, format_of, recognize


def written(folder: Path, name: str) -> bytes:
    """The bytes of a small valid file of the format that the name says."""
    file = folder / "made" / name
    if name.endswith((".nii", ".nii.gz")):
        write_nifti(file, noise((4, 5, 6)))
    elif name.endswith((".nrrd", ".mha")):
        write_itk(file, noise((4, 5, 6)))
    elif name.endswith(".dcm"):
        return write_series(folder / "series", Series(shape=(4, 4, 1)))[1][0].read_bytes()
    else:
        write_picture(file, noise((9, 8), np.uint8))
    return file.read_bytes()


def recognized(folder: Path, name: str, content: bytes) -> Recognition:
    (folder / name).write_bytes(content)
    return recognize(folder / name)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        ("x.nii", "SCAN.NII"), ("x.nii.gz", "SCAN.NII.GZ"), ("x.nii", "x.nii.gz"), ("x.nii.gz", "x.nii"),
        ("x.nii.gz", "scan.nii.gz.1"), ("x.nii", "foo.dat"), ("x.nii.gz", "foo.gz"), ("x.nii", "IMG0001"),
        ("x.nrrd", "scan.part"), ("x.mha", "scan.bak"), ("x.png", "IMG0002"), ("x.tif", "film.scan"),
        ("x.dcm", "scan.img"), ("x.dcm", "1.2.840.113619.2"), ("x.dcm", "I10.v1"), ("x.jpg", "PHOTO.JPE"),
    ],
)  # fmt: skip
def test_first_bytes_decide_where_the_name_does_not(tmp_path, made, name):
    expected, _ = format_of(_kept(tmp_path, made))
    found = recognized(tmp_path, name, written(tmp_path, made))
    assert (found.form, found.state, found.reason, found.note) == (expected, "", "", "")


def _kept(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(written(folder, name))
    return folder / name


@pytest.mark.parametrize(
    ("made", "name", "note"),
    [
        ("x.jpg", "IM1.dcm", "named .dcm, but is a JPEG picture"),
        ("x.dcm", "IM1.png", "named .png, but is a DICOM file"),
        ("x.nii", "scan.nrrd", "named .nrrd, but is a NIfTI file"),
        ("x.nrrd", "scan.nii.gz", "named .nii.gz, but is an NRRD file"),
        ("x.tif", "scan.png", "named .png, but is a TIFF picture"),
    ],
)
def test_a_name_that_contradicts_the_content_is_read_by_content_and_said(tmp_path, made, name, note):
    expected, _ = format_of(_kept(tmp_path, made))
    found = recognized(tmp_path, name, written(tmp_path, made))
    assert (found.form, found.note) == (expected, note)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.nii",
            b"<!DOCTYPE html><title>404</title>",
            "named .nii, but is an HTML page (the answer to a failed download?)",
        ),
        ("a.nii.gz", b"404: Not Found", "named .nii.gz, but is text"),
        ("a.nii.gz", gzip.compress(b"no scan", mtime=0), "named .nii.gz, but is text"),
        ("a.dcm", b"%PDF-1.7 ...", "named .dcm, but is a PDF document"),
        ("a.png", b"PK\x03\x04" + bytes(30), "named .png, but is a ZIP archive; unpack it first"),
        ("a.nii", LFS, "a Git LFS pointer in place of the file: fetch it with git lfs pull"),
        ("IM0001", LFS, "a Git LFS pointer in place of the file: fetch it with git lfs pull"),
        ("a.nrrd", b"", "empty file"),
        ("a.dcm", b"", "empty file"),
    ],
)
def test_a_file_that_is_something_else_is_refused_by_what_it_is(tmp_path, name, content, reason):
    found = recognized(tmp_path, name, content)
    assert (found.form, found.state, found.reason) == ("", "failed", reason)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("T1.mgz", gzip.compress(bytes(3) + b"\x01" + bytes(300), mtime=0), "FreeSurfer volume, .* with mri_convert"),
        ("orig", bytes(3) + b"\x01" + bytes(300), "a FreeSurfer volume; convert it to NIfTI with mri_convert"),
        ("a.PAR", b"# === DATA DESCRIPTION FILE ===", "Philips PAR/REC, .* with dcm2niix"),
        ("a.mnc", b"\x89HDF\r\n\x1a\n", "MINC volume, .* with mnc2nii"),
        ("2dseq", bytes(400), "Bruker 2dseq, .* with brkraw"),
        ("a+orig.BRIK", bytes(400), "AFNI volume"),
        ("a.gipl", bytes(400), "GIPL volume"),
        ("a.vti", b"<?xml version='1.0'?>", "VTK"),
        ("a.v", b"MATRIX72v" + bytes(400), "ECAT volume, .* with ecat2nii or nibabel"),
        ("a.h33", b"!INTERFILE :=", "Interfile volume"),
        ("a.gif", b"GIF89a" + bytes(100), "picture of a format that is not read; convert it to PNG"),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 " + bytes(100), "convert it to PNG"),
        ("a.czi", b"ZISRAWFILE" + bytes(100), "microscopy file"),
        ("a.mat", b"MATLAB 5.0 MAT-file", "MATLAB file"),
        ("a.zip", b"PK\3\4", "an archive; unpack it first"),
        ("scans.tar.gz", gzip.compress(bytes(600), mtime=0), "an archive; unpack it first"),
        ("a.mp4", b"\0\0\0 ftypisom", "video"),
        ("b", b"\0\0\0 ftypisom", "a video; export"),
        ("a.stl", b"solid x", "a surface"),
        ("a.raw", bytes(range(256)), "numbers without a header"),
        ("._scan.nii.gz", b"\x00\x05\x16\x07", "AppleDouble"),
        ("scan_nii", b"\x00\x05\x16\x07", "AppleDouble"),
        ("a.hdr", b"ENVI\nsamples = 3", "not an image: .hdr file that is text"),
        ("noise", b"BM" + bytes(range(1, 250)), "not an image: no known format"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, name, content, reason):
    found = recognized(tmp_path, name, content)
    assert found.form == ""
    assert found.state in ("ignored", "rejected")
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.nii", "nifti"),
        ("a.dcm", "dicom"),
        ("a.nrrd", "nrrd"),
        ("a.mha", "metaimage"),
        ("a.tif", "tiff"),
        ("a.SVS", "slide"),
        ("a.ome.tif", "tiff"),
    ],
)
def test_where_first_bytes_say_nothing_the_reader_of_the_name_says_what_is_wrong(tmp_path, name, form):
    found = recognized(tmp_path, name, bytes(range(1, 200)) * 3)
    assert (found.form, found.state) == (form, "")


def test_packed_scans_of_other_formats_are_named(tmp_path):
    found = recognized(tmp_path, "IM1.dcm.gz", gzip.compress(written(tmp_path, "x.dcm")))
    assert (found.state, found.reason) == ("rejected", "DICOM file packed with gzip; unpack it first")
    found = recognized(tmp_path, "x.nrrd.gz", gzip.compress(written(tmp_path, "x.nrrd")))
    assert found.state == "rejected"
    assert "packed with gzip; unpack it first" in found.reason


@pytest.mark.parametrize("name", ["x.nii.gz", "x.dcm", "x.png", "noise.dat"])
def test_a_file_is_opened_once_at_most(tmp_path, monkeypatch, name):
    file = tmp_path / name
    file.write_bytes(bytes(500) if name == "noise.dat" else written(tmp_path, name))
    opened = []
    original = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path) or original(path, *rest))
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened again"))
    recognize(file)
    assert opened == [file]


def test_names_of_texts_need_no_opening(tmp_path):
    assert recognize(tmp_path / "missing.json").reason == "not an image: .json file"


@pytest.mark.parametrize("place", [2**63 + 5, 2**64 - 8, 2**40, 3])
@pytest.mark.parametrize("subifds", [False, True])
def test_a_tiff_whose_directories_lie_nowhere_is_no_slide(tmp_path, place, subifds):
    """The first directory of a BigTIFF, or one that it names as its child."""
    first = place if not subifds else 16
    entries = struct.pack("<HHQQ", 330, 18, 1, place) if subifds else b""
    directory = struct.pack("<Q", len(entries) // 20) + entries + struct.pack("<Q", place)
    content = b"II+\0" + struct.pack("<HHQ", 8, 0, first) + directory
    assert recognized(tmp_path, "scan.tif", content).form != "slide"
