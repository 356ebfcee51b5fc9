"""Augmentation of 96^3 crops on one core, beside MONAI, torchio and batchgeneratorsv2 (goal G6).

Two tables. "crop + augment" starts from files and ends with a batch of views: crop, scale of intensity, flip, affine
(10 degrees about each axis, 0.9-1.1), noise. The rivals read and resample 96^3 crops, and so does the row that they are
measured against ("medssl"); "medssl, full read" reads what its views need so that no corner is padding. "ms of one
transform" applies one random transform to a crop in memory. Methods take turns in random order; a time is the mean
over a batch, the table shows the median over turns. The nnssl row is a replica of its reading (float32 blosc2 with its
block, chunk and codec, memory-mapped, two zero volumes a crop) with batchgeneratorsv2's own transforms.

Run: python tests/benchmarks/bench_augment.py [--quick] [--json] [--profile]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np
import torch

from medssl.ops.draws import Draws
from medssl.types import (
    Digests,
    Geometry,
    Grid,
    Intensity,
    IntensityRule,
    IntensityRules,
    Part,
    Preprocess,
    Scan,
    Source,
    Subject,
    ViewPlan,
    ViewSpec,
)
from medssl.views.geometry import Frame, draw_geometry
from medssl.views.intensity import apply_intensity, draw_intensity
from medssl.views.plan import make_batch, read_size
from medssl.views.resample import sample

SIZE, BATCH, DEGREES = (96, 96, 96), 4, 10.0
RADIANS = math.radians(DEGREES)
GOALS = {"nnssl + batchgeneratorsv2": 5, "MONAI CacheDataset(copy_cache=False)": 6, "MONAI .nii.gz": 20}
Method = Callable[[], None]


def missing(*names: str) -> str:
    """Names the first package that is not installed, or nothing."""
    return next((name for name in names if importlib.util.find_spec(name) is None), "")


def measure(methods: dict[str, Method], turns: int, seed: int = 0) -> dict[str, list[float]]:
    """Milliseconds a crop of every method, turn by turn in random order, after one turn of each that does not count."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        method()
    order = [name for name in methods for _ in range(turns)]
    random.Random(seed).shuffle(order)
    for name in order:
        start = time.perf_counter()
        methods[name]()
        times[name].append((time.perf_counter() - start) * 1e3 / BATCH)
    return times


def rows_of(times: dict[str, list[float]], ours: str, table: str) -> list[dict[str, object]]:
    """One row for each method; ``ratio`` says how many times faster ours is."""
    base = statistics.median(times[ours])
    return [
        {
            "table": table,
            "name": ours,
            "peer": name,
            "ratio": statistics.median(found) / base,
            "median": statistics.median(found),
            "min": min(found),
            "max": max(found),
            "n": len(found),
            "goal": GOALS.get(name),
        }
        for name, found in times.items()
    ]


# --- files


def volumes(count: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Volumes like CT: smooth bodies in Hounsfield units with noise that gzip shrinks by some 2.3."""
    from scipy import ndimage

    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = ndimage.zoom(generator.standard_normal([extent // 16 for extent in shape]), 16, order=1)
        yield (coarse * 300 + generator.standard_normal(shape) * 12).clip(-1024, 2000).astype(np.int16)


def write_files(folder: Path, count: int, shape: tuple[int, int, int]) -> list[Path]:
    """Compressed NIfTI files, 1 mm."""
    paths = []
    for number, volume in enumerate(volumes(count, shape)):
        paths.append(folder / f"scan{number:02}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), paths[-1])
    return paths


def fill_store(folder: Path, paths: list[Path]) -> Path:
    """The same volumes in a store, by the road of ``medssl cache``."""
    from medssl.data.store import records, writer
    from medssl.data.store.store import Store

    rule = IntensityRule("range", -1000.0, 1000.0, "unit")
    preprocess = Preprocess(orientation=None, foreground_crop=False, intensity=IntensityRules(hu=rule))
    store = folder / "store"
    Store.create(store, preprocess)
    job = writer.StorePlan(folder, store, preprocess, "chunked", {})
    with records.connect(store / "records.sqlite") as connection:
        for path in paths:
            shape = nibabel.load(path).shape
            scan = Scan(
                scan_id=path.name[:6],
                subject=Subject(path.name[:6]),
                source=Source("bench", "volume", "CT", "hu", (Part(path.name),)),
                grid=Grid(shape, (1.0, 1.0, 1.0), tuple(map(tuple, np.eye(4).tolist()))),
                digests=Digests(path.name),
            )
            outcome = writer.write_scans(job, (scan,))
            assert not outcome.skipped, outcome.skipped
            writer.record_outcome(job, connection, outcome)
    return store


# --- crop + augment


def ours(store: Path, *, full: bool) -> Method:
    """The loader in this process, and the views."""
    from medssl.data.loading.loader import make_loader
    from medssl.data.store.store import Store

    spec = ViewSpec(SIZE, (0.9, 1.1), "global", Geometry("all", (DEGREES,)), Intensity(noise=(1.0, 0.1)))
    plan = ViewPlan((spec,))
    size = read_size(plan) if full else SIZE
    crops = iter(make_loader(Store.open(store), plan=plan, read_size=size, batch_size=BATCH, seed=0, workers=0))

    def turn() -> None:
        make_batch(next(crops), plan, seed=0, device="cpu")

    return turn


def nnssl(folder: Path, paths: list[Path]) -> Method:
    """nnssl's way of reading a crop, then batchgeneratorsv2."""
    import blosc2
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    files = []
    for path in paths:
        volume = (np.asarray(nibabel.load(path).dataobj, dtype=np.float32)[None].clip(-1000, 1000) + 1000) / 2000
        files.append(folder / f"{path.name[:6]}.b2nd")
        packing = {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1}
        blosc2.asarray(volume, urlpath=str(files[-1]), chunks=(1, 80, 64, 64), blocks=(1, 16, 16, 16), cparams=packing)
    steps = [
        SpatialTransform(
            SIZE, 0, random_crop=False, p_rotation=1.0, rotation=(-RADIANS, RADIANS), p_scaling=1.0,
            scaling=(0.9, 1.1), p_synchronize_scaling_across_axes=1.0,
        ),
        MirrorTransform((0, 1, 2)),
        GaussianNoiseTransform((0, 0.01)),
    ]  # fmt: skip
    generator = np.random.default_rng(0)

    def turn() -> None:
        views = []
        for _ in range(BATCH):
            path = files[generator.integers(len(files))]
            volume = blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
            start = [int(generator.integers(extent - 95)) for extent in volume.shape[1:]]
            box = (slice(None), *(slice(first, first + 96) for first in start))
            masks = [np.zeros(volume.shape, dtype=np.float32)[box] for _ in range(2)]
            item = {"image": torch.from_numpy(np.ascontiguousarray(volume[box]))}
            for step in steps:
                item = step(**item)
            views.append((item["image"], [np.ascontiguousarray(mask) for mask in masks]))
        torch.stack([image for image, _ in views])

    return turn


def monai_items(paths: list[Path], *, cached: bool) -> Method:
    """MONAI's dataset and transforms; ``cached``: everything up to the crop is held in memory as float32."""
    from monai import transforms as mt
    from monai.data import CacheDataset, Dataset

    key = ["image"]
    steps = mt.Compose(
        [
            mt.LoadImaged(key, image_only=True),
            mt.EnsureChannelFirstd(key),
            mt.ScaleIntensityRanged(key, -1000, 1000, 0.0, 1.0, clip=True),
            mt.RandSpatialCropd(key, SIZE, random_size=False),
            *[mt.RandFlipd(key, prob=0.5, spatial_axis=axis) for axis in range(3)],
            mt.RandAffined(
                key, prob=1.0, rotate_range=[RADIANS] * 3, scale_range=[0.1] * 3, spatial_size=SIZE, cache_grid=True,
                padding_mode="border",
            ),
            mt.RandGaussianNoised(key, prob=1.0, std=0.1),
        ]
    )  # fmt: skip
    items = [{"image": str(path)} for path in paths]
    data = CacheDataset(items, steps, copy_cache=False, progress=False) if cached else Dataset(items, steps)
    generator = np.random.default_rng(0)

    def turn() -> None:
        torch.stack([data[int(generator.integers(len(data)))]["image"] for _ in range(BATCH)])

    return turn


def crop_and_augment(quick: bool) -> list[dict[str, object]]:
    """The first table."""
    count, shape = (4, (160, 160, 128)) if quick else (12, (256, 256, 160))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_files(folder, count, shape)
        store = fill_store(folder, paths)
        methods = {"medssl": ours(store, full=False), "medssl, full read": ours(store, full=True)}
        if lacking := missing("batchgeneratorsv2", "blosc2"):
            print(f"skipped: nnssl + batchgeneratorsv2 ({lacking} is not installed)")
        else:
            methods["nnssl + batchgeneratorsv2"] = nnssl(folder, paths)
        if lacking := missing("monai"):
            print(f"skipped: MONAI ({lacking} is not installed)")
        else:
            methods["MONAI CacheDataset(copy_cache=False)"] = monai_items(paths, cached=True)
            methods["MONAI .nii.gz"] = monai_items(paths, cached=False)
        return rows_of(measure(methods, 5 if quick else 40), "medssl", "crop + augment")


def profile() -> None:
    """Where the time of the row "medssl" goes: milliseconds a crop of the ten operations that take longest."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    turns = 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turn = ours(fill_store(folder, write_files(folder, 4, (256, 256, 160))), full=False)
        for _ in range(5):
            turn()
        with profiler(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(turns):
                turn()
    for event in sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)[:10]:
        print(f"{event.key:40} {event.self_cpu_time_total / 1e3 / turns / BATCH:6.2f} ms a crop")


# --- one transform


def our_transforms() -> dict[str, Method]:
    """Each draws and applies on a batch in memory."""
    images = torch.rand(BATCH, 1, *SIZE)
    zeros = torch.zeros(BATCH, 3, dtype=torch.float64)
    frame = Frame(SIZE, zeros, zeros + 95, zeros + 1, torch.zeros(BATCH, dtype=torch.long))
    turns = iter(range(10**9))

    def geometry(scale: tuple[float, float], degrees: float) -> Method:
        spec = ViewSpec(SIZE, scale, "global", Geometry("all", (degrees,)))

        def turn() -> None:
            sample(images, draw_geometry(spec, Draws(next(turns), range(BATCH), "geometry"), frame), SIZE)

        return turn

    def intensity(spec: Intensity) -> Method:
        def turn() -> None:
            drawn = draw_intensity(spec, Draws(next(turns), range(BATCH), "intensity"), channels=1, n=3)
            apply_intensity(images, drawn, seed=0)

        return turn

    return {
        "flip": geometry((1.0, 1.0), 0.0),
        "zoom": geometry((0.9, 1.1), 0.0),
        "affine": geometry((0.9, 1.1), DEGREES),
        "noise": intensity(Intensity(noise=(1.0, 0.1))),
        "blur": intensity(Intensity(blur=(1.0, 1.0))),
        "contrast": intensity(Intensity(contrast=(1.0, 0.7, 1.4))),
        "gamma": intensity(Intensity(gamma=(1.0, 0.7, 1.5))),
        "bias field": intensity(Intensity(bias_field=(1.0, 0.4))),
    }


def monai_transforms() -> dict[str, Method]:
    """MONAI's array transforms, crop by crop."""
    from monai import transforms as mt

    flips = mt.Compose([mt.RandFlip(0.5, axis) for axis in range(3)])
    steps = {
        "flip": flips,
        "zoom": mt.RandZoom(1.0, 0.9, 1.1, mode="trilinear"),
        "affine": mt.RandAffine(1.0, [RADIANS] * 3, scale_range=[0.1] * 3, spatial_size=SIZE, cache_grid=True),
        "noise": mt.RandGaussianNoise(1.0, std=0.1),
        "blur": mt.RandGaussianSmooth((0.1, 1.0), (0.1, 1.0), (0.1, 1.0), prob=1.0),
        "contrast": mt.RandScaleIntensityFixedMean(prob=1.0, factors=0.3),
        "gamma": mt.RandAdjustContrast(1.0, (0.7, 1.5)),
        "bias field": mt.RandBiasField(prob=1.0),
    }
    image = torch.rand(1, *SIZE)
    return {name: lambda step=step: [step(image) for _ in range(BATCH)] for name, step in steps.items()}  # type: ignore[misc]


def torchio_transforms() -> dict[str, Method]:
    """torchio's transforms, crop by crop."""
    import torchio as tio

    steps = {
        "flip": tio.RandomFlip((0, 1, 2)),
        "zoom": tio.RandomAffine(0.1, 0, isotropic=True),
        "affine": tio.RandomAffine(0.1, DEGREES),
        "noise": tio.RandomNoise(std=(0, 0.1)),
        "blur": tio.RandomBlur((0, 1)),
        "gamma": tio.RandomGamma((-0.35, 0.4)),
        "bias field": tio.RandomBiasField(),
    }
    image = tio.ScalarImage(tensor=torch.rand(1, *SIZE))
    return {name: lambda step=step: [step(image) for _ in range(BATCH)] for name, step in steps.items()}  # type: ignore[misc]


def one_transform(quick: bool) -> list[dict[str, object]]:
    """The second table."""
    methods = {f"medssl {name}": method for name, method in our_transforms().items()}
    for package, made in (("monai", monai_transforms), ("torchio", torchio_transforms)):
        if missing(package):
            print(f"skipped: {package} is not installed")
            continue
        methods.update({f"{package} {name}": method for name, method in made().items()})
    times = measure(methods, 3 if quick else 30)
    rows = []
    for name in our_transforms():
        found = {method: values for method, values in times.items() if method.endswith(f" {name}")}
        rows += rows_of(found, f"medssl {name}", "ms of one transform")
    return rows


def main() -> None:
    """Print both tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller volumes, few turns: below a minute")
    parser.add_argument("--profile", action="store_true", help="only say where the time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.profile:
        return profile()
    rows = crop_and_augment(options.quick) + one_transform(options.quick)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'name':19} {'peer':37} {'ratio':>6} {'median [min, max] ms a crop':>32} {'n':>3}  crops/s; goal")
    for row in rows:
        span = f"{row['median']:.2f} [{row['min']:.2f}, {row['max']:.2f}]"
        goal = f"; goal {row['goal']}x" if row["goal"] else ""
        rate = f"{1e3 / float(row['median']):.1f}{goal}"  # type: ignore[arg-type]
        print(f"{row['name']:19} {row['peer']:37} {row['ratio']:6.2f} {span:>32} {row['n']:3}  {rate}")


if __name__ == "__main__":
    main()
