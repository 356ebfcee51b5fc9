"""The Cox head: its likelihood against single terms, ties, what is left out, two processes; and labels of survival."""

from __future__ import annotations

import math
from types import SimpleNamespace

import ddp
import numpy as np
import pytest
import torch

from medssl.data.labels.kinds.base import kind_of, kind_of_task
from medssl.data.labels.kinds.survival import survival_of, survival_schema
from medssl.heads.survival import Cox, negative_partial_likelihood
from medssl.metrics.survival import SurvivalRow, c_index, read_survival, summarize_survival, write_survival
from medssl.types import LabelSchema, UserError

SCHEMA = LabelSchema("months,death", ((0, "risk"),), kind="survival")
TIME = torch.tensor([5.0, 2.0, 2.0, 8.0, 2.0, 1.0])
EVENT = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])


def cox():
    torch.manual_seed(0)
    return Cox(SimpleNamespace(channels=(4,)), SCHEMA)


def test_the_likelihood_is_that_of_its_single_terms():
    risk = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 0.0
    for i in range(6):
        if EVENT[i]:
            at_risk = [math.exp(risk[j]) for j in range(6) if TIME[j] >= TIME[i]]
            expected -= float(risk[i]) - math.log(sum(at_risk))
    total = negative_partial_likelihood(risk, TIME.double(), EVENT.double())
    assert float(total) == pytest.approx(expected, rel=1e-12)
    shifted = negative_partial_likelihood(risk + 100, TIME.double(), EVENT.double())
    assert float(shifted) == pytest.approx(expected, rel=1e-9)
    loss = cox().loss(risk[:, None].float(), torch.stack((TIME, EVENT), 1))
    assert float(loss) == pytest.approx(expected / 3, rel=1e-5)


def test_scans_without_a_label_have_no_part():
    risk = torch.randn(6, 1, requires_grad=True)
    target = torch.stack((TIME, EVENT), 1)
    target[3] = math.nan
    loss = cox().loss(risk, target)
    loss.backward()
    assert float(risk.grad[3].abs().sum()) == 0
    kept = [0, 1, 2, 4, 5]
    torch.testing.assert_close(loss.detach(), cox().loss(risk.detach()[kept], target[kept]))
    none = cox().loss(risk, torch.tensor([[3.0, 0.0]] * 6))
    assert float(none.detach()) == 0
    none.backward()


def of_process():
    from torch import distributed

    rank = distributed.get_rank()
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    rows = slice(0, 3) if rank == 0 else slice(3, 6)
    head = cox()
    loss = head.loss(head.linear(features[rows]), torch.stack((TIME, EVENT), 1)[rows])
    loss.backward()
    distributed.all_reduce(head.linear.weight.grad)
    return float(loss.detach()), (head.linear.weight.grad / 2).numpy()


@pytest.mark.ddp
def test_two_processes_equal_one():
    answers = ddp.run_two(of_process)
    features, head = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), cox()
    loss = head.loss(head.linear(features), torch.stack((TIME, EVENT), 1))
    loss.backward()
    for value, gradient in answers:
        assert value == pytest.approx(float(loss.detach()), rel=1e-6)
        np.testing.assert_allclose(gradient, head.linear.weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("time", "event", "expected"),
    [
        ("14.5", "1", (14.5, 1.0)),
        ("0", "alive", (0.0, 0.0)),
        ("3", "Dead", (3.0, 1.0)),
        ("3", "0.0", (3.0, 0.0)),
        ("", "1", None),
        ("3", "unknown", None),
    ],
)
def test_cells_are_a_time_and_an_event(time, event, expected):
    found = survival_of({"months": time, "death": event}, SCHEMA)
    assert found == expected or (expected is None and all(map(math.isnan, found)))


@pytest.mark.parametrize(
    ("time", "event", "message"),
    [
        ("-3", "1", r"months has the value '-3' \(expected a time of 0 or more"),
        ("-1", "1", r"months has the value '-1'"),
        ("soon", "1", r"months has the value 'soon'"),
        ("inf", "1", r"months has the value 'inf'"),
        ("3", "maybe", r"death has the value 'maybe' \(expected 1 where the event was seen"),
    ],
)
def test_cells_that_cannot_be_are_refused(time, event, message):
    with pytest.raises(UserError, match=message):
        survival_of({"months": time, "death": event}, SCHEMA)


def test_targets_name_two_columns_with_events():
    rows = [{"months": "3", "death": "1"}, {"months": "9", "death": "0"}]
    schema = survival_schema(rows, "months, death", "here")
    assert schema == SCHEMA
    kind = kind_of(schema)
    assert kind is kind_of_task("survival")
    assert kind.targets(rows, schema).tolist() == [[3.0, 1.0], [9.0, 0.0]]
    assert kind.groups(rows, schema) == [1, 0]
    with pytest.raises(UserError, match=r"the head is for survival \(got 'months'; expected TIME,EVENT"):
        kind.refuse_target("months")
    censored = [{"months": "3", "death": "0"}] * 2
    with pytest.raises(UserError, match="0 of 2 scans have an event, and no two can be put in order"):
        survival_schema(censored, "months,death", "here")
    with pytest.raises(UserError, match="1 of 1 labeled scans have an event, and no two"):
        kind.refuse_alike(rows[:1], schema)
    with pytest.raises(UserError, match="no scan of here has a value 'deaths'"):
        survival_schema(rows, "months,deaths", "here")


def test_the_c_index_counts_pairs():
    generator = np.random.default_rng(0)
    risk, time = generator.integers(0, 5, 40).astype(float), generator.integers(1, 12, 40).astype(float)
    event = generator.integers(0, 2, 40)
    good = total = 0.0
    for i in range(40):
        for j in range(40):
            later = time[j] > time[i] or (time[j] == time[i] and not event[j])
            if i != j and event[i] and later:
                total += 1
                good += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    assert c_index(risk, time, event) == pytest.approx(good / total)
    assert c_index(risk, time, np.zeros(40)) is None
    assert c_index(-time, time, np.ones(40)) == 1.0


def test_rows_come_back_and_are_summed_up_with_an_interval(tmp_path):
    generator = np.random.default_rng(0)
    times = generator.uniform(0, 50, 30)
    rows = [SurvivalRow(f"s{n}", f"p{n // 2}", float(t), n % 3 > 0, float(-t)) for n, t in enumerate(times)]
    rows = [SurvivalRow(r.scan_id, r.subject_id, r.time, int(r.event), r.risk) for r in rows]
    write_survival(tmp_path / "cases.csv", rows)
    assert read_survival(tmp_path / "cases.csv") == rows
    summary = summarize_survival(rows, "months,death")
    entry = summary["metrics"]["c_index"]
    assert (entry["value"], entry["low"], entry["subjects"]) == (1.0, 1.0, 15)
    assert summary["counts"] == {"scans": {"with event": 20, "censored": 10}}
    with pytest.raises(UserError, match=r"1 of 1 scans have risks that are not finite \(s0, ...\)"):
        summarize_survival([SurvivalRow("s0", "p0", 1.0, 1, math.nan)], "months,death")
