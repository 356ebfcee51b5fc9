"""Peak memory and time of ``medssl predict`` on one large CT (goal: below 6 GB).

A generated CT of 512x512x800 voxels of 0.7x0.7x1 mm (int16, compressed NIfTI): a body with bones and organs that fills
nearly the whole field, so that the foreground crop takes little away. The network is the small 3D encoder with its
U-Net, random weights, five classes, windows of 96 voxels, once on 1.5 mm voxels and once on the scan's own. Each run is
a process of its own; its peak is the largest resident set that the kernel has seen.

Random weights cost what trained ones cost. The number of windows, and with it the time, follows from the overlap.

Run: python tests/benchmarks/bench_predict.py [--shape 512 512 800] [--spacing 1.5] [--overlap 0.5] [--precision bf16]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GOAL_GB = 6.0
SPACING = (0.7, 0.7, 1.0)
WINDOW = (96, 96, 96)


def write_scan(path: Path, shape: tuple[int, ...]) -> None:
    """A CT, plane by plane: noise, a body, a spine, lungs that change along the axis."""
    import nibabel

    generator = np.random.default_rng(0)
    noise = generator.normal(0, 12, (shape[0] + 64, shape[1] + 64)).astype(np.int16)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape[:2]), indexing="ij")
    body, spine = x**2 / 0.98 + y**2 / 0.9 < 1, x**2 + (y + 0.6) ** 2 < 0.01
    volume = np.empty(shape, np.int16, order="F")
    for k in range(shape[2]):
        wide = 0.1 * np.sin(k / 90) ** 2 + 0.02
        plane = np.where(body, 40, -1000)
        plane[((np.abs(x) - 0.4) ** 2 + y**2 < wide) & body] = -800
        plane[spine] = 700
        at = generator.integers(0, 64, 2)
        volume[:, :, k] = plane + noise[at[0] : at[0] + shape[0], at[1] : at[1] + shape[1]]
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*SPACING, 1.0])), path)


def write_network(folder: Path, spacing: float) -> None:
    """The small 3D encoder with a U-Net, random weights."""
    import torch
    import yaml

    from medssl.encoders.resenc import ResEnc
    from medssl.heads.base import Network
    from medssl.heads.segmentation import UNet
    from medssl.heads.weights import save_network
    from medssl.io.configurations import config_folder
    from medssl.types import Card, Imported, LabelSchema, Preprocess, Tuned
    from medssl.types.provenance import Provenance

    torch.manual_seed(0)
    fragment = yaml.safe_load((config_folder() / "encoders" / "resenc_small_3d.yaml").read_text())
    encoder = ResEnc(**fragment["init_args"])
    schema = LabelSchema("mask", tuple((n, name) for n, name in enumerate(("background", "a", "b", "c", "d"))))
    tuned = Tuned(Imported("medssl.heads.segmentation.UNet"), schema, WINDOW, 2, ())
    preprocess = Preprocess(spacing_mm=(spacing,) * 3 if spacing else None)
    card = Card(
        Imported(fragment["class_path"], fragment["init_args"]), preprocess, None, "", Provenance(), 1, {}, tuned
    )
    save_network(folder, Network(encoder, UNet(encoder, schema)), card)


def measure(command: list[str]) -> tuple[float, float]:
    """Peak resident memory in GB of a command, and seconds."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        message = f"the prediction failed with status {os.waitstatus_to_exitcode(status)}"
        raise RuntimeError(message)
    return used.ru_maxrss * 1024 / 1e9, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 800))
    parser.add_argument("--spacing", type=float, nargs="+", default=(1.5, 0.0), help="mm; 0 keeps the scan's own")
    parser.add_argument("--overlap", type=float, nargs="+", default=(0.5, 0.0), help="one for each spacing")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "scans").mkdir()
        scan = place / "scans" / "ct.nii.gz"
        write_scan(scan, tuple(asked.shape))
        print(f"CT of {'x'.join(map(str, asked.shape))}, {scan.stat().st_size / 1e6:.0f} MB compressed")
        for spacing, overlap in zip(asked.spacing, asked.overlap, strict=True):
            run = place / f"run{spacing}"
            write_network(run, spacing)
            code = "import sys; from medssl.cli import run_verb; from medssl.commands.predict import predict; sys.exit("
            code += "run_verb(predict, 'predict', sys.argv[1:]))"
            words = [str(run), str(scan.parent), f"--out={place / f'out{spacing}'}", f"--files.key={place / 'key'}"]
            words += ["--files.modality=CT", f"--windows.overlap={overlap}", f"--windows.precision={asked.precision}"]
            gigabytes, seconds = measure([sys.executable, "-c", code, *words])
            said = "own voxels" if not spacing else f"{spacing:g} mm voxels"
            met = "goal met" if gigabytes < GOAL_GB else f"goal of {GOAL_GB:g} GB missed"
            print(f"{said}, overlap {overlap:g}: peak {gigabytes:.2f} GB ({met}), {seconds:.0f} s")


if __name__ == "__main__":
    main()
