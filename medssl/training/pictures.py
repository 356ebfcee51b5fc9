"""Pictures of what an objective sees: one row a sample, its tensors side by side, middle slices of volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from medssl.io.atomic_write import atomic_write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float, UInt8
    from torch import Tensor

GAP, HEADER, ROWS, SIDE, LETTER = 4, 14, 4, 128, 7


def draw(
    path: Path,
    tensors: dict[str, Float[Tensor, "B C *s"]],
    spacing_mm: Sequence[float] | None = None,
    *,
    mirrored: bool = False,
    captions: Sequence[str] = (),
) -> None:
    """Writes a PNG: at most four samples; gray values of a row span the 1st to 99th percentile of its first tensor.

    With ``spacing_mm`` (per axis) thick slices are drawn as thick as they are, in whole voxels. ``mirrored`` shows the
    first axis of volumes from right to left: where it grows to the patient's right, that is the radiological view.
    ``captions`` stand below the rows.
    """
    names = list(tensors)
    arrays = [tensors[name].numpy() for name in names]
    finest = min(spacing_mm) if spacing_mm else 1.0
    repeats = [max(1, round(mm / finest)) for mm in spacing_mm or (1.0,) * (arrays[0].ndim - 2)]
    rows = [
        [tile for array in arrays for tile in tiles(array[b], arrays[0][b], repeats, mirrored=mirrored)]
        for b in range(min(ROWS, len(arrays[0])))
    ]
    per_tensor = len(rows[0]) // len(names)
    height, width = max(tile.shape[0] for tile in rows[0]), max(tile.shape[1] for tile in rows[0])
    below = HEADER if captions else 0
    step, widest = height + GAP + below, max(map(len, captions), default=0) * LETTER
    canvas = Image.new("RGB", (max((width + GAP) * len(rows[0]), widest), HEADER + step * len(rows)))
    pen = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            canvas.paste(Image.fromarray(tile), (j * (width + GAP), HEADER + i * step))
        if captions:
            pen.text((2, HEADER + i * step + height + 1), captions[i], fill="white")
    for j, name in enumerate(names):
        pen.text((j * per_tensor * (width + GAP) + 2, 1), name, fill="white")
    atomic_write(path, lambda file: canvas.save(file, format="PNG"))


def tiles(
    image: Float[np.ndarray, "C *s"],
    scale: Float[np.ndarray, "C *s"],
    repeats: Sequence[int],
    *,
    mirrored: bool = False,
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """An image as it is, a volume as its middle slice across each axis; colors where there are three channels.

    Every voxel is repeated ``repeats`` times along its axes.
    """
    color = image.ndim == 3 and image.shape[0] == 3
    values, reference = (image, scale) if color else (image[:1], scale[:1])
    low, high = np.nanpercentile(reference, (1, 99))
    finite = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    gray = (255 * np.clip((finite - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)
    flat = [gray] if image.ndim == 3 else [gray.take(gray.shape[axis] // 2, axis=axis) for axis in (3, 2, 1)]
    shown = [(0, 1)] if image.ndim == 3 else [(0, 1), (0, 2), (1, 2)]
    flat = [f.repeat(repeats[a], axis=1).repeat(repeats[b], axis=2) for f, (a, b) in zip(flat, shown, strict=True)]
    if image.ndim == 4:  # stored axes point right, front, up: turned so that the last of the two shown points up
        flat = [np.rot90(f, axes=(1, 2)) for f in flat]
        flat = [f[..., ::-1] if mirrored and a == 0 else f for f, (a, _) in zip(flat, shown, strict=True)]
    return [enlarged(np.ascontiguousarray(np.moveaxis(np.broadcast_to(f, (3, *f.shape[1:])), 0, -1))) for f in flat]


def enlarged(tile: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Small tiles are repeated a whole number of times, so that single voxels stay squares."""
    times = max(1, SIDE // max(tile.shape[:2]))
    return tile.repeat(times, axis=0).repeat(times, axis=1)
