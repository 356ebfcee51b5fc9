"""What a step of each objective costs, beside the plain dense step of the same encoder; MAE beside SimMIM (goal G11).

One table for each small encoder, with the shipped fragments of the objectives on views of one size and batches of one
number of synthetic crops; decoders are as wide as small recipes have them. A step is loss, backward pass and AdamW in
float32, without reading. The dense step encodes the same crops once and asks for small features at all depths: what an
objective adds to it are views, decoders, projections, matching. With --large instead ViT-B on one crop of 160^3 voxels
(1000 tokens of 16^3), once in bfloat16.

Methods take turns in random order. Each turn is a process of its own on one thread; a time is that of the processor,
not of the clock, so that other programs on the machine count less. Memory is the growth of the largest resident set
over that before the network was built. Tables show medians over turns; "faster" is the inverse of "ratio".

Run: python tests/benchmarks/bench_objectives.py [--quick] [--large] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

Row = dict[str, object]
DENSE = "dense"
CONVOLUTIONAL = (
    "spark", "mae_resenc", "masked_distillation", "simclr", "global_contrast", "local_contrast", "graph_match",
)  # fmt: skip
PROTOTYPES = (
    "--objective.prototypes.count=512", "--objective.prototypes.width=64", "--objective.prototypes.hidden=256",
)  # fmt: skip
SMALL = {
    "masked_distillation_2d": PROTOTYPES,
    "masked_distillation_3d": PROTOTYPES,
    "spark_2d": ("--objective.decoder_width=64",),
    "mae_2d": ("--objective.decoder_width=192", "--objective.decoder_depth=2"),
    "mae_3d": ("--objective.decoder_width=192",),
}
LARGE = "vit_3d"
GOALS = {"mae_3d": "2.7", "mae_3d, bf16": "5"}  # large table, without AdamW, of SimMIM in float32


@dataclass(frozen=True)
class Table:
    """Fragments of objectives that are compared on crops of one size, ``rows`` of them in a batch."""

    size: tuple[int, ...]
    rows: int
    methods: tuple[str, ...]
    options: tuple[str, ...] = ()


TABLES = {
    "resenc_small_2d": Table((128, 128), 16, tuple(f"{name}_2d" for name in CONVOLUTIONAL)),
    "resenc_small_3d": Table((32, 32, 32), 16, tuple(f"{name}_3d" for name in CONVOLUTIONAL)),
    "vit_small_2d": Table((160, 160), 16, ("mae_2d", "simmim_2d", "masked_distillation_2d")),
    "vit_small_3d": Table((48, 48, 48), 16, ("mae_3d", "simmim_3d", "masked_distillation_3d")),
    LARGE: Table((160, 160, 160), 1, ("mae_3d", "simmim_3d"), ("--encoder.patch=[16,16,16]",)),
}


def build(encoder: str, name: str):  # type: ignore[no-untyped-def]
    """The encoder alone for the dense step, else the objective around it, both as ``medssl pretrain`` makes them."""
    from medssl import cli

    table = TABLES[encoder]
    objective = table.methods[0] if name == DENSE else name
    words = ["--encoder", encoder, *table.options, "--objective", objective, "--store=s", "--run=r"]
    words += [f"--objective.view.size={list(table.size)}", *(SMALL.get(objective, ()) if encoder != LARGE else ())]
    values = cli.parse("pretrain", words)
    network = values["encoder"]()
    return network if name == DENSE else values["objective"](network)


def turn(encoder: str, name: str, *, half: bool, steps: int) -> dict[str, float]:
    """Seconds a step, of these in AdamW, and growth of memory in MB, in this process."""
    import torch

    from medssl.objectives.contract import example_batch
    from medssl.types import Sampling, ViewPlan, ViewSpec

    table = TABLES[encoder]
    torch.manual_seed(0)
    before = peak_megabytes()
    module = build(encoder, name).train()
    needs = ViewPlan((ViewSpec(table.size),), Sampling()) if name == DENSE else module.needs
    batch, step = example_batch(needs, 1, scans=table.rows // needs.sampling.regions_per_scan)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    times, updates = [], []
    for _ in range(steps + 1):
        start = time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            if name == DENSE:
                loss = torch.stack([part.square().mean() for part in module(batch.views[0].image).maps]).sum()
            else:
                loss = module(batch, step).total
        loss.backward()
        backward = time.process_time()
        optimizer.step()
        times.append(time.process_time() - start)
        updates.append(time.process_time() - backward)
    update = statistics.median(updates[1:])
    return {"seconds": statistics.median(times[1:]), "update": update, "megabytes": peak_megabytes() - before}


def peak_megabytes() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def in_turns(encoder: str, methods: list[tuple[str, bool]], turns: int, steps: int) -> list[Row]:
    """A row for each method; ``ratio`` is its time over that of the first."""
    found: dict[tuple[str, bool], list[dict[str, float]]] = {method: [] for method in methods}
    order = [method for method in methods for _ in range(turns)]
    random.Random(0).shuffle(order)
    for name, half in order:
        asked = json.dumps({"encoder": encoder, "name": name, "half": half, "steps": steps})
        done = subprocess.run([sys.executable, __file__, "--turn", asked], capture_output=True, text=True, check=True)
        found[name, half].append(json.loads(done.stdout.splitlines()[-1]))
    base, *_ = (statistics.median(run["seconds"] for run in runs) for runs in found.values())
    rows = []
    for (name, half), runs in found.items():
        seconds = [run["seconds"] for run in runs]
        median = statistics.median(seconds)
        label = name + (", bf16" if half else "")
        rows.append(
            {
                "table": encoder,
                "name": label,
                "peer": methods[0][0],
                "ratio": median / base,
                "faster": base / median,
                "goal": GOALS.get(label, "") if encoder == LARGE else "",
                "median": median,
                "min": min(seconds),
                "max": max(seconds),
                "update": statistics.median(run["update"] for run in runs),
                "megabytes": statistics.median(run["megabytes"] for run in runs),
                "n": len(runs),
            }
        )
    return rows


def show(rows: list[Row]) -> None:
    """Prints the table."""
    head = f"{'encoder':16} {'name':22} {'peer':10} {'ratio':>6} {'faster':>6}  {'median [min, max] s':24} {'AdamW':>6}"
    print(f"{head} {'MB':>6} {'n':>2}  goal")
    for row in rows:
        span = f"{row['median']:.3f} [{row['min']:.3f}, {row['max']:.3f}]"
        print(
            f"{row['table']:16} {row['name']:22} {row['peer']:10} {row['ratio']:6.2f} {row['faster']:6.2f}  {span:24} "
            f"{row['update']:6.3f} "
            f"{row['megabytes']:6.0f} {row['n']:2}  {row['goal']}"
        )


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one turn of one step of the 2D convolutional encoder")
    parser.add_argument("--large", action="store_true", help="MAE beside SimMIM on ViT-B, and nothing else")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(turn(**json.loads(options.turn))))
        return
    turns, steps = (1, 1) if options.quick else (3, 3)
    if options.large:
        rows = in_turns(LARGE, [(name, half) for half in (False, True) for name in ("simmim_3d", "mae_3d")], turns, 1)
    else:
        small = [name for name in TABLES if name != LARGE][: 1 if options.quick else None]
        plans = {name: [(method, False) for method in (DENSE, *TABLES[name].methods)] for name in small}
        rows = [row for name, methods in plans.items() for row in in_turns(name, methods, turns, steps)]
    print(json.dumps(rows, indent=1)) if options.json else show(rows)


if __name__ == "__main__":
    main()
