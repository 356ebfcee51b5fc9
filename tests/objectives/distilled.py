"""Small objectives with a momentum teacher for the tests, and cross-entropies in Python floats."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objectives.small import LOCAL, SIZES, randomize, vit

from medssl.nn.prototype_head import Prototypes
from medssl.objectives.contract import example_batch
from medssl.objectives.dino import DINO
from medssl.objectives.dinov2 import DINOv2
from medssl.objectives.ibot import IBOT
from medssl.types import ViewSpec

K = 6
KINDS = pytest.mark.parametrize("kind", [DINO, IBOT, DINOv2])
MASKED = pytest.mark.parametrize("kind", [IBOT, DINOv2])


def make(kind, ndim=2, **arguments):
    """Small, with weights away from their start and a teacher that is another network."""
    torch.manual_seed(0)
    network = arguments.pop("encoder", None) or vit(ndim, pool="class")
    arguments = {"prototypes": Prototypes(K, 8, 16)} | arguments
    objective = kind(
        network, view=ViewSpec(SIZES[ndim]), local_view=ViewSpec(LOCAL[ndim]), local_views=2, **arguments
    ).train()
    randomize(objective.heads)
    randomize(objective.teacher)
    return objective


def run(objective, scans=4, index=0, total=100):
    batch, step = example_batch(objective.needs, 1, scans=scans)
    return objective(batch, replace(step, index=index, total=total))


def log_softmax(scores, temperature):
    total = math.log(sum(math.exp(float(s) / temperature) for s in scores))
    return [float(s) / temperature - total for s in scores]


def entropy(target, scores):
    """Cross-entropy of a row, in Python floats, with the temperatures of teacher and student at the first step."""
    goal = [math.exp(log) for log in log_softmax(target, 0.04)]
    return -sum(q * log for q, log in zip(goal, log_softmax(scores, 0.1), strict=True))
