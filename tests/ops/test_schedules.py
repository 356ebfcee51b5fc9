"""Schedules: end points, shape, clamping."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.ops.schedules import constant, cosine, linear, linear_warmup_cosine

PROGRESS = st.floats(0, 1)
VALUE = st.floats(-10, 10)


@given(VALUE, VALUE)
def test_end_points_are_exact(start, end):
    for schedule in (linear, cosine):
        assert schedule(0.0, start, end) == start
        assert schedule(1.0, start, end) == end
        assert schedule(-0.5, start, end) == start
        assert schedule(1.5, start, end) == end


@given(PROGRESS, VALUE, VALUE)
def test_values_against_another_formula(progress, start, end):
    assert linear(progress, start, end) == pytest.approx(start + progress * (end - start), abs=1e-9)
    half = end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))
    assert cosine(progress, start, end) == pytest.approx(half, abs=1e-9)
    assert constant(progress, start) == start


@given(st.floats(0.01, 0.99), PROGRESS, PROGRESS)
def test_warmup_rises_then_the_cosine_falls(warmup, a, b):
    a, b = sorted((a, b))
    low, high = (linear_warmup_cosine(p, 1.0, warmup=warmup, start=0.1, end=0.2) for p in (a, b))
    if b <= warmup:
        assert low <= high + 1e-12
    if a >= warmup:
        assert low >= high - 1e-12


def test_warmup_is_continuous_and_reaches_its_peak():
    values = [linear_warmup_cosine(p, 2.0, warmup=0.25, start=0.5, end=0.1) for p in (0.0, 0.25 - 1e-9, 0.25, 1.0)]
    assert values == pytest.approx([0.5, 2.0, 2.0, 0.1])
    assert linear_warmup_cosine(0.0, 2.0) == 2.0
    assert linear_warmup_cosine(1.0, 2.0, warmup=1.0) == 2.0


@pytest.mark.parametrize("warmup", [-0.1, 1.1, 5])
def test_warmup_must_be_a_share(warmup):
    with pytest.raises(ValueError, match=f"share of the training between 0 and 1, got {warmup}"):
        linear_warmup_cosine(0.5, 1.0, warmup=warmup)
