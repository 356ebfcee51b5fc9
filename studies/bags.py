"""Which head finds the few tumor tiles of a bag, on features of which encoder?

    python studies/bags.py --store STORE --pretrained RUN --work WORK --out docs/results/bags.csv [--seconds 200]

Bags of 60 histology tiles, of which none or 2 to 6 are tumor tiles; a bag is positive if any is. 60 bags train, 30
validate and 60 test, made of tiles of the splits train, val and test. Features are those of random weights, of the same
encoder trained with the labels of 400 tiles (scratch), and of a pretrained run. Each row is one head on one encoder
with one seed, by ``medssl.finetune`` and ``medssl.evaluate``; rows that are there are not computed again. Tiles name no
slide, so tiles of one slide may lie in several splits.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

import medssl
from medssl.data.bags.description import BagEncoder, BagFacts, BagRecord
from medssl.data.bags.files import Bag
from medssl.data.bags.store import BagStore
from medssl.data.bags.writer import BagWriter
from medssl.data.store.store import Store
from medssl.encoders.base import Encoder
from medssl.encoders.weights import load_encoder
from medssl.inference.bags import attention_of
from medssl.inference.predictor import load_fitted
from medssl.types.provenance import Provenance

HEADS = ("mean_pool", "abmil", "ins", "mhim", "max_pool", "clam", "transmil")  # the slowest last
ENCODERS = ("random", "scratch", "pretrained")
BAGS = {"train": 60, "val": 30, "test": 60}
TILES, LABELED = 60, 400
COLUMNS = ("encoder", "head", "seed", "auroc", "low", "high", "top_tile", "positive_bags", "seconds")


def images_of(store: Store, numbers: list[int]) -> torch.Tensor:
    """Tiles [N, 3, 96, 96], normalized as the store says."""
    rows = []
    for number in numbers:
        codes = torch.from_numpy(store.read(number, (0, 0), store.shape(number)).astype(np.float32))
        scale, offset, low, high, shift, divisor = torch.from_numpy(store.intensity(number).copy()).T[..., None, None]
        rows.append((codes.mul(scale).add(offset).clamp(low, high) - shift) / divisor)
    return torch.stack(rows)


def encoder_of(kind: str, run: Path, store: Store) -> Encoder:
    """Random weights, weights trained with a few labels, or pretrained ones; in evaluation mode."""
    encoder, card = load_encoder(run)
    if kind == "pretrained":
        return encoder.eval()
    torch.manual_seed(0)
    fresh: Encoder = type(encoder)(**card.encoder.init_args)
    if kind == "scratch":
        train_with_labels(fresh, store)
    return fresh.eval()


def train_with_labels(encoder: Encoder, store: Store) -> None:
    """Trains an encoder and a linear layer on labeled tiles that are in no bag."""
    numbers = store.scans("train", axes=2).tolist()[-LABELED:]
    images, truth = images_of(store, numbers), torch.tensor([is_tumor(store, n) for n in numbers]).long()
    layer = torch.nn.Linear(encoder.channels[-1], 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *layer.parameters()], 1e-3, weight_decay=0.05)
    generator = np.random.default_rng(0)
    encoder.train()
    for _ in range(300):
        chosen = generator.choice(len(numbers), 32, replace=False)
        batch = torch.from_numpy(np.rot90(images[chosen].numpy(), generator.integers(4), (2, 3)).copy())
        loss = functional.cross_entropy(layer(encoder(batch).pooled), truth[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def is_tumor(store: Store, number: int) -> bool:
    """Whether a tile is a tumor tile."""
    return store.values(number)["class"] == "tumour"


@torch.no_grad()
def features_of(encoder: Encoder, store: Store, numbers: list[int], file: Path) -> NDArray[np.float32]:
    """Features of tiles; computed once."""
    if not file.exists():
        parts = [encoder(images_of(store, numbers[k : k + 64])).pooled for k in range(0, len(numbers), 64)]
        np.save(file, torch.cat(parts).numpy())
    values: NDArray[np.float32] = np.load(file)
    return values


def make_bags(store: Store, kind: str, run: Path, work: Path) -> tuple[Path, dict[str, NDArray[np.bool_]]]:
    """Folder of bags of an encoder, and which tiles of each bag are tumor tiles."""
    folder, witnesses = work / kind, {}
    rows: list[tuple[BagRecord, list[int]]] = []
    for split, count in BAGS.items():
        generator = np.random.default_rng(len(split))
        numbers = store.scans(split, axes=2).tolist()
        pool = numbers[:-LABELED] if split == "train" else numbers
        tumor = [n for n in pool if is_tumor(store, n)]
        normal = [n for n in pool if not is_tumor(store, n)]
        for number in range(count):
            found = int(generator.integers(2, 7)) if number % 2 else 0
            chosen = [*generator.choice(tumor, found, replace=False), *generator.choice(normal, TILES - found)]
            name = f"{split}{number:03d}"
            order = generator.permutation(TILES)
            label = {"tumor": "yes" if found else "no"}
            rows.append((BagRecord(name, name, split, label), [int(chosen[place]) for place in order]))
            witnesses[name] = order < found
    used = sorted({number for _, chosen in rows for number in chosen})
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{kind}.npy"
    encoder = encoder_of(kind, run, store) if not file.exists() else torch.nn.Identity()
    values = features_of(encoder, store, used, file)  # type: ignore[arg-type]  # not called where the file is there
    place = {number: row for row, number in enumerate(used)}
    columns = np.arange(TILES)
    coords = np.stack((columns % 8, columns // 8), 1) * 96
    known = BagEncoder(kind, f"{kind} encoder", Provenance())
    with BagWriter(folder, BagFacts(known, values.shape[1], 96)) as writer:
        for record, chosen in rows:
            if not writer.has(record.scan_id):
                writer.write(record, Bag(values[[place[n] for n in chosen]], coords))
    return folder, witnesses


def one(kind: str, head: str, seed: int, bags: tuple[Path, dict[str, NDArray[np.bool_]]], work: Path) -> list[object]:
    """Trains and scores one head; top_tile is the share of positive test bags whose highest tile is a tumor tile."""
    folder, witnesses = bags
    started = time.monotonic()
    run = work / "runs" / f"{kind}-{head}-{seed}"
    training = {"steps": 150, "seed": seed, "precision": "fp32", "output": {"validate_every": 75}}
    medssl.finetune(config="bags_small", store=folder, run=run, head=head, training=training)
    entry = medssl.evaluate(run, index=folder, out=run / "test").summary["metrics"]["auroc"]
    fitted, store = load_fitted(run, torch.device("cpu")), BagStore.open(folder)
    positive = [n for n in store.scans("test").tolist() if store.values(n)["tumor"] == "yes"]
    hits = [witnesses[store.scan_id(n)][attention_of(fitted, store, n)[-1].argmax()] for n in positive]
    numbers = [round(float(x), 4) for x in (entry["value"], entry["low"], entry["high"], np.mean(hits))]
    return [kind, head, seed, *numbers, len(positive), round(time.monotonic() - started, 1)]


def main() -> None:
    """Computes rows until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("store", "pretrained", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=200)
    words = parser.parse_args()
    end, done, store = time.monotonic() + words.seconds, set(), Store.open(words.store)
    if words.out.exists():
        with words.out.open() as stream:
            done = {(row["encoder"], row["head"], int(row["seed"])) for row in csv.DictReader(stream)}
    else:
        words.out.write_text(",".join(COLUMNS) + "\n")
    for seed in range(words.seeds):
        for kind in words.encoders:
            bags = make_bags(store, kind, words.pretrained, words.work)
            for head in HEADS:
                if (kind, head, seed) in done or time.monotonic() > end:
                    continue
                row = one(kind, head, seed, bags, words.work)
                with words.out.open("a") as stream:
                    stream.write(",".join(map(str, row)) + "\n")
                print(*row, flush=True)


if __name__ == "__main__":
    main()
