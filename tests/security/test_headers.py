"""Headers of MetaImage and NRRD that name files of others: not a byte of these is taken for voxels."""

from __future__ import annotations

import pytest

from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update

NAMES = ("/etc/hosts", "../secret.raw", "sub/../../secret.raw", "%n%n%s.raw", "%s%s%d.raw 1 5 1", "secret.raw\\0.raw")
MHD = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\nspacings: 1 1 1\n"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["mhd", "nhdr"])
def test_a_header_leads_to_no_file_of_others(kind, name, tmp_path):
    (tmp_path / "secret.raw").write_bytes(b"s" * 64)
    scans = tmp_path / "scans"
    scans.mkdir()
    text = f"{MHD}ElementDataFile = {name}\n" if kind == "mhd" else f"{NRRD}data file: {name}\n\n"
    (scans / f"a.{kind}").write_text(text)
    with Index.open(tmp_path / "place" / "index.sqlite", create=True, root=tmp_path) as opened:
        update(opened, [scans], IndexOptions(files=FileOptions(workers=0)), key=b"k" * 32)
        assert not list(opened.scans())
        left_out = [scan for status in ("failed", "rejected") for scan in opened.scans(status=status)]
        assert len(left_out) == 1
        assert left_out[0].status.reason
