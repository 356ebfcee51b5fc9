"""Whole slides in a store: tissue and tiles are stored, pixels are read from the slides when they are needed.

The stored form of a slide is the slide at the resolution of ``preprocess.tiles.mpp``, and its voxels are never written.
What is written for it is a table of tiles. Where the slides lie stands in ``sources.sqlite``, which alone of all files
of a store holds names of files: mode 0600, to be left out where a store is passed on.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.base import FormatError
from medssl.data.formats.reading import Volume
from medssl.data.formats.slide import SlideReader, open_slide
from medssl.data.store import tiles
from medssl.data.store.coding import cell_side
from medssl.data.store.preprocess import prepare
from medssl.data.store.tissue import tissue_mask
from medssl.data.store.unchanged import same_time
from medssl.io.sqlite import refuse_programs
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Bool, Int
    from numpy.typing import NDArray

    from medssl.data.store.preprocess import Prepared
    from medssl.data.store.tiles import Tiles
    from medssl.types import Preprocess, Scan

SOURCES = "sources.sqlite"
SHARES = 65535  # a share of tissue of 1 in the table of tiles
WHITE = 255


class StoredSlide:
    """The pixels of a slide at the resolution of a store, as the store reads arrays: [3, rows, columns], uint8."""

    def __init__(self, reader: SlideReader, spacing_mm: tuple[float, float]) -> None:
        self.reader, self.spacing_mm = reader, spacing_mm

    def read(self, start: tuple[int, ...], stop: tuple[int, ...], out: NDArray[Any]) -> None:
        """Fills ``out`` with the box [start, stop) of all three colors.

        Raises:
            ValueError: A tile of the slide is damaged.
        """
        size = (stop[1] - start[1], stop[2] - start[2])
        out[...] = self.reader.read((start[1], start[2]), size, self.spacing_mm)


def prepare_slide(scan: Scan, root: Path, rules: Preprocess) -> tuple[Prepared, Tiles]:
    """Finds the tissue of a slide and lays tiles over it.

    Rules for intensities that measure values measure them on the thumbnail.

    Args:
        scan: A slide of the index, with its spacing.
        root: Root of the index.
        rules: Rules of the store.

    Returns:
        The slide as it is stored, its pixels a view of one white pixel; and its tiles.

    Raises:
        FormatError: The slide is damaged, has no tissue, or is smaller than a tile.
    """
    mpp = rules.tiles.mpp
    assert mpp is not None
    reader = reader_of(scan, root)
    spacing_mm, thumbnail_mm = (mpp / 1000.0,) * 2, (max(rules.tissue.mpp, mpp) / 1000.0,) * 2
    shape = reader.shape_at(spacing_mm)
    thumbnail = reader.read((0, 0), reader.shape_at(thumbnail_mm), thumbnail_mm)
    tissue = tissue_mask(thumbnail, thumbnail_mm, rules.tissue)
    if tissue.reason:
        raise FormatError(tissue.reason)
    level0_mm = reader.spacing_mm or spacing_mm
    try:
        found = tiles.tissue_tiles(tissue.mask, thumbnail_mm, (shape, spacing_mm, level0_mm), rules.tiles)
    except UserError as error:
        raise FormatError(str(error)) from error
    if not len(found):
        message = (
            f"no tile has {rules.tiles.smallest_tissue:.0%} of tissue (preprocess.tiles.smallest_tissue); there are "
            f"{tissue.mask.sum() * thumbnail_mm[0] * thumbnail_mm[1]:.3g} mm2 of it"
        )
        raise FormatError(message)
    affine = np.diag([*spacing_mm, 1.0])
    whole = replace(rules, image_size=None, foreground_crop=False)
    measured = prepare(Volume(thumbnail, affine, spacing_mm), whole, domain="rgb")
    undo = replace(measured.undo, shape=shape, crop_size=shape)
    pixels = np.broadcast_to(np.array(WHITE, measured.image.dtype), (3, *shape))
    cells = cells_of(found, shape)
    coding = replace(measured.coding, fill=np.full_like(measured.coding.fill, WHITE))
    return replace(measured, image=pixels, affine=affine, cells=cells, undo=undo, coding=coding), found


def cells_of(found: Tiles, shape: tuple[int, int]) -> Bool[np.ndarray, "N"]:
    """The foreground map of a slide: cells with the middle of a tile in them."""
    side = cell_side(shape)
    cells = np.zeros([-(-length // side) for length in shape], bool)
    middle = (found.start + np.array(found.size) // 2) // side
    cells[middle[:, 0], middle[:, 1]] = True
    return cells.ravel()


def table_of(found: Tiles) -> Int[np.ndarray, "N 3"]:
    """Tiles as they are stored: row, column, share of tissue times ``SHARES``."""
    share = np.rint(found.share * SHARES).astype(np.int64)
    return np.concatenate([found.start, share[:, None]], 1).astype(np.int32)


def tiles_of(table: Int[np.ndarray, "N 3"], rules: Preprocess, level0_mm: tuple[float, float]) -> Tiles:
    """The tiles of a stored table."""
    assert rules.tiles.mpp is not None
    spacing_mm = (rules.tiles.mpp / 1000.0,) * 2
    return tiles.placed(table[:, :2].astype(np.int64), table[:, 2] / SHARES, (spacing_mm, level0_mm), rules.tiles.size)


def reader_of(scan: Scan, root: Path) -> SlideReader:
    """A reader of a slide of an index, with the spacing that the index says."""
    first, *more = (root / part.path for part in scan.source.parts)
    rows, columns = scan.grid.spacing_mm
    return open_slide(first, *more, spacing_mm=(rows, columns))


def write_sources(store: Path, root: Path, scans: Iterable[tuple[str, Scan]]) -> None:
    """Writes where slides lie, and what their files were when they were indexed.

    Args:
        store: Folder of the store.
        root: Root of the index.
        scans: Key in the store of each slide, and the slide.
    """
    path = store / SOURCES
    with closing(sqlite3.connect(path, timeout=120)) as connection:
        path.chmod(0o600)
        refuse_programs(connection, path.name)
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS sources (key PRIMARY KEY, facts) WITHOUT ROWID")
            for key, scan in scans:
                states = sorted({state for part in scan.source.parts for state in part.states})
                facts = {
                    "root": str(root.resolve()),
                    "parts": [part.path for part in scan.source.parts],
                    "states": states,
                    "spacing_mm": scan.grid.spacing_mm,
                }
                connection.execute("INSERT OR REPLACE INTO sources VALUES (?, ?)", (key, json.dumps(facts)))


class Sources:
    """Where the slides of a store lie."""

    def __init__(self, store: Path) -> None:
        self.path = store / SOURCES

    def spacing_mm(self, key: str) -> tuple[float, float]:
        """Distance of rows and of columns at level 0 of a slide, mm."""
        rows, columns = self._facts(key)["spacing_mm"]
        return float(rows), float(columns)

    def reader(self, key: str) -> SlideReader:
        """A reader of a slide.

        Raises:
            ValueError: The slide was moved, or has changed since it was indexed.
        """
        facts = self._facts(key)
        root = Path(facts["root"])
        for name, size, modified_ns in facts["states"]:
            try:
                about = (root / name).stat()
            except OSError as error:
                message = f"the slide is not there ({error.strerror}): cache the index of its present folder again"
                raise ValueError(message) from error
            if about.st_size != size or not same_time(about.st_mtime_ns, modified_ns):
                message = "the slide has changed since it was indexed: index and cache again"
                raise ValueError(message)
        first, *more = (root / name for name in facts["parts"])
        return open_slide(first, *more, spacing_mm=self.spacing_mm(key))

    def _facts(self, key: str) -> dict[str, Any]:
        if not self.path.is_file():
            message = f"{SOURCES}, which says where the slides are, is missing from the store: cache the index again"
            raise ValueError(message)
        with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=120)) as connection:
            refuse_programs(connection, self.path.name)
            row = connection.execute("SELECT facts FROM sources WHERE key = ?", (key,)).fetchone()
        if row is None:
            message = f"{SOURCES} does not say where the slide is: cache the index again"
            raise ValueError(message)
        facts: dict[str, Any] = json.loads(row[0])
        return facts
