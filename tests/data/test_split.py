"""Splits by subject: their shares, their steadiness, the leak guard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.data.split import overlap, parse_shares, split_of
from medssl.types import UserError

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def test_shares_are_reached_over_many_subjects():
    found = [split_of(f"{number:x}", SHARES) for number in range(20_000)]
    for name, share in SHARES.items():
        assert found.count(name) / len(found) == pytest.approx(share, abs=0.01)


@given(st.text(max_size=20), st.integers(0, 2**64))
def test_a_subject_stays_where_it_is(subject, seed):
    assert split_of(subject, SHARES, seed=seed) == split_of(subject, SHARES, seed=seed)


def test_a_larger_test_share_takes_only_from_the_other_side():
    subjects = [str(number) for number in range(2000)]
    small = {s for s in subjects if split_of(s, {"train": 0.9, "test": 0.1}) == "test"}
    large = {s for s in subjects if split_of(s, {"train": 0.7, "test": 0.3}) == "test"}
    assert small < large


def test_seeds_give_other_splits():
    assert [split_of(str(n), SHARES) for n in range(50)] != [split_of(str(n), SHARES, seed=1) for n in range(50)]


def test_an_empty_share_gets_nobody():
    assert {split_of(str(n), {"train": 1.0, "test": 0.0}) for n in range(500)} == {"train"}


def test_shares_are_read():
    assert parse_shares("train=0.8, val=0.1,test=0.1") == SHARES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train", "expected name=share"),
        ("train=x", "expected name=share"),
        ("train=1.5,test=-0.5", "share from 0 to 1"),
        ("train=nan", "expected name=share"),
        ("a=0.5,a=0.5", "expected name=share"),
        ("a=0.5,b=0.4", "add up to 0.9, expected 1"),
    ],
)
def test_wrong_shares_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_shares(text)


def test_the_leak_guard_names_who_is_on_both_sides():
    assert overlap(["b", "a", "c"], ["c", "d", "b"]) == ("b", "c")
    assert overlap(["a"], ["b"]) == ()
