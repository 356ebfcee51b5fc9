"""Synthetic whole slides: tissue with tumor of known truth, folds, pen marks and black regions, in two stains.

A slide is a function of place: smooth fields on a coarse grid say where tissue, tumor, folds and marks are, and a
periodic texture of nuclei says what each kind of tissue looks like. Any tile can be drawn by itself, so that slides of
any size are written in bounded memory. Two stains of one slide show the same tissue, pixel by pixel.

Colors follow the law of Beer and Lambert with the stain vectors of Ruifrok and Johnston (2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from medssl.ops.draws import keyed_generator

Stain = Literal["HE", "IHC"]
STAINS: tuple[Stain, ...] = ("HE", "IHC")
MPP = 0.5  # micrometers per pixel
OBJECTIVE = 20
CELL = 32  # pixels of a cell of the coarse grid
_TEXTURE = 1024  # pixels of the periodic texture
_LATTICE = 24  # random values along the side of a slide
_BACKGROUND = np.array([244, 242, 245], np.uint8)
_VECTORS = {
    "hematoxylin": np.array([0.65, 0.70, 0.29]),
    "eosin": np.array([0.07, 0.99, 0.11]),
    "DAB": np.array([0.27, 0.57, 0.78]),
}
_PEN = np.array([30, 60, 150], np.float32)
_FOLD_CELLS, _PEN_CELLS = 1.2, 1.6  # half widths in cells of the coarse grid


@dataclass(frozen=True)
class Fields:
    """Fields on the coarse grid [rows, columns], above 0 inside of what they are named after."""

    tissue: np.ndarray
    tumor: np.ndarray
    fold: np.ndarray
    pen: np.ndarray
    black: np.ndarray


class SyntheticSlide:
    """One slide in one stain.

    Args:
        seed: Seed of the population.
        number: Number of the slide in it; slides of one number show the same tissue in every stain.
        size: Rows and columns in pixels, at least 256.
        stain: The stain.
        tumor: Whether the tissue has tumor.
    """

    def __init__(self, seed: int, number: int, size: tuple[int, int], stain: Stain = "HE", *, tumor: bool) -> None:
        self.size, self.stain = size, stain
        self.fields = _fields(seed, number, size, tumor=tumor)
        generator = keyed_generator(seed, number, f"slide colors {stain}")
        strength = generator.uniform(0.85, 1.15, 3)
        shift = _shift(seed, number)
        self._textures = [_doubled(_colors(kind, stain, strength, shift)) for kind in (0, 1)]

    def tile(self, row: int, column: int, rows: int, columns: int) -> np.ndarray:
        """Pixels uint8 [rows, columns, 3]; what lies outside of the slide continues its edge."""
        fields = self.fields
        result = np.empty((rows, columns, 3), np.uint8)
        result[...] = _BACKGROUND
        window = (row, column, rows, columns)
        if _any(fields.tissue, window):
            self._draw_tissue(result, window)
        if _any(fields.pen, window):
            marked = _enlarged(fields.pen, window) > 0
            result[marked] = (0.45 * result[marked] + 0.55 * _PEN).astype(np.uint8)
        if _any(fields.black, window):
            result[_enlarged(fields.black, window) > 0] = 6
        return result

    def truth(self, step: int = CELL) -> np.ndarray:
        """Tumor as bool [rows, columns], one value for the middle of each ``step`` x ``step`` pixels."""
        shape = (-(-self.size[0] // step), -(-self.size[1] // step))
        fields = self.fields
        result = np.zeros(shape, bool)
        for start in range(0, shape[0], 256):
            count = min(256, shape[0] - start)
            rows, columns = _places(start, count, step), _places(0, shape[1], step)
            inside = _interpolated(fields.tissue, rows, columns) > 0
            result[start : start + count] = inside & (_interpolated(fields.tumor, rows, columns) > 0)
        return result

    def _draw_tissue(self, result: np.ndarray, window: tuple[int, int, int, int]) -> None:
        row, column, rows, columns = window
        inside = _enlarged(self.fields.tissue, window) > 0
        place = (row % _TEXTURE, column % _TEXTURE)
        parts = [texture[place[0] : place[0] + rows, place[1] : place[1] + columns] for texture in self._textures]
        colors = parts[0]
        if _any(self.fields.tumor, window):
            colors = np.where((_enlarged(self.fields.tumor, window) > 0)[..., None], parts[1], parts[0])
        if _any(self.fields.fold, window):
            folded = _enlarged(self.fields.fold, window) > 0
            colors = colors.copy()
            colors[folded] = (colors[folded].astype(np.uint16) ** 2 // 255).astype(np.uint8)  # two layers
        np.copyto(result, colors, where=inside[..., None])


def _shift(seed: int, number: int) -> tuple[int, int]:
    """Shift of the texture, the same in every stain."""
    row, column = keyed_generator(seed, number, "slide texture").integers(0, _TEXTURE, 2)
    return int(row), int(column)


def _fields(seed: int, number: int, size: tuple[int, int], *, tumor: bool) -> Fields:
    """Fields of one slide: two pieces of tissue, folds across them, and sometimes a pen mark or a black edge."""
    shape = (size[0] // CELL + 3, size[1] // CELL + 3)
    generator = keyed_generator(seed, number, "slide tissue")
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, length, dtype=np.float32) for length in shape), indexing="ij")
    tissue = np.full(shape, -1.0, np.float32)
    for center in (-0.45, 0.45):
        middle = (generator.uniform(-0.15, 0.15), center + generator.uniform(-0.05, 0.05))
        radii = (generator.uniform(0.55, 0.75), generator.uniform(0.3, 0.4))
        distance = np.hypot((rows - middle[0]) / radii[0], (columns - middle[1]) / radii[1])
        tissue = np.maximum(tissue, 1 - distance)
    tissue += 0.18 * _smooth(generator, shape)
    growth = _smooth(generator, shape, coarse=10)
    inside = growth[tissue > 0]
    share = generator.uniform(0.15, 0.4)
    cut = np.quantile(inside, 1 - share) if inside.size else 0.0
    nothing = np.full(shape, -1.0, np.float32)
    path = _smooth(generator, shape, coarse=6)
    slope = float(np.abs(np.gradient(path)[0]).mean() + np.abs(np.gradient(path)[1]).mean())
    fold = _FOLD_CELLS - np.abs(path - np.quantile(path, 0.8)) / max(slope, 1e-6)
    pen, black = nothing, nothing
    if generator.random() < 0.5:
        height = shape[0] * generator.uniform(0.03, 0.1)
        wave = height + shape[0] * 0.02 * np.sin(np.linspace(0, generator.uniform(4, 9), shape[1]))
        pen = (_PEN_CELLS - np.abs(np.arange(shape[0])[:, None] - wave)).astype(np.float32)
    if generator.random() < 0.3:
        width = max(2.0, shape[1] * 0.03)
        black = np.broadcast_to((np.arange(shape[1]) - (shape[1] - width))[None], shape).astype(np.float32)
    return Fields(tissue, (growth - cut).astype(np.float32) if tumor else nothing, fold.astype(np.float32), pen, black)


def _smooth(generator: np.random.Generator, shape: tuple[int, int], *, coarse: int = _LATTICE) -> np.ndarray:
    """A smooth random field of mean 0 and spread 1, the same at every size of a slide."""
    from scipy import ndimage

    lattice = generator.normal(size=(coarse, coarse)).astype(np.float32)
    lattice = ndimage.gaussian_filter(lattice, 1.2)
    places = [np.linspace(0, coarse - 1, length) for length in shape]
    field = ndimage.map_coordinates(lattice, np.meshgrid(*places, indexing="ij"), order=3, mode="nearest")
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), np.float32)


@cache
def _nuclei(kind: int) -> np.ndarray:
    """Amount of nuclear stain in a periodic texture, float32 [n, n]: 0 tissue, 1 tumor (larger and closer nuclei)."""
    from scipy import ndimage

    generator = keyed_generator(0, kind, "nuclei")
    radius, area = ((5.0, 520.0), (8.0, 420.0))[kind]
    count = int(_TEXTURE**2 / area)
    seeds = np.zeros((_TEXTURE, _TEXTURE), np.float32)
    seeds[tuple(generator.integers(0, _TEXTURE, (2, count)))] = generator.uniform(0.7, 1.3, count)
    blurred = ndimage.gaussian_filter(seeds, radius / 2, mode="wrap") * (2 * np.pi * (radius / 2) ** 2)
    grain = ndimage.gaussian_filter(generator.normal(size=seeds.shape).astype(np.float32), 1.0, mode="wrap")
    return np.asarray(np.clip((blurred - 0.35) * 3, 0, 1) * (1 + 0.6 * grain), np.float32)


@cache
def _fibers() -> np.ndarray:
    """Amount of the counterstain in a periodic texture, float32 [n, n], about 1."""
    from scipy import ndimage

    noise = keyed_generator(0, 2, "fibers").normal(size=(_TEXTURE, _TEXTURE)).astype(np.float32)
    field = ndimage.gaussian_filter(noise, (2, 9), mode="wrap")
    return np.asarray(np.clip(1 + 0.25 * field / field.std(), 0.3, None), np.float32)


def _colors(kind: int, stain: Stain, strength: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """Texture of a kind of tissue, uint8 [n, n, 3]."""
    nuclei, fibers = (np.roll(field, shift, (0, 1)) for field in (_nuclei(kind), _fibers()))
    if stain == "HE":
        amounts = {"hematoxylin": 0.9 * nuclei * strength[0], "eosin": (0.45 - 0.15 * kind) * fibers * strength[1]}
    else:
        amounts = {
            "hematoxylin": (0.55 * nuclei + 0.06 * fibers) * strength[0],
            "DAB": (0.75 * nuclei + 0.15 * fibers) * kind * strength[2],
        }
    density = sum(amount[..., None] * _VECTORS[name].astype(np.float32) for name, amount in amounts.items())
    return np.asarray(np.clip(245 * np.exp(-1.6 * np.asarray(density)), 0, 255), np.uint8)


def _doubled(texture: np.ndarray) -> np.ndarray:
    """A periodic texture with its beginning appended, so that any tile is one slice of it."""
    return np.concatenate([texture, texture[:512]])[:, np.r_[0:_TEXTURE, 0:512]]


def _places(start: int, count: int, step: int) -> np.ndarray:
    """Middles of ``step`` pixels on the coarse grid."""
    return ((np.arange(start, start + count) + 0.5) * step / CELL).astype(np.float32)


def _any(field: np.ndarray, window: tuple[int, int, int, int]) -> bool:
    """Whether a field is above 0 anywhere in a window of pixels."""
    row, column, rows, columns = window
    part = field[row // CELL : (row + rows) // CELL + 2, column // CELL : (column + columns) // CELL + 2]
    return bool(part.size) and bool(part.max() > 0)


def _enlarged(field: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """A field at the pixels of a window, by linear interpolation."""
    row, column, rows, columns = window
    return _interpolated(field, _places(row, rows, 1), _places(column, columns, 1))


def _interpolated(field: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A field at places of the coarse grid, float32 [rows, columns]."""
    low = [
        np.clip(places.astype(int), 0, length - 2) for places, length in zip((rows, columns), field.shape, strict=True)
    ]
    share = [np.clip(places - first, 0, 1) for places, first in zip((rows, columns), low, strict=True)]
    first = int(low[0][0])
    part = field[first : int(low[0][-1]) + 2]
    across = part[:, low[1]] * (1 - share[1]) + part[:, low[1] + 1] * share[1]
    near = low[0] - first
    return np.asarray(across[near] * (1 - share[0])[:, None] + across[near + 1] * share[0][:, None], np.float32)
