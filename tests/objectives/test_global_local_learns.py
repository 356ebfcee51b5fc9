"""The behavioral check: after some steps the embedding says from which part of a volume a slice is (slow)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medssl.encoders.resenc import ResEnc
from medssl.objectives.global_local import Cues, GlobalContrast
from medssl.types import Batch, Intensity, Origin, Step, View, ViewSpec

VOLUMES, DEPTH, SIDE, PARTS = 16, 24, 48, 4
STEPS = 300


def volume(seed: int) -> np.ndarray:
    """An ellipsoid with a second one inside that is off its axis; shifted in plane, with noise."""
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(np.linspace(-1, 1, DEPTH), *[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    shift, size = generator.uniform(-0.25, 0.25, 2), generator.uniform(0.9, 1.1)
    outer = (z / 1.2) ** 2 + ((y - shift[0]) / 0.6) ** 2 + ((x - shift[1]) / 0.45) ** 2 < size
    inner = ((z - 0.4) / 0.5) ** 2 + ((y - shift[0]) / 0.25) ** 2 + ((x - shift[1] - 0.1) / 0.2) ** 2 < size
    return (outer + 0.8 * inner + generator.normal(0, 0.35, z.shape)).astype(np.float32)


def accuracy(encoder: ResEnc, volumes: torch.Tensor) -> float:
    """Share of slices whose nearest slice of another volume is of the same part (cosine)."""
    with torch.no_grad():
        found = encoder.eval()(volumes.flatten(0, 1)[:, None]).pooled
    found = torch.nn.functional.normalize(found - found.mean(0), dim=1)
    whose = torch.arange(VOLUMES).repeat_interleave(DEPTH)
    part = (torch.arange(DEPTH) * PARTS // DEPTH).repeat(VOLUMES)
    similar = (found @ found.T).masked_fill(whose[:, None] == whose, -2)
    return float((part[similar.argmax(1)] == part).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_part_of_a_slice_is_learned(seed):
    """300 steps of G^D: leave-one-volume-out 1-NN of the part gains at least 15 points over random weights."""
    torch.manual_seed(seed)
    encoder = ResEnc(1, ndim=2, channels=(8, 16, 32), strides=((1, 1), (2, 2), (2, 2)), blocks=(1, 1, 1), norm="batch")
    view = ViewSpec((SIDE, SIDE), intensity=Intensity(noise=(1.0, 0.2)))
    objective = GlobalContrast(encoder, view=view, cues=Cues(parts=PARTS, cross=True), projection=(64, 32))
    volumes = torch.from_numpy(np.stack([volume(100 * seed + number) for number in range(VOLUMES)]))
    before = accuracy(encoder, volumes)
    optimizer = torch.optim.AdamW(objective.train().parameters(), lr=1e-3)
    generator = np.random.default_rng(seed)
    for step in range(STEPS):
        loss = objective(*batch_of(volumes, generator, step))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    after = accuracy(encoder, volumes)
    print(f"seed {seed}: loss {float(loss.total.detach()):.3f}, 1-NN of the part {before:.3f} -> {after:.3f}")
    assert after >= before + 0.15


def batch_of(volumes: torch.Tensor, generator: np.random.Generator, step: int) -> tuple[Batch, Step]:
    """Six volumes, a slice of each part, two noisy and shifted views."""
    whose = np.repeat(generator.permutation(VOLUMES)[:6], PARTS)
    thick = DEPTH // PARTS
    where = np.tile(np.arange(PARTS) * thick, 6) + generator.integers(0, thick, 6 * PARTS)
    views = []
    for _ in range(2):
        image = volumes[whose, where][:, None] + torch.from_numpy(generator.normal(0, 0.2, (len(whose), 1, SIDE, SIDE)))
        rolled = [torch.roll(one, tuple(generator.integers(-4, 5, 2)), (1, 2)) for one in image.float()]
        views.append(view_of(torch.stack(rolled)))
    names = tuple(f"volume{number}" for number in whose)
    samples = tuple(range(step * len(whose), (step + 1) * len(whose)))
    along = torch.from_numpy((where + 0.5) / DEPTH).float()
    origin = Origin(names, names, samples, torch.full((len(whose), 2), 0.5), along)
    return Batch(tuple(views), origin), Step(step, STEPS, 0, samples)


def view_of(image: torch.Tensor) -> View:
    rows = len(image)
    whole = torch.ones(rows, 1, SIDE, SIDE, dtype=torch.bool)
    affine = torch.eye(3).expand(rows, -1, -1)
    size = torch.full((rows, 2), SIDE)
    return View(image, affine, affine, torch.ones(rows, 2), size, whole, whole, torch.ones(rows, 1, dtype=torch.bool))
