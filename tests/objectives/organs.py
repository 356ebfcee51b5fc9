"""Synthetic organs for the behavioral checks: images, pretraining, a linear probe, neighbors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from objectives.small import plain_batch

from medssl.objectives.base import Objective
from medssl.ops.schedules import linear_warmup_cosine
from medssl.types import Batch, Step

SIDE, CROP, CLASSES = 64, 48, 6


def organs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bodies with one organ each: 3 outlines x 2 textures; place, size, brightness, slope and noise are random."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    images, labels = [], rng.integers(CLASSES, size=count)
    for label in labels:
        angle = rng.uniform(0, np.pi)
        y, x = rows - rng.uniform(-0.15, 0.15), columns - rng.uniform(-0.15, 0.15)
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        size = rng.uniform(0.14, 0.2)
        radius = np.hypot(u, v)
        outline = [
            np.hypot(u / 1.6, v * 1.6) < size,
            (radius < size * 1.2) & (radius > size * 0.6),
            np.maximum(np.abs(u), np.abs(v)) < size * 0.9,
        ][label % 3]
        phase = rng.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * (9 if label < 3 else 16) * u + phase)
        body = (np.hypot(rows * 1.1, columns) < 0.46) * rng.uniform(0.5, 1)
        slope = rng.uniform(-0.5, 0.5) * rows + rng.uniform(-0.5, 0.5) * columns
        image = body + slope + outline * (rng.uniform(0.3, 0.8) + 0.3 * wave) + 0.1 * rng.normal(size=rows.shape)
        images.append((image - image.mean()) / image.std())
    return torch.from_numpy(np.stack(images)[:, None]).float(), torch.from_numpy(labels)


def probe(encoder: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, train: int) -> float:
    """Accuracy (percent) of a ridge classifier on the standardized pooled features of the frozen encoder."""
    encoder.eval()
    with torch.no_grad():
        features = torch.cat([encoder(part).pooled for part in images.split(200)]).double()
    features = (features - features[:train].mean(0)) / features[:train].std(0).clamp(min=1e-9)
    features = torch.cat((features, torch.ones(len(features), 1)), 1)
    targets = torch.nn.functional.one_hot(labels, CLASSES).double()
    normal = features[:train].T @ features[:train] + 1.0 * torch.eye(features.shape[1])
    weights = torch.linalg.solve(normal, features[:train].T @ targets[:train])
    return 100 * float(((features[train:] @ weights).argmax(1) == labels[train:]).double().mean())


def neighbors(encoder: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, train: int) -> float:
    """Accuracy (percent) of the majority of the 20 nearest images (cosine of standardized pooled features)."""
    encoder.eval()
    with torch.no_grad():
        features = torch.cat([encoder(part).pooled for part in images.split(200)]).double()
    features = (features - features[:train].mean(0)) / features[:train].std(0).clamp(min=1e-9)
    features = torch.nn.functional.normalize(features, dim=1)
    nearest = (features[train:] @ features[:train].T).topk(20).indices
    votes = torch.nn.functional.one_hot(labels[:train][nearest], CLASSES).sum(1)
    return 100 * float((votes.argmax(1) == labels[train:]).double().mean())


def crops(images: torch.Tensor) -> torch.Tensor:
    """A random crop of each image with random brightness, contrast and noise."""
    corners = torch.randint(SIDE - CROP + 1, (len(images), 2)).tolist()
    cut = torch.stack([x[:, a : a + CROP, b : b + CROP] for x, (a, b) in zip(images, corners, strict=True)])
    contrast, brightness = torch.rand(2, len(images), 1, 1, 1)
    return cut * (0.7 + 0.6 * contrast) + brightness - 0.5 + 0.1 * torch.randn(cut.shape)


Change = Callable[[torch.Tensor], torch.Tensor]


def batch_of(images: torch.Tensor, samples: tuple[int, ...], *, pairs: bool, change: Change = crops) -> Batch:
    """The images as they are, or two different crops of each."""
    if not pairs:
        return plain_batch(images, samples)
    one, other = (plain_batch(change(images), samples) for _ in range(2))
    return Batch((*one.views, *other.views), one.origin)


def pretrain(
    make: Callable[[], Objective],
    seed: int,
    images: torch.Tensor,
    *,
    epochs: int,
    batch: int = 16,
    change: Change = crops,
) -> tuple[Objective, list[dict[str, float]]]:
    """Trains what ``make`` builds, with as many views as it needs; returns it with the terms of each step."""
    torch.manual_seed(seed)
    objective = make().train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3, weight_decay=0.04)
    total = epochs * len(images) // batch
    found: list[dict[str, float]] = []
    for epoch in range(epochs):
        for part in torch.randperm(len(images)).split(batch):
            samples = tuple(int(row) + epoch * len(images) for row in part)
            optimizer.param_groups[0]["lr"] = linear_warmup_cosine(len(found) / total, 2e-3, warmup=0.1)
            views = batch_of(images[part], samples, pairs=len(objective.needs.views) > 1, change=change)
            step = Step(len(found), total, seed, samples)
            loss = objective(views, step)
            optimizer.zero_grad()
            loss.total.backward()
            objective.before_step(step)
            optimizer.step()
            objective.after_step(step)
            found.append({name: term.item() for name, term in loss.terms.items()})
    return objective, found


@dataclass(frozen=True)
class Learned:
    """Loss at the start, at the end, and that as a share of what knowing nothing costs; scores before and after."""

    start: float
    end: float
    share: float
    probe: tuple[float, float]
    neighbors: tuple[float, float]


def learned(
    make: Callable[[], Objective],
    seed: int,
    *,
    epochs: int,
    batch: int = 16,
    data: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]] = organs,
    change: Change = crops,
) -> Learned:
    """Trains on 2000 images; 600 others fit the probe or are the neighbors of 1000 more."""
    images, _ = data(2000, 0)
    probed = data(1600, 1)
    random, _ = pretrain(make, seed, images, epochs=0)
    trained, terms = pretrain(make, seed, images, epochs=epochs, batch=batch, change=change)
    start, last = (np.mean([each["loss"] for each in part]) for part in (terms[:3], terms[-20:]))
    chance = np.mean([each["chance"] for each in terms[-20:]])
    scores = [
        tuple(round(of(each.encoder, *probed, train=600), 1) for each in (random, trained)) for of in (probe, neighbors)
    ]
    found = Learned(*(round(float(value), 3) for value in (start, last, last / chance)), *scores)
    print(f"seed {seed}: {found}")
    return found
