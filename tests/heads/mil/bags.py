"""Heads for bags, and bags with planted witnesses, for tests."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from medssl.heads.mil.abmil import ABMIL
from medssl.heads.mil.clam import CLAM
from medssl.heads.mil.ins import INS
from medssl.heads.mil.max import MaxPool
from medssl.heads.mil.mean import MeanPool
from medssl.heads.mil.mhim import MHIM
from medssl.heads.mil.transmil import TransMIL
from medssl.types import BagBatch, LabelSchema, Origin, Step

SCHEMA = LabelSchema("tumor", ((0, "no"), (1, "yes")))
HEADS = {
    "mean": (MeanPool, {"width": 16}),
    "max": (MaxPool, {"width": 16}),
    "abmil": (ABMIL, {"width": 16, "hidden": 8}),
    "clam": (CLAM, {}),
    "clam_classes": (CLAM, {"branches": "per_class", "subtyping": True}),
    "transmil": (TransMIL, {"width": 16, "dropout": 0.0}),
    "transmil_landmarks": (TransMIL, {"width": 16, "landmarks": 4, "exact": 3, "dropout": 0.0}),
    "mhim": (MHIM, {"warmup": 0.0}),
    "mhim_merged": (MHIM, {"warmup": 0.0, "hard": 0.1, "kept": 0.5, "merged": 3}),
    "ins": (INS, {"tiles": 4}),
}


def head(name, features=12, schema=SCHEMA, **changes):
    torch.manual_seed(0)
    made, arguments = HEADS[name]
    return made(SimpleNamespace(channels=(features,)), schema, **arguments | changes)


def step(bags, index=5, total=10):
    return Step(index=index, total=total, seed=0, samples=bags.origin.samples)


def origin(count):
    names = tuple(f"bag{number}" for number in range(count))
    return Origin(names, names, tuple(range(count)), torch.zeros(count, 1), torch.zeros(count))


def bags(sizes=(7, 1, 12), features=12, dtype=torch.float32, seed=0, pad=0):
    """Bags of these sizes with tiles on a grid with gaps; padding holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(sizes) + pad
    values = torch.full((len(sizes), longest, features), torch.nan, dtype=dtype)
    coords = torch.full((len(sizes), longest, 2), -7)
    mask = torch.zeros(len(sizes), longest, dtype=torch.bool)
    for row, size in enumerate(sizes):
        cells = torch.randperm(4 * size, generator=generator)[:size]
        side = max(1, int((4 * size) ** 0.5))
        values[row, :size] = torch.randn(size, features, generator=generator).to(dtype)
        coords[row, :size] = torch.stack((cells % side, cells // side), 1) * 256 + 100
        mask[row, :size] = True
    return BagBatch(values, mask, coords, origin(len(sizes)))


def planted(count, seed, *, tiles=(150, 251), features=32, witnesses=(2, 4), shift=2.5):
    """Bags of which every other one holds some tiles that are shifted in 4 features; also which tiles those are."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(*tiles, count)
    values = np.zeros((count, sizes.max(), features), np.float32)
    truth, mask = np.zeros((count, sizes.max()), bool), np.zeros((count, sizes.max()), bool)
    for row, size in enumerate(sizes):
        values[row, :size], mask[row, :size] = generator.normal(size=(size, features)), True
        if row % 2:
            chosen = generator.choice(size, generator.integers(*witnesses), replace=False)
            values[row, chosen, :4] += shift
            truth[row, chosen] = True
    places = np.stack(np.meshgrid(np.arange(16), np.arange(16)), -1).reshape(-1, 2)[: sizes.max()]
    coords = np.broadcast_to(places, (count, *places.shape))
    tensors = torch.from_numpy(values), torch.from_numpy(mask), torch.from_numpy(coords.copy())
    return BagBatch(*tensors, origin(count)), torch.arange(count) % 2, torch.from_numpy(truth)


def rows(batch, chosen):
    """Some bags of a batch."""
    names = tuple(f"bag{number}" for number in chosen)
    of = Origin(names, names, tuple(map(int, chosen)), torch.zeros(len(chosen), 1), torch.zeros(len(chosen)))
    return BagBatch(batch.features[chosen], batch.mask[chosen], batch.coords[chosen], of)


def trained(head, batch, target, *, epochs=12, rate=2e-3, size=8, seed=0):
    """Trains a head and returns it in evaluation mode."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], rate)
    steps = epochs * (len(target) // size)
    for number in range(steps):
        if number % (len(target) // size) == 0:
            order = torch.randperm(len(target))
        chosen = order[(number % (len(target) // size)) * size :][:size]
        part = rows(batch, chosen.tolist())
        now = Step(index=number, total=steps, seed=seed, samples=tuple(number * size + k for k in range(size)))
        loss, _ = head.learn(part, target[chosen], now, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        head.after_step(now)
    return head.eval()


def area(scores, positive):
    """Area under the ROC curve, by counting pairs."""
    high, low = scores[positive][:, None], scores[~positive][None]
    return float(((high > low).float() + 0.5 * (high == low).float()).mean())
