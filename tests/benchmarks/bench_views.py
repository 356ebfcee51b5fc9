"""What views show: how much two views of a pair have in common, and how much of the finest detail is left.

The first table draws pairs of the presets with and without ``min_overlap`` and samples points of the first view to see
which of them the second one shows. The second table compares the power of views with that of the stored voxels, for
frequencies of 0.25 to 0.5 cycles per voxel, in slices of cardiac MR (ACDC, where ``MEDSSL_TEST_DATA`` has it).

Run: python tests/benchmarks/bench_views.py
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser

from medssl.data.loading.crops import region_at
from medssl.ops import coordinates
from medssl.ops.draws import Draws
from medssl.types import Crops, Geometry, Origin, Placement, Sampling, ViewPlan, ViewSpec
from medssl.views.geometry import draw_geometry
from medssl.views.overlap import partner_of
from medssl.views.plan import _frame, make_batch, read_size

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MEDSSL_TEST_DATA", ROOT.parent / "shared" / "data"))
PAIRS, POINTS = 400, 12
SCANS = {
    "brain MR, 180x220x180": (180, 220, 180),
    "CT, 320x240x300": (320, 240, 300),
    "thick, 200x200x40": (200, 200, 40),
}
GEOMETRIES = {
    "scale 0.8-1.25": ((0.8, 1.25), Geometry("none")),
    "scale 0.8-1.25, rotation 15": ((0.8, 1.25), Geometry("none", (15.0,))),
    "scale 0.7-1.4, rotation 30": ((0.7, 1.4), Geometry("none", (30.0,))),
    "scale 0.94-1.14": ((0.94, 1.14), Geometry("none")),
}


def preset(name: str) -> ViewSpec:
    """The view of an objective's preset."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--view", type=ViewSpec)
    file = ROOT / "configs" / "objectives" / f"{name}.yaml"
    given = yaml.safe_load(file.read_text())["init_args"]["view"]
    view: ViewSpec = parser.instantiate(parser.parse_object({"view": given})).view
    return view


def crops_of(plan: ViewPlan, shape: tuple[int, ...], count: int, images: np.ndarray | None = None) -> Crops:
    """Raw crops of scans of one shape, as the loader reads them; without images they hold zeros."""
    n = len(shape)
    size = read_size(plan, None, torch.tensor([shape]))
    starts = [region_at(0, sample, shape, size, Sampling()) for sample in range(count)]
    pixels = torch.zeros(count, 1, *([1] * n)).expand(count, 1, *size)
    if images is not None:
        padded = np.pad(images, [(0, 0), *((edge, edge) for edge in size)])
        pixels = torch.from_numpy(np.stack([
            padded[(row % len(images), *(slice(e + a, e + a + e) for e, a in zip(size, start, strict=True)))]
            for row, start in enumerate(starts)
        ]))[:, None].float()  # fmt: skip
    placement = Placement(
        torch.tensor(starts), torch.tensor(shape).expand(count, n), torch.ones(count, n),
        torch.eye(n + 1).expand(count, n + 1, n + 1),
    )  # fmt: skip
    names = tuple(map(str, range(count)))
    origin = Origin(names, names, tuple(range(count)), torch.zeros(count, n), torch.zeros(count))
    plain = torch.tensor((1.0, 0.0, -np.inf, np.inf, 0.0, 1.0)).expand(count, 1, 6)
    return Crops(pixels, plain, placement, origin)


def shared(spec: ViewSpec, shape: tuple[int, ...]) -> np.ndarray:
    """Share of the first view of each pair that the second view shows, by points of the first one."""
    crops = crops_of(ViewPlan((spec, spec)), shape, PAIRS)
    frame = _frame(crops, ViewPlan((spec, spec)))
    first = draw_geometry(spec, Draws(0, range(PAIRS), "view0.geometry"), frame)
    partner = None
    if spec.min_overlap:
        partner = partner_of(first, torch.tensor(spec.size, dtype=torch.float64), frame.spacing_mm)
    second = draw_geometry(spec, Draws(0, range(PAIRS), "view1.geometry"), frame, partner=partner)
    points = coordinates.cell_centers(spec.size, (POINTS,) * len(spec.size))
    places = coordinates.apply(first, points[None].expand(PAIRS, -1, -1))
    return coordinates.inside(second, spec.size, places).double().mean(dim=1).numpy()


def overlaps() -> None:
    """Prints how much pairs have in common."""
    print("| pairs | mean | below 10 % | none | below half |\n|---|---|---|---|---|")
    for name in ("simclr_3d", "graph_match_3d"):
        spec = preset(name)
        for what, shape in SCANS.items():
            for share in (0.0, 0.5):
                common = shared(replace(spec, min_overlap=share), shape)
                shares = [f"{np.mean(x):.0%}" for x in (common < 0.1, common == 0, common < 0.5)]
                print(f"| {name}, {what}, min_overlap {share} | {common.mean():.2f} | {' | '.join(shares)} |")


def slices() -> np.ndarray:
    """Middle slices of cardiac MR, cut to 144 x 144 pixels."""
    found = []
    for file in sorted((DATA / "acdc" / "images").glob("*.nii.gz")):
        volume = np.asarray(nibabel.load(file).dataobj, np.float32)
        middle = volume[:, :, volume.shape[2] // 2]
        a, b = ((n - 144) // 2 for n in middle.shape)
        found.append(middle[a : a + 144, b : b + 144])
    return np.stack(found)


def power(images: torch.Tensor) -> torch.Tensor:
    """Mean power of images in two bands of frequency: 0.125-0.25 and 0.25-0.5 cycles per voxel."""
    size = images.shape[-1]
    bell = torch.hann_window(size, periodic=False)
    spectrum = torch.fft.fft2((images - images.mean(dim=(-2, -1), keepdim=True)) * bell * bell[:, None]).abs() ** 2
    at = torch.fft.fftfreq(size)
    radius = (at[:, None] ** 2 + at**2).sqrt()
    return torch.stack([spectrum[..., (radius >= low) & (radius < 2 * low)].sum() for low in (0.125, 0.25)])


def sharpness() -> None:
    """Prints the share of the power that is left."""
    images = slices()
    still = ViewSpec((64, 64), geometry=Geometry("none"))
    print("| geometry | probability | interpolation | 0.125-0.25 | 0.25-0.5 | ms a view |\n|---|---|---|---|---|---|")
    for what, (scale, geometry) in GEOMETRIES.items():
        for probability in (1.0, 0.2):
            for interpolation in ("linear", "cubic"):
                drawn = replace(geometry, probability=probability, interpolation=interpolation)
                spec = replace(still, scale=scale, geometry=drawn)
                plan = ViewPlan((spec, still))
                crops = crops_of(plan, images.shape[1:], 300, images)
                view = make_batch(crops, ViewPlan((spec,)), seed=0, device="cpu").views[0]
                start = time.perf_counter()
                make_batch(crops, ViewPlan((spec,)), seed=0, device="cpu")
                taken = (time.perf_counter() - start) / 300 * 1e3
                untouched = make_batch(
                    crops, ViewPlan((replace(spec, geometry=replace(drawn, probability=0.0)),)), seed=0, device="cpu"
                ).views[0]
                left = power(view.image) / power(untouched.image)
                print(f"| {what} | {probability} | {interpolation} | {left[0]:.2f} | {left[1]:.2f} | {taken:.2f} |")


if __name__ == "__main__":
    overlaps()
    print()
    if (DATA / "acdc").is_dir():
        sharpness()
