"""Indexing and caching tell how far they are in files and in bytes."""

from __future__ import annotations

import sys

from commands.test_synthetic import cached, scans  # noqa: F401 (a fixture)

from medssl.io.progress import progress_bar


def test_indexing_counts_files_and_their_bytes(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar() as tell:
        tell("reading headers", 3, 5_000_000)
        tell("reading headers", 4, 2_000_000)
        tell("grouping series", 1, 0)
    said = capsys.readouterr().err
    assert "8 files" in said
    assert "7.00MB of files, " in said
    assert "B/s" in said


def test_caching_tells_bytes_scans_and_rate(scans, tmp_path, capsys):  # noqa: F811
    assert cached(tmp_path, scans)
    said = capsys.readouterr().err
    last = [part for part in said.split("\r") if part.startswith("cache:")][-1]
    assert "100%" in last
    assert "3 of 3 scans" in last
    assert "B/s" in last
