"""What a comparison's folder is held to: baselines by their encoders, in any order; what may change; what stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medssl.comparison.arms import Arm, Run, arms_of, encoder_digest, encoders_of, training_minutes
from medssl.comparison.record import read_recorded, record_looks, record_plan, study_of
from medssl.training.initial_weights import InitialWeights
from medssl.types import Imported, UserError

SMALL = {"channels": [4, 8], "ndim": 3}
LARGE = {"channels": [6, 12], "ndim": 3}
RECIPE = {
    "store": "a", "windows": {"overlap": 0.5, "batch_size": 2, "accelerator": "auto"},
    "data": {"workers": 1, "target": "mask"},
    "training": {"batch_size": 4, "accumulate": 1, "steps": 6, "accelerator": "auto", "output": {"picture_every": 5}},
}  # fmt: skip


def initial(arguments, digest="x"):
    return InitialWeights(Imported("medssl.Encoder", arguments), Path("weights"), None, digest)


def command(out, labels=(2,), runs=1, recipe=RECIPE, options=None, **encoders):
    """What the verb does before anything is trained."""
    weights = {name: (initial(arguments, f"weights of {name}"),) for name, arguments in encoders.items()}
    folders = {name: out / "pretrained" / name for name in encoders}
    given = [Arm(name, (folder,), minutes=training_minutes(folder)) for name, folder in folders.items()]
    arms = list(arms_of(given, weights, read_recorded(out)))
    plan = [Run(arm, n, number) for number in range(runs) for n in labels for arm in arms]
    held = recipe | {"encoders": encoders_of(arms, weights)}
    return study_of(out, record_plan(out, held, arms, plan, options or {}), arms, plan)


def baselines(study):
    return {arm.name: arm.baseline for arm in study.arms}


def scored(study):
    for run in study.requested:
        (run.folder(study.out) / "test").mkdir(parents=True, exist_ok=True)
        (run.folder(study.out) / "test/summary.json").touch()


def test_encoders_of_one_kind_share_a_baseline_and_others_get_their_own(tmp_path):
    together = baselines(command(tmp_path, a=SMALL, b=LARGE, c=SMALL | {"in_channels": 1}))
    assert together == {"scratch": "", "a": "scratch", "scratch-b": "", "b": "scratch-b", "c": "scratch"}
    # neither the order nor later commands move a baseline
    assert baselines(command(tmp_path, b=LARGE, a=SMALL)) == together
    assert baselines(command(tmp_path, b=LARGE)) == together
    assert baselines(command(tmp_path, d=LARGE)) == together | {"d": "scratch-b"}


def test_a_later_encoder_of_another_kind_is_not_compared_with_the_first_baseline(tmp_path):
    command(tmp_path, a=SMALL)
    later = command(tmp_path, b=LARGE)
    assert baselines(later)["b"] == "scratch-b"
    assert {arm.name: [path.name for path in arm.paths] for arm in later.arms} == {
        "scratch": [], "a": [], "scratch-b": ["b"], "b": ["b"],
    }  # fmt: skip
    assert {run.arm.name for run in later.requested} == {"scratch-b", "b"}
    assert [arm.digests for arm in later.arms] == [("random",), ("weights of a",), ("random",), ("weights of b",)]
    recorded = yaml.safe_load((tmp_path / "compare.yaml").read_text())
    assert recorded["encoders"] == {
        name: encoder_digest({"class_path": "medssl.Encoder", "init_args": arguments})
        for name, arguments in (("scratch", SMALL), ("scratch-b", LARGE))
    }
    assert str(tmp_path) not in (tmp_path / "compare.yaml").read_text()


def former(out, arms, started=()):
    """A folder of the former version: no kinds of encoders, only the configuration that each run started with."""
    (out / "compare.yaml").write_text(yaml.safe_dump(RECIPE | {"arms": arms}))
    for place, arguments in started:
        folder = out / "runs" / place
        folder.mkdir(parents=True)
        config = {"encoder": {"class_path": "medssl.Encoder", "init_args": arguments}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_folder_of_the_former_version_goes_on(tmp_path):
    former(tmp_path, {"scratch": "random", "a": "weights of a"}, [("scratch/2-0", SMALL), ("a/2-0", SMALL)])
    assert baselines(command(tmp_path, a=SMALL)) == {"scratch": "", "a": "scratch"}
    assert baselines(command(tmp_path, b=LARGE)) == {"scratch": "", "a": "scratch", "scratch-b": "", "b": "scratch-b"}


def test_a_former_folder_without_any_run_takes_the_first_kind(tmp_path):
    former(tmp_path, {"scratch": "random", "a": "weights of a"})
    assert baselines(command(tmp_path, a=SMALL)) == {"scratch": "", "a": "scratch"}


def test_an_encoder_that_the_former_version_compared_with_a_wrong_baseline_gets_its_own(tmp_path):
    started = [("scratch/2-0", SMALL), ("a/2-0", SMALL), ("b/2-0", LARGE)]
    former(tmp_path, {"scratch": "random", "a": "weights of a", "b": "weights of b"}, started)
    assert baselines(command(tmp_path, a=SMALL)) == {"scratch": "", "a": "scratch", "b": ""}  # not compared
    assert baselines(command(tmp_path, b=LARGE))["b"] == "scratch-b"


def test_a_baseline_whose_runs_were_mixed_up_is_refused(tmp_path):
    former(tmp_path, {"scratch": "random", "a": "x"}, [("scratch/2-0", SMALL), ("scratch/4-0", LARGE)])
    with pytest.raises(
        UserError,
        match=r"runs of 2 different encoders of an earlier version \(got '2-0; 4-0'\)\. Delete those of all but one\.",
    ):
        command(tmp_path, a=SMALL)


def changed(**more):
    recipe = {key: dict(value) if isinstance(value, dict) else value for key, value in RECIPE.items()}
    for key, value in more.items():
        room, _, name = key.partition("__")
        recipe[room][name] = value
    return recipe


@pytest.mark.parametrize(
    "more",
    [
        {"data__workers": 5}, {"windows__batch_size": 1}, {"windows__accelerator": "cpu"},
        {"training__accelerator": "cpu"}, {"training__output": {"picture_every": 1}},
        {"training__batch_size": 2, "training__accumulate": 2},
    ],
)  # fmt: skip
def test_what_changes_nothing_that_is_learned_may_change(tmp_path, more):
    command(tmp_path, a=SMALL)
    assert baselines(command(tmp_path, a=SMALL, recipe=changed(**more))) == {"scratch": "", "a": "scratch"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"training__steps": 7}, "training.steps: 6 there, 7 here"),
        ({"training__batch_size": 2}, "training.samples of a step: 4 there, 2 here"),
        ({"windows__overlap": 0.2}, "windows.overlap: 0.5 there, 0.2 here"),
    ],
)
def test_another_recipe_is_refused(tmp_path, more, message):
    command(tmp_path, a=SMALL)
    with pytest.raises(UserError, match=f"holds another comparison: {message}. Choose another folder for results"):
        command(tmp_path, a=SMALL, recipe=changed(**more))


def test_other_weights_of_the_same_name_are_refused(tmp_path):
    command(tmp_path, a=SMALL)
    recorded = yaml.safe_load((tmp_path / "compare.yaml").read_text())
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(recorded | {"arms": {"scratch": "random", "a": "others"}}))
    with pytest.raises(UserError, match=r"arms.a: others there, weights of a here"):
        command(tmp_path, a=SMALL)


def test_runs_of_earlier_commands_stay(tmp_path):
    scored(command(tmp_path, labels=(2, 4), runs=2, a=SMALL))
    study = command(tmp_path, labels=(4, 8), b=SMALL)
    assert [arm.name for arm in study.arms] == ["scratch", "a", "b"]
    assert {str(run) for run in study.done} == {
        f"{arm}, {n} labeled subjects, run {number}" for arm in ("scratch", "a") for n in (2, 4) for number in (0, 1)
    }
    # what was asked for and never done is known, too
    again = command(tmp_path, labels=(16,), a=SMALL)
    unfinished = {str(run) for run in again.earlier if not run.done(tmp_path)}
    assert unfinished == {f"{arm}, {n} labeled subjects, run 0" for arm, n in (("scratch", 8), ("b", 4), ("b", 8))}


def test_runs_without_what_they_are_held_to_are_refused(tmp_path):
    scored(command(tmp_path, a=SMALL))
    (tmp_path / "compare.yaml").unlink()
    with pytest.raises(
        UserError,
        match=r"holds runs but no compare.yaml, which names their recipe .*\. Put the file back\. Choose another",
    ):
        command(tmp_path, a=SMALL, recipe=changed(training__steps=7))
    assert not (tmp_path / "compare.yaml").exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: b"", lambda text: b"word", lambda text: b"- a\n- b\n", lambda text: text[: text.index(b"arms")],
        lambda text: text[: text.index(b"training") + 12], lambda text: text[: text.index(b"baselines") + 4],
        lambda text: text.replace(b"batch_size", b"size"), lambda text: text + b"looks: [5]\n",
        lambda text: text.decode().encode("utf-16")[:-1], lambda text: text + b"note: \xfc\n",
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, edit):
    command(tmp_path, a=SMALL)
    file = tmp_path / "compare.yaml"
    file.write_bytes(edit(file.read_bytes()))
    with pytest.raises(
        UserError,
        match=r"compare.yaml is damaged \(empty, cut off or edited\)\. Put a whole one back\. Choose another",
    ):
        command(tmp_path, a=SMALL)


def test_a_file_with_the_keys_of_0_1_0_is_read(tmp_path):
    before = baselines(command(tmp_path, labels=(2, 4), runs=2, a=SMALL, b=LARGE))
    file = tmp_path / "compare.yaml"
    text = file.read_text()
    file.write_text(text.replace("baselines:", "twins:").replace("planned:", "asked:"))
    study = command(tmp_path, labels=(2,), a=SMALL)
    assert baselines(study) == before
    assert len(study.earlier) == 2 * 4 + 2 * 3  # those of the former command, which were not trained
    assert {"baselines", "planned"} <= yaml.safe_load(file.read_text()).keys()
    assert not {"twins", "asked"} & yaml.safe_load(file.read_text()).keys()


def test_looks_are_recorded_for_each_number_of_labeled_subjects(tmp_path):
    command(tmp_path, runs=5, a=SMALL)
    assert record_looks(tmp_path, {"a": {2: 5}}) == []
    study = command(tmp_path, labels=(2, 4), runs=6, a=SMALL, b=SMALL)  # goes on: looks are no part of the recipe
    assert [arm.digests for arm in study.arms] == [("random",), ("weights of a",), ("weights of b",)]
    assert record_looks(tmp_path, {"b": {2: 6, 4: 6}, "a": {4: 6}}) == []
    assert record_looks(tmp_path, {"b": {2: 6}, "a": {2: 6}}) == [5]
    assert record_looks(tmp_path, {"a": {2: 5}}) == []
    assert record_looks(tmp_path, {"a": {2: 8}, "b": {4: 7}}) == [5, 6]
    assert read_recorded(tmp_path)["looks"] == {"a": {2: [5, 6, 8], 4: [6]}, "b": {2: [6], 4: [6, 7]}}


def test_minutes_are_recorded_and_unknown_where_nothing_was_logged(tmp_path):
    log = tmp_path / "pretrained/a/metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 10, "seconds": 6.0}\n{"step": 20, "seconds": 6.0}\n')
    assert training_minutes(log.parent) == pytest.approx(2.0)
    command(tmp_path, a=SMALL, b=SMALL)
    log.unlink()
    minutes = {arm.name: arm.minutes for arm in command(tmp_path, c=SMALL).arms}
    assert minutes == {"scratch": 0.0, "a": pytest.approx(2.0), "b": None, "c": None}
