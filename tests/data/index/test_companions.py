"""A scan of several files is all of them: its digest, its updates, its rows; and files that changed since."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import noise, write_itk, write_nifti
from data.store.test_cache import index_folder

from medssl.cli import main
from medssl.data.index.scan_index import Index
from medssl.data.store.store import Store
from medssl.data.store.unchanged import same_time


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs of a header and its voxels."""
    import nibabel

    (tmp_path / "d").mkdir()
    for seed, name in enumerate("ab"):
        image = nibabel.Nifti1Pair(noise((4, 5, 6), seed=seed), np.diag([1.0, 1.5, 2.0, 1.0]))
        image.to_filename(tmp_path / "d" / f"{name}.hdr")
    return tmp_path / "d"


def digests(file: Path) -> dict[str, str]:
    with Index.open(file) as index:
        return {Path(scan.source.parts[0].path).name: scan.digests.source for scan in index.scans()}


def ignored(file: Path) -> dict[str, str]:
    with Index.open(file) as index:
        rows = index.connection.execute("SELECT path, reason FROM files WHERE state = 'ignored'")
        return {Path(path).name: reason for path, reason in rows}


def test_pixel_files_are_ignored_and_name_their_header_file(tmp_path, folder):
    file = index_folder(folder, tmp_path / "x" / "i")
    assert ignored(file) == {"a.img": "pixels of a.hdr", "b.img": "pixels of b.hdr"}


def test_a_change_of_the_pixels_alone_is_seen(tmp_path, folder):
    file = index_folder(folder, tmp_path / "x" / "i")
    before = digests(file)
    assert digests(index_folder(folder, file)) == before
    (folder / "b.img").write_bytes(noise((4, 5, 6), seed=9).tobytes())
    after = digests(index_folder(folder, file))
    assert {name for name in after if after[name] != before[name]} == {"b.hdr"}
    fresh = index_folder(folder, tmp_path / "y" / "i")
    assert digests(fresh) == after
    assert ignored(fresh) == ignored(file)


@pytest.mark.parametrize("header", ["a.mhd", "a.nhdr"])
def test_pixels_of_metaimage_and_nrrd_are_companions(tmp_path, header):
    folder = tmp_path / "d"
    write_itk(folder / header, noise((4, 5, 6)))
    (pixels,) = (file.name for file in folder.iterdir() if file.name != header)
    file = index_folder(folder, tmp_path / "x" / "i")
    assert ignored(file) == {pixels: f"pixels of {header}"}
    before = digests(file)
    write_itk(folder / header, noise((4, 5, 6), seed=9))
    (folder / header).touch()
    assert digests(index_folder(folder, file))[header] != before[header]


def test_pixel_files_without_header_are_rejected_with_the_reason(tmp_path, folder):
    file = index_folder(folder, tmp_path / "x" / "i")
    (folder / "b.hdr").unlink()
    index_folder(folder, file)
    assert "numbers without a header" in ignored(file)["b.img"]


def test_a_header_file_is_read_again_when_its_pixels_come(tmp_path, folder):
    (folder / "b.img").rename(tmp_path / "kept.img")
    file = index_folder(folder, tmp_path / "x" / "i")
    before = digests(file)
    (tmp_path / "kept.img").rename(folder / "b.img")
    after = digests(index_folder(folder, file))
    assert sorted(after) == ["a.hdr", "b.hdr"]
    assert before.get("b.hdr") != after["b.hdr"]


def test_the_cache_refuses_a_scan_whose_pixels_changed_since_it_was_indexed(tmp_path, folder, capfd):
    file = index_folder(folder, tmp_path / "x" / "i")
    (folder / "b.img").write_bytes(noise((4, 5, 6), seed=9).tobytes())
    assert main(["cache", str(file), str(tmp_path / "store"), "--workers", "0"]) == 0
    captured = capfd.readouterr()
    assert re.search(
        r"skipped \w+: b.img has changed since it was indexed: index the scans again", captured.out + captured.err
    )


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_file_replaced_by_one_of_its_size_never_gives_old_voxels_as_new(tmp_path, capfd, keep_time):
    """Index again: the new voxels. Cache alone: a refusal, unless size and time are those of before."""
    path, other = tmp_path / "d" / "a.nii", tmp_path / "other.nii"
    write_nifti(path, noise((8, 8, 8)))
    write_nifti(other, new := noise((8, 8, 8), seed=5))
    file = index_folder(tmp_path / "d", tmp_path / "x" / "i")
    time = path.stat().st_mtime_ns
    shutil.copyfile(other, path)
    if keep_time:
        os.utime(path, ns=(time, time))
    cache = ["cache", str(file), str(tmp_path / "store"), "--workers", "0", "--preprocess.foreground_crop", "false"]
    assert main(cache) == (0 if keep_time else 1)
    assert ("has changed since" in capfd.readouterr().out) != keep_time
    index_folder(tmp_path / "d", file)
    assert main(cache) == 0
    store = Store.open(tmp_path / "store")
    numbers = store.intensity(0)[0]
    values = store.read(0, (0, 0, 0), (8, 8, 8))[0] * numbers[0] + numbers[1]
    np.testing.assert_allclose(values, new, atol=1)


def test_times_rounded_by_a_coarser_clock_are_equal():
    time = 1_700_000_123_456_789_012
    assert all(same_time(time, time // step * step) for step in (1, 100, 1_000, 1_000_000_000))
    assert not same_time(time, time + 1_000)
    assert not same_time(time, time - 1)
