"""SimCLR, BYOL and VICReg of medssl beside the modules of lightly, at equal encoder, batch, views and steps.

lightly (pip, MIT) must be installed where this runs. Both get the same random weights of a ResNet-18, the same images
in one order, the same views (made once a step by ``views.plan.make_batch``), AdamW with one rate and warm-up, and
heads of the same widths. Heads are each package's own: lightly ends that of SimCLR with a batch norm, and sends each
view through the network alone. Reported are the accuracy of 20 nearest neighbors and of a logistic regression on the
pooled features of the test images, and seconds a step of the processor (loss, backward pass and AdamW, without views).

Each run is one row of the CSV file; rows that are there are kept, so that a stopped benchmark goes on.

Run: python tests/benchmarks/bench_beside_lightly.py --tiles TILES --rows ROWS.csv [--steps 2000] [--seeds 3]

TILES has train/CLASS and test/CLASS with pictures.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SIDE, BATCH, RATE, DECAY, HIDDEN, OUT, MOMENTUM = 64, 64, 1e-3, 0.01, 256, 128, 0.99
FIELDS = ("objective", "package", "seed", "steps", "neighbors", "linear", "seconds_a_step", "last_loss")
WORK = "SimCLR", "BYOL", "VICReg"


def images(folder: Path, limit: int) -> tuple[torch.Tensor, np.ndarray]:
    """Pictures of a split, values from 0 to 1 minus 0.5, and their classes."""
    from PIL import Image

    kinds = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(path, number) for number, kind in enumerate(kinds) for path in sorted(kind.iterdir())]
    files = files[:: max(1, len(files) // limit)] if limit else files
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE)), np.float32) for path, _ in files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - 0.5, np.array([k for _, k in files])


def encoder(seed: int) -> Any:
    """The same ResNet-18 for both packages."""
    from medssl.encoders.timm2d import Timm2d

    torch.manual_seed(seed)
    return Timm2d("resnet18", in_channels=3)


def view() -> Any:
    """Crop, flips and turns, brightness and contrast, as for tiles."""
    from medssl.types import Geometry, Intensity, ViewSpec

    intensity = Intensity(brightness=(0.8, 0.3), contrast=(0.8, 0.6, 1.4), noise=(0.3, 0.05))
    return ViewSpec((SIDE, SIDE), area=(0.2, 1.0), geometry=Geometry(flip="all"), intensity=intensity)


def ours(name: str, network: Any) -> Any:
    """The objective of medssl."""
    from medssl.objectives.byol import BYOL
    from medssl.objectives.simclr import SimCLR
    from medssl.objectives.vicreg import VICReg
    from medssl.types import Sampling

    if name == "SimCLR":
        return SimCLR(network, view=view(), temperature=0.5, projection=(HIDDEN, OUT), sampling=Sampling())
    if name == "BYOL":
        return BYOL(network, view=view(), projection=(HIDDEN, OUT), prediction=HIDDEN, momentum=(MOMENTUM, 1.0))
    return VICReg(network, view=view(), projection=(HIDDEN, HIDDEN, HIDDEN), sampling=Sampling())


class Peer(nn.Module):
    """The same objective from lightly's heads and losses."""

    def __init__(self, name: str, network: nn.Module) -> None:
        from lightly.loss import NegativeCosineSimilarity, NTXentLoss, VICRegLoss
        from lightly.models.modules import heads

        super().__init__()
        self.name, self.encoder, width = name, network, network.channels[-1]
        if name == "SimCLR":
            self.head, self.loss = heads.SimCLRProjectionHead(width, HIDDEN, OUT), NTXentLoss(temperature=0.5)
        elif name == "BYOL":
            self.head, self.loss = heads.BYOLProjectionHead(width, HIDDEN, OUT), NegativeCosineSimilarity()
            self.predict = heads.BYOLPredictionHead(OUT, HIDDEN, OUT)
            self.teacher = copy.deepcopy(nn.ModuleList([self.encoder, self.head])).requires_grad_(False)
        else:
            self.head, self.loss = heads.VICRegProjectionHead(width, HIDDEN, HIDDEN, num_layers=3), VICRegLoss()

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The loss of two views."""
        z = [self.head(self.encoder(part).pooled) for part in (first, second)]
        if self.name != "BYOL":
            return self.loss(*z)  # type: ignore[no-any-return]
        with torch.no_grad():
            targets = [self.teacher[1](self.teacher[0](part).pooled) for part in (first, second)]
        return 0.5 * (self.loss(self.predict(z[0]), targets[1]) + self.loss(self.predict(z[1]), targets[0]))  # type: ignore[no-any-return]

    def after_step(self, progress: float) -> None:
        """Moves BYOL's teacher."""
        from lightly.models.utils import update_momentum

        if self.name == "BYOL":
            momentum = 1 - (1 - MOMENTUM) * (math.cos(math.pi * progress) + 1) / 2
            update_momentum(self.encoder, self.teacher[0], momentum)
            update_momentum(self.head, self.teacher[1], momentum)


def steps_of(
    name: str, package: str, network: Any
) -> tuple[nn.Module, Callable[..., torch.Tensor], Callable[..., None]]:
    """Module, its loss of a batch, and what follows a step."""
    if package == "medssl":
        objective = ours(name, network)
        return objective, lambda batch, step: objective(batch, step).total, objective.after_step
    peer = Peer(name, network)
    return (
        peer,
        lambda batch, _: peer(*(part.image for part in batch.views)),
        lambda step: peer.after_step(step.progress),
    )


def trained(name: str, package: str, seed: int, steps: int, pixels: torch.Tensor) -> tuple[nn.Module, float, float]:
    """The encoder after training, median seconds a step, and the mean of the last losses."""
    from medssl.types import Crops, Origin, Placement, Step, ViewPlan
    from medssl.views.plan import make_batch

    network = encoder(seed)
    module, loss_of, after = steps_of(name, package, network)
    optimizer = torch.optim.AdamW(
        [p for p in module.train().parameters() if p.requires_grad], lr=RATE, weight_decay=DECAY
    )
    generator, plan, seconds, losses = np.random.default_rng(seed), ViewPlan((view(), view())), [], []
    for index in range(steps):
        rows = torch.from_numpy(generator.choice(len(pixels), BATCH, replace=False))
        samples, names = tuple(range(index * BATCH, (index + 1) * BATCH)), tuple(str(int(row)) for row in rows)
        place = Placement(
            torch.zeros(BATCH, 2, dtype=torch.long),
            torch.full((BATCH, 2), SIDE),
            torch.ones(BATCH, 2),
            torch.eye(3).expand(BATCH, 3, 3),
        )
        plain = torch.tensor([1.0, 0.0, -torch.inf, torch.inf, 0.0, 1.0]).expand(BATCH, 3, 6)
        origin = Origin(names, names, samples, torch.full((BATCH, 2), 0.5), torch.full((BATCH,), 0.5))
        crops = Crops(image=pixels[rows], intensity=plain, placement=place, origin=origin)
        batch = make_batch(crops, plan, seed=seed, device="cpu")
        step = Step(index=index, total=steps, seed=seed, samples=samples)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (index + 1) / max(1, steps // 20))
        start = time.process_time()
        optimizer.zero_grad()
        loss = loss_of(batch, step)
        loss.backward()
        optimizer.step()
        after(step)
        seconds.append(time.process_time() - start)
        losses.append(float(loss.detach()))
    return network, statistics.median(seconds), statistics.mean(losses[-20:])


@torch.no_grad()
def features(network: nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """Pooled features in evaluation mode."""
    return torch.cat([network.eval()(part).pooled for part in pixels.split(200)]).numpy().astype(np.float64)


def probes(network: nn.Module, train: tuple, test: tuple) -> tuple[float, float]:
    """Accuracy of neighbors and of a logistic regression."""
    from medssl.metrics.scan_probe import Group, fit_logistic, knn

    x, y = features(network, train[0]), features(network, test[0])
    classes = int(train[1].max()) + 1
    names = tuple(str(number) for number in range(len(x)))
    near = knn(Group(x, train[1], names, names), classes, 20)(y).argmax(1)
    ((_, linear),) = fit_logistic(x, train[1], classes, [1e-2])
    scores = (y - linear.mean) / linear.deviation @ linear.weight + linear.bias
    return float((near == test[1]).mean()), float((scores.argmax(1) == test[1]).mean())


def main() -> None:
    """Trains what is missing, appends a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="images of each split; 0 takes all")
    options = parser.parse_args()
    train, test = (images(options.tiles / split, options.limit) for split in ("train", "test"))
    there = []
    if options.rows.exists():
        with options.rows.open(newline="") as stream:
            there = [(r["objective"], r["package"], int(r["seed"]), int(r["steps"])) for r in csv.DictReader(stream)]
    runs = [
        (name, package, seed) for seed in range(options.seeds) for name in WORK for package in ("medssl", "lightly")
    ]
    for name, package, seed in [("random", "medssl", 0), *runs]:
        steps = 0 if name == "random" else options.steps
        if (name, package, seed, steps) in there:
            continue
        network, seconds, loss = (
            (encoder(seed), 0.0, 0.0) if not steps else trained(name, package, seed, steps, train[0])
        )
        row = (name, package, seed, steps, *(f"{v:.4f}" for v in (*probes(network, train, test), seconds, loss)))
        with options.rows.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if stream.tell() == 0:
                writer.writerow(FIELDS)
            writer.writerow(row)
        print(*row, flush=True)


if __name__ == "__main__":
    main()
