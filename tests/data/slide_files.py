"""Slides as files for tests, written by tifffile, independent of the package: SVS layout and other pyramids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

APERIO = "Aperio Image Library v12.0.15\r\n{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) JPEG/RGB Q=80"


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Smooth colors with some detail, uint8 [rows, columns, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(60, 240, (rows // 16 + 2, columns // 16 + 2, 3))
    fine = np.kron(coarse, np.ones((16, 16, 1)))[:rows, :columns]
    return (fine + generator.integers(-20, 20, (rows, columns, 1))).clip(0, 255).astype(np.uint8)


def halved(image: np.ndarray, times: int = 1) -> np.ndarray:
    """Mean of 2 x 2 pixels, ``times`` times; an odd last row or column is dropped, as scanners do."""
    for _ in range(times):
        rows, columns = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        blocks = image[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 3).astype(float)
        image = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    return image


def write_pyramid(
    file: Path, image: np.ndarray, *, levels: int = 3, description: str = "", tile: int = 64,
    compression: str = "deflate", **tags: object,
) -> None:  # fmt: skip
    """A tiled pyramid of pages, each half as large; ``tags`` such as ``resolution`` go to the first page."""
    with tifffile.TiffWriter(file) as writer:
        for level in range(levels):
            writer.write(
                halved(image, level), tile=(tile, tile), photometric="rgb", compression=compression, metadata=None,
                subfiletype=int(level > 0), description=description if not level else None,
                **(tags if not level else {}),
            )  # fmt: skip


def write_svs(file: Path, image: np.ndarray, *, mpp: str | None = "0.5000", levels: int = 3, more: str = "") -> None:
    """A slide as Aperio lays it out; None leaves MPP out."""
    text = APERIO.format(height=image.shape[0], width=image.shape[1], tile=64) + "|AppMag = 20" + more
    write_pyramid(file, image, levels=levels, description=text + (f"|MPP = {mpp}" if mpp is not None else ""))


def area_mean(image: np.ndarray, start: tuple[int, int], size: tuple[int, int], step: float) -> np.ndarray:
    """Mean of the exact area of each new pixel, float [*size, 3], by differences of the integral."""
    result = image.astype(float)
    for axis in (0, 1):
        result = np.moveaxis(result, axis, 0)
        total = np.concatenate([np.zeros((1, *result.shape[1:])), np.cumsum(result, 0)])
        edges = (start[axis] + np.arange(size[axis] + 1)) * step
        low = np.clip(np.floor(edges).astype(int), 0, len(total) - 2)
        share = (edges - low)[:, None, None]
        result = np.diff(total[low] * (1 - share) + total[low + 1] * share, axis=0) / step
        result = np.moveaxis(result, 0, axis)
    return result
