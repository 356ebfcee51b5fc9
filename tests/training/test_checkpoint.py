from __future__ import annotations

import errno
import os
import resource
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from medssl.training.checkpoint import Progress, RunFolder, checkpoints, differing, link, load_state
from medssl.training.checkpoint_writer import CheckpointWriter
from medssl.training.events import Measures, StepRecord, Timing
from medssl.types import UserError


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    return run


def save(folder, step, *, loss=1.0, keep=False, progress=None, size=10):
    progress = progress or Progress(step, 4, "store")
    progress.step, progress.judged = step, loss
    folder.save({"objective": {"w": torch.full((size,), float(step))}}, progress, keep=keep)
    return progress


def test_last_best_and_kept_are_three_states(folder):
    progress = save(folder, 2, loss=1.0)
    save(folder, 4, loss=0.5, keep=True, progress=progress)
    save(folder, 6, loss=0.9, progress=progress)
    names = {path.name: float(load_state(path)["objective"]["w"][0]) for path in checkpoints(folder.checkpoints)}
    assert names == {"last.pt": 6.0, "step_000004.pt": 4.0, "best.pt": 4.0}
    assert folder.state()["progress"] == Progress(6, 4, "store", judged=0.9, best=0.5)


def test_files_are_for_the_owner_alone(folder):
    before = os.umask(0o077)
    try:
        save(folder, 1)
    finally:
        os.umask(before)
    assert (folder.checkpoints / "last.pt").stat().st_mode & 0o077 == 0


def test_a_full_disk_leaves_the_former_checkpoint(folder):
    save(folder, 1)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, former[1]))
    try:
        with pytest.raises(UserError, match=r"last\.pt could not be written .*there before is intact; make room"):
            save(folder, 2, size=1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert folder.state()["progress"].step == 1
    assert not list(folder.checkpoints.glob(".*"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "other"])
def test_damage_is_named_with_what_to_do(folder, damage):
    progress = save(folder, 1, keep=True)
    save(folder, 2, progress=progress, size=4096)
    last = folder.checkpoints / "last.pt"
    content = bytearray(last.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1  # inside the weights
    kinds = {"truncated": content[:-100], "empty": b"", "bit": content, "other": b"no checkpoint at all"}
    last.write_bytes(bytes(kinds[damage]))
    with pytest.raises(UserError, match=r"last\.pt is damaged .*delete it .*goes on from step_000001\.pt"):
        folder.state()
    last.unlink()
    assert folder.state()["progress"].step == 1


def test_code_in_a_checkpoint_is_not_run(folder):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch evil",))

    torch.save({"objective": Evil(), "progress": {}}, folder.checkpoints / "last.pt")
    with pytest.raises(UserError, match="is damaged"):
        folder.state()


def test_a_link_is_a_copy_where_there_are_no_links(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"weights")

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"weights"


CONFIG = {"training": {"steps": 10, "batch_size": 2, "extend": False}, "data": {"workers": 1, "split": None}}


def changed(section, **values):
    return CONFIG | {section: CONFIG[section] | values}


def test_a_key_that_came_later_holds_no_run_up_while_it_is_off(tmp_path):
    folder = RunFolder(tmp_path / "run")
    before, off, on = (
        changed("data", sampling={"foreground": 0.5} | now) for now in ({}, {"labeled": 0.0}, {"labeled": 0.3})
    )
    with folder.opened(before):
        save(folder, 1)
    with pytest.raises(UserError, match=r"data\.sampling\.labeled: 0.0 there, 0.3 here"), folder.opened(on):
        pass
    with folder.opened(off):
        pass
    older, newer = ({"objective": {"init_args": {"sampling": own}}} for own in ({}, {"labeled": 0.0}))
    assert differing(older, newer, ()) == ""


@pytest.mark.parametrize(
    ("key", "former", "now"),
    [("decoder", "light", "unet"), ("crops", "one", "two"), ("balanced", False, True)],
)
def test_keys_of_objectives_that_came_later_are_what_they_were(key, former, now):
    older, same, other = ({"objective": {"init_args": own}} for own in ({}, {key: former}, {key: now}))
    assert differing(older, same, ()) == ""
    assert differing(older, other, ()) == f"objective.init_args.{key}: {former} there, {now} here"


def test_a_margin_that_came_later_is_none():
    older, same = ({"objective": {"init_args": {"matching": own}}} for own in ({}, {"margin": 0.0}))
    assert differing(older, same, ()) == ""


def test_another_configuration_is_refused_by_key(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.opened(CONFIG):
        save(folder, 1)
    with folder.opened(changed("data", workers=7)):
        pass
    for other, message in (
        (changed("data", split="train"), r"data\.split: None there, train here"),
        (changed("training", steps=20), r"training\.steps: 10 there, 20 here.*training\.extend true"),
        (CONFIG | {"encoder": {"class_path": "b"}}, r"encoder\.class_path: absent there, b here"),
    ):
        with pytest.raises(UserError, match=message), folder.opened(other):
            pass
    with folder.opened(changed("training", steps=20, extend=True)):
        pass


def test_a_run_without_a_checkpoint_may_change_its_configuration(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.opened(CONFIG):
        pass
    with run.opened(changed("training", steps=3)):
        assert "steps: 3" in (run.path / "config.yaml").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds files but no config\.yaml"), RunFolder(tmp_path).opened(CONFIG):
        pass


def test_two_processes_do_not_share_a_folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.opened(CONFIG):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with run.opened(CONFIG):
                    pass
            except UserError as error:
                code = 7 if "another process is training" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_parts_of_a_killed_write_are_swept_up(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.opened(CONFIG):
        (run.checkpoints / ".last.pt.0a1b2c3d.part").write_bytes(b"half")
    with run.opened(CONFIG):
        assert not list(run.path.rglob("*.part"))


def test_a_run_that_was_killed_before_its_first_file_goes_on(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.path / ".lock").touch()
    (run.path / ".config.yaml.0a1b2c3d.part").write_text("half")
    with run.opened(CONFIG):
        assert (run.path / "config.yaml").is_file()


def test_the_newest_checkpoint_is_the_one_of_the_highest_step(tmp_path):
    for step in (999_999, 1_000_000):
        (tmp_path / f"step_{step:06d}.pt").touch()
    assert checkpoints(tmp_path)[0].name == "step_1000000.pt"


def test_weights_are_exported_before_the_checkpoint_that_says_they_are_done(tmp_path):
    """A kill between the two must not leave a run that is done with weights of an earlier step."""
    order = []

    class Folder:
        def save(self, state, progress, *, keep):
            order.append("checkpoint")

    loop = SimpleNamespace(progress=Progress(3, 4, "s", best=0.4), steps=3, is_over=True, rank=0, state=dict)
    loop.as_exported = nullcontext
    record = StepRecord(3, 1.0, 1.0, {}, (0.1, 0.0), 1.0, Timing(1.0, 0.0, 4))
    parts = {"every": 1, "keep": None, "export": lambda: order.append("export")}
    CheckpointWriter(Folder(), **parts).on_step(loop, record)
    assert order == ["export", "checkpoint"]
    order.clear()
    loop.steps = 9  # stopped: little time may be left
    CheckpointWriter(Folder(), **parts).on_step(loop, record)
    assert order == ["checkpoint", "export"]
    order[:], loop.steps = ["export", "checkpoint"], 3
    validated = CheckpointWriter(Folder(), **parts, validated=True)
    validated.on_step(loop, record.with_measures(Measures({"validation_dice": 0.5}, score=0.5)))
    assert order[2:] == ["checkpoint"]
    validated.on_step(loop, record.with_measures(Measures({"validation_dice": 0.7}, score=0.3)))
    assert order[3:] == ["export", "checkpoint"]


def test_a_stop_between_checkpoints_adds_no_candidate_for_the_best():
    saved = []

    class Folder:
        def save(self, state, progress, *, keep):
            saved.append((progress.step, progress.judged))

    writer = CheckpointWriter(Folder(), every=2, keep=None, export=lambda: None)
    for step, is_over in ((1, False), (2, False), (3, True)):
        loop = SimpleNamespace(progress=Progress(step, 4, "s"), steps=9, is_over=is_over, rank=0, state=dict)
        loop.as_exported = nullcontext
        writer.on_step(loop, StepRecord(step, 1.0, 0.5, {}, (0.1, 0.0), 1.0, Timing(1.0, 0.0, 4)))
    assert saved == [(2, 0.5), (3, None)]


def test_listeners_of_older_checkpoints_are_found_by_their_former_classes(folder):
    save(folder, 1)
    last = folder.checkpoints / "last.pt"
    state = torch.load(last, weights_only=True)
    assert load_state(last)["listeners"] == {}
    torch.save(state | {"callbacks": {"Health": {"told": {}}, "ProbeWhileTraining": {"start": {"a": 1.0}}}}, last)
    now = load_state(last)
    assert now["listeners"] == {"health": {"told": {}}, "online_probe": {"start": {"a": 1.0}}}
    assert "callbacks" not in now
