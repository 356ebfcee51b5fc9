"""Views that set no key added after 0.1.0 are drawn as by 0.1.0, bit by bit.

``former_draws.json`` holds what the code before these keys drew, as hexadecimal numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from views.made import raw_crops

from medssl.ops.draws import Draws
from medssl.types import Geometry, Intensity, ViewPlan, ViewSpec
from medssl.views.intensity import draw_intensity
from medssl.views.plan import make_batch

FILE = Path(__file__).with_name("former_draws.json")
VOLUME, IMAGE = (40, 44, 36), (48, 52)
PAIR = ViewSpec((16, 12, 8), (0.7, 1.3), geometry=Geometry("safe", (15.0,)))
PLANS = {
    "copies of voxels": ViewPlan((ViewSpec((16, 12, 8), geometry=Geometry("all")),)),
    "a pair": ViewPlan((PAIR, PAIR)),
    "a nested view": ViewPlan((PAIR, ViewSpec((8, 8, 8), (0.4, 0.9), "local", nested_in=0))),
    "scale by axis": ViewPlan((ViewSpec((16, 12, 8), (0.8, 1.25), geometry=Geometry("none", (0.0,), False)),)),
    "images": ViewPlan((ViewSpec((24, 20), (0.6, 1.4), geometry=Geometry("safe", (20.0,))),)),
}
INTENSITY = Intensity((0.5, 0.2), (0.5, 1.5), (0.5, 0.3), (0.5, 0.8, 1.3), (0.5, 0.7, 1.6), (0.5, 0.4))


def affines(plan: ViewPlan) -> list[list[str]]:
    """Affines of the views of four samples, exactly."""
    size = VOLUME if len(plan.views[0].size) == 3 else IMAGE
    spacing = (1.0, 1.5, 4.0)[: len(size)]
    crops = raw_crops(torch.zeros(4, 1, *size), spacing=spacing, samples=[3, 8, 21, 1000])
    batch = make_batch(crops, plan, seed=17, device="cpu")
    return [[float(x).hex() for x in view.affine.flatten()] for view in batch.views]


def intensities() -> dict[str, list[str]]:
    """Parameters of the changes of intensity of eight samples, exactly."""
    drawn = draw_intensity(INTENSITY, Draws(17, range(8), "view0.intensity"), channels=2, n=3)
    names = ("gamma", "contrast", "brightness", "bias", "blur", "noise", "control", "offsets")
    return {name: [float(x).hex() for x in getattr(drawn, name).flatten()] for name in names}


def same(found: list[str], expected: list[str]) -> bool:
    """Whether numbers are equal but for the last bits of logarithms and sines, which differ between processors."""
    pair = [torch.tensor([float.fromhex(x) for x in each], dtype=torch.float64) for each in (found, expected)]
    return pair[0].shape == pair[1].shape and torch.allclose(*pair, rtol=1e-6, atol=1e-6)


def test_affines_are_those_of_0_1_0():
    expected = json.loads(FILE.read_text())["affines"]
    assert expected.keys() == PLANS.keys()
    for name, plan in PLANS.items():
        for found, former in zip(affines(plan), expected[name], strict=True):
            assert same(found, former), name


def test_intensities_are_those_of_0_1_0():
    expected = json.loads(FILE.read_text())["intensities"]
    for name, found in intensities().items():
        assert same(found, expected[name]), name


if __name__ == "__main__":  # writes the file; run it with the code that the others are compared with
    FILE.write_text(json.dumps({"affines": {k: affines(p) for k, p in PLANS.items()}, "intensities": intensities()}))
