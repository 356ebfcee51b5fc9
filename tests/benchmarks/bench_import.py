"""How long imports and the command line's help take, beside ``import torch`` (goal G14).

Every number is a fresh process, the rivals take turns in random order. Run: python tests/benchmarks/bench_import.py
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "monai", "lightning", "timm", "SimpleITK", "nibabel", "pydicom", "blosc2", "jsonargparse", "scipy")
REPORT = f"import sys; print(','.join(name for name in {HEAVY} if name in sys.modules))"
PROGRAMS = {
    "python": "pass",
    "import torch": "import torch",
    "import medssl": "import medssl",
    "import medssl.types": "import medssl.types",
    "medssl --help": "import io, contextlib, medssl.cli\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    "    medssl.cli.main(['--help'])",
    "import medssl.data.index.scan_index": "import medssl.data.index.scan_index",
    "import medssl.objectives.spark": "import medssl.objectives.spark",
}
GOALS = {"import medssl": "at most 1.2 times import torch", "medssl --help": "below 1 s"}


def seconds(program: str) -> tuple[float, list[str]]:
    """Wall time of one fresh interpreter, and which heavy packages it had loaded at its end."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{program}\n{REPORT}"], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, [name for name in done.stdout.strip().split(",") if name]


def measure(repeats: int, seed: int = 0) -> list[dict[str, object]]:
    """One row for each program: median, least and largest seconds, the ratio to ``import torch``, heavy packages."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    loaded: dict[str, list[str]] = {}
    for name in PROGRAMS:
        _, loaded[name] = seconds(PROGRAMS[name])  # also fills the disk cache and compiles
    order = [name for name in PROGRAMS for _ in range(repeats)]
    random.Random(seed).shuffle(order)
    for name in order:
        times[name].append(seconds(PROGRAMS[name])[0])
    torch = statistics.median(times["import torch"])
    return [
        {
            "name": name,
            "peer": "import torch",
            "ratio": statistics.median(found) / torch,
            "median": statistics.median(found),
            "min": min(found),
            "max": max(found),
            "n": len(found),
            "loaded": loaded[name],
            "goal": GOALS.get(name),
        }
        for name, found in times.items()
    ]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--quick", action="store_true", help="three repeats instead of eleven")
    options = parser.parse_args()
    rows = measure(3 if options.quick else 11)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'name':31} {'peer':13} {'ratio':>6} {'median [min, max] s':>22} {'n':>3}  heavy packages loaded; goal")
    for row in rows:
        span = f"{row['median']:.2f} [{row['min']:.2f}, {row['max']:.2f}]"
        note = ", ".join(row["loaded"]) or "none"  # type: ignore[arg-type]
        note += f"; goal: {row['goal']}" if row["goal"] else ""
        print(f"{row['name']:31} {row['peer']:13} {row['ratio']:6.2f} {span:>22} {row['n']:3}  {note}")


if __name__ == "__main__":
    main()
