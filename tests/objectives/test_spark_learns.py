"""What SparK learns in ten epochs of synthetic organs: the loss, and a linear probe against random weights."""

from __future__ import annotations

import numpy as np
import pytest
from objectives.organs import SIDE, Learned, learned

from medssl.encoders.resenc import ResEnc
from medssl.objectives.spark import SparK
from medssl.types import ViewSpec


def make() -> SparK:
    encoder = ResEnc(1, ndim=2, channels=(16, 32, 64), strides=((2, 2), (2, 2), (2, 2)), blocks=(1, 1, 1), norm="batch")
    return SparK(encoder, view=ViewSpec(size=(SIDE, SIDE)), decoder_width=64)


@pytest.fixture(scope="module")
def runs() -> list[Learned]:
    return [learned(make, seed, epochs=10) for seed in range(3)]


@pytest.mark.slow
def test_the_loss_falls(runs):
    assert all(0.9 < run.start < 1.2 for run in runs)
    assert all(run.end < 0.8 for run in runs)


@pytest.mark.slow
def test_the_probe_beats_random_weights(runs):
    assert np.mean([run.probe[1] - run.probe[0] for run in runs]) >= 3
