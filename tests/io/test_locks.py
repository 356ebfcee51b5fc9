"""Locks between real processes: who holds them, who shares them, and when they end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medssl.io.locks import open_lock, share_lock, try_lock
from medssl.types import UserError

TRY = """
import sys
from pathlib import Path
from medssl.io.locks import open_lock, try_lock
with open_lock(Path(sys.argv[1])) as file:
    print(try_lock(file, inherited=sys.argv[2] == "True"))
"""


def another_gets_it(file, inherited=True):
    command = [sys.executable, "-c", TRY, str(file), str(inherited)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "True\n"


@pytest.mark.parametrize("inherited", [True, False])
def test_one_process_at_a_time(tmp_path, inherited):
    file = tmp_path / ".lock"
    with open_lock(file) as lock:
        assert try_lock(lock, inherited=inherited)
        assert not another_gets_it(file, inherited)
    assert another_gets_it(file, inherited)


def test_a_shared_lock_lets_others_share_but_nobody_own(tmp_path):
    file = tmp_path / ".lock"
    with open_lock(file) as one, open_lock(file) as two:
        share_lock(one)
        share_lock(two)
        assert not another_gets_it(file)
        assert not try_lock(one)
        two.close()
        assert try_lock(one)


def test_a_child_that_was_handed_the_file_keeps_the_lock(tmp_path):
    file = tmp_path / ".lock"
    with open_lock(file) as lock:
        assert try_lock(lock)
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    try:
        assert not another_gets_it(file)
    finally:
        child.kill()
        child.wait()
    assert another_gets_it(file)


def test_a_system_without_such_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (
        open_lock(tmp_path / ".lock") as lock,
        pytest.raises(UserError, match=r"needs the file locks of Linux or macOS; on Windows, .* Subsystem for Linux$"),
    ):
        try_lock(lock)
