"""Charts: every point where the axes say it is, round ticks, nothing over anything else, well-formed SVG."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.reporting import curves
from medssl.reporting.curves import COLORS, Point, Series, averaged, line_chart, linear_ticks, logarithmic_ticks
from medssl.types import UserError

SVG = "{http://www.w3.org/2000/svg}"
WORDS = {"title": "Loss", "x_label": "steps", "y_label": "loss"}


def chart(*series: Series, **options) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, **(WORDS | options)))


def texts(drawing: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {text.text: text for text in drawing.iter(f"{SVG}text")}


def corners(drawing: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The points of every line, in pixels."""
    return [
        [tuple(map(float, place.split(","))) for place in line.get("points").split()]
        for line in drawing.iter(f"{SVG}polyline")
    ]


def ticks(drawing: ElementTree.Element, anchor: str) -> dict[float, float]:
    """Value of each tick of an axis -> its pixel, read off the numbers beside it."""
    found = {}
    for text in drawing.iter(f"{SVG}text"):
        if text.get("text-anchor") == anchor and re.fullmatch(r"-?[\d.]+", text.text):
            found[float(text.text)] = float(text.get("x")) if anchor == "middle" else float(text.get("y")) - 4
    return found


def line(*places: tuple[float, ...], name: str = "one", **options) -> Series:
    return Series(name, tuple(Point(*place) for place in places), **options)


def test_points_lie_where_the_ticks_say():
    drawing = chart(line((0, 1.0), (50, 0.5), (100, 0.0)))
    across, up = ticks(drawing, "middle"), ticks(drawing, "end")
    ((left, top), (middle, half), (right, bottom)) = corners(drawing)[0]
    assert (left, right) == (pytest.approx(across[0], abs=0.1), pytest.approx(across[100], abs=0.1))
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert (top, bottom) == (pytest.approx(up[1.0], abs=0.1), pytest.approx(up[0.0], abs=0.1))
    assert half == pytest.approx((top + bottom) / 2, abs=0.1)
    assert top < bottom, "more is higher"


def test_equal_ratios_are_equally_far_apart():
    drawing = chart(line((2, 0.7), (4, 0.8), (8, 0.9)), logarithmic=True)
    places = [x for x, _ in corners(drawing)[0]]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.15)
    assert sorted(ticks(drawing, "middle")) == [2, 4, 8]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_linear_ticks_are_round_and_neither_few_nor_many(low, span):
    found = linear_ticks(low, low + span)
    assert 3 <= len(found) <= 11
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)
    steps = [b - a for a, b in itertools.pairwise(found)]
    leading = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(leading - round_step) for round_step in (1, 2, 5, 10)) < 1e-3


@given(st.floats(1e-3, 1e4), st.floats(1.3, 1e5))
def test_logarithmic_ticks_lie_between_the_ends(low, ratio):
    found = logarithmic_ticks(low, low * ratio)
    assert len(found) > 1
    assert all(low * (1 - 1e-6) <= tick <= low * ratio * (1 + 1e-6) for tick in found)


def test_bars_reach_from_low_to_high_and_stand_beside_each_other():
    first, second = (line((2, 0.5, 0.4, 0.7), (4, 0.8, 0.7, 0.9), name=name) for name in ("one", "two"))
    drawing = chart(first, second)
    up = ticks(drawing, "end")
    bars = [
        bar
        for bar in drawing.iter(f"{SVG}line")
        if bar.get("stroke") == COLORS[0] and bar.get("x1") == bar.get("x2") and bar.get("stroke-width") == "1.5"
    ]
    assert len(bars) == 2
    scale = (up[0.4] - up[0.8]) / 0.4
    assert float(bars[0].get("y1")) - float(bars[0].get("y2")) == pytest.approx(0.3 * scale, abs=0.3)
    one, two = corners(drawing)
    assert two[0][0] - one[0][0] == pytest.approx(5, abs=0.11)
    told = [title.text for title in drawing.iter(f"{SVG}title")]
    assert "one: 0.5 at 2 (0.4 to 0.7)" in told


def test_what_is_not_finite_is_a_gap_that_is_counted():
    drawing = chart(line((0, 1.0), (1, 0.9), (2, math.nan), (3, 0.7), (4, 0.6), (5, math.inf), (6, 0.5)))
    assert [len(piece) for piece in corners(drawing)] == [2, 2]
    assert len(list(drawing.iter(f"{SVG}circle"))) == 1, "the last point stands alone"
    assert "one (2 not finite)" in texts(drawing)


def test_no_text_lies_over_another_or_leaves_the_picture():
    series = [line((0, 1.0), (12345678, 1e-3), name=f"a name of moderate length, number {n}") for n in range(9)]
    drawing = chart(*series, title="T" * 100, y_label="a measure")
    boxes = []
    for text in drawing.iter(f"{SVG}text"):
        width = len(text.text) * float(text.get("font-size")) * curves.LETTER
        start = {"middle": width / 2, "end": width}.get(text.get("text-anchor"), 0)
        left, bottom = float(text.get("x")) - start, float(text.get("y"))
        boxes.append((left, bottom - float(text.get("font-size")), left + width, bottom, text.text))
    for number, (left, top, right, bottom, text) in enumerate(boxes):
        assert left >= 0, text
        assert top >= 0, text
        assert right <= curves.WIDTH, text
        assert bottom <= curves.HEIGHT, text
        for other in boxes[number + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (text, other[4])


def test_long_text_is_cut_and_told_whole():
    drawing = chart(line((0, 1), (1, 2)), title="T" * 100)
    cut = next(text for text in drawing.iter(f"{SVG}text") if text.text.startswith("TT"))
    assert cut.text.endswith("…")
    assert cut.find(f"{SVG}title").text == "T" * 100


def test_names_cannot_break_the_drawing():
    drawing = chart(line((0, 1), (1, 2), name='<b> & "c"'), title="a < b")
    assert '<b> & "c"' in texts(drawing)
    assert drawing.get("aria-label") == "a < b"


def test_nothing_is_loaded_from_elsewhere():
    text = line_chart([line((0, 1), (1, 2))], **WORDS)
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]  # the name of the format
    assert "href" not in text
    assert "url(" not in text


def test_one_point_and_equal_values_can_be_drawn():
    for places in ([(3, 0.5)], [(0, 0.0), (1, 0.0)], [(5, 2.0), (5, 2.0)]):
        for x, y in [corner for piece in corners(chart(line(*places, marked=True))) for corner in piece]:
            assert 0 < x < curves.WIDTH
            assert 0 < y < curves.HEIGHT


def test_many_points_become_their_means():
    points = tuple(Point(float(n), float(n % 2)) for n in range(1000))
    few = averaged(points)
    assert len(few) == 334
    assert few[0] == Point(1.0, pytest.approx(1 / 3))
    assert averaged(points[:400]) == points[:400]
    bars = tuple(Point(float(n), 0.5, 0.4, 0.6) for n in range(1000))
    assert averaged(bars) == bars


def test_faint_lines_are_thinner():
    drawing = chart(line((0, 1), (1, 2), faint=True), line((0, 1), (1, 2)))
    assert [float(drawn.get("stroke-width")) for drawn in drawing.iter(f"{SVG}polyline")] == [1, 2]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="none of its lines has a finite point"):
        chart(line((0, math.nan)))
    with pytest.raises(UserError, match="point at x = 0: a logarithmic axis starts above 0"):
        chart(line((0, 1), (1, 2)), logarithmic=True)


def test_a_dashed_line_is_dashed_in_chart_and_legend():
    points = (Point(1, 0.5), Point(2, 0.6))
    lines = [Series("scratch", points, marked=True), Series("oracle", points, marked=True, dashed=True)]
    text = line_chart(lines, title="t", x_label="x", y_label="y")
    dashed = [line for line in text.splitlines() if "stroke-dasharray" in line]
    assert len(dashed) == 1
    assert COLORS[1] in dashed[0]
    strokes = [line for line in text.splitlines() if 'stroke-width="3"' in line]
    assert [sum(color in line for line in strokes) for color in COLORS[:2]] == [1, 2]
