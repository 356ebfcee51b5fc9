"""Links in place of files that medssl opens for writing: what they lead to keeps its content."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from data.stores import PLAIN

from medssl.comparison import jobs as children
from medssl.data.index.scan_index import Index, IndexOptions
from medssl.data.index.update import update
from medssl.data.store import caching
from medssl.data.store.store import Store
from medssl.inference import finished_scans as finished
from medssl.io import atomic_write, locks
from medssl.training.checkpoint import RunFolder
from medssl.training.metrics_log import MetricsLog
from medssl.types import UserError

LINK = "is a link to another file: delete it and run the command again$"


@pytest.fixture
def target(tmp_path):
    file = tmp_path / "precious"
    file.write_text("content")
    yield file
    assert file.read_text() == "content"


def test_the_lock_of_an_index(tmp_path, target):
    (tmp_path / "scans").mkdir()
    (tmp_path / ".index.sqlite.lock").symlink_to(target)
    with (
        Index.open(tmp_path / "index.sqlite", create=True, root=tmp_path) as index,
        pytest.raises(UserError, match=rf"^\.index\.sqlite\.lock in .*/ {LINK}"),
    ):
        update(index, [tmp_path / "scans"], IndexOptions(), key=b"k" * 32)


def test_the_lock_of_a_store(tmp_path, target):
    Store.create(tmp_path / "store", PLAIN)
    (tmp_path / "store" / ".lock").symlink_to(target)
    with pytest.raises(UserError, match=rf"^\.lock in store/ {LINK}"), caching._sharing(tmp_path / "store"):
        pass


def test_the_lock_of_a_run(tmp_path, target):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(target)
    with pytest.raises(UserError, match=rf"^\.lock in run/ {LINK}"), RunFolder(tmp_path / "run").opened({}):
        pass


def test_the_lock_of_a_comparison(tmp_path, target):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / ".lock").symlink_to(target)
    with (
        pytest.raises(UserError, match=rf"^\.lock in study/ {LINK}"),
        children.alone(tmp_path / "study/.lock", "study"),
    ):
        pass


def test_a_lock_keeps_the_content_that_it_has(tmp_path):
    (tmp_path / ".lock").write_text("kept")
    with locks.open_lock(tmp_path / ".lock"):
        pass
    assert (tmp_path / ".lock").read_text() == "kept"


def test_results_that_are_added_line_by_line(tmp_path, target):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "finished.jsonl").symlink_to(target)
    scan = SimpleNamespace(scan_id="0" * 16, digests=SimpleNamespace(source="s"))
    results = finished.Finished(tmp_path / "out", {})  # the link gives way to a file
    results.add(scan, True)
    assert not (tmp_path / "out" / "finished.jsonl").is_symlink()
    (tmp_path / "out" / "finished.jsonl").unlink()
    (tmp_path / "out" / "finished.jsonl").symlink_to(target)
    with pytest.raises(UserError, match=rf"^finished\.jsonl in out/ {LINK}"):
        results.add(scan, True)


def test_metrics_and_logs(tmp_path, target):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"^metrics\.jsonl in run/ {LINK}"):
        MetricsLog(run, every=1).open(0)
    assert not (tmp_path / "nowhere").exists()
    (run / "1-0.log").symlink_to(target)
    job = children.Job("few", (("--version",),), run / "1-0.log")
    with (tmp_path / "lock").open("w") as lock, pytest.raises(UserError, match=rf"^1-0\.log in run/ {LINK}"):
        children.start(job, 0, 1, lock)


def test_parts_that_somebody_has_put_in_the_way(tmp_path, target, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda n: "guessed")
    (tmp_path / ".card.json.guessed.part").symlink_to(target)
    with pytest.raises(UserError, match=r"card\.json could not be written \(File exists\)"):
        atomic_write.atomic_write(tmp_path / "card.json", lambda file: file.write(b"new"))
    assert not (tmp_path / "card.json").exists()
    (tmp_path / "card.json").symlink_to(target)
    monkeypatch.undo()
    atomic_write.atomic_write(tmp_path / "card.json", lambda file: file.write(b"new"))  # takes the link's place
    assert (tmp_path / "card.json").read_bytes() == b"new"


def test_the_parts_of_a_new_index_are_not_links(tmp_path, target, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda n: "guessed")
    (tmp_path / ".index.sqlite.guessed").symlink_to(target)
    with pytest.raises(FileExistsError, match="File exists"):
        Index.open(tmp_path / "index.sqlite", create=True, root=tmp_path)
    assert (tmp_path / ".index.sqlite.guessed").readlink() == target
