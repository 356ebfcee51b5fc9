"""The behavioral check: matching improves on unseen nodes, and edges help to tell twins apart (slow)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medssl.encoders.base import Encoder
from medssl.objectives.graph_match import GraphMatch, Graphs, Matching
from medssl.types import Batch, Features, Origin, Step, View, ViewSpec

STEPS, GRAPHS, NODES, SIDE, SHARED = 200, 8, 16, 8, 16
TURN = np.linalg.qr(np.random.default_rng(5).standard_normal((SIDE**2, SIDE**2)))[0]


class Rows(Encoder):
    """Two layers on all 64 voxels of an image of 8 x 8: a map of one cell."""

    def __init__(self) -> None:
        super().__init__()
        self.ndims, self.in_channels, self.mask_modes = frozenset({2}), 1, frozenset()
        self.channels, self.strides, self.mask_cell = (64,), ((SIDE, SIDE),), (SIDE, SIDE)
        self.network = torch.nn.Sequential(torch.nn.Linear(SIDE**2, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))

    def forward(self, image, hidden=None, mode=None):
        x = self.network(image.flatten(1))
        return Features(maps=(x[:, :, None, None],), pooled=x)


def batch_of(generator: np.random.Generator, index: int, *, apart: float | None, nuisance: float) -> tuple[Batch, Step]:
    """Eight graphs of new nodes: 16 of 64 turned directions are the node's, the rest is each view's own.

    ``apart``: nodes come in twins whose own directions differ by so much only.
    """
    rows = GRAPHS * NODES
    node = generator.standard_normal((rows, SHARED))
    if apart is not None:
        node = np.repeat(node[::2], 2, 0) + apart * node
    views = []
    for _ in range(2):
        own = node + 0.1 * generator.standard_normal(node.shape)
        other = nuisance * generator.standard_normal((rows, SIDE**2 - SHARED))
        image = torch.from_numpy(np.concatenate([own, other], 1) @ TURN).float().view(rows, 1, SIDE, SIDE)
        affine, whole = torch.eye(3).expand(rows, -1, -1), torch.ones(rows, 1, SIDE, SIDE, dtype=torch.bool)
        size = torch.full((rows, 2), SIDE)
        present = torch.ones(rows, 1, dtype=torch.bool)
        views.append(View(image, affine, affine, torch.ones(rows, 2), size, whole, whole, present))
    samples = tuple(range(index * rows, (index + 1) * rows))
    names = tuple(map(str, samples))
    origin = Origin(names, names, samples, torch.full((rows, 2), 0.5), torch.full((rows,), 0.5))
    return Batch(tuple(views), origin), Step(index, STEPS, 0, samples)


def accuracy(objective: GraphMatch, seed: int, **arguments) -> dict[str, float]:
    """Shares of matched nodes of unseen graphs, with edges and (same network) without, with and without noise."""
    found, kept = {}, objective.matching
    for order in (2, 1):
        objective.matching = replace(kept, second_order=order == 2)
        generator = np.random.default_rng(1000 + seed)
        with torch.no_grad():
            terms = [objective(*batch_of(generator, STEPS + k, **arguments)).terms for k in range(4)]
        for name in ("matching_accuracy", "matching_accuracy_noisy"):
            found[f"{name} {order}"] = float(torch.stack([each[name] for each in terms]).mean())
    objective.matching = kept
    return found


def trained(
    seed: int, residual: bool = True, margin: float = 0.0, **arguments
) -> tuple[dict[str, float], dict[str, float]]:
    torch.manual_seed(seed)
    objective = GraphMatch(
        Rows(),
        view=ViewSpec((SIDE, SIDE)),
        projection=(64,),
        graphs=Graphs(residual=residual),
        matching=Matching(target="gold", margin=margin),
    )
    before, generator = accuracy(objective, seed, **arguments), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(objective.train().parameters(), lr=3e-3)
    for index in range(STEPS):
        loss = objective(*batch_of(generator, index, **arguments))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    after = accuracy(objective, seed, **arguments)
    for name in before:
        print(f"seed {seed}, {name}: {before[name]:.3f} -> {after[name]:.3f}")
    return before, after


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matching_is_learned(seed, margin):
    """Clean accuracy on unseen nodes rises from below 0.5 to above 0.9 within 200 steps."""
    before, after = trained(seed, margin=margin, apart=None, nuisance=2.0)
    assert before["matching_accuracy 2"] < 0.5
    assert after["matching_accuracy 2"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_edges_tell_twins_apart(seed):
    """Two nodes that hardly differ: the same network matches more of them with edges than without, under noise."""
    before, after = trained(seed, apart=0.3, nuisance=1.0)
    assert before["matching_accuracy 2"] < 0.5
    assert after["matching_accuracy_noisy 2"] > after["matching_accuracy_noisy 1"] + 0.1
    assert after["matching_accuracy 2"] > 0.8


@pytest.mark.slow
def test_message_passing_of_the_paper_does_not_start_from_random_weights():
    """Why message passing adds to a node rather than replaces it."""
    _, after = trained(0, residual=False, apart=None, nuisance=2.0)
    assert after["matching_accuracy 2"] < 0.3
