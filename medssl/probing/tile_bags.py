"""Tiles of slides, or windows of images, as bags: a 2D encoder gives the features of each."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from medssl.data.bags.description import BagEncoder, BagFacts
from medssl.data.bags.files import Bag
from medssl.types import UserError
from medssl.views.intensity import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float

    from medssl.data.store.store import Store
    from medssl.data.store.tiles import Tiles
    from medssl.probing.feature_extractor import FrozenEncoder


def tile_facts(frozen: FrozenEncoder, store: Store, encoder: BagEncoder) -> BagFacts:
    """What bags of tiles have in common.

    Args:
        frozen: A 2D encoder.
        store: Whole slides, or images.
        encoder: What the folder of bags says of the encoder.

    Raises:
        UserError: The encoder is not 2D, or its window is no tile of the store.
    """
    if len(frozen.window) != 2 or frozen.window[0] != frozen.window[1]:
        message, expected = "tiles are square", "two equal numbers, such as 256,256"
        raise UserError(message, key="window", got=list(frozen.window), expected=expected)
    slides = store.tier == "slides"
    mpp, size = store.preprocess.tiles.mpp, store.preprocess.tiles.size
    if slides and frozen.window[0] != size:
        message = f"the tiles of the store are {size} x {size}"
        hint = "Give the size of the tiles, or cache the slides with preprocess.tiles.size"
        raise UserError(message, key="window", got=list(frozen.window), hint=hint)
    spacing_mm = mpp / 1000.0 if slides and mpp is not None else None
    features = frozen.encoder.channels[-1]
    facts = BagFacts(encoder, features, frozen.window[0], spacing_mm, "level0")
    return BagFacts(**{**vars(facts), "index_digest": store.index_digest, "synthetic": store.synthetic})


def bag_of_tiles(frozen: FrozenEncoder, store: Store, number: int, *, half: bool = True) -> Bag:
    """Features of the tiles of a slide, or of the fewest windows that cover an image.

    Args:
        frozen: A 2D encoder whose window is a tile.
        store: Whole slides, or images.
        number: Which of them.
        half: Features in half precision.

    Returns:
        A row for each tile; coordinates are x and y of its upper left corner, of slides in pixels of level 0.
    """
    facts: dict[str, object] = {}
    if store.tier == "slides":
        tiles = store.tiles(number)
        values, coords = features_of_tiles(frozen, store, number, tiles), tiles.coords
        facts = {"tile_level0": tiles.level0[0]}
    else:
        scan = frozen.scan(store, number)
        rows = [(start, x.pooled[0].float().cpu().numpy()) for start, _, x in frozen.features(scan)]
        values = np.stack([row for _, row in rows])
        coords = np.array([start[::-1] for start, _ in rows], np.int64)
    return Bag(values.astype(np.float16 if half else np.float32), coords, "level0", facts)


@torch.inference_mode()
def features_of_tiles(frozen: FrozenEncoder, store: Store, number: int, tiles: Tiles) -> Float[np.ndarray, "N D"]:
    """Pooled features of the tiles of a slide, batch by batch."""
    device = next(frozen.encoder.parameters()).device
    numbers = torch.from_numpy(store.intensity(number).copy())[None]
    rows: list[np.ndarray] = []
    with frozen.computing():
        for starts in _groups(tiles.start, frozen.windows.batch_size):
            boxes = [torch.from_numpy(store.read(number, (int(a), int(b)), tiles.size)) for a, b in starts]
            images = decode(torch.stack(boxes), numbers.expand(len(boxes), -1, -1))
            rows.append(frozen.encoder(images.to(device)).pooled.float().cpu().numpy())
    return np.concatenate(rows)


def _groups(rows: np.ndarray, size: int) -> Iterator[list[np.ndarray]]:
    remaining = iter(rows)
    while group := list(islice(remaining, size)):
        yield group
