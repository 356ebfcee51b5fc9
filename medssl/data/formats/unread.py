"""Recognizes files that are not read: other formats of scans, archives, videos, pages of failed downloads.

Each entry names the format and, if the file may hold a scan, what to do with it.
"""

from __future__ import annotations

_REJECTED = {
    (".mgh", ".mgz"): "FreeSurfer volume, which is not read; convert it to NIfTI with mri_convert",
    (".par", ".rec", ".xml.rec"): "Philips PAR/REC, which is not read; convert it to NIfTI with dcm2niix",
    (".mnc", ".mnc2", ".mnc.gz"): "MINC volume, which is not read; convert it to NIfTI with mnc2nii",
    (".v",): "ECAT volume, which is not read; convert it to NIfTI with ecat2nii or nibabel",
    (".head", ".brik", ".brik.gz"): "AFNI volume, which is not read; convert it to NIfTI with 3dAFNItoNIFTI",
    (".gipl", ".gipl.gz"): "GIPL volume, which is not read; convert it to NIfTI or MetaImage with SimpleITK",
    (".vtk", ".vti", ".mrb"): "VTK or Slicer file, which is not read; save the volume as NIfTI or NRRD from 3D Slicer",
    (".hv", ".h33", ".i33"): "Interfile volume, which is not read; convert it to NIfTI or MetaImage",
    (".vff",): "VFF volume, which is not read; convert it to NIfTI or MetaImage",
    (
        ".isq",
        ".aim",
        ".vgi",
        ".vol",
    ): "CT volume of a scanner's own format, which is not read; export DICOM or MetaImage",
    (".czi", ".lif", ".nd2", ".oib", ".oif", ".lsm", ".ims", ".vsi", ".dv", ".zvi"): (
        "microscopy file, which is not read; convert it to TIFF with Bio-Formats"
    ),
    (
        ".jp2",
        ".j2k",
        ".jpx",
        ".jls",
        ".jxl",
        ".webp",
        ".gif",
        ".heic",
        ".heif",
        ".avif",
        ".tga",
        ".exr",
        ".psd",
        ".pgm",
        ".ppm",
        ".pbm",
        ".pnm",
    ): ("picture of a format that is not read; convert it to PNG"),
    (".mat",): "MATLAB file, which is not read; save the array as NIfTI",
}
_IGNORED = {
    (".zip", ".tar", ".tgz", ".7z", ".rar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tbz2", ".txz"): (
        "an archive; unpack it first"
    ),
    (".xz", ".bz2", ".zst", ".lz4", ".z"): "a packed file; unpack it first",
    (".mp4", ".avi", ".mov", ".mkv", ".wmv", ".mpg", ".mpeg", ".m4v", ".webm", ".flv"): (
        "not an image: video; export its frames as pictures"
    ),
    (".stl", ".obj", ".ply", ".vtp", ".gii", ".surf"): "not an image: a surface",
    (".raw", ".zraw", ".img", ".bin", ".dat", ".img.gz", ".raw.gz"): (
        "not an image by itself: numbers without a header; name their header file (.mhd, .nhdr, .hdr)"
    ),
}

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\3\4", "a ZIP archive; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (0, b"Rar!", "a RAR archive; unpack it first"),
    (257, b"ustar", "a TAR archive; unpack it first"),
    (0, b"BZh", "packed with bzip2; unpack it first"),
    (0, b"\xfd7zXZ", "packed with xz; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd; unpack it first"),
    (0, b"\x1f\x8b", "packed with gzip; unpack it first"),
    (0, b"\x1f\x9d", "packed with compress; unpack it first"),
    (0, b"\x00\x05\x16\x07", "an AppleDouble file (what macOS keeps beside a file)"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"CDF\x01", "a netCDF or MINC file; convert MINC to NIfTI with mnc2nii"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"MATRIX7", "an ECAT volume; convert it to NIfTI with ecat2nii or nibabel"),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file; save the array as NIfTI"),
    (0, b"# vtk DataFile", "a VTK file; save the volume as NIfTI or NRRD from 3D Slicer"),
    (0, b"!INTERFILE", "an Interfile header; convert it to NIfTI or MetaImage"),
    (0, b"# === DATA DESCRIPTION FILE", "Philips PAR/REC; convert it to NIfTI with dcm2niix"),
    (0, b"ncaa", "a VFF volume; convert it to NIfTI or MetaImage"),
    (252, b"\xef\xff\xe9\xb0", "a GIPL volume; convert it to NIfTI or MetaImage with SimpleITK"),
    (252, b"\x2a\xe3\x89\xb8", "a GIPL volume; convert it to NIfTI or MetaImage with SimpleITK"),
    (0, b"\0\0\0\x01\0\0", "a FreeSurfer volume; convert it to NIfTI with mri_convert"),
    (0, b"ZISRAWFILE", "a CZI microscopy file; convert it to TIFF with Bio-Formats"),
    (0, b"\xda\xce\xbe\x0a", "an ND2 microscopy file; convert it to TIFF with Bio-Formats"),
    (0, b"GIF8", "a GIF picture; convert it to PNG"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture; convert it to PNG"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 codestream; convert it to PNG"),
    (4, b"ftyphei", "an HEIF picture; convert it to PNG"),
    (4, b"ftypmif1", "an HEIF picture; convert it to PNG"),
    (4, b"ftypavif", "an AVIF picture; convert it to PNG"),
    (4, b"JXL \r\n", "a JPEG XL picture; convert it to PNG"),
    (0, b"\xff\x0a", "a JPEG XL picture; convert it to PNG"),
    (0, b"8BPS", "a Photoshop picture; convert it to PNG"),
    (4, b"ftyp", "a video; export its frames as pictures"),
    (8, b"AVI ", "a video; export its frames as pictures"),
    (8, b"WEBP", "a WebP picture; convert it to PNG"),
    (0, b"\x1a\x45\xdf\xa3", "a video; export its frames as pictures"),
    (0, b"\x7fELF", "a program"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"\xd0\xcf\x11\xe0", "an Office document"),
)  # fmt: skip
_POINTERS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the file: fetch it with git lfs pull",
    b"/annex/objects/": "a git-annex pointer in place of the file: fetch it with git annex get",
    b"../.git/annex/objects/": "a git-annex pointer in place of the file: fetch it with git annex get",
}


def by_name(name: str) -> tuple[str, str]:
    """State ("rejected" or "ignored") and reason for a file that is not read because of its name; else "" twice.

    Args:
        name: Name of the file in lower case.
    """
    if name == "2dseq":
        return "rejected", "Bruker 2dseq, which is not read; convert it to NIfTI with brkraw"
    for suffixes, reason in _REJECTED.items():
        if name.endswith(suffixes):
            return "rejected", reason
    for suffixes, reason in _IGNORED.items():
        if name.endswith(suffixes):
            return "ignored", reason
    return "", ""


def pointer(first: bytes) -> str:
    """Reason for a pointer file of Git LFS or git-annex; "" for other files."""
    return next((reason for start, reason in _POINTERS.items() if first.startswith(start)), "")


def by_content(first: bytes) -> str:
    """Name of an unsupported format by the first bytes ("a PDF document"); "" if it is not known."""
    for place, signature, what in _SIGNATURES:
        if first[place : place + len(signature)] == signature:
            return what
    text = first[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page (the answer to a failed download?)"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML text (the answer to a failed download?)"
    return "text" if is_text(first) else ""


def is_text(first: bytes) -> bool:
    """Whether bytes are text: printable, tabs and ends of lines, in UTF-8."""
    head = first[:256]
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter that the end of what was read cut
            return False
    return bool(head) and all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head)
