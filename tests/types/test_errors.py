"""What errors and notes say, and that they survive the way from another process."""

import pickle

import pytest

from medssl.types import Note, UserError


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "too few"),
        ({"key": "data.labels"}, "data.labels: too few"),
        ({"got": 0}, "too few (got 0)"),
        ({"got": "no"}, "too few (got 'no')"),
        ({"expected": "at least 2"}, "too few (expected at least 2)"),
        ({"hint": "Add scans."}, "too few. Add scans."),
        (
            {"key": "data.labels", "got": 1, "expected": "at least 2", "hint": "Add scans."},
            "data.labels: too few (got 1; expected at least 2). Add scans.",
        ),
    ],
)
def test_text_of_an_error_names_the_parts_that_are_given(parts, text):
    assert str(UserError("too few", **parts)) == text


def test_the_command_line_names_an_option_in_the_place_of_the_key():
    assert UserError("too few", key="data.labels", got=1).text("--data.labels") == "--data.labels: too few (got 1)"


def test_an_error_is_whole_behind_a_pickle():
    error = UserError("too few", key="data.labels", got=1, expected="at least 2", hint="Add scans.")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ValueError)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_a_changed_error_keeps_the_other_parts():
    error = UserError("too few", key="labels", got=1).changed(key="probe.subjects", hint="Raise it.")
    assert str(error) == "probe.subjects: too few (got 1). Raise it."


def test_a_note_reads_as_its_text():
    assert str(Note("leak", "scored scans were trained on")) == "scored scans were trained on"
