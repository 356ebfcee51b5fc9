"""Paths of the command line: folders, single files, mixtures of both, and what is neither."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from data.make_scans import noise, write_nifti, write_series

from medssl.cli import main
from medssl.data.index.scan_index import Index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / "d" / f"{name}.nii.gz", noise((4, 5, 6), seed=ord(name)))
    write_nifti(tmp_path / "d" / "below" / "e.nii", noise((4, 5, 6)))
    write_nifti(tmp_path / "f" / "g.nii", noise((4, 5, 6)))
    return tmp_path / "d"


def index(tmp_path: Path, *paths: Path, words: tuple[str, ...] = ()) -> int:
    key = ["--files.key", str(tmp_path / "keys" / "key"), "--files.workers", "0"]
    return main(["index", *map(str, paths), "--index", str(tmp_path / "x" / "i.sqlite"), *key, *words])


def names(tmp_path: Path) -> list[str]:
    with Index.open(tmp_path / "x" / "i.sqlite") as opened:
        return sorted(Path(scan.source.parts[0].path).name for scan in opened.scans())


def test_a_single_file_is_indexed_alone(tmp_path, folder, capsys):
    assert index(tmp_path, folder / "a.nii.gz") == 0
    assert names(tmp_path) == ["a.nii.gz"]
    assert index(tmp_path) == 0
    assert "files: 0 read, 1 unchanged, 0 gone" in capsys.readouterr().out


def test_files_of_one_folder_join_and_folders_come_beside_them(tmp_path, folder):
    assert index(tmp_path, folder / "b.nii.gz", tmp_path / "f") == 0
    assert index(tmp_path, folder / "a.nii.gz") == 0
    assert names(tmp_path) == ["a.nii.gz", "b.nii.gz", "g.nii"]
    (folder / "b.nii.gz").unlink()
    assert index(tmp_path) == 0
    assert names(tmp_path) == ["a.nii.gz", "g.nii"]


def test_a_folder_takes_in_the_files_of_it_that_were_named(tmp_path, folder):
    assert index(tmp_path, folder / "a.nii.gz") == 0
    assert index(tmp_path, folder, folder / "b.nii.gz") == 0
    assert names(tmp_path) == ["a.nii.gz", "b.nii.gz", "c.nii.gz", "e.nii"]


def test_the_same_file_has_the_same_identifier_alone_and_in_its_folder(tmp_path, folder):
    index(tmp_path, folder / "a.nii.gz")
    with Index.open(tmp_path / "x" / "i.sqlite") as opened:
        (alone,) = opened.scans()
    index(tmp_path, folder)
    with Index.open(tmp_path / "x" / "i.sqlite") as opened:
        assert opened.scan(alone.scan_id).digests == alone.digests


def test_of_a_series_only_the_named_file_is_read(tmp_path, capsys):
    _, files = write_series(tmp_path / "s")
    index(tmp_path, files[2])
    assert "files: 1 read" in capsys.readouterr().out


def test_a_file_of_a_data_set_that_is_known_is_refused_with_what_to_do(tmp_path, folder, capsys):
    index(tmp_path, folder)
    assert index(tmp_path, folder / "below" / "e.nii") == 2
    assert re.search(
        r"error: e\.nii lies in data set d, .*: bring that up to date by indexing", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: os.mkfifo(path), r"error: .*thing is neither a folder nor a regular file \(a pipe or a device\)"),
        (lambda path: path.symlink_to("nowhere"), r"error: no such file or folder: .*thing is a broken link$"),
        (lambda path: None, r"error: no such file or folder: .*thing$"),
    ],
)
def test_paths_that_are_neither_file_nor_folder_are_refused_in_one_line(tmp_path, capsys, make, says):
    make(tmp_path / "thing")
    assert index(tmp_path, tmp_path / "thing") == 2
    assert re.search(says, capsys.readouterr().err.strip())
    assert not (tmp_path / "x").exists()


def test_a_link_to_a_file_is_read_under_its_own_name(tmp_path, folder):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "scan.nii.gz").symlink_to(folder / "a.nii.gz")
    assert index(tmp_path, tmp_path / "links" / "scan.nii.gz") == 0
    assert names(tmp_path) == ["scan.nii.gz"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--label.ignore", "2"), "--label.ignore: has no effect without label.class_names"),
        (("--label.key", "id"), "--label.key: has no effect without label.values FILE.csv"),
        (("--label.columns", "age"), "--label.columns: has no effect without label.values FILE.csv"),
        (("--label.threshold", "0.5"), "--label.threshold: has no effect without label.masks TEXT=TEXT"),
        (("--label.grid", "trust"), "--label.grid: has no effect without label.masks TEXT=TEXT"),
        (("--label.other_segments", "background"), "--label.other_segments: has no effect without label.objects"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, folder, capsys, words, says):
    assert index(tmp_path, folder, words=words) == 2
    assert f"error: {says}" in capsys.readouterr().err
