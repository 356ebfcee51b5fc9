"""Short runs of small networks on synthetic slices, healthy and broken on purpose, seen by the health measures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from objectives.small import plain_batch

from medssl.encoders.base import Encoder
from medssl.encoders.resenc import ResEnc
from medssl.encoders.vit import ViT
from medssl.objectives.base import Objective
from medssl.objectives.global_local import Cues, GlobalContrast, LocalContrast
from medssl.objectives.graph_match import GraphMatch
from medssl.objectives.mae import MAE, UNetMAE
from medssl.objectives.simclr import SimCLR
from medssl.objectives.simmim import SimMIM
from medssl.objectives.spark import SparK
from medssl.ops.similarity import alignment
from medssl.training.health_monitor import Health, settled_after
from medssl.training.optim import Optimization, make_optimizer, set_rates
from medssl.types import Batch, Geometry, Loss, Step, ViewSpec

SIDE, MARGIN, PARTS, BATCH = 32, 4, 4, 16


@dataclass(frozen=True)
class Fault:
    """What is wrong with a run: nothing by default."""

    temperature: float = 0.1
    rate: float = 1e-3
    encoder: str = "resenc"
    constant: bool = False
    shuffled: bool = False
    attract: bool = False
    one_crop: bool = False


FAULTS = {
    "healthy": Fault(),
    "healthy transformer": Fault(encoder="vit"),
    "temperature 100": Fault(temperature=100.0),
    "temperature 0.0005": Fault(temperature=0.0005),
    "transformer, rate x 100": Fault(rate=0.1, encoder="vit"),
    "rate x 100": Fault(rate=0.1),
    "rate x 10000": Fault(rate=10.0),
    "constant input": Fault(constant=True),
    "shuffled views": Fault(shuffled=True),
    "one crop": Fault(one_crop=True),
    "one crop, shuffled views": Fault(one_crop=True, shuffled=True),
    "one crop, temperature 0.0005": Fault(one_crop=True, temperature=0.0005),
    "nothing pushes apart": Fault(attract=True, encoder="vit"),
}
RECONSTRUCTIONS, STRATIFIED = {"spark", "mae", "unet_mae", "simmim"}, {"global", "local"}


class Attraction(SimCLR):
    """Draws the features of two views together and pushes nothing apart."""

    def forward(self, batch: Batch, step: Step) -> Loss:
        one, other = (self.encoder(view.image).pooled for view in batch.views)
        loss = alignment(one, other, torch.eye(len(one), dtype=torch.bool))
        loss = loss + 0.0 * sum(p.sum() for p in self.projection.parameters())
        return Loss(loss, {"loss": loss.detach()}, one.detach())


def slices(count: int, seed: int) -> torch.Tensor:
    """Slices [count, PARTS, 1, n, n] of ``count`` patients; body, outline and texture belong to the part."""
    rng = np.random.default_rng(seed)
    side = SIDE + 2 * MARGIN
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    found = []
    for number in range(count * PARTS):
        part = number % PARTS
        angle = rng.uniform(0, np.pi)
        y, x = rows - rng.uniform(-0.15, 0.15), columns - rng.uniform(-0.15, 0.15)
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        size, radius = rng.uniform(0.14, 0.2), np.hypot(u, v)
        ring, bar = (radius < size * 1.2) & (radius > size * 0.6), np.hypot(u / 1.6, v * 1.6) < size
        wave = np.sin(2 * np.pi * (6 if part < 2 else 12) * u + rng.uniform(0, 2 * np.pi))
        body = (np.hypot(rows * 1.1, columns) < 0.22 + 0.07 * part + rng.uniform(0, 0.03)) * rng.uniform(0.5, 1)
        slope = rng.uniform(-0.5, 0.5) * rows + rng.uniform(-0.5, 0.5) * columns
        organ = (ring if part % 2 else bar) * (rng.uniform(0.3, 0.8) + 0.3 * wave)
        image = body + slope + organ + 0.1 * rng.normal(size=rows.shape)
        found.append((image - image.mean()) / image.std())
    return torch.from_numpy(np.stack(found)).float().reshape(count, PARTS, 1, side, side)


def encoder_of(kind: str) -> Encoder:
    if kind == "vit":
        return ViT(1, patch=(8, 8), width=48, depth=3)
    return ResEnc(1, ndim=2, channels=(8, 16, 32), strides=((2, 2), (2, 2), (2, 2)), blocks=(1, 1, 1), norm="batch")


def objective_of(name: str, fault: Fault) -> Objective:
    encoder = encoder_of(fault.encoder)
    view = ViewSpec((SIDE, SIDE))
    if name == "spark":
        return SparK(encoder, view=view, decoder_width=32)
    if name == "mae":
        return MAE(encoder, view=view, decoder_width=32, decoder_depth=1)
    if name == "unet_mae":
        return UNetMAE(encoder, view=view)
    if name == "simmim":
        return SimMIM(encoder, view=view)
    if name == "graph_match":
        return GraphMatch(encoder, view=view, projection=(32,))
    if name == "simclr":
        kind = Attraction if fault.attract else SimCLR
        return kind(encoder, view=view, temperature=fault.temperature, projection=(32, 32))
    if name == "local":
        still = replace(view, scale=(1.0, 1.0), geometry=Geometry(flip="none"))
        crops = "one" if fault.one_crop else "two"
        arguments = {"temperature": fault.temperature, "cues": Cues(PARTS), "steps": 2, "crops": crops}
        return LocalContrast(encoder, view=still, **arguments)
    return GlobalContrast(
        encoder, view=view, temperature=fault.temperature, projection=(32, 32), cues=Cues(PARTS, cross=True)
    )


def batches(name: str, fault: Fault, images: torch.Tensor, seed: int) -> Iterator[Batch]:
    """Random crops, brightness, contrast and noise, different in each view; the places of crops are in the affines."""
    generator = torch.Generator().manual_seed(seed)
    first = 0

    def places() -> list[list[int]]:
        return torch.randint(2 * MARGIN + 1, (BATCH, 2), generator=generator).tolist()

    def view(picked: torch.Tensor, corners: list[list[int]]) -> torch.Tensor:
        crops = torch.stack([x[:, a : a + SIDE, b : b + SIDE] for x, (a, b) in zip(picked, corners, strict=True)])
        if fault.constant:
            return torch.zeros_like(crops)
        change = torch.rand(len(picked), 2, generator=generator)
        scaled = crops * (0.7 + 0.6 * change[:, 0])[:, None, None, None] + change[:, 1, None, None, None] - 0.5
        return scaled + 0.1 * torch.randn(crops.shape, generator=generator)

    while True:
        samples = tuple(range(first, first := first + BATCH))
        if name in STRATIFIED:
            patients = torch.randperm(len(images), generator=generator)[: BATCH // PARTS].repeat_interleave(PARTS)
            parts = torch.arange(BATCH) % PARTS
        else:
            patients = torch.randperm(len(images), generator=generator)[:BATCH]
            parts = torch.randint(PARTS, (BATCH,), generator=generator)
        picked = images[patients, parts]
        if fault.shuffled:
            picked = picked[torch.randperm(BATCH, generator=generator)]
        corners = places()
        one = placed(plain_batch(view(picked, corners), samples), corners)
        names = tuple(f"patient{number}" for number in patients.tolist())
        origin = replace(one.origin, scan_ids=names, subject_ids=names, along=(parts + 0.5) / PARTS)
        views = one.views
        if name not in RECONSTRUCTIONS:
            others = corners if fault.one_crop else places()
            other = view(picked, others)
            if fault.shuffled:
                other = other[torch.randperm(BATCH, generator=generator)]
            views = (*views, *placed(plain_batch(other, samples), others).views)
        yield Batch(views, origin)


def placed(batch: Batch, corners: list[list[int]]) -> Batch:
    """The batch with views whose first voxel lies at a corner of the slice."""
    (view,) = batch.views
    affine = view.affine.clone()
    affine[:, :2, 2] = torch.tensor(corners, dtype=affine.dtype)
    return replace(batch, views=(replace(view, affine=affine),))


def run(
    name: str, fault: Fault, images: torch.Tensor, *, seed: int, steps: int, every: int = 20, patient: bool = True
) -> Health:
    """The health of a run, seen step by step as the engine shows it; without patience up to the first alarm."""
    torch.manual_seed(seed)
    objective = objective_of(name, fault).train()
    settings = Optimization(learning_rate=fault.rate, weight_decay=(0.01, 0.01))
    optimizer = make_optimizer(objective, settings)
    health = Health(every=every, settled=settled_after(steps, settings.warmup))
    for index, batch in zip(range(steps), batches(name, fault, images, seed), strict=False):
        rate, _ = set_rates(optimizer, settings, index / steps)
        loss: Loss = objective(batch, Step(index, steps, seed, batch.origin.samples))
        loss.total.backward()
        health.on_micro_batch(batch, loss)
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), settings.clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        record = {"step": index + 1, "gradient_norm": float(norm), "learning_rate": rate}
        record |= {key: float(value) for key, value in loss.terms.items()}
        _, alarms = health.follow(record, due=(index + 1) % every == 0)
        if alarms and not patient:
            break
    return health
