"""Draws: a row depends on (seed, sample, purpose) and on nothing else."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.ops.draws import Draws, draws, keyed_generator
from medssl.types import Step

SAMPLES = st.lists(st.integers(0, 2**62), min_size=1, max_size=6)


def everything(source: Draws) -> list[torch.Tensor]:
    """One call of each kind, in order."""
    return [
        source.uniform(2, low=-1.0, high=3.0),
        source.normal(3),
        source.integers(2, 9, 4),
        source.permutation(7),
        source.bernoulli(0.3, 5),
        torch.tensor([generator.integers(2**40) for generator in source.numpy()]),
        torch.stack([torch.randn(2, generator=generator) for generator in source.generators()]),
    ]


@settings(deadline=None, max_examples=40)
@given(SAMPLES, st.integers(-5, 2**40), st.text(max_size=5), st.randoms())
def test_a_row_depends_on_its_sample_alone(samples, seed, purpose, random):
    order = random.sample(range(len(samples)), len(samples))
    together = everything(Draws(seed, samples, purpose))
    shuffled = everything(Draws(seed, [samples[i] for i in order], purpose))
    alone = everything(Draws(seed, samples[-1:], purpose))
    for whole, mixed, single in zip(together, shuffled, alone, strict=True):
        assert torch.equal(whole[order], mixed)
        assert torch.equal(whole[-1:], single)


@pytest.mark.parametrize(
    "other", [(1, 5, "mask"), (0, 6, "mask"), (0, 5, "view"), (0, -5, "mask"), (-1, 5, "mask"), (5, 0, "mask")]
)
def test_every_part_of_the_key_counts(other):
    assert not np.array_equal(keyed_generator(0, 5, "mask").random(4), keyed_generator(*other).random(4))


def test_parts_of_the_key_do_not_run_into_each_other():
    assert keyed_generator(1, 11, "a").random() != keyed_generator(11, 1, "a").random()
    assert keyed_generator(1, 1, "1:a").random() != keyed_generator(1, 1, "a").random()


def test_neighboring_samples_are_uncorrelated():
    rows = Draws(0, range(400), "test").normal(100).double()
    correlation = torch.corrcoef(rows)[~torch.eye(400, dtype=torch.bool)]
    assert correlation.abs().max() < 6 / math.sqrt(100)
    assert abs(float(correlation.mean())) < 1e-3
    assert abs(float(rows.mean())) < 5 / math.sqrt(rows.numel())
    assert abs(float(rows.var()) - 1) < 0.05


def test_the_stream_is_the_same_on_every_machine():
    assert keyed_generator(3, 14, "spark.mask").integers(0, 1000, 5).tolist() == [707, 19, 625, 440, 606]


@settings(deadline=None, max_examples=30)
@given(SAMPLES, st.integers(-100, 100), st.integers(1, 50), st.floats(0, 1))
def test_ranges_and_types(samples, low, width, p):
    source = Draws(0, samples, "ranges")
    uniform = source.uniform(3, 2, low=low, high=low + width)
    assert uniform.shape == (len(samples), 3, 2)
    assert uniform.dtype == torch.float32
    assert ((uniform >= low) & (uniform <= low + width)).all()
    integers = source.integers(low, low + width, 20)
    assert integers.dtype == torch.int64
    assert ((integers >= low) & (integers < low + width)).all()
    assert torch.equal(source.permutation(width).sort().values, torch.arange(width).expand(len(samples), -1))
    coin = source.bernoulli(p, 4)
    assert coin.dtype == torch.bool
    assert p not in (0.0, 1.0) or bool((coin == (p == 1.0)).all())
    assert source.normal().shape == (len(samples),)


def test_a_stream_goes_on():
    source = Draws(0, [1, 2], "stream")
    first, second = source.uniform(4), source.uniform(4)
    assert not torch.equal(first, second)
    generators = [source.generators()[0].initial_seed(), source.generators()[0].initial_seed()]
    assert generators[0] != generators[1]


def test_draws_of_a_step():
    step = Step(index=3, total=10, seed=7, samples=(4, 5))
    assert torch.equal(draws(step, "mask").uniform(2), Draws(7, [4, 5], "mask").uniform(2))
    later = Step(index=4, total=10, seed=7, samples=(4, 5))
    assert torch.equal(draws(step, "mask").uniform(2), draws(later, "mask").uniform(2))
