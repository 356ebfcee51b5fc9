"""Tissue on thumbnails: a known truth, symmetry, areas in mm2, inks, and the reason why there is none."""

import numpy as np
import pytest
from scipy import ndimage

from medssl.data.store import tiles, tissue
from medssl.types import TileRule, TissueRule, UserError

MM = (0.008, 0.008)
HEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)


def stained(amounts, vectors):
    """Colors of light behind stains: exp(-amount * vector)."""
    density = sum(
        amount[None] * np.array(vector).reshape(3, 1, 1) for amount, vector in zip(amounts, vectors, strict=True)
    )
    return 244 * np.exp(-density)


def smooth_noise(shape, seed, sigma=2.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return noise / noise.std()


def truth_of(shape=(400, 520), seed=0):
    """Two pieces of tissue with wavy edges."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    wave = 8 * smooth_noise(shape, seed, 25)
    one = np.hypot((rows - 180) / 1.2, columns - 170) + wave < 110
    other = np.hypot(rows - 250, (columns - 400) / 0.8) + wave < 80
    return one | other


def slide(truth, stains=(HEMATOXYLIN, EOSIN), amounts=(0.35, 0.45), seed=1):
    """A thumbnail [3, h, w] with noise of JPEG size on glass and tissue."""
    texture = np.clip(1 + 0.35 * smooth_noise(truth.shape, seed), 0.3, 2)
    rgb = stained([a * texture * truth for a in amounts], stains)
    noise = np.random.default_rng(seed + 1).normal(0, 1.5, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize(
    ("method", "stains", "amounts"),
    [
        ("saturation", (HEMATOXYLIN, EOSIN), (0.35, 0.45)),
        ("saturation", (HEMATOXYLIN, EOSIN), (0.1, 0.2)),
        ("gray", (HEMATOXYLIN, EOSIN), (0.35, 0.45)),
        ("optical_density", (HEMATOXYLIN, EOSIN), (0.35, 0.45)),
        ("optical_density", (HEMATOXYLIN, DAB), (0.15, 0.1)),
        ("optical_density", (HEMATOXYLIN, DAB), (0.3, 0.8)),
    ],
)
def test_mask_equals_the_known_tissue(method, stains, amounts):
    truth = truth_of()
    found = tissue.tissue_mask(slide(truth, stains, amounts), MM, TissueRule(method))
    assert iou(found.mask, truth) >= 0.95
    assert found.reason == ""


@pytest.mark.parametrize("method", ["saturation", "gray", "optical_density"])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_thumbnail_turns_the_mask(method, turns):
    rgb = slide(truth_of())
    rgb[:, 50:80, 300:360] = np.array([30, 110, 60]).reshape(3, 1, 1)  # green ink
    mask = tissue.tissue_mask(rgb, MM, TissueRule(method)).mask
    turned = tissue.tissue_mask(np.rot90(rgb, turns, (1, 2)), MM, TissueRule(method)).mask
    np.testing.assert_array_equal(turned, np.rot90(mask, turns))


@pytest.mark.parametrize("method", ["saturation", "gray", "optical_density"])
def test_mask_of_the_masked_slide_is_the_mask(method):
    rgb, rule = slide(truth_of()), TissueRule(method)
    mask = tissue.tissue_mask(rgb, MM, rule).mask
    again = tissue.tissue_mask(np.where(mask, rgb, np.uint8(244)), MM, rule).mask
    assert iou(mask, again) > 0.995


def test_pale_tissue_beside_dark_tissue_is_tissue():
    truth = truth_of()
    dark = truth & (np.arange(truth.shape[1]) < 290)
    rgb = np.where(dark, slide(truth, amounts=(0.7, 1.0)), slide(truth, amounts=(0.15, 0.35)))
    assert iou(tissue.tissue_mask(rgb, MM, TissueRule()).mask, truth) >= 0.95


@pytest.mark.parametrize("seed", range(4))
def test_cleaning_twice_changes_nothing(seed):
    rule = TissueRule(smallest_mm2=0.01, largest_hole_mm2=0.01)
    mask = smooth_noise((200, 150), seed, 2.5) > 0.2
    once = tissue.cleaned(mask, MM, rule)
    assert once.any()
    assert not once.all()
    np.testing.assert_array_equal(tissue.cleaned(once, MM, rule), once)


@pytest.mark.parametrize("method", ["saturation", "gray", "optical_density"])
@pytest.mark.parametrize("level", [255, 244, 236])
def test_blank_slide_has_no_mask_and_a_reason(method, level):
    noise = np.random.default_rng(0).normal(level, 1.5, (3, 200, 150))
    found = tissue.tissue_mask(np.clip(noise, 0, 255).astype(np.uint8), MM, TissueRule(method))
    assert not found.mask.any()
    assert found.reason.startswith("no tissue: no pixel reaches the ")
    assert found.reason.endswith("the slide is blank")


@pytest.mark.parametrize("method", ["saturation", "gray", "optical_density"])
def test_slide_full_of_tissue_is_not_divided(method):
    truth = np.ones((200, 240), bool)
    assert tissue.tissue_mask(slide(truth), MM, TissueRule(method)).mask.mean() > 0.97


def squares(spacing_mm, sides_mm, hole_mm=0.0):
    """Squares of tissue side by side on a slide of 2 x 8 mm, the first with a hole."""
    shape = (round(2 / spacing_mm), round(8 / spacing_mm))
    truth = np.zeros(shape, bool)
    for place, side in enumerate(sides_mm):
        edge = [round((1 - side / 2) / spacing_mm), round((1 + 2 * place - side / 2) / spacing_mm)]
        n = round(side / spacing_mm)
        truth[edge[0] : edge[0] + n, edge[1] : edge[1] + n] = True
    n = round(hole_mm / spacing_mm)
    truth[shape[0] // 2 : shape[0] // 2 + n, round(1 / spacing_mm) : round(1 / spacing_mm) + n] = False
    return slide(truth)


@pytest.mark.parametrize("mm", [0.008, 0.0125, 0.016])
def test_areas_in_mm2_do_not_depend_on_the_resolution(mm):
    rule = TissueRule(smallest_mm2=0.1, largest_hole_mm2=0.05, smooth_um=0.0)
    rgb = squares(mm, (1.6, 0.5, 0.2), hole_mm=0.18)  # 2.56, 0.25 and 0.04 mm2, a hole of 0.03 mm2
    found = tissue.tissue_mask(rgb, (mm, mm), rule)
    assert tissue.area_mm2(found.mask, (mm, mm)) == pytest.approx(2.56 + 0.25, rel=0.03)
    open_hole = tissue.tissue_mask(rgb, (mm, mm), TissueRule(smallest_mm2=0.1, largest_hole_mm2=0.02, smooth_um=0.0))
    difference = tissue.area_mm2(found.mask, (mm, mm)) - tissue.area_mm2(open_hole.mask, (mm, mm))
    assert difference == pytest.approx(0.18**2, rel=0.15)


def test_unequal_spacing_of_rows_and_columns_counts_in_areas():
    rgb = squares(0.008, (0.9,))[:, ::2]
    found = tissue.tissue_mask(rgb, (0.016, 0.008), TissueRule())
    assert tissue.area_mm2(found.mask, (0.016, 0.008)) == pytest.approx(0.81, rel=0.03)


def test_small_pieces_are_the_reason():
    found = tissue.tissue_mask(squares(0.008, (0.2, 0.15)), MM, TissueRule(smallest_mm2=0.1))
    assert not found.mask.any()
    assert "the largest piece above saturation" in found.reason
    assert "preprocess.tissue.smallest_mm2 is 0.1" in found.reason
    assert float(found.reason.split(" has ")[1].split(" mm2")[0]) == pytest.approx(0.04, rel=0.1)


INKS = {"blue": (40, 80, 190), "green": (30, 120, 70), "red": (205, 25, 40), "black": (28, 26, 30)}


@pytest.mark.parametrize("name", INKS)
def test_ink_is_left_out_and_can_be_kept(name):
    truth = truth_of()
    rgb = slide(truth).astype(float)
    rows, columns = np.mgrid[: truth.shape[0], : truth.shape[1]]
    ink = np.abs(rows - 40 - 0.1 * columns) < 10  # a stroke of 0.16 mm beside the tissue
    ink &= ~ndimage.binary_dilation(truth, iterations=12)
    soft = ndimage.gaussian_filter(ink.astype(float), 1.0)
    rgb = rgb * (1 - soft) + soft * np.array(INKS[name]).reshape(3, 1, 1)
    rgb = np.clip(rgb, 0, 255).astype(np.uint8)
    found = tissue.tissue_mask(rgb, MM, TissueRule("optical_density"))
    assert iou(found.mask, truth) >= 0.95
    assert not (found.mask & ink).any()
    assert max(found.pen_mm2, found.black_mm2) == pytest.approx(ink.sum() * 64e-6, rel=0.5)
    kept = tissue.tissue_mask(rgb, MM, TissueRule("optical_density", exclude_pen=False, exclude_black=False))
    assert (kept.mask & ink).sum() > 0.8 * ink.sum()


@pytest.mark.parametrize(
    ("stains", "amounts"),
    [((HEMATOXYLIN, EOSIN), (0.2, 1.3)), ((HEMATOXYLIN, EOSIN), (1.5, 0.1)), ((HEMATOXYLIN, DAB), (0.1, 1.4))],
)
def test_strong_stains_are_no_ink(stains, amounts):
    found = tissue.tissue_mask(slide(truth_of(), stains, amounts), MM, TissueRule())
    assert found.pen_mm2 == found.black_mm2 == 0
    assert iou(found.mask, truth_of()) >= 0.95


def test_black_border_is_the_reason_and_never_tissue():
    rgb = np.full((3, 100, 100), 10, np.uint8)
    assert tissue.tissue_mask(rgb, MM, TissueRule("gray")).reason == (
        "no tissue: the whole slide is black or marked by pens"
    )
    rgb = np.concatenate([rgb, slide(truth_of())[:, :100]], 2)
    assert not tissue.tissue_mask(rgb, MM, TissueRule("gray")).mask[:, :100].any()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (TissueRule(threshold=0.0), "preprocess.tissue.threshold: is no saturation.*above 0, below 255"),
        (TissueRule("optical_density", 30.0), "preprocess.tissue.threshold: is no optical density"),
        (TissueRule(mpp=0.5), "preprocess.tissue.mpp: is no resolution of a thumbnail.*1 to 64"),
        (TissueRule(smallest_mm2=-1.0), "preprocess.tissue.smallest_mm2: must be a number from 0 on"),
        (TissueRule(smooth_um=float("nan")), "preprocess.tissue.smooth_um: must be a number from 0 on"),
    ],
)
def test_rules_out_of_range_are_refused(rule, message):
    with pytest.raises(UserError, match=message):
        tissue.check_rule(rule)


# --- tiles


@pytest.mark.parametrize("shape", [(300, 500), (256, 256), (1000, 333)])
@pytest.mark.parametrize(("size", "overlap"), [(32, 0), (32, 8), (50, 49), (256, 0)])
def test_count_of_tiles_on_a_slide_full_of_tissue(shape, size, overlap):
    rule = TileRule(0.5, size, overlap)
    step = size - overlap
    mask = np.ones((-(-shape[0] // 16), -(-shape[1] // 16)), bool)
    found = tiles.tissue_tiles(mask, MM, (shape, (0.0005,) * 2, (0.0005,) * 2), rule)
    assert len(found) == int((shape[0] - size) / step + 1) * int((shape[1] - size) / step + 1)
    assert len(np.unique(found.start, axis=0)) == len(found)
    assert (found.start + size <= shape).all()
    assert (found.share == 1).all()


def test_share_of_tissue_is_that_of_the_mask_drawn_finer():
    mask = smooth_noise((23, 31), 5) > 0
    fine = np.kron(mask, np.ones((16, 16), bool))
    start = np.random.default_rng(0).integers(0, 200, (40, 2))
    wanted = [fine[r : r + 50, c : c + 50].mean() for r, c in start]
    got = tiles.shares(mask, start / 16, (50 / 16, 50 / 16))
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_places_in_level_0_follow_the_spacing():
    mask = np.ones((64, 64), bool)
    shape = (512, 512)
    for level0, factor in (((0.00025, 0.00025), 2), ((0.0005, 0.0005), 1), ((0.000125, 0.000125), 4)):
        found = tiles.tissue_tiles(mask, MM, (shape, (0.0005, 0.0005), level0), TileRule(0.5, 128))
        assert found.level0 == (128 * factor, 128 * factor)
        np.testing.assert_array_equal(found.coords, found.start[:, ::-1] * factor)


def test_tiles_hold_enough_tissue_and_none_is_forgotten():
    mask = np.zeros((64, 64), bool)
    mask[:, :20] = True
    found = tiles.tissue_tiles(mask, MM, ((1024, 1024), (0.0005,) * 2, (0.0005,) * 2), TileRule(0.5, 256, 0, 0.25))
    np.testing.assert_array_equal(np.unique(found.start[:, 1]), [0, 256])
    np.testing.assert_allclose(found.share[found.start[:, 1] == 256], 0.25)
    assert (found.share[found.start[:, 1] == 0] == 1).all()


def test_tile_larger_than_the_slide_is_refused():
    with pytest.raises(UserError, match="the slide has 100 x 300 pixels at this resolution, and a tile 256 x 256"):
        tiles.tissue_tiles(np.ones((10, 10), bool), MM, ((100, 300), MM, MM), TileRule(0.5, 256))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (TileRule(0.0), "preprocess.tiles.mpp: is no resolution"),
        (TileRule(0.5, 8), "preprocess.tiles.size: is too small"),
        (TileRule(0.5, 64, 64), "preprocess.tiles.overlap: must be 0 or more and below preprocess.tiles.size"),
        (TileRule(0.5, 64, 0, 1.5), "preprocess.tiles.smallest_tissue: is no share"),
        (TileRule(0.5, 64, quality=10), "preprocess.tiles.quality: is no JPEG quality"),
    ],
)
def test_tile_rules_out_of_range_are_refused(rule, message):
    with pytest.raises(UserError, match=message):
        tiles.check_rule(rule)


@pytest.mark.parametrize("opacity", [0.55, 1.0])
def test_a_pen_that_glass_shines_through_is_a_mark_too(opacity):
    rgb = np.full((3, 200, 200), 244, np.uint8)
    rgb[:, 80:160, 40:160] = np.array([200, 120, 170], np.uint8)[:, None, None]
    band = slice(10, 40)
    rgb[:, band] = ((1 - opacity) * rgb[:, band] + opacity * np.array([30, 60, 150])[:, None, None]).astype(np.uint8)
    found = tissue.tissue_mask(rgb, MM, TissueRule())
    assert not found.mask[:45].any()
    assert found.mask[85:155, 45:155].all()
    assert found.pen_mm2 == pytest.approx(30 * 200 * MM[0] * MM[1], rel=0.3)
