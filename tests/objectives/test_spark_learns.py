"""What SparK learns in ten epochs of synthetic organs: the loss, and a linear probe against random weights."""

from __future__ import annotations

import numpy as np
import pytest
from objectives.organs import SIDE, organs, pretrain, probe

from medssl.encoders.resenc import ResEnc
from medssl.objectives.spark import SparK
from medssl.types import ViewSpec


def make() -> SparK:
    encoder = ResEnc(1, ndim=2, channels=(16, 32, 64), strides=((2, 2), (2, 2), (2, 2)), blocks=(1, 1, 1), norm="batch")
    return SparK(encoder, view=ViewSpec(size=(SIDE, SIDE)), decoder_width=64)


@pytest.fixture(scope="module")
def runs() -> list[dict[str, float]]:
    """Loss and probe before and after pretraining, for three seeds."""
    images, _ = organs(2000, seed=0)
    probed = organs(1600, seed=1)
    found = []
    for seed in range(3):
        random, _ = pretrain(make, seed, images, epochs=0)
        trained, terms = pretrain(make, seed, images, epochs=10)
        losses = [each["loss"] for each in terms]
        before, after = (probe(each.encoder, *probed, train=600) for each in (random, trained))
        found.append({"start": np.mean(losses[:3]), "end": np.mean(losses[-20:]), "before": before, "after": after})
        print(f"seed {seed}:", {name: round(float(value), 3) for name, value in found[-1].items()})
    return found


@pytest.mark.slow
def test_the_loss_falls(runs):
    assert all(0.9 < run["start"] < 1.2 for run in runs)
    assert all(run["end"] < 0.8 for run in runs)


@pytest.mark.slow
def test_the_probe_beats_random_weights(runs):
    assert np.mean([run["after"] - run["before"] for run in runs]) >= 3
