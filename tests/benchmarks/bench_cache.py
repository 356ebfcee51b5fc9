"""Random crops of stored volumes on one core, beside nnssl's loader, MONAI, torchio and zarr (goals G1-G5).

Work of every method: one random crop of a random volume, a contiguous float32 tensor. Ours come in batches of 4 as the
loader gives them, copied into one float32 tensor that is kept ("new tensors": into a new one each time; "int16": as
delivered, the device converts). Methods take turns in random order after one turn that does not count; a time is the
mean over a turn, the table shows medians over turns. "ratio" says how many times longer than ours a peer takes (in the
table of bytes: how many times more).

All files hold the same volumes: CT-like, smooth bodies with noise, shifted by a fraction of a voxel as resampled scans
are. Integers are these values rounded to HU (compressed by gzip to a bit less than half), nnssl's copies keep float32.

The nnssl rows are a replica, written after and compared with commit 7044864404315536e92e670ef2f0ca24f11e6175 of
MIC-DKFZ/nnssl: ``dataset.py`` (blosc2 float32, ZSTD level 8, one thread, opened anew for every crop with mmap_mode "r",
properties unpickled, two looks for mask files; ``comp_blosc2_params`` gives chunks of 80x64x64 and blocks of 16 for
crops of 96 and 160) and ``data_loader_3d.py``: "nnssl loader" is ``nnsslAnatDataLoader3D`` on cases without masks (two
volumes of zeros, a crop of each or one, pad, stack), without its oversampling; "nnssl loader, one mask" is
``nnsslDataLoader3D``; "nnssl read" only reads.

Cold: the files' pages are dropped from the system's cache (posix_fadvise) and everything is opened anew; the disk's own
cache may still help, so compare, do not quote.

Run: python tests/benchmarks/bench_cache.py [--quick] [--json] [--cpu]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import pickle
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from medssl.data.loading.loader import make_loader
from medssl.data.store import chunks, grid, records, writer
from medssl.data.store.store import Store
from medssl.data.store.writer import StorePlan
from medssl.types import Digests, Grid, Part, Preprocess, Scan, Source, Subject, ViewPlan

PLAIN = Preprocess(orientation=None, foreground_crop=False)
GOALS = {
    "nnssl loader": 5, "torchio Queue, 8 a volume": 10, "zarr v3 sharded": 10, "MONAI PersistentDataset": 5,
    "MONAI .nii.gz": 100,
}  # fmt: skip
Method = Callable[[], object]


@dataclass(frozen=True)
class Files:
    """The same volumes in every form."""

    folder: Path
    count: int
    shape: tuple[int, int, int]
    chunked: Path
    raw: Path

    def paths(self, ending: str) -> list[Path]:
        return [self.folder / f"v{number}{ending}" for number in range(self.count)]


def missing(*names: str) -> str:
    """Names the first package that is not installed, or nothing."""
    return next((name for name in names if importlib.util.find_spec(name) is None), "")


def measure(
    methods: dict[str, tuple[Method, int]], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds a crop of every method {name: (one crop or batch, crops in a turn)}."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for method, _ in methods.values():
        method()
    order = [name for name in methods for _ in range(turns)]
    random.Random(0).shuffle(order)
    for name in order:
        method, crops = methods[name]
        start = clock()
        for _ in range(crops):
            method()
        times[name].append((clock() - start) * 1e3 / crops)
    return times


def rows_of(times: dict[str, list[float]], ours: str, table: str, unit: str = "ms a crop") -> list[dict[str, object]]:
    """One row for each method."""
    base = statistics.median(times[ours])
    return [
        {
            "table": table, "name": ours, "peer": name, "ratio": statistics.median(found) / base,
            "median": statistics.median(found), "min": min(found), "max": max(found), "n": len(found), "unit": unit,
            "goal": GOALS.get(name) if table.startswith("warm") else None,
        }
        for name, found in times.items()
    ]  # fmt: skip


# --- files


def volume(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """A body of smooth tissue and two lungs with noise, in Hounsfield units, float32."""
    from scipy.ndimage import gaussian_filter, zoom

    generator = np.random.default_rng(number)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    coarse = zoom(generator.normal(size=[-(-n // 16) for n in shape]), 16, order=1)[tuple(slice(n) for n in shape)]
    out = np.full(shape, -1000, np.float32)
    body = (x / 0.8) ** 2 + (y / 0.65) ** 2 < 1
    out[body] = 40 + 60 * coarse[body]
    for center in (-0.35, 0.35):
        lung = ((x - center) / 0.28) ** 2 + (y / 0.4) ** 2 + (z / 0.9) ** 2 < 1
        out[lung] = -850 + 30 * coarse[lung]
    out += gaussian_filter(generator.normal(size=shape).astype(np.float32), 0.6) * 40
    shifted = grid.resample(out[None], np.eye(4), (0.99, 0.99, 0.99))[0]  # sub-voxel interpolation
    return shifted[0][tuple(slice(n) for n in shape)]


def scan_of(path: Path, shape: tuple[int, ...]) -> Scan:
    return Scan(
        path.name.split(".")[0],
        Subject(path.name),
        Source("bench", "volume", "CT", "hu", (Part(path.name),)),
        Grid(tuple(shape), (1.0, 1.0, 1.0), tuple(map(tuple, np.eye(4).tolist()))),
        Digests(path.name),
    )


def store_of(folder: Path, name: str, tier: str, paths: list[Path], shape: tuple[int, ...]) -> Path:
    """By the road of ``medssl cache``, from NIfTI."""
    store = folder / name
    Store.create(store, PLAIN, tier=tier)
    plan = StorePlan(folder, store, PLAIN, tier, {})
    with closing(records.connect(store / "records.sqlite")) as connection:
        for path in paths:
            outcome = writer.write_scans(plan, (scan_of(path, shape),))
            assert not outcome.skipped, outcome.skipped
            writer.record_outcome(plan, connection, outcome)
    return store


def write_files(folder: Path, count: int, shape: tuple[int, int, int]) -> tuple[Files, list[dict[str, object]]]:
    """Writes every form and measures bytes and seconds a volume."""
    import nibabel

    forms = writers()
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    sizes: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(count):
        values = volume(number, shape)
        rounded = np.rint(values).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(rounded, np.eye(4)), folder / f"v{number}.nii.gz")
        for name in random.Random(number).sample(list(forms), len(forms)):
            ending, write, real = forms[name]
            path = folder / f"v{number}{ending}"
            start = time.perf_counter()
            write(path, values if real else rounded)
            seconds[name].append(time.perf_counter() - start)
            sizes[name].append(_bytes(path) / 1e6)
        with (folder / f"v{number}.pkl").open("wb") as file:
            pickle.dump({"spacing": [1, 1, 1], "shape": shape}, file)
    paths = [folder / f"v{number}.nii.gz" for number in range(count)]
    files = Files(
        folder,
        count,
        shape,
        store_of(folder, "chunked", "chunked", paths, shape),
        store_of(folder, "raw", "raw", paths, shape),
    )
    rows = rows_of(sizes, "medssl", "bytes", "MB a volume") + rows_of(seconds, "medssl", "write", "s a volume")
    return files, rows


def writers() -> dict[str, tuple[str, Callable[[Path, np.ndarray], object], bool]]:
    """{name: (ending, write, takes the float32 values)}."""
    import blosc2
    import nibabel

    def nnssl(path: Path, values: np.ndarray) -> None:
        blosc2.set_nthreads(1)
        settings = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
        blosc2.asarray(
            values[None],
            urlpath=str(path),
            chunks=(1, 80, 64, 64),
            blocks=(1, 16, 16, 16),
            cparams=settings,
            mmap_mode="w+",
        )

    forms: dict[str, tuple[str, Callable[[Path, np.ndarray], object], bool]] = {
        "medssl": (".b2nd", lambda path, x: chunks.write_parts(path, [chunks.chunked_bytes(x[None])]), False),
        "medssl raw": (".npy", lambda path, x: chunks.write_parts(path, chunks.raw_parts(x[None])), False),
        "nnssl": (".nnssl.b2nd", nnssl, True),
        ".nii.gz": (
            ".copy.nii.gz", lambda path, x: nibabel.save(nibabel.Nifti1Image(x, np.eye(4)), path), False,
        ),
    }  # fmt: skip
    if not missing("zarr"):
        forms["zarr v3 sharded"] = (".zarr", _write_zarr, False)
    return forms


def _write_zarr(path: Path, values: np.ndarray) -> None:
    import zarr
    from zarr.codecs import BloscCodec

    made = zarr.create_array(
        str(path), shape=values.shape, dtype="int16", chunks=(32, 32, 32), shards=(128, 128, 160),
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
    )  # fmt: skip
    made[...] = values


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


# --- methods: each returns one crop, or a batch of them


def ours(
    store: Path, size: int, *, batch: int = 4, dtype: torch.dtype = torch.float32, new: bool = False, **options: int
) -> Method:
    """The loader as training uses it, in this process unless ``workers`` are asked for."""
    loader = make_loader(
        Store.open(store),
        plan=ViewPlan(()),
        read_size=(size,) * 3,
        batch_size=batch,
        seed=0,
        **{"workers": 0, **options},
    )
    crops = iter(loader)
    if new:
        return lambda: next(crops).image.to(dtype)
    kept = torch.empty(batch, 1, size, size, size, dtype=dtype)
    return lambda: kept.copy_(next(crops).image)


def nnssl_loader(files: Files, size: int, masks: int) -> Method:
    import blosc2

    blosc2.set_nthreads(1)
    paths = files.paths("")
    generator = np.random.default_rng(0)

    def turn() -> object:
        path = paths[int(generator.integers(len(paths)))]
        data = blosc2.open(urlpath=f"{path}.nnssl.b2nd", mode="r", dparams={"nthreads": 1}, mmap_mode="r")
        for kind in ("anon", "anat"):
            assert not Path(f"{path}.{kind}.b2nd").is_file()
        with Path(f"{path}.pkl").open("rb") as file:
            pickle.load(file)
        blank = [np.zeros(data.shape, dtype=np.uint8) for _ in range(masks)]
        start = [int(generator.integers(n - size + 1)) for n in data.shape[1:]]
        box = (slice(0, 1), *(slice(a, a + size) for a in start))
        if not masks:
            return torch.from_numpy(data[box])
        none = ((0, 0),) * 4
        image = np.stack([np.pad(data[box], none, "constant", constant_values=0)])
        mask = np.stack([np.pad(blank[0][box], none, "constant", constant_values=0)])
        return torch.from_numpy(image), mask

    return turn


def zarr_crops(files: Files, size: int) -> Method:
    import zarr

    arrays = [zarr.open_array(str(path), mode="r") for path in files.paths(".zarr")]
    generator = np.random.default_rng(0)

    def turn() -> object:
        array = arrays[int(generator.integers(len(arrays)))]
        start = [int(generator.integers((n - size) // 16 + 1)) * 16 for n in array.shape]
        return torch.from_numpy(array[tuple(slice(a, a + size) for a in start)].astype(np.float32))

    return turn


def monai_crops(files: Files, size: int, kind: str) -> Method:
    from monai import transforms as mt
    from monai.data import CacheDataset, Dataset, PersistentDataset

    key = ["image"]
    steps = mt.Compose(
        [
            mt.LoadImaged(key, image_only=True),
            mt.EnsureChannelFirstd(key),
            mt.RandSpatialCropd(key, [size] * 3, random_size=False),
        ]
    )
    items = [{"image": str(path)} for path in files.paths(".nii.gz")]
    makers: dict[str, Callable[[], Dataset]] = {
        "gz": lambda: Dataset(items, steps),
        "persistent": lambda: PersistentDataset(items, steps, files.folder / "persistent"),
        "cache": lambda: CacheDataset(items, steps, progress=False),
        "cache, no copy": lambda: CacheDataset(items, steps, copy_cache=False, progress=False),
    }
    data = makers[kind]()
    if kind == "persistent":
        for number in range(len(items)):
            data[number]
    generator = np.random.default_rng(0)
    return lambda: data[int(generator.integers(len(data)))]["image"].contiguous()


def torchio_crops(files: Files, size: int, each: int) -> Method:
    import torchio as tio

    subjects = [tio.Subject(image=tio.ScalarImage(path)) for path in files.paths(".nii.gz")]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects), max_length=each * files.count, samples_per_volume=each,
        sampler=tio.UniformSampler(size), num_workers=0, shuffle_subjects=True, shuffle_patches=True,
    )  # fmt: skip
    loader = tio.SubjectsLoader(queue, batch_size=1, num_workers=0)
    items = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return lambda: next(items)["image"][tio.DATA].float().contiguous()


def memcpy(size: int) -> Method:
    source = torch.zeros(size, size, size)
    return source.clone


# --- tables


def warm(files: Files, size: int, quick: bool, clock: Callable[[], float]) -> list[dict[str, object]]:
    """Everything in the page cache, or in memory where the peer keeps it there."""
    fast, slow = (16, 2) if quick else (120, 24)
    methods: dict[str, tuple[Method, int]] = {
        "medssl": (_each(ours(files.chunked, size), 4), fast),
        "medssl, new tensors": (_each(ours(files.chunked, size, new=True), 4), fast),
        "medssl int16": (_each(ours(files.chunked, size, dtype=torch.int16, new=True), 4), fast),
        "medssl raw": (_each(ours(files.raw, size), 4), fast),
        "memcpy float32": (memcpy(size), fast),
        "nnssl loader": (nnssl_loader(files, size, 2), fast),
        "nnssl loader, one mask": (nnssl_loader(files, size, 1), fast),
        "nnssl read": (nnssl_loader(files, size, 0), fast),
    }
    peers: dict[str, tuple[str, Callable[[], Method], int]] = {
        "zarr v3 sharded": ("zarr", lambda: zarr_crops(files, size), slow),
        "MONAI PersistentDataset": ("monai", lambda: monai_crops(files, size, "persistent"), slow),
        "MONAI CacheDataset": ("monai", lambda: monai_crops(files, size, "cache"), slow),
        "MONAI CacheDataset(copy_cache=False)": ("monai", lambda: monai_crops(files, size, "cache, no copy"), fast),
        "MONAI .nii.gz": ("monai", lambda: monai_crops(files, size, "gz"), slow),
        "torchio Queue, 8 a volume": ("torchio", lambda: torchio_crops(files, size, 8), 8 * files.count),
    }
    for name, (package, make, crops) in peers.items():
        if missing(package):
            print(f"skipped: {name} ({package} is not installed)", file=sys.stderr)
        else:
            methods[name] = (make(), crops)
    return rows_of(measure(methods, 3 if quick else 15, clock), "medssl", f"warm, crops of {size}")


def _each(method: Method, batch: int) -> Method:
    """One crop at a time of a method that makes batches: only every ``batch``-th call works."""
    turns = itertools.count()
    return lambda: method() if next(turns) % batch == 0 else None


def cold(files: Files, size: int, rounds: int) -> list[dict[str, object]]:
    """One crop of each volume after its pages were dropped."""
    makers: dict[str, tuple[Callable[[], Method], list[Path]]] = {
        "medssl": (lambda: ours(files.chunked, size, batch=1), sorted(files.chunked.rglob("*.b2nd"))),
        "medssl raw": (lambda: ours(files.raw, size, batch=1), sorted(files.raw.rglob("*.npy"))),
        "nnssl loader": (lambda: nnssl_loader(files, size, 2), files.paths(".nnssl.b2nd")),
    }
    if not missing("monai"):
        kept = sorted((files.folder / "persistent").glob("*.pt"))
        makers["MONAI PersistentDataset"] = (lambda: _persistent(files, size), kept)
    times: dict[str, list[float]] = {name: [] for name in makers}
    order = [name for name in makers for _ in range(rounds)]
    random.Random(1).shuffle(order)
    for name in order:
        make, paths = makers[name]
        method = make()
        for path in paths:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        for _ in range(files.count):
            method()
        times[name].append((time.perf_counter() - start) * 1e3 / files.count)
    return rows_of(times, "medssl", f"cold, crops of {size}")


def _persistent(files: Files, size: int) -> Method:
    """Without the first pass that fills its folder."""
    from monai import transforms as mt
    from monai.data import PersistentDataset

    key = ["image"]
    steps = [mt.LoadImaged(key, image_only=True), mt.EnsureChannelFirstd(key)]
    crop = mt.RandSpatialCropd(key, [size] * 3, random_size=False)
    items = [{"image": str(path)} for path in files.paths(".nii.gz")]
    data = PersistentDataset(items, mt.Compose([*steps, crop]), files.folder / "persistent")
    turns = itertools.count()
    return lambda: data[next(turns) % len(items)]["image"].contiguous()


def scans(files: Files, size: int, counts: tuple[int, ...], quick: bool) -> list[dict[str, object]]:
    """Cost of a crop, of opening, and bytes of the records, by the number of scans; few files under many names."""
    times, opening, held = {}, {}, {}
    for count in counts:
        store = files.folder / f"many{count}"
        shutil.copytree(files.chunked, store)
        with closing(sqlite_of(store)) as connection:
            rows = connection.execute("SELECT * FROM scans").fetchall()
            made = ((f"{rows[i % len(rows)][0]}-{i:07d}", *rows[i % len(rows)][1:]) for i in range(count))
            records.insert(connection, made)
            connection.execute("DELETE FROM scans WHERE scan_id NOT LIKE '%-%'")
            connection.commit()
        start = time.perf_counter()
        opened = Store.open(store)
        name = f"{count} scans"
        opening[name], held[name] = [time.perf_counter() - start], [opened.records.nbytes / len(opened)]
        times[name] = (_each(ours(store, size), 4), 40 if quick else 200)
    first = f"{counts[0]} scans"
    table = "growth with the number of scans"
    return [
        *rows_of(measure(times, 3 if quick else 9), first, table),
        *rows_of(opening, first, f"{table}: opening", "s"),
        *rows_of(held, first, f"{table}: records", "bytes a scan"),
    ]


def sqlite_of(store: Path):
    return records.connect(store / "records.sqlite")


def sides(folder: Path, size: int, widths: tuple[int, ...], quick: bool) -> list[dict[str, object]]:
    """Cost of a crop, seconds and memory of caching, as volumes grow."""
    import nibabel

    times, seconds, memory = {}, {}, {}
    for width in widths:
        path = folder / f"side{width}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.rint(volume(0, (width,) * 3)).astype(np.int16), np.eye(4)), path)
        words = [sys.executable, __file__, "--side", str(width), str(path)]
        said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        name = f"{width}^3"
        seconds[name], memory[name] = [said["ns"]], [said["volumes"]]
        store = folder / f"side{width}"
        times[name] = (_each(ours(store, size), 4), 40 if quick else 200)
    first = f"{widths[0]}^3"
    table = "growth with the size of a volume"
    return [
        *rows_of(measure(times, 3 if quick else 9), first, table),
        *rows_of(seconds, first, f"{table}: caching", "ns a voxel"),
        *rows_of(memory, first, f"{table}: caching, peak memory", "volumes"),
    ]


def side(width: int, path: Path) -> None:
    """Caches one volume in this process and says what it cost."""
    store_of(path.parent, "side-first", "chunked", [path], (width,) * 3)  # imports and the first pages
    shutil.rmtree(path.parent / "side-first")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of before
    before = _status("VmRSS")
    start = time.perf_counter()
    store_of(path.parent, f"side{width}", "chunked", [path], (width,) * 3)
    took = time.perf_counter() - start
    peak = _status("VmHWM") - before
    print(json.dumps({"ns": took * 1e9 / width**3, "volumes": peak / (2 * width**3)}))


def _status(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def processes(files: Files, size: int, quick: bool) -> list[dict[str, object]]:
    """The loader with worker processes; batches of 4, as they are delivered (int16)."""
    times = {}
    for workers in (0, 1, 2):
        method = ours(files.chunked, size, dtype=torch.int16, new=True, workers=workers)
        times[f"{workers} workers"] = (_each(method, 4), 60 if quick else 400)
    return rows_of(measure(times, 3 if quick else 9), "0 workers", "worker processes")


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--quick", action="store_true", help="few, smaller volumes: below a minute")
    parser.add_argument("--cpu", action="store_true", help="warm: processor time, for a machine that others use too")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.side:
        side(int(options.side[0]), Path(options.side[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        rows = list(tables(Path(name), options.quick, time.process_time if options.cpu else time.perf_counter))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for table, found in itertools.groupby(rows, key=lambda row: row["table"]):
        print(f"\n{table}\n{'name':14} {'peer':37} {'ratio':>7} {'median [min, max]':>34} {'n':>3}")
        for row in found:
            span = f"{row['median']:.3g} [{row['min']:.3g}, {row['max']:.3g}] {row['unit']}"
            goal = f"  goal {row['goal']}x" if row["goal"] else ""
            print(f"{row['name']:14} {row['peer']:37} {row['ratio']:7.2f} {span:>34} {row['n']:3}{goal}")


def tables(folder: Path, quick: bool, clock: Callable[[], float]) -> Iterator[dict[str, object]]:
    """Every row of every table."""
    count, shape = (2, (256, 256, 160)) if quick else (12, (256, 256, 160))
    files, rows = write_files(folder, count, shape)
    yield from rows
    for size in (96,) if quick else (96, 160):
        yield from warm(files, size, quick, clock)
        yield from cold(files, size, 2 if quick else 5)
    yield from processes(files, 96, quick)
    yield from scans(files, 96, (100, 10_000) if quick else (100, 1_000, 10_000, 100_000), quick)
    yield from sides(folder, 96, (128, 192) if quick else (128, 256, 384, 512), quick)


if __name__ == "__main__":
    main()
