"""The phases of a comparison with jobs that write their results at once: oracles, own rates, pretrainings, kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from medssl.comparison import runs as jobs_of_runs
from medssl.comparison import tuning
from medssl.comparison.arms import Arm, Run, arms_of, encoders_of
from medssl.comparison.jobs import Failure
from medssl.comparison.phases import Plan, Work, conduct
from medssl.comparison.record import read_recorded
from medssl.comparison.summary import summarize
from medssl.comparison.tables import tables_of
from medssl.encoders.resenc import ResEnc
from medssl.encoders.weights import save_encoder
from medssl.metrics.cases import SegmentationRow, write_segmentation
from medssl.metrics.mask_measures import ClassScore
from medssl.metrics.tables import KEYS, write_summary
from medssl.training.initial_weights import read_initial_weights
from medssl.training.optim import FineTuning
from medssl.types import Card, Imported, Preprocess, UserError
from medssl.types.provenance import Provenance

RECIPE = {"training": {"batch_size": 4, "accumulate": 1, "steps": 6}}
GAIN = {"scratch": 0.3, "spark": 0.4, "late": 0.5, "oracle": 0.7}  # Dice of each arm
SUBJECTS = 8


def tiny_encoder_run(folder, seed=0):
    """A run folder with a tiny encoder whose random weights are those of a seed."""
    encoder = {"in_channels": 1, "ndim": 3, "channels": [2, 4], "strides": [[1, 1, 1], [2, 2, 2]], "blocks": [1, 1]}
    torch.manual_seed(seed)
    card = Card(Imported("medssl.encoders.resenc.ResEnc", encoder), Preprocess(), None, "digest", Provenance(), 7, {})
    save_encoder(folder, ResEnc(**encoder), card)


class Jobs:
    """Stands for ``run_jobs``: each job writes what its commands would; after ``until`` jobs a signal comes."""

    def __init__(self, validation=lambda arm, setting: 0.5, fails=lambda name: False, until=None):
        self.validation, self.fails, self.until = validation, fails, until
        self.commands = []

    def __call__(self, jobs, done, *, at_once, lock):
        for job in jobs:
            if self.until is not None and len(self.commands) >= self.until:
                return 15
            self.commands.append([words[0] for words in job.commands])
            if self.fails(job.name):
                done(job, Failure("diverged", "diverged"))
                continue
            for words in job.commands:
                (self.train if words[0] == "finetune" else self.score)(words)
            done(job, None)
        return 0

    def train(self, words):
        given = dict(zip(words[1::2], words[2::2], strict=True))
        folder, source = Path(given["--run"]), Path(given["--pretrained"])
        if folder.parent.name == "oracles":
            tiny_encoder_run(folder, seed=99)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.json").touch()
        scratch = given.get("--from_scratch") == "true"
        initial = read_initial_weights(source, None, from_scratch=scratch)
        (folder / "config.yaml").write_text(yaml.safe_dump({"start": initial.digest}))
        arm = "" if folder.parent.name == "oracles" else place_of(folder)[0]
        value = self.validation(arm, place_of(folder)[1] if arm else "")
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 6, "seconds": 1.0, "validation_dice": value}))

    def score(self, words):
        folder = Path(words[1])
        arm, setting, number = place_of(folder)
        (folder / "test").mkdir(exist_ok=True)
        better = 0.05 if setting else 0.0
        rows = [
            SegmentationRow(f"c{n}", f"s{n}", "a", ClassScore(GAIN[arm] + better + 0.01 * n / (1 + number), 1.0, 5, 5))
            for n in range(SUBJECTS)
        ]
        write_segmentation(folder / "test/cases.csv", rows)
        content = dict.fromkeys(KEYS, ()) | {"kind": "segmentation", "metrics": {}}
        write_summary(folder / "test/summary.json", content)


def place_of(folder):
    """Arm, setting and number of a run's folder."""
    parts = folder.parts[folder.parts.index("runs") + 1 :]
    return parts[0], parts[1] if len(parts) == 3 else "", int(parts[-1].partition("-")[2])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Runs of pretraining by name: tiny encoders with different weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    for seed, name in enumerate(("one", "two", "three", "late")):
        tiny_encoder_run(folder / name, seed=seed)
    return folder


def plan_of(out, pretrained, *, arms=None, grid=None, oracle=False, labels=(2,), runs=5):
    given = arms or [Arm("spark", (pretrained / "one",))]
    weights = {
        arm.name: tuple(read_initial_weights(path, None, from_scratch=False) for path in arm.paths) for arm in given
    }
    every = tuple(arms_of(given, weights, read_recorded(out)))
    held = RECIPE | {"encoders": encoders_of(every, weights)}
    options = ({"oracle": {"steps": None}} if oracle else {}) | ({"tune": {"runs": grid.runs}} if grid else {})
    return Plan(held, options, every, labels, runs, grid, (), ())


def conducted(monkeypatch, out, plan, jobs):
    monkeypatch.setattr(jobs_of_runs, "run_jobs", jobs)
    out.mkdir(exist_ok=True)
    return conduct(Work(out, (("--config", "recipe.yaml"), ()), 0, 1, None, keep=False), plan)


def grid(runs=1, **rates):
    return tuning.grid_of(tuning.Tuning(runs=runs, **rates), FineTuning(learning_rate=0.01), 5)


def best_at_a_low_rate(arm, setting):
    """Pretrained weights want a low rate, scratch that of the recipe."""
    return 0.5 + (0.1 if setting == "lr0.001" and arm != "scratch" else 0.0)


def test_each_arm_takes_its_own_rate_by_validation_and_the_table_shows_both(tmp_path, monkeypatch, pretrained, capsys):
    plan = plan_of(tmp_path, pretrained, grid=grid(learning_rates=(0.01, 0.001), runs=2))
    jobs = Jobs(best_at_a_low_rate)
    study, failed = conducted(monkeypatch, tmp_path, plan, jobs)
    assert failed == {}
    assert study.rates == {"scratch": {2: ""}, "spark": {2: "lr0.001"}}
    # the same budget for both: 5 runs by the recipe, 2 with the other setting; then the runs that are missing
    assert jobs.commands.count(["finetune", "evaluate"]) == 10 + 3
    assert jobs.commands.count(["finetune"]) == 4
    assert jobs.commands.count(["evaluate"]) == 2  # those that chose are scored, not trained again
    rows = [line.split(",") for line in (tmp_path / "tuning.csv").read_text().splitlines()]
    assert rows[0] == list(tuning.COLUMNS)
    chosen = [(row[0], row[2], row[3], row[4], row[7]) for row in rows[1:]]
    assert chosen == [
        ("scratch", "0", "recipe", "0.01", "1"), ("scratch", "0", "lr0.001", "0.001", "0"),
        ("scratch", "1", "recipe", "0.01", "1"), ("scratch", "1", "lr0.001", "0.001", "0"),
        ("spark", "0", "recipe", "0.01", "0"), ("spark", "0", "lr0.001", "0.001", "1"),
        ("spark", "1", "recipe", "0.01", "0"), ("spark", "1", "lr0.001", "0.001", "1"),
    ]  # fmt: skip
    summary = summarize(study, failed)
    values = {one["arm"]: one["differences"][0]["value"] for one in summary["compared"]}
    assert values == {"spark": pytest.approx(0.1), "spark, own rate": pytest.approx(0.15)}
    text = (tmp_path / "summary.md").read_text()
    assert "| setting of scratch | recipe |" in text
    assert "| setting of spark | lr0.001 |" in text
    assert "| spark, own rate less scratch, own rate | +0.150" in text
    assert "p-values are corrected for 2 comparisons" in text
    assert "15 of 15 runs" in capsys.readouterr().out
    tables = tables_of(study)
    assert sum(row[:4] == ("spark", 2, 0, "lr0.001") for row in tables["runs.csv"]) == 1
    assert sum(row[0] == "scratch" for row in tables["runs.csv"]) == 5  # its own rate is that of the recipe: once


def test_a_rate_that_is_hardly_better_is_not_taken(tmp_path, monkeypatch, pretrained):
    plan = plan_of(tmp_path, pretrained, grid=grid(learning_rates=(0.001,)))
    jobs = Jobs(lambda arm, setting: 0.5 + (0.0009 if setting else 0.0))
    study, failed = conducted(monkeypatch, tmp_path, plan, jobs)
    assert study.rates == {"scratch": {2: ""}, "spark": {2: ""}}
    summary = summarize(study, failed)
    assert [one["arm"] for one in summary["compared"]] == ["spark"]  # its own rate is the same comparison
    assert "p-values are corrected for 1 comparison;" in (tmp_path / "summary.md").read_text()


def test_a_setting_that_fails_is_not_taken(tmp_path, monkeypatch, pretrained):
    plan = plan_of(tmp_path, pretrained, grid=grid(learning_rates=(0.1, 0.001)))
    jobs = Jobs(lambda arm, setting: {"lr0.1": 0.9, "lr0.001": 0.8, "": 0.5}[setting], lambda name: "lr0.1" in name)
    study, failed = conducted(monkeypatch, tmp_path, plan, jobs)
    assert study.rates["spark"] == {2: "lr0.001"}
    assert set(failed) == {f"{arm}, 2 labeled subjects, run 0, lr0.1" for arm in ("scratch", "spark")}
    again = Jobs()
    conducted(monkeypatch, tmp_path, plan, again)
    assert again.commands == []  # the rates are chosen: what failed is not tried again


def test_stopped_after_any_job_it_ends_alike(tmp_path, monkeypatch, pretrained):
    def plan(out):
        return plan_of(out, pretrained, grid=grid(learning_rates=(0.001,)), oracle=True, runs=2)

    straight = tmp_path / "straight"
    whole = Jobs(best_at_a_low_rate)
    expected = tables_of(conducted(monkeypatch, straight, plan(straight), whole)[0])
    assert len(whole.commands) == 1 + 6 + 3 + 4
    for until in range(1, len(whole.commands)):
        out = tmp_path / f"broken{until}"
        first, second = Jobs(best_at_a_low_rate, until=until), Jobs(best_at_a_low_rate)
        assert conducted(monkeypatch, out, plan(out), first) == 128 + 15
        study, failed = conducted(monkeypatch, out, plan(out), second)
        assert failed == {}
        assert len(second.commands) == len(whole.commands) - until
        assert tables_of(study) == expected
        assert (out / "tuning.csv").read_text() == (straight / "tuning.csv").read_text()


def test_the_oracle_is_trained_once_and_its_headroom_is_shared_out(tmp_path, monkeypatch, pretrained):
    plan = plan_of(tmp_path, pretrained, oracle=True)
    jobs = Jobs()
    study, failed = conducted(monkeypatch, tmp_path, plan, jobs)
    assert jobs.commands[0] == ["finetune"]  # the oracle's encoder
    assert {arm.name: arm.kind for arm in study.arms} == {
        "scratch": "scratch", "spark": "pretrained", "oracle": "oracle",
    }  # fmt: skip
    summary = summarize(study, failed)
    (one,) = summary["compared"]  # the oracle is no arm to compare
    (share,) = one["headroom"]
    assert share["oracle"]["value"] == pytest.approx(0.4)
    assert share["share"] == pytest.approx(0.25)
    assert "takes 25 % [" in one["verdict"].replace("25%", "25 %")
    text = (tmp_path / "summary.md").read_text()
    assert "| oracle less scratch | +0.400 [" in text
    assert text.count("less scratch |") == 2
    assert summary["oracles"] == ["oracle"]
    assert (tmp_path / "efficiency.svg").read_text().count("stroke-dasharray") == 0  # one point: no line
    again = Jobs()
    study, _ = conducted(monkeypatch, tmp_path, plan_of(tmp_path, pretrained, oracle=True, labels=(2, 4)), again)
    assert ["finetune"] not in again.commands
    summarize(study, {})
    assert (tmp_path / "efficiency.svg").read_text().count("stroke-dasharray") == 1


def test_an_arm_that_comes_later_is_tuned_alike_and_nothing_is_done_twice(tmp_path, monkeypatch, pretrained):
    own = grid(learning_rates=(0.001,))
    first = plan_of(tmp_path, pretrained, grid=own, oracle=True)
    conducted(monkeypatch, tmp_path, first, Jobs(best_at_a_low_rate))
    later = plan_of(tmp_path, pretrained, arms=[Arm("late", (pretrained / "late",))], grid=own, oracle=True)
    jobs = Jobs(best_at_a_low_rate)
    study, _ = conducted(monkeypatch, tmp_path, later, jobs)
    assert len(jobs.commands) == 5 + 1 + 5  # its runs, one with the other setting, and its own rate
    assert [arm.name for arm in study.arms] == ["scratch", "spark", "oracle", "late"]
    assert study.rates["spark"] == study.rates["late"] == {2: "lr0.001"}
    summary = summarize(study, {})
    values = {one["arm"]: one["differences"][0]["value"] for one in summary["compared"]}
    assert values == pytest.approx({"spark": 0.1, "late": 0.2, "spark, own rate": 0.15, "late, own rate": 0.25})
    other = plan_of(tmp_path, pretrained, grid=grid(learning_rates=(0.001,), runs=2))
    with pytest.raises(UserError, match=r"holds another comparison: options\.tune\.runs: 1 there, 2 here"):
        conducted(monkeypatch, tmp_path, other, Jobs())


def test_runs_take_the_pretrainings_of_an_arm_in_turn(tmp_path, monkeypatch, pretrained):
    names = ("one", "two", "three")
    arm = Arm("spark", tuple(pretrained / name for name in names))
    study, failed = conducted(monkeypatch, tmp_path, plan_of(tmp_path, pretrained, arms=[arm], runs=6), Jobs())
    digests = [read_initial_weights(pretrained / name, None, from_scratch=False).digest for name in names]
    starts = [yaml.safe_load((tmp_path / f"runs/spark/2-{n}/config.yaml").read_text())["start"] for n in range(6)]
    assert starts == [*digests, *digests]
    assert failed == {}
    assert read_recorded(tmp_path)["arms"] == {"scratch": "random", "spark": digests}
    (one,) = summarize(study, failed)["compared"]
    assert one["differences"][0]["pretrainings"] == 3
    text = (tmp_path / "summary.md").read_text()
    assert "spark at 2 labeled subjects: standard deviation of the gain 0.000 Dice between 3 pretrainings" in text
    # a later command names others: the pretrainings are recorded
    other = plan_of(tmp_path, pretrained, arms=[Arm("spark", arm.paths[:2])], runs=6)
    with pytest.raises(UserError, match=r"holds another comparison: arms\.spark: \["):
        conducted(monkeypatch, tmp_path, other, Jobs())
    earlier = plan_of(tmp_path, pretrained, arms=[Arm("late", (pretrained / "late",))], runs=6)
    study, _ = conducted(monkeypatch, tmp_path, earlier, Jobs())
    kept = next(run for run in study.earlier if run.arm.name == "spark" and run.number == 4)
    assert (kept.pretraining, kept.digest) == (1, digests[1])


def test_weights_of_the_last_or_of_the_best_step_choose(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"step": n, "validation_dice": value} for n, value in ((1, 0.4), (2, 0.7), (3, 0.6))]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for keep, expected in ((None, 0.7), ("best", 0.7), ("final", 0.6), ("average", 0.6)):
        optimizer = {} if keep is None else {"keep": keep}
        (folder / "config.yaml").write_text(yaml.safe_dump({"optimizer": optimizer}))
        assert tuning.validation_of(folder) == expected
    run = Run(Arm("spark"), 2, 0)
    assert not tuning.is_tried(run, tmp_path)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({}, r"tune\.learning_rates: the grid holds no learning rate\. Give tune\.learning_rates, tune\.encoder_rates"),
        ({"runs": 3}, r"tune\.learning_rates: the grid holds no learning rate"),
        ({"learning_rates": (0.01,)}, r"tune: the grid holds nothing but the recipe's own setting \(got \[0\.01\]"),
        ({"learning_rates": (0.1,), "runs": 6}, r"tune\.runs: there are 5 runs \(got 6; expected at most 5\)"),
        ({"learning_rates": (0.1, 0.0)}, r"tune\.learning_rates: must be numbers above 0 \(got \(0\.1, 0\.0\)\)"),
        ({"encoder_rates": (-1.0,)}, r"tune\.encoder_rates: .*numbers above 0"),
        ({"presets": ("sawtoth",)}, r"no configuration 'sawtoth' in optimizers"),
    ],
)
def test_a_grid_that_cannot_be_tried_is_refused(tune, message):
    with pytest.raises(UserError, match=message):
        tuning.grid_of(tuning.Tuning(**tune), FineTuning(learning_rate=0.01), 5)


def test_a_grid_is_the_product_of_its_lists_without_the_recipe():
    own = grid(learning_rates=(0.01, 0.001), encoder_rates=(1.0, 0.1), presets=("sawtooth",))
    assert list(own.settings) == [
        "sawtooth_lr0.01_encoder1", "sawtooth_lr0.01_encoder0.1", "sawtooth_lr0.001_encoder1",
        "sawtooth_lr0.001_encoder0.1",
    ]  # fmt: skip
    assert own.settings["sawtooth_lr0.001_encoder0.1"].optimizer["head_first"] == pytest.approx(0.1)
    assert list(grid(learning_rates=(0.01, 0.001), encoder_rates=(1.0, 0.1)).settings) == [
        "lr0.01_encoder0.1", "lr0.001_encoder1", "lr0.001_encoder0.1",
    ]  # fmt: skip


def test_a_rate_of_the_grid_takes_the_place_of_one_for_a_batch():
    optimizer = FineTuning(learning_rate_per=(1e-3, 256))
    own = tuning.grid_of(tuning.Tuning(learning_rates=(3e-3,), presets=("sawtooth",)), optimizer, 5)
    (setting,) = own.settings.values()
    assert (setting.optimizer["learning_rate"], setting.optimizer["learning_rate_per"]) == (3e-3, None)
    shares = tuning.grid_of(tuning.Tuning(encoder_rates=(0.1,)), optimizer, 5)
    assert shares.settings["encoder0.1"].optimizer["learning_rate_per"] == [1e-3, 256]
