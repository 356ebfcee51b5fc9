from __future__ import annotations

import dataclasses

import pytest

from medssl.training.events import Listener, Measures, StepRecord, Timing


def record() -> StepRecord:
    return StepRecord(4, 2.0, 2.5, {"hidden": 0.6}, (0.1, 0.05), 3.0, Timing(2.0, 0.5, 8))


def test_the_row_of_a_step_holds_its_numbers_and_then_the_measures():
    row = record().with_measures(Measures({"alarms": 0.0})).with_measures(None).row()
    assert list(row.items()) == [
        ("step", 4), ("loss", 2.0), ("loss_smoothed", 2.5), ("hidden", 0.6), ("learning_rate", 0.1),
        ("weight_decay", 0.05), ("gradient_norm", 3.0), ("seconds", 2.0), ("waiting", 0.25),
        ("samples_per_second", 4.0), ("alarms", 0.0),
    ]  # fmt: skip


def test_the_score_of_a_step_is_that_of_the_last_listener_that_judges():
    judged = record().with_measures(Measures({"dice": 0.7}, score=0.3)).with_measures(Measures({"alarms": 1.0}))
    assert judged.measures == Measures({"dice": 0.7, "alarms": 1.0}, score=0.3)
    assert judged.with_measures(Measures(score=0.2)).measures.score == 0.2


def test_listeners_cannot_change_a_record():
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'loss'"):
        record().loss = 0.0
    assert (Listener().state_dict(), Listener().summary(3), Listener().name) == ({}, "", "")
