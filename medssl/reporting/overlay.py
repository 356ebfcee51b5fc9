"""Pictures of label (filled) and prediction (outlined), on the slices with the largest label.

Colors are those of Okabe and Ito (2008), which people with color vision deficiency can distinguish.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Int, Shaped, UInt8

    from medssl.types import LabelSchema

    Color = tuple[int, int, int]

PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66), (0, 114, 178))
IGNORED = (128, 128, 128)
FILL = 0.4  # opacity of a filled label
SHORTEST, LONGEST = 240, 384  # pixels of a tile's longer side
GAP, LINE, TEXT = 4, 20, 13
PLANES = ((0, 1), (0, 2), (1, 2))  # axial, coronal, sagittal: horizontal axis, vertical axis


class _Tile(NamedTuple):
    """A slice at its display size; ``label`` and ``prediction`` are maps of stored label values, or None."""

    image: UInt8[np.ndarray, "H W 3"]
    label: Int[np.ndarray, "H W"] | None
    prediction: Int[np.ndarray, "H W"] | None
    is_volume: bool


def overlay(
    image: Shaped[np.ndarray, "*c_s"],
    label: Int[np.ndarray, "*s"] | None,
    prediction: Int[np.ndarray, "*s"] | None,
    schema: LabelSchema,
    spacing_mm: Sequence[float],
) -> bytes:
    """Draws a PNG with the label filled, the prediction outlined, and a legend; the aspect ratio follows the spacing.

    Volumes (RAS) are shown as three slices (axial, coronal, sagittal) in radiological order: the patient's right, or
    front, is on the left. Along each axis, the slice with the largest label is shown; without a label, the one with the
    largest prediction; without both, the middle slice. Gray values span the 1st to 99th percentile of the whole image.

    Args:
        image: [*s] or [C, *s] with two or three axes s. Three channels of a 2D image are colors; of all other images
            the first channel is shown.
        label: Stored label values [*s], or None.
        prediction: Predicted label values [*s], or None.
        schema: Names of the values. The first class is the background, which is not drawn; the value to ignore is gray.
        spacing_mm: Voxel size per axis of s, mm.

    Returns:
        The content of the PNG file.

    Raises:
        UserError: The shapes do not match.
    """
    _refuse_misfits(image, label, prediction, len(spacing_mm))
    scaled = _gray(image, len(spacing_mm))
    pieces = _slices(scaled, label, prediction, spacing_mm)
    tiles = [_drawn(tile, schema) for tile in pieces]
    legend = _legend(schema, pieces, sum(tile.width + GAP for tile in tiles) - GAP)
    width = max(sum(tile.width + GAP for tile in tiles) - GAP, legend.width)
    canvas = Image.new("RGB", (width, max(tile.height for tile in tiles) + legend.height))
    left = 0
    for tile in tiles:
        canvas.paste(tile, (left, 0))
        left += tile.width + GAP
    canvas.paste(legend, (0, canvas.height - legend.height))
    stream = io.BytesIO()
    canvas.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def color_of(schema: LabelSchema, value: int) -> Color:
    """Color of a stored label value, the same in every picture; colors repeat after seven classes."""
    number = [stored for stored, _ in schema.classes].index(value)
    return PALETTE[(number - 1) % len(PALETTE)]


def _refuse_misfits(
    image: Shaped[np.ndarray, "*c_s"],
    label: Int[np.ndarray, "*s"] | None,
    prediction: Int[np.ndarray, "*s"] | None,
    axes: int,
) -> None:
    spatial = image.shape[image.ndim - axes :]
    fits = axes in (2, 3) and image.ndim in (axes, axes + 1) and all(image.shape)
    others = [array.shape for array in (label, prediction) if array is not None]
    if not fits or any(shape != spatial for shape in others):
        message = (
            f"a picture of image {list(image.shape)} with label and prediction {[list(shape) for shape in others]} and "
            f"{axes} spacings cannot be drawn: give one spacing for each of two or three axes, and equal shapes"
        )
        raise UserError(message)


def _gray(image: Shaped[np.ndarray, "*c_s"], axes: int) -> UInt8[np.ndarray, "*s_3"]:
    """The image as 8-bit colors; the last axis is red, green, blue."""
    channels = image[None] if image.ndim == axes else image
    channels = channels if len(channels) == 3 and axes == 2 else channels[:1]
    values = channels.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    shown = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    eight = (255 * np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1)).astype(np.uint8)
    return np.moveaxis(np.broadcast_to(eight, (3, *eight.shape[1:])), 0, -1)


def _slices(
    image: UInt8[np.ndarray, "*s_3"],
    label: Int[np.ndarray, "*s"] | None,
    prediction: Int[np.ndarray, "*s"] | None,
    spacing_mm: Sequence[float],
) -> list[_Tile]:
    """The tiles of a picture, rotated and enlarged; all have the same scale if their sizes allow it."""
    volume = len(spacing_mm) == 3
    extents = [count * step for count, step in zip(image.shape, spacing_mm, strict=False)]
    planes = PLANES if volume else ((1, 0),)
    longer = [max(extents[a], extents[b]) for a, b in planes]
    scale = max(min(LONGEST / max(longer), 1 / min(spacing_mm)), SHORTEST / min(longer))
    tiles = []
    for across, down in planes:
        shown = [np.asarray(array) for array in (image, label, prediction) if array is not None]
        if volume:
            axis = 3 - across - down
            place = _busiest(label, prediction, axis, image.shape[axis])
            shown = [np.rot90(array.take(place, axis=axis))[:, ::-1] for array in shown]
        size = (max(1, round(extents[across] * scale)), max(1, round(extents[down] * scale)))
        picture = np.asarray(Image.fromarray(np.ascontiguousarray(shown[0])).resize(size, Image.Resampling.BICUBIC))
        maps = iter([_nearest(array, size) for array in shown[1:]])
        tiles.append(
            _Tile(picture, None if label is None else next(maps), None if prediction is None else next(maps), volume)
        )
    return tiles


def _busiest(
    label: Int[np.ndarray, "*s"] | None, prediction: Int[np.ndarray, "*s"] | None, axis: int, count: int
) -> int:
    """Number of the slice across ``axis`` with the largest label, else the largest prediction, else the middle one."""
    for array in (label, prediction):
        if array is not None:
            marked = (array > 0).sum(axis=tuple(a for a in range(3) if a != axis))
            if marked.any():
                return int(marked.argmax())
    return count // 2


def _nearest(array: Int[np.ndarray, "H W"], size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """A class map resized to (width, height) by nearest neighbors."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size[::-1], array.shape, strict=True)
    )
    return np.asarray(array[np.ix_(rows, columns)])


def _drawn(tile: _Tile, schema: LabelSchema) -> Image.Image:
    """A tile with its label filled and its prediction outlined."""
    canvas = tile.image.astype(np.float32)
    colors = {value: color_of(schema, value) for value, _ in schema.classes[1:]}
    if tile.label is not None:
        filled = colors if schema.ignore is None else colors | {schema.ignore: IGNORED}
        for value, color in filled.items():
            inside = tile.label == value
            canvas[inside] = (1 - FILL) * canvas[inside] + FILL * np.asarray(color, np.float32)
    if tile.prediction is not None:
        for value, color in colors.items():
            canvas[_outline(tile.prediction == value)] = color
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))


def _outline(inside: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels of a shape within two pixels of its border; the border of the picture does not count."""
    core: Bool[np.ndarray, "H W"] = inside
    for _ in range(2):
        padded = np.pad(core, 1, mode="edge")
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(inside & ~core)


def _legend(schema: LabelSchema, tiles: Sequence[_Tile], width: int) -> Image.Image:
    """Legend of the classes in the picture, in rows as wide as the tiles."""
    font = ImageFont.load_default(size=TEXT)
    maps = [array for tile in tiles for array in (tile.label, tile.prediction) if array is not None]
    values_shown = set().union(*(np.unique(array).tolist() for array in maps))
    entries: list[tuple[str, Color | None]] = [
        (name, color_of(schema, value)) for value, name in schema.classes[1:] if value in values_shown
    ]
    if schema.ignore in values_shown:
        entries.append(("ignored", IGNORED))
    markings = (("filled: label", tiles[0].label), ("outline: prediction", tiles[0].prediction))
    explanations = [text for text, array in markings if array is not None]
    explanations += ["left: the patient's right (axial, coronal) or front"] if tiles[0].is_volume else []
    entries += [(text, None) for text in explanations]
    places, left, row = [], 0, 0
    for text, color in entries:
        needed = (LINE if color else GAP) + round(font.getlength(text)) + 2 * GAP
        if left and left + needed > width:
            left, row = 0, row + 1
        places.append((left, row * LINE))
        left += needed
    widest = max([x + LINE + round(font.getlength(text)) for (x, _), (text, _) in zip(places, entries, strict=True)],
                 default=1)  # fmt: skip
    canvas = Image.new("RGB", (max(width, widest), LINE * (row + 1) if entries else 0))
    pen = ImageDraw.Draw(canvas)
    for (x, y), (text, color) in zip(places, entries, strict=True):
        if color is not None:
            pen.rectangle((x + GAP, y + GAP, x + LINE - GAP, y + LINE - GAP), fill=color)
        pen.text((x + (LINE if color else GAP), y + 2), text, fill="white", font=font)
    return canvas
