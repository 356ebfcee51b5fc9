"""Line charts as SVG text, for a page or as a file; they load nothing from elsewhere.

Not Matplotlib: charts are text of a few kilobytes that is the same bytes on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, BOTTOM, ROW = 64, 20, 52, 20
LETTER = 0.6  # upper estimate of a letter's width as a share of the font size
MAX_POINTS = 400  # points that are drawn of one line
# Okabe and Ito (2008) without yellow, which vanishes on white
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Point:
    """A point of a line, with an optional interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line; ``marked`` draws a disc on every point, ``faint`` a thin line for the background, ``dashed`` dashes."""

    name: str
    points: tuple[Point, ...]
    marked: bool = False
    faint: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels, and holds the values of the ticks."""

    place: Callable[[float], float]
    ticks: tuple[float, ...]


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, logarithmic: bool = False) -> str:
    """Draws lines in one chart of 640 x 400 pixels, with a legend.

    Values that are not finite are gaps; the legend counts them. Interval bars at the same x are drawn side by side.
    Lines with more than 400 points are averaged to at most 400.

    Args:
        series: The lines; colors repeat after seven.
        title: Title above the chart.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis, with its unit.
        logarithmic: Whether the horizontal axis is logarithmic.

    Raises:
        UserError: There is no finite point, or a logarithmic axis has values that are not positive.
    """
    finite = [point for line in series for point in line.points if math.isfinite(point.x) and math.isfinite(point.y)]
    if not finite:
        message = f"nothing to draw in {title!r}: none of its lines has a finite point"
        raise UserError(message)
    if logarithmic and min(point.x for point in finite) <= 0:
        message = (
            f"{title!r} has a point at x = {min(point.x for point in finite):g}: a logarithmic axis starts above 0"
        )
        raise UserError(message)
    lines = [replace(line, points=averaged(line.points)) for line in series]
    legend, rows = _legend(lines)
    top = 34 + ROW * (rows + 1)
    ends = [
        end for point in finite for end in (point.y, point.low, point.high) if end is not None and math.isfinite(end)
    ]
    x = _axis([point.x for point in finite], (LEFT, WIDTH - RIGHT), logarithmic=logarithmic)
    y = _axis(ends, (HEIGHT - BOTTOM, top))
    drawn = [_line(line, number, len(lines), x, y) for number, line in enumerate(lines)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'role="img" aria-label="{escape(title)}" font-family="Helvetica, Arial, sans-serif" font-size="12" '
            'fill="#222222">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            _text(8, 22, title, 16, 'font-weight="bold"'),
            *legend,
            _text(8, top - 10, y_label, 12),
            *_frame(x, y, top, x_label),
            *drawn,
            "</svg>",
        ]
    )


def averaged(points: Sequence[Point]) -> tuple[Point, ...]:
    """Averages neighboring points to at most 400 points; lines with intervals are not changed."""
    share = math.ceil(len(points) / MAX_POINTS)
    if share == 1 or any(point.low is not None for point in points):
        return tuple(points)
    groups = [points[start : start + share] for start in range(0, len(points), share)]
    return tuple(Point(sum(p.x for p in group) / len(group), sum(p.y for p in group) / len(group)) for group in groups)


def linear_ticks(low: float, high: float) -> tuple[float, ...]:
    """Four to ten ticks between two numbers: multiples of 1, 2 or 5 times a power of ten."""
    largest_step = (high - low) / 4 * 1.001
    power = 10.0 ** math.floor(math.log10(largest_step))
    step = next(factor * power for factor in (5, 2, 1) if factor * power <= largest_step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(number * step, 12) + 0.0 for number in range(first, last + 1))


def logarithmic_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of two for less than two decades, else powers of ten; linear ticks if there are fewer than two."""
    base = 2 if high / low < 100 else 10
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    ticks = tuple(float(base) ** number for number in range(first, last + 1))
    return ticks if len(ticks) > 1 else tuple(tick for tick in linear_ticks(low, high) if tick > 0)


def _axis(values: Sequence[float], pixels: tuple[float, float], *, logarithmic: bool = False) -> _Axis:
    """An axis from the lowest to the highest value, with a margin of a twentieth on both sides."""
    low, high = min(values), max(values)
    start, end = pixels
    if logarithmic:
        low, high = math.log(low), math.log(high)
    room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room

    def place(value: float) -> float:
        return start + ((math.log(value) if logarithmic else value) - low) / (high - low) * (end - start)

    return _Axis(place, logarithmic_ticks(math.exp(low), math.exp(high)) if logarithmic else linear_ticks(low, high))


def _frame(x: _Axis, y: _Axis, top: float, x_label: str) -> list[str]:
    """Grid lines, tick labels, and the label of the horizontal axis."""
    floor = HEIGHT - BOTTOM
    parts = []
    for value, text in zip(y.ticks, _numbers(y.ticks), strict=True):
        parts.append(_segment(LEFT, y.place(value), WIDTH - RIGHT, y.place(value), "#dddddd"))
        parts.append(_text(LEFT - 6, y.place(value) + 4, text, 12, 'text-anchor="end"'))
    for value, text in zip(x.ticks, _numbers(x.ticks), strict=True):
        parts.append(_segment(x.place(value), top, x.place(value), floor, "#eeeeee"))
        parts.append(_text(x.place(value), floor + 18, text, 12, 'text-anchor="middle"'))
    parts.append(_segment(LEFT, floor, WIDTH - RIGHT, floor, "#222222"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, 12, 'text-anchor="middle"'))
    return parts


def _line(line: Series, number: int, count: int, x: _Axis, y: _Axis) -> str:
    """One line with its bars and discs; tooltips show their numbers."""
    color = COLORS[number % len(COLORS)]
    has_bars = any(point.low is not None for point in line.points)
    bar_offset = 5.0 * (number - (count - 1) / 2) if has_bars else 0.0
    pieces: list[list[str]] = [[]]
    marks = []
    for point in line.points:
        if not (math.isfinite(point.x) and math.isfinite(point.y)):
            pieces.append([])
            continue
        across, up = x.place(point.x) + bar_offset, y.place(point.y)
        pieces[-1].append(f"{across:.1f},{up:.1f}")
        tooltip = f"{line.name}: {point.y:.4g} at {point.x:g}"
        if point.low is not None and point.high is not None:
            tooltip += f" ({point.low:.4g} to {point.high:.4g})"
            low, high = y.place(point.low), y.place(point.high)
            marks.append(_segment(across, low, across, high, color, 1.5))
            marks += [_segment(across - 4, end, across + 4, end, color, 1.5) for end in (low, high)]
        if line.marked or has_bars:
            disc = f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="{color}">'
            marks.append(f"{disc}<title>{escape(tooltip)}</title></circle>")
    single_points = [place.split(",") for piece in pieces if len(piece) == 1 for place in piece]
    stroke = f'stroke="{color}" ' + ('stroke-width="1" stroke-opacity="0.5"' if line.faint else 'stroke-width="2"')
    stroke += ' stroke-dasharray="7 5"' if line.dashed else ""
    drawn = [
        f'<polyline points="{" ".join(piece)}" fill="none" {stroke} stroke-linejoin="round"/>'
        for piece in pieces
        if len(piece) > 1
    ]
    if not marks:  # between two gaps a line would be invisible
        marks = [f'<circle cx="{across}" cy="{up}" r="2" fill="{color}"/>' for across, up in single_points]
    return "\n".join(drawn + marks)


def _legend(series: Sequence[Series]) -> tuple[list[str], int]:
    """Legend entries (a stroke and a name for every line) in rows, and the number of rows."""
    parts, left, row = [], 8.0, 0
    for number, line in enumerate(series):
        gaps = sum(not (math.isfinite(point.x) and math.isfinite(point.y)) for point in line.points)
        name = f"{line.name} ({gaps} not finite)" if gaps else line.name
        needed = 28 + min(len(name), 80) * 12 * LETTER + 16
        if left > 8 and left + needed > WIDTH:
            left, row = 8.0, row + 1
        height = 44 + ROW * row
        color = COLORS[number % len(COLORS)]
        ends = ((left, left + 8), (left + 12, left + 20)) if line.dashed else ((left, left + 20),)
        parts += [_segment(start, height - 4, end, height - 4, color, 3) for start, end in ends]
        parts.append(_text(left + 26, height, name, 12, max_letters=80))
        left += needed
    return parts, row + 1


def _numbers(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, all with as many decimals as the finest one needs."""
    decimals = max((len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in ticks), default=0)
    if any(0 < abs(tick) < 1e-5 or abs(tick) >= 1e7 for tick in ticks):
        return [f"{tick:.3g}" for tick in ticks]
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _segment(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    places = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {places} stroke="{color}" stroke-width="{width:g}"/>'


def _text(
    x: float, y: float, text: str, size: int, extra_attributes: str = "", *, max_letters: int | None = None
) -> str:
    """A line of text; text that is too long is cut, and a tooltip shows all of it."""
    max_letters = max_letters or int((WIDTH - 16) / (size * LETTER))
    shown = text if len(text) <= max_letters else f"{text[: max_letters - 1]}…"
    whole = f"<title>{escape(text)}</title>" if shown != text else ""
    attributes = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" {extra_attributes}'.rstrip()
    return f"<text {attributes}>{escape(shown)}{whole}</text>"
