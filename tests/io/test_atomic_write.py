"""Files written whole or not at all: by their content after every kind of end."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from medssl.io.atomic_write import atomic_files, atomic_write, sync_folder
from medssl.types import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def former(tmp_path):
    (tmp_path / "a").write_bytes(b"former")
    return tmp_path / "a"


def test_it_takes_its_place(former):
    atomic_write(former, lambda file: file.write(b"new"))
    assert former.read_bytes() == b"new"
    assert names(former.parent) == ["a"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), RuntimeError("broken"), KeyboardInterrupt("broken")])
def test_a_block_that_raises_leaves_the_former_file(former, error):
    def write():
        with atomic_files(former) as (file,):
            file.write(b"half")
            raise error

    with pytest.raises(type(error), match="broken"):
        write()
    assert former.read_bytes() == b"former"
    assert names(former.parent) == ["a"]


def test_none_of_several_takes_its_place_before_all_are_on_the_disk(former, monkeypatch):
    other, on_disk = former.with_name("b"), []

    def sync(descriptor):
        on_disk.append(descriptor)
        if len(on_disk) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", sync)
    with pytest.raises(OSError, match="No space left"), atomic_files(former, other) as files:
        [file.write(b"new") for file in files]
    assert former.read_bytes() == b"former"
    assert names(former.parent) == ["a"]


def test_a_process_that_is_killed_leaves_the_former_file(former):
    child = os.fork()
    if child == 0:
        with atomic_files(former) as (file,):
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert former.read_bytes() == b"former"
    assert any(name.startswith(".a.") and name.endswith(".part") for name in names(former.parent))


def test_two_writers_of_one_file_do_not_mix(former):
    with atomic_files(former) as (one,), atomic_files(former) as (two,):
        one.write(b"1" * 100)
        two.write(b"2" * 10)
    assert former.read_bytes() == b"1" * 100


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            errno.ENOSPC,
            r"a could not be written \(No space left on device; \d+ MiB free\): .* is intact; make room",
        ),
        (
            errno.EACCES,
            r"a could not be written \(Permission denied\): .* is intact; check the folder",
        ),
    ],
)
@pytest.mark.parametrize("torch", [False, True])
def test_the_reason_is_said(former, number, said, torch):
    def write(file):
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            if torch:
                raise RuntimeError("unexpected pos") from None
            raise

    with pytest.raises(UserError, match=said):
        atomic_write(former, write)
    assert former.read_bytes() == b"former"


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match=r"a could not be written \(No such file or directory\)"):
        atomic_write(tmp_path / "gone" / "a", lambda file: file.write(b"new"))


def test_other_errors_of_torch_are_not_blamed_on_the_disk(former):
    def write(file):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        atomic_write(former, write)


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_shares_that_cannot_sync_folders_are_no_error(tmp_path, monkeypatch, number, passes):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    if passes:
        sync_folder(tmp_path)
    else:
        with pytest.raises(OSError, match="Input/output"):
            sync_folder(tmp_path)
