"""What DINO, iBOT, DINOv2, LeJEPA and I-JEPA learn in two epochs of synthetic slices, read by nearest neighbors."""

from __future__ import annotations

import pytest
from objectives.organs import neighbors, pretrain
from objectives.test_masked_distillation_learns import parts, shifted

from medssl.encoders.vit import ViT
from medssl.nn.prototype_head import Prototypes
from medssl.nn.teacher import Teaching
from medssl.objectives.base import Objective
from medssl.objectives.dino import DINO
from medssl.objectives.dinov2 import DINOv2
from medssl.objectives.ibot import IBOT
from medssl.objectives.ijepa import IJEPA
from medssl.objectives.lejepa import LeJEPA
from medssl.types import ViewSpec

SHORT = {
    "prototypes": Prototypes(128, 32, 128),
    "teaching": Teaching(momentum=(0.99, 1.0), temperature=(0.04, 0.04)),
}
KINDS = {
    DINO: SHORT, IBOT: SHORT, DINOv2: SHORT,
    LeJEPA: {"projection": (128, 128, 16), "slices": 128},
    IJEPA: {"predictor_width": 32, "predictor_depth": 1, "momentum": (0.99, 1.0)},
}  # fmt: skip


def make(kind: type[Objective]) -> Objective:
    return kind(ViT(patch=(4, 4), width=64, depth=3), view=ViewSpec(size=(32, 32)), **KINDS[kind])


def gain(kind: type[Objective], seed: int) -> tuple[float, float]:
    """Share of slices that 20 neighbors classify correctly, in percent, with random weights and after training."""
    images, _ = parts(2000, 0)
    probed = parts(1600, 1)
    scores = []
    for epochs in (0, 2):
        objective, _ = pretrain(lambda: make(kind), seed, images, epochs=epochs, change=shifted)
        scores.append(neighbors(objective.exported()["encoder"], *probed, train=600))
    print(f"{kind.__name__}, seed {seed}: {scores[0]:.1f} % with random weights, {scores[1]:.1f} % after 250 steps")
    return scores[0], scores[1]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [(DINO, 2), (IBOT, -1), (DINOv2, 2), (LeJEPA, 2), (IJEPA, 1)])
def test_neighbors_gain_over_random_weights(kind, least):
    """Seed 0: 90.5 % before; 94.9, 90.4, 95.0, 95.3 and 92.4 % after. iBOT with one head gains nothing so soon."""
    before, after = gain(kind, 0)
    assert after >= before + least
