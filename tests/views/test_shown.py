"""Views of crops around a labeled voxel show it, near their middle where the scan's border is far."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from views.made import coordinate_image, raw_crops

from medssl.data.loading.crops import region_at
from medssl.ops import coordinates
from medssl.ops.draws import Draws
from medssl.types import Geometry, Sampling, UserError, ViewPlan, ViewSpec
from medssl.views.geometry import Frame, draw_geometry
from medssl.views.plan import make_batch, read_size

ROWS = 12


def framed(spec: ViewSpec, shape: tuple[int, ...], places: torch.Tensor, spacing: tuple[float, ...]) -> Frame:
    """Raw crops as the loader reads them around some places."""
    n = len(shape)
    size = read_size(ViewPlan((spec,)), spacing)
    around = [tuple(place) for place in places.long().tolist()]
    starts = [region_at(0, k, shape, size, Sampling(labeled=1.0), around=place) for k, place in enumerate(around)]
    start = torch.tensor(starts, dtype=torch.float64)
    high = torch.minimum(torch.tensor(size).double(), torch.tensor(shape).double() - start) - 1
    left_right = torch.zeros(len(places), dtype=torch.long)
    each = torch.tensor(spacing, dtype=torch.float64).expand(len(places), n)
    return Frame(size, (-start).clamp_min(0), high, each, left_right, shown=places - start)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), n=st.sampled_from([2, 3]), scale=st.sampled_from([(1.0, 1.0), (0.5, 1.6), (0.7, 1.0)]),
    degrees=st.sampled_from([0.0, 30.0, 180.0]), thick=st.sampled_from([1.0, 4.0]), data=st.data(),
)  # fmt: skip
def test_the_voxel_is_in_the_view(seed, n, scale, degrees, thick, data):
    size = tuple(data.draw(st.lists(st.integers(3, 24), min_size=n, max_size=n)))
    shape = tuple(data.draw(st.lists(st.integers(2, 200), min_size=n, max_size=n)))
    spec = ViewSpec(size, scale, geometry=Geometry("all", (degrees,)))
    share = torch.rand(ROWS, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    extent = torch.tensor(shape, dtype=torch.float64)
    places = (torch.where(share < 0.2, 0.0, torch.where(share > 0.8, 0.999, share)) * extent).floor()
    spacing = (1.0,) * (n - 1) + (thick,)
    frame = framed(spec, shape, places, spacing)
    affine = draw_geometry(spec, Draws(seed, range(ROWS), "view0.geometry"), frame)
    at = coordinates.apply(coordinates.invert(affine), frame.shown[:, None])[:, 0]
    half = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    off = (at - half).abs()
    assert bool((off <= half + 1e-6).all())
    if not degrees:
        widest = torch.tensor(size) * scale[1]
        inner = ((places > widest) & (places < extent - widest)).all(dim=1)
        assert bool((off[inner] <= half / 2 + 1.5 / scale[0]).all())  # a start and a view on whole voxels


def test_it_lies_anywhere_in_the_middle_half():
    spec = ViewSpec((40, 40), (1.0, 1.2))
    frame = framed(spec, (400, 400), torch.full((400, 2), 200.0, dtype=torch.float64), (1.0, 1.0))
    affine = draw_geometry(spec, Draws(0, range(400), "view0.geometry"), frame)
    at = coordinates.apply(coordinates.invert(affine), frame.shown[:, None])[:, 0] - 19.5
    free = draw_geometry(spec, Draws(0, range(400), "view0.geometry"), replace(frame, shown=None))
    assert -10.5 <= float(at.min()) < -7.0
    assert 7.0 < float(at.max()) <= 10.5
    assert not torch.allclose(affine, free)
    rows = replace(frame, shown=torch.where(torch.arange(400)[:, None] % 2 == 0, torch.nan, frame.shown))
    mixed = draw_geometry(spec, Draws(0, range(400), "view0.geometry"), rows)
    assert torch.equal(mixed[0::2], free[0::2])
    assert torch.equal(mixed[1::2], affine[1::2])


def test_the_label_of_a_batch_is_in_its_target():
    """A lesion of one voxel in a turned view of a crop whose scan begins far before it."""
    start, size = [64, 32], (95, 95)
    labels = torch.zeros(8, 1, *size, dtype=torch.int16)
    labels[:, :, 90:94, 2:6] = 1
    crops = raw_crops(coordinate_image(size, start)[:, :1].repeat(8, 1, 1, 1), start=start, source=[159, 400],
                      labels=labels)  # fmt: skip
    plan = ViewPlan((ViewSpec((24, 24), (0.7, 1.4), geometry=Geometry("all", (30.0,))),), Sampling(labeled=1.0))
    shown = torch.tensor([[64.0 + 92, 32.0 + 4]]).expand(8, 2)
    held = replace(crops, placement=replace(crops.placement, shown=shown))
    found, plain = (make_batch(one, plan, seed=0, device="cpu").targets[0].amax(dim=(1, 2, 3)) for one in (held, crops))
    assert found.tolist() == [1] * 8
    assert plain.tolist() != [1] * 8


CONTRADICTIONS = [
    (Sampling(labeled=0.5, foreground=0.6), "labeled 0.5 and foreground 0.6 are shares of the same"),
    (Sampling(2, stratified_axis=1, labeled=0.5), "labeled 0.5 and stratified_axis 1 both say where"),
]


@pytest.mark.parametrize(("sampling", "message"), CONTRADICTIONS)
def test_a_sampling_that_contradicts_itself_is_refused(sampling, message):
    with pytest.raises(UserError, match=f"^data.sampling.{message}"):
        read_size(ViewPlan((ViewSpec((8, 8, 8)),), sampling))
