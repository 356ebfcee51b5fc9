"""Order: every pass visits everything once; no subject twice in a batch; a function of (seed, draw) alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.loading.order import Order, order_of_subjects, repeated, scan_at
from medssl.types import UserError


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**63), population=st.integers(1, 300), round_number=st.integers(0, 10**6))
def test_every_pass_visits_each_scan_once(seed, population, round_number):
    first = round_number * population
    seen = [scan_at(seed, first + i, population) for i in range(population)]
    assert sorted(seen) == list(range(population))


def test_passes_and_seeds_differ():
    orders = {tuple(scan_at(seed, p * 50 + i, 50) for i in range(50)) for seed in range(5) for p in range(5)}
    assert len(orders) == 25


def test_places_are_uniform():
    """Each scan comes first about equally often, and so does each pair of neighbors."""
    firsts = Counter(scan_at(7, p * 10, 10) for p in range(5000))
    assert max(abs(count - 500) for count in firsts.values()) < 6 * np.sqrt(500)
    pairs = Counter((scan_at(7, p * 6 + 2, 6), scan_at(7, p * 6 + 3, 6)) for p in range(6000))
    assert len(pairs) == 30
    assert max(abs(count - 200) for count in pairs.values()) < 6 * np.sqrt(200)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    per_batch=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_no_subject_comes_twice_in_a_batch(counts, per_batch, seed):
    subjects = np.repeat(np.arange(len(counts)), counts).astype(np.int32) * 3 + 1
    scans = np.arange(len(subjects)) + 100
    if per_batch > len(counts):
        with pytest.raises(UserError, match=f"only {len(counts)} subjects"):
            Order(seed, scans, subjects=subjects, per_batch=per_batch)
        return
    order = Order(seed, scans, subjects=subjects, per_batch=per_batch)
    draws = [order(i) for i in range(3 * order.batches * per_batch)]
    for first in range(0, len(draws), per_batch):
        who = subjects[np.array(draws[first : first + per_batch]) - 100]
        assert len(set(who)) == per_batch
    for number in range(3):  # within a pass no scan comes twice
        one = draws[number * order.batches * per_batch : (number + 1) * order.batches * per_batch]
        assert len(set(one)) == len(one)
    if max(counts) * per_batch <= sum(counts):  # nobody dominates: all but an unfinished batch are visited
        assert order.batches == sum(counts) // per_batch
    backwards = Order(seed, scans, subjects=subjects, per_batch=per_batch)
    assert [backwards(i) for i in reversed(range(len(draws)))] == draws[::-1]


def test_scans_left_out_of_one_pass_come_in_another():
    subjects = np.repeat(np.arange(5), 3).astype(np.int32)
    order = Order(0, np.arange(15), subjects=subjects, per_batch=4)
    seen = Counter(order(i) for i in range(12 * 100))
    assert set(seen) == set(range(15))
    assert max(seen.values()) < 2 * min(seen.values())


def test_no_scans_is_an_error():
    with pytest.raises(UserError, match="no scans to draw from"):
        Order(0, np.arange(0))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    per_batch=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_where_possible_subjects_repeat_as_little_as_they_can(counts, per_batch, seed):
    subjects = np.repeat(np.arange(len(counts)), counts).astype(np.int32) * 3 + 1
    scans = np.arange(len(subjects)) + 100

    def order():
        return order_of_subjects(seed, scans, subjects=subjects, per_batch=per_batch, where_possible=True)

    drawn = [order()(i) for i in range(6 * per_batch)]  # of a new order each: a function of seed and number alone
    forward, backward = order(), order()
    assert [forward(i) for i in range(6 * per_batch)] == drawn
    assert [backward(i) for i in reversed(range(6 * per_batch))] == drawn[::-1]
    for first in range(0, len(drawn), per_batch):
        times = Counter(subjects[np.array(drawn[first : first + per_batch]) - 100].tolist())
        each = [times[subject] for subject in set(subjects.tolist())]
        assert min(each) >= per_batch // len(counts)
        assert max(each) <= -(-per_batch // len(counts))
    if per_batch <= len(counts):
        strict = Order(seed, scans, subjects=subjects, per_batch=per_batch)
        assert [strict(i) for i in range(6 * per_batch)] == drawn
    assert bool(repeated(len(counts), per_batch)) == (per_batch > len(counts))


def test_where_possible_every_scan_comes():
    subjects = np.repeat(np.arange(3), (1, 4, 7)).astype(np.int32)
    order = order_of_subjects(1, np.arange(12), subjects=subjects, per_batch=8, where_possible=True)
    seen = Counter(order(i) for i in range(8 * 300))
    assert set(seen) == set(range(12))
    for subject, count in enumerate((1, 4, 7)):  # the scans of a subject come equally often
        times = [seen[scan] for scan in np.flatnonzero(subjects == subject)]
        assert max(times) < 1.4 * min(times)
        assert 2 * 300 <= sum(times) <= 3 * 300  # of 8 scans, each subject has 2 or 3
        assert len(times) == count


def test_what_is_said_of_subjects_that_repeat():
    assert repeated(40, 40) == ""
    assert repeated(40, 60).startswith("a batch takes 60 scans, and there are 40 subjects: 20 of 40 subjects repeat")
    assert "all 4 subjects repeat in every batch (6 scans of each)" in repeated(4, 24)
    assert "all 5 subjects repeat in every batch (4 or 5 scans of each)" in repeated(5, 24)
