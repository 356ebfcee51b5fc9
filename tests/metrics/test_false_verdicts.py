"""The study of false verdicts: the deviations of a table, what gives no verdict, and looking again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

STUDY = Path(__file__).parents[2] / "studies/false_verdicts.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("false_verdicts", STUDY)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_deviations_of_a_comparison_are_found_again(study, tmp_path, capsys):
    generator, drawn = np.random.default_rng(0), study.Parts(2, 0.04, 0.03, 0.02)
    table = drawn.draw(generator, 0.1, 400, 300)
    found = study.components(2, table)
    assert (found.run, found.subject, found.rest) == pytest.approx((0.04, 0.03, 0.02), rel=0.1)
    alone = study.components(2, np.arange(6.0)[:, None] + np.zeros((6, 4)))  # variance of the runs: 3.5
    assert (alone.run, alone.subject, alone.rest) == pytest.approx((3.5**0.5, 0, 0), abs=1e-9)
    rows = ["arm,labels,run,subject_id,score"]
    for arm, scores in (("spark", table[:6, :5] + 0.5), ("scratch", np.full((6, 5), 0.5))):
        rows += [f"{arm},2,{run},s{n},{scores[run, n]}" for run in range(6) for n in range(5)]
    cases = tmp_path / "cases.csv"
    cases.write_text("\n".join([*rows, "spark,2,6,s0,0.9", "spark,2,0,s7,", "scratch,2,0,s7,0.3"]) + "\n")
    assert study.read_differences(cases, "spark", "scratch")[2] == pytest.approx(table[:6, :5])
    study.main(["--from", str(cases), "--tables", "1", "--effects", "0"])
    said = capsys.readouterr().out
    assert "1 tables, 6 runs, 5 subjects" in said
    assert f"with 2 labeled subjects: runs {study.components(2, table[:6, :5]).run:.4f}" in said


@pytest.mark.parametrize("words", [["--subjects", "2"], ["--runs", "3"], ["--looks", "3", "5"]])
def test_what_gives_no_verdict_is_refused(study, capsys, words):
    with pytest.raises(SystemExit):
        study.main(words)
    assert "subjects give no verdict: it takes 5 and 3" in capsys.readouterr().err


def test_who_looks_once_finds_what_the_comparison_finds_and_who_looks_twice_no_less(study, capsys):
    more = ["--tables", "6", "--effects", "0.02", "--subjects", "12"]
    shares = []
    for words in ([], ["--looks", "5"], ["--looks", "5", "8"]):
        study.main([*words, *more])
        shares.append([float(cell.strip(" %")) for cell in capsys.readouterr().out.splitlines()[-1].split("|")[2:-1]])
    once, looked, twice = shares
    assert looked == once[:1]
    assert twice[0] <= twice[1]
    assert 0 < looked[0] < 100


def test_runs_of_several_pretrainings_give_fewer_false_verdicts_than_runs_taken_as_independent(study, capsys):
    more = ["--tables", "25", "--effects", "0", "--runs", "6", "--labels", "2", "--run", "0.01", "--subjects", "12"]
    shares = []
    for words in ([], ["--as_one"]):
        study.main([*more, "--pretrainings", "3", "--between", "0.1", *words])
        shares.append(float(capsys.readouterr().out.splitlines()[-1].split("|")[2].strip(" %")))
    assert shares[0] <= 12
    assert shares[1] >= 24
