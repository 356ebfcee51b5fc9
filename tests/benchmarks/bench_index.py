"""How many small files `medssl index` takes a second, in this tree and in another one, taking turns.

    python tests/benchmarks/bench_index.py [--files 50000] [--quick] [--against CHECKOUT]

The folder holds slices of DICOM series (70 %), NIfTI (10 %, half of it packed), PNG (10 %) and texts (10 %). Each turn
makes a new index; trees take turns, so that what else the machine does hits both. Prints files a second of each turn,
the medians, and the ratio of times: above 1 this tree is slower.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TREE = Path(__file__).resolve().parents[2]
TURNS, SLICES = 3, 50


def write_files(folder: Path, count: int) -> None:
    """The files; those of one kind differ in place and number alone."""
    sys.path.insert(0, str(TREE / "tests"))
    from data.make_scans import Series, noise, slice_dataset, write_nifti, write_picture, write_slice

    for number in range(-(-count * 7 // 10 // SLICES)):
        series = Series(shape=(16, 16, SLICES), uid=f"1.2.3.{number}", seed=number)
        (folder / "dicom" / str(number)).mkdir(parents=True)
        for place, pixels in enumerate(series.pixels()):
            write_slice(folder / "dicom" / str(number) / f"IM{place}", slice_dataset(series, place, pixels))
    tenth = count // 10
    write_nifti(folder / "nifti" / "a.nii", noise((8, 8, 8)))
    write_nifti(folder / "nifti" / "a.nii.gz", noise((8, 8, 8)))
    write_picture(folder / "png" / "a.png", noise((16, 16), np.uint8))
    (folder / "text").mkdir()
    for number in range(tenth):
        suffix = ".nii.gz" if number % 2 else ".nii"
        shutil.copyfile(folder / "nifti" / f"a{suffix}", folder / "nifti" / f"s{number}{suffix}")
        shutil.copyfile(folder / "png" / "a.png", folder / "png" / f"s{number}.png")
        (folder / "text" / f"{number}.txt").write_text("notes")


def seconds(tree: Path, scans: Path, work: Path) -> float:
    """Time of one new index by the code of a tree."""
    shutil.rmtree(work, ignore_errors=True)
    words = [str(scans), "--index", str(work / "i.sqlite"), "--files.key", str(work.with_name("keys") / "key")]
    command = [sys.executable, "-c", "import sys; from medssl.cli import main; sys.exit(main(sys.argv[1:]))", "index"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, *words], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True
    )
    taken = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    return taken


def main() -> None:
    """Write the files, take turns, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true", help="2,000 files")
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    given = parser.parse_args()
    count = 2_000 if given.quick else given.files
    trees = {"this tree": TREE} | ({"other tree": given.against.resolve()} if given.against else {})
    taken: dict[str, list[float]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder) / "scans"
        write_files(scans, count)
        there = sum(len(files) for _, _, files in os.walk(scans))
        for turn in range(TURNS):
            for name in list(trees)[:: 1 if turn % 2 else -1]:
                taken[name].append(seconds(trees[name], scans, Path(folder) / "work"))
                print(f"turn {turn + 1}, {name}: {there / taken[name][-1]:,.0f} files/s", flush=True)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        print(f"{name}: {there:,} files, median {median:.1f} s, {there / median:,.0f} files/s")
    if given.against:
        print(f"ratio of times, this tree to the other: {medians['this tree'] / medians['other tree']:.2f}")


if __name__ == "__main__":
    main()
