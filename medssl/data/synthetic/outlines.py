"""Outlines of a mask as closed rings of corners, such as GeoJSON writes them."""

from __future__ import annotations

import numpy as np

Ring = list[list[int]]


def outlines(mask: np.ndarray, step: int, size: tuple[int, int]) -> list[list[Ring]]:
    """Polygons around the regions of a mask; each has its outer ring, then those of its holes.

    Args:
        mask: bool [rows, columns].
        step: Pixels of the picture in one cell of the mask.
        size: Rows and columns of the picture, which corners do not leave.

    Returns:
        Rings of (x, y) in pixels; the last corner is the first one.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask)  # neighbors by edges: regions that touch at a corner are two
    polygons = []
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        region = labels[place] == number
        rings = sorted(_rings(region), key=_area, reverse=True)
        row, column = place[0].start, place[1].start
        polygons.append(
            [[[min((x + column) * step, size[1]), min((y + row) * step, size[0])] for x, y in ring] for ring in rings]
        )
    assert len(polygons) == count
    return polygons


def _rings(region: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed rings of corners (x, y) along the edges of a region, which lies to the right of each edge."""
    padded = np.pad(region, 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    steps = (((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1)), ((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0)))
    for (down, right), start, end in steps:
        beside = np.roll(padded, (-down, -right), (0, 1))
        for row, column in np.argwhere(padded & ~beside) - 1:
            first = (int(column) + start[0], int(row) + start[1])
            following.setdefault(first, []).append((int(column) + end[0], int(row) + end[1]))
    rings = []
    while following:
        first = next(iter(following))
        ring, before = [first], None
        while len(ring) < 2 or ring[-1] != first:
            here = ring[-1]
            choices = following[here]
            index = 0 if before is None or len(choices) == 1 else _turn_right(before, here, choices)
            before = here
            ring.append(choices.pop(index))
            if not choices:
                del following[here]
        rings.append(_without_middles(ring))
    return rings


def _turn_right(before: tuple[int, int], here: tuple[int, int], choices: list[tuple[int, int]]) -> int:
    """Which of two edges goes on along the same cell, where two cells of a region touch at a corner."""
    step = (here[0] - before[0], here[1] - before[1])
    turned = (here[0] - step[1], here[1] + step[0])
    return choices.index(turned) if turned in choices else 0


def _without_middles(ring: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """A ring without corners in the middle of a straight line."""
    corners = ring[:-1]
    around = zip([corners[-1], *corners[:-1]], corners, [*corners[1:], corners[0]], strict=True)
    turns = [
        place
        for before, place, after in around
        if not (before[0] == place[0] == after[0] or before[1] == place[1] == after[1])
    ]
    return [*turns, turns[0]]


def _area(ring: list[tuple[int, int]]) -> float:
    """Absolute area inside of a ring."""
    x, y = np.array(ring).T
    return float(abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2
