"""Does alignment of stains find the same place in a section of another stain? One lung lesion, five serial sections.

    python studies/multistain.py --data DATA [--steps 200] [--seed 0]

The sections (HE, CD31, CC10, Ki67, proSPC, at 5 % of their size) are moved onto HE by whole pixels, by the peak of the
correlation of their smoothed darkness. Crops of the left 60 % train; the test is on a grid of places on the right: is
the nearest crop of the other stain that of the same place? One case says nothing about others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from medssl.encoders.resenc import ResEnc
from medssl.objectives.multistain import MultiStain
from medssl.ops.draws import Draws
from medssl.ops.similarity import cosine
from medssl.types import Batch, Geometry, Intensity, Origin, Step, View, ViewSpec
from medssl.views.stain import apply_stain, draw_stain

STAINS = ("He", "CD31", "Cc10", "Ki67", "proSPC")
SIDE, STEP, BATCH = 64, 48, 32


def registered(folder: Path) -> NDArray[np.uint8]:
    """All stains as channels [15, rows, columns]."""
    files = [next(folder.glob(f"*-{name}-*")) for name in STAINS]
    images = [np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files]
    rows, columns = (min(image.shape[axis] for image in images) for axis in (1, 2))
    images = [image[:, :rows, :columns] for image in images]
    density = [smooth(255.0 - image.mean(0)) for image in images]
    moved = []
    for name, image, values in zip(STAINS, images, density, strict=True):
        product = np.fft.fft2(density[0] - density[0].mean()) * np.conj(np.fft.fft2(values - values.mean()))
        peak = np.unravel_index(np.fft.ifft2(product).real.argmax(), values.shape)
        shift = [int(p) - n * (p > n // 2) for p, n in zip(peak, values.shape, strict=True)]
        print(f"{name}: moved by {shift[0]} rows and {shift[1]} columns")
        moved.append(np.roll(image, shift, (1, 2)))
    return np.concatenate(moved)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over squares of 15 pixels: the lesion and its vessels, not single walls of alveoli."""
    mean = functional.avg_pool2d(torch.from_numpy(values)[None, None], 15, 1, 7, count_include_pad=False)
    return np.asarray(mean[0, 0])


def batch_of(images: torch.Tensor, samples: tuple[int, ...]) -> Batch:
    """Images [B, C, side, side] as a batch."""
    rows, eye = len(images), torch.eye(3).expand(len(images), 3, 3)
    valid = torch.ones(rows, 1, *images.shape[2:], dtype=torch.bool)
    size = torch.tensor(images.shape[2:]).expand(rows, 2)
    present = torch.ones(images.shape[:2], dtype=torch.bool)
    view = View(images, eye, eye, torch.ones(rows, 2), size, valid, valid, present)
    names = tuple(map(str, samples))
    return Batch((view,), Origin(names, names, samples, torch.full((rows, 2), 0.5), torch.full((rows,), 0.5)))


def crops(image: torch.Tensor, samples: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random places, quarter turns, flips and stains of the left part."""
    draws = Draws(seed, samples, "places")
    places, turns, flips = draws.uniform(2), draws.integers(0, 4), draws.bernoulli(0.5)
    room = torch.tensor([image.shape[1], int(0.6 * image.shape[2])]) - SIDE
    starts = (places * room).long().tolist()
    parts = [image[:, y : y + SIDE, x : x + SIDE] for y, x in starts]
    parts = [torch.rot90(part, int(turn), (1, 2)) for part, turn in zip(parts, turns, strict=True)]
    parts = [part.flip(1) if flip else part for part, flip in zip(parts, flips, strict=True)]
    drawn = draw_stain(Intensity(hed_jitter=(0.8, 0.2, 0.0)), Draws(seed, samples, "stain"), channels=len(image))
    numbers = torch.tensor([1.0, 0.0, 0.0, 255.0, 0.0, 255.0]).expand(len(samples), len(image), 6)
    assert drawn is not None
    return apply_stain(torch.stack(parts), drawn, numbers)


def retrieval(objective: MultiStain, image: torch.Tensor) -> tuple[list[float], int]:
    """Share of places on the right whose nearest crop of each other stain is the same place; number of places."""
    first = int(0.6 * image.shape[2])
    corners = [(y, x) for y in range(0, image.shape[1] - SIDE, STEP) for x in range(first, image.shape[2] - SIDE, STEP)]
    places = torch.stack([image[:, y : y + SIDE, x : x + SIDE] for y, x in corners])
    objective.eval()
    with torch.no_grad():
        pooled = objective.encoder(places.reshape(-1, 3, SIDE, SIDE)).pooled
        z = objective.whole(pooled).reshape(len(places), len(STAINS), -1)
    objective.train()
    found = [cosine(z[:, 0], z[:, stain]).argmax(1) for stain in range(1, len(STAINS))]
    return [float((each == torch.arange(len(places))).float().mean()) for each in found], len(places)


def main() -> None:
    """Trains and prints what is retrieved before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    image = torch.from_numpy(registered(given.data / "stains")).float() / 255
    encoder = ResEnc(3, ndim=2, channels=(16, 32, 64, 128), strides=((2, 2),) * 4, blocks=(1, 1, 1, 1), norm="batch")
    view = ViewSpec((SIDE, SIDE), geometry=Geometry(flip="none"))
    objective = MultiStain(encoder, view=view, stains=len(STAINS), projection=(128, 64))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    before, places = retrieval(objective, image)
    for index in range(given.steps):
        samples = tuple(range(BATCH * index, BATCH * (index + 1)))
        step = Step(index=index, total=given.steps, seed=given.seed, samples=samples)
        loss = objective(batch_of(crops(image, samples, given.seed), samples), step)
        optimizer.zero_grad()
        torch.autograd.backward(loss.total)
        optimizer.step()
        if index % 20 == 0 or index == given.steps - 1:
            print(f"step {index}: " + ", ".join(f"{name} {float(term):.3f}" for name, term in loss.terms.items()))
    after, _ = retrieval(objective, image)
    print(f"{places} places, chance {1 / places:.3f}")
    for name, *values in zip(STAINS[1:], before, after, strict=True):
        print(f"HE -> {name}: R@1 {values[0]:.3f} with random weights, {values[1]:.3f} after {given.steps} steps")


if __name__ == "__main__":
    main()
