"""Heat maps of a folder of bags: which tiles of a slide a network looks at."""

from __future__ import annotations

from functools import partial
from typing import IO, TYPE_CHECKING

import numpy as np

from medssl.inference.bags import attention_of, open_bags
from medssl.io.atomic_write import atomic_write
from medssl.reporting.heat_map import heat_map, tiles_as_geojson
from medssl.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float

    from medssl.data.bags.store import BagStore
    from medssl.data.store.store import Store
    from medssl.inference.predictor import Fitted

FOLDER = "heat_maps"
LONGEST = 1600  # rows or columns of a thumbnail


def draw_heat_maps(fitted: Fitted, path: Path, slides: Store, out: Path) -> tuple[int, list[tuple[str, str]]]:
    """Writes ``heat_maps/SCAN_ID.png`` and ``.geojson`` of each bag; those that are there are not drawn again.

    Args:
        fitted: A network for bags.
        path: Folder of the bags.
        slides: Store of the slides that the bags are of.
        out: Folder of the predictions.

    Returns:
        How many were drawn, and which were left out with the reason.

    Raises:
        UserError: The store holds no slides, or tiles of another size than the bags.
    """
    from PIL import Image
    from tqdm.auto import tqdm

    bags = open_bags(path, fitted)
    refuse_other_tiles(bags, slides)
    folder = out / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    drawn, left_out = 0, []
    for number in tqdm(range(len(bags)), desc="heat maps", unit="slide"):
        scan_id = bags.scan_id(number)
        picture, outlines = folder / f"{scan_id}.png", folder / f"{scan_id}.geojson"
        if picture.exists() and outlines.exists():
            continue
        try:
            slide = slides.number(scan_id)
            tiles, weights = slides.tiles(slide), weight_of(attention_of(fitted, bags, number))
            if not np.array_equal(tiles.coords, bags.bag(number).coords):
                message = "the store has other tiles of this slide than the bag"
                raise ValueError(message)
            thumbnail, scale = slides.thumbnail(slide, LONGEST)
        except (UserError, ValueError) as error:
            left_out.append((scan_id, str(error)))
            continue
        boxes = np.concatenate([tiles.start, np.broadcast_to(tiles.size, tiles.start.shape)], 1) * scale
        image = Image.fromarray(heat_map(thumbnail, boxes, weights))
        atomic_write(outlines, partial(_write_text, tiles_as_geojson(tiles.coords, tiles.level0, weights)))
        atomic_write(picture, partial(image.save, format="PNG"))
        drawn += 1
    return drawn, left_out


def refuse_other_tiles(bags: BagStore, slides: Store) -> None:
    """Refuses a store whose slides the bags are not of.

    Raises:
        UserError: Names both.
    """
    if slides.tier != "slides":
        message, expected = "holds no whole slides", "the store that was embedded, of tier slides"
        raise UserError(message, key="heat_maps", got=slides.path.name, expected=expected)
    rules = slides.preprocess.tiles
    if bags.facts.tile_px != rules.size or bags.facts.spacing_mm != (rules.mpp or 0.0) / 1000.0:
        message = f"has tiles of {rules.size} pixels at {rules.mpp:g} micrometers, and the bags others"
        hint = "Give the store that was embedded"
        raise UserError(message, key="heat_maps", got=slides.path.name, hint=hint)


def weight_of(attention: Float[np.ndarray, "H N"]) -> Float[np.ndarray, "N"]:
    """One weight of each tile: the mean of the branches of a head."""
    weights: Float[np.ndarray, "N"] = attention.mean(0)
    return weights


def _write_text(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())
