"""Changes of stains: identity, white, black, one stain by hand, rows of a batch, styles, domains, two processes."""

from __future__ import annotations

import math
from dataclasses import replace

import ddp
import numpy as np
import pytest
import torch
from views.made import PLAIN, raw_crops

from medssl.ops.draws import Draws
from medssl.types import Geometry, Intensity, UserError, ViewPlan, ViewSpec
from medssl.views import stain
from medssl.views.plan import make_batch

UNIT = (1.0, 0.0, 0.0, 255.0, 0.0, 255.0)
ZSCORE = (1.0, 0.0, 0.0, 255.0, 131.5, 47.25)
JITTER = Intensity(hed_jitter=(1.0, 0.2, 0.02))


def pictures(count=4, side=24, seed=0, low=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def tissue(count=4, side=24, seed=0):
    """Pictures that are tissue everywhere: no pixel is near white."""
    return pictures(count, side, seed, 20, 200)


def numbers_of(image, numbers=UNIT):
    return torch.tensor(numbers).expand(*image.shape[:2], 6)


def normalized(image, numbers=UNIT):
    return (image.float() - numbers[4]) / numbers[5]


def changed(image, spec, numbers=UNIT, samples=None):
    samples = samples or range(len(image))
    drawn = stain.draw_stain(spec, Draws(3, samples, "view0.stain"), channels=image.shape[1])
    return stain.apply_stain(normalized(image, numbers), drawn, numbers_of(image, numbers))


def batch_of(image, spec, *, samples=None, numbers=UNIT, alone=False):
    plan = ViewPlan((ViewSpec(tuple(image.shape[2:]), geometry=Geometry(flip="none"), intensity=spec),))
    crops = raw_crops(image, numbers=numbers, samples=samples)
    return make_batch(crops, plan, seed=3, device="cpu", alone=alone).views[0].image


@pytest.mark.parametrize("numbers", [UNIT, ZSCORE], ids=["unit", "zscore"])
def test_without_strength_the_image_is_the_same(numbers):
    image = pictures()
    still = changed(image, Intensity(hed_jitter=(1.0, 0.0, 0.0)), numbers)
    assert torch.equal(still, normalized(image, numbers))  # rows without a change keep their bits
    drawn = stain.draw_stain(Intensity(hed_jitter=(1.0, 0.0, 0.0)), Draws(3, range(4), "x"), channels=3)
    tiny = replace(drawn, shift=torch.full_like(drawn.shift, 1e-30))  # goes through the whole computation
    through = stain.apply_stain(normalized(image, numbers), tiny, numbers_of(image, numbers))
    assert (through - normalized(image, numbers)).abs().max() * numbers[5] / 255 <= 1.5e-7


def test_white_stays_white_without_a_shift_and_black_stays_finite():
    spec = Intensity(hed_jitter=(1.0, 0.5, 0.0))
    white, black = torch.full((8, 3, 4, 4), 255, dtype=torch.uint8), torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    assert bool((changed(white, spec) == 1).all())
    dark = changed(black, Intensity(hed_jitter=(1.0, 0.5, 0.5)))
    assert bool(dark.isfinite().all())
    assert 0 <= dark.min() <= dark.max() < 0.1
    assert changed(white, Intensity(hed_jitter=(1.0, 0.0, 0.1))).min() < 1  # a shift colors glass


def test_more_of_one_stain_darkens_along_its_color():
    """By hand: hematoxylin of amount 0.8 becomes 0.8 x (1 + ratio); the others stay absent."""
    colors = torch.nn.functional.normalize(torch.tensor(stain.HED, dtype=torch.float64), dim=1)
    values = (256 * torch.exp(-0.8 * colors[0]) - 1).float().reshape(1, 3, 1, 1).expand(6, 3, 5, 5)
    spec = Intensity(hed_jitter=(1.0, 0.4, 0.0))
    drawn = stain.draw_stain(spec, Draws(3, range(6), "x"), channels=3)
    out = stain.apply_stain(values / 255, drawn, numbers_of(values)).double() * 255
    amounts = -torch.log((out + 1) / 256)[:, :, 0, 0] @ colors.inverse()
    ratios = amounts[:, 0] / 0.8 - 1
    assert amounts[:, 1:].abs().max() < 1e-5
    assert ratios.abs().max() <= 0.4
    assert ratios.std() > 0.05


def test_draws_keep_to_their_limits_and_probability():
    spec = Intensity(hed_jitter=(0.3, 0.2, 0.05), grayscale=0.1)
    drawn = stain.draw_stain(spec, Draws(0, range(2000), "x"), channels=3)
    assert float(drawn.is_jittered.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert float(drawn.is_gray.float().mean()) == pytest.approx(0.1, abs=0.02)
    colors = torch.nn.functional.normalize(torch.tensor(stain.HED, dtype=torch.float64), dim=1)
    ratios = torch.linalg.eigvals(drawn.mixing.double()).real  # the change of amounts, in another basis
    shifts = drawn.shift.double() @ colors.inverse()
    assert 0.19 < ratios.abs().max() <= 0.2 + 1e-5
    assert 0.048 < shifts.abs().max() <= 0.05 + 1e-6


@pytest.mark.parametrize("numbers", [UNIT, ZSCORE], ids=["unit", "zscore"])
def test_all_rules_of_intensity_give_the_same_colors(numbers):
    image = pictures()
    values = changed(image, JITTER, numbers) * numbers[5] + numbers[4]
    assert torch.allclose(values, changed(image, JITTER, UNIT) * 255, atol=1e-3)
    assert (values - image).abs().max() > 5


def test_each_group_of_three_channels_is_a_picture_and_volumes_are_taken():
    image = torch.cat((pictures(seed=1), pictures(seed=2)), dim=1)
    drawn = stain.draw_stain(JITTER, Draws(3, range(4), "x"), channels=6)
    out = stain.apply_stain(normalized(image), drawn, numbers_of(image))
    for group in range(2):
        alone = stain.StainDraw(
            drawn.mixing[:, group, None], drawn.shift[:, group, None], drawn.gain[:, group, None],
            drawn.offset[:, group, None], drawn.is_gray,
        )  # fmt: skip
        part = slice(3 * group, 3 * group + 3)
        expected = stain.apply_stain(normalized(image[:, part]), alone, numbers_of(image[:, part]))
        assert torch.equal(out[:, part], expected)
    assert not torch.equal(drawn.mixing[:, 0], drawn.mixing[:, 1])
    deep = pictures(side=8)[..., None].expand(-1, -1, -1, -1, 3)
    assert torch.allclose(changed(deep, JITTER)[..., 1], changed(pictures(side=8), JITTER), atol=1e-6)


def test_gray_pictures_have_the_brightness_in_each_color():
    image = pictures()
    gray = changed(image, Intensity(grayscale=1.0))
    expected = np.tensordot(image.numpy() / 255, [0.299, 0.587, 0.114], axes=([1], [0]))
    assert np.allclose(gray.numpy(), expected[:, None], atol=1e-6)
    assert torch.equal(changed(image, Intensity(grayscale=1e-9)), normalized(image))


@pytest.mark.parametrize("spec", [JITTER, Intensity(hed_jitter=(0.5, 0.2, 0.02), grayscale=0.5)], ids=["all", "some"])
def test_a_batch_of_one_is_a_row_of_a_batch_in_any_order(spec):
    image, samples = pictures(), (5, 9, 2, 70)
    whole = batch_of(image, spec, samples=samples)
    for row, sample in enumerate(samples):
        assert torch.equal(batch_of(image[row : row + 1], spec, samples=(sample,)), whole[row : row + 1])
    assert torch.equal(batch_of(image.flip(0), spec, samples=samples[::-1]), whole.flip(0))


def test_two_views_of_a_sample_differ_and_a_view_is_repeated():
    image = pictures()
    spec = ViewSpec((24, 24), geometry=Geometry(flip="none"), intensity=JITTER)
    views = make_batch(raw_crops(image, numbers=UNIT), ViewPlan((spec, spec)), seed=0, device="cpu").views
    again = make_batch(raw_crops(image, numbers=UNIT), ViewPlan((spec, spec)), seed=0, device="cpu").views
    assert not torch.equal(views[0].image, views[1].image)
    assert torch.equal(views[0].image, again[0].image)


def test_padding_and_missing_channels_are_no_stains():
    image = torch.cat((pictures(), pictures(seed=5)), dim=1)
    crops = raw_crops(image, start=[-4, 0], source=[24, 24], numbers=UNIT)
    crops = replace(crops, present=torch.tensor([[True] * 3 + [False] * 3]).expand(4, 6))
    plan = ViewPlan(
        (ViewSpec((24, 24), geometry=Geometry(flip="none"), intensity=Intensity(hed_jitter=(1, 0.2, 0.2))),)
    )
    view = make_batch(crops, plan, seed=0, device="cpu").views[0]
    assert bool((~view.valid).any())
    assert bool((view.image[:, :3][~view.valid.expand(-1, 3, -1, -1)] == 0).all())
    assert bool((view.image[:, 3:] == 0).all())


# --- styles


def by_numpy(values):
    """Mean and deviation of the density of tissue, [3, 2], pixel by pixel."""
    density = -np.log((values.numpy().astype(float).reshape(3, -1) + 1) / 256)
    density = density[:, density.mean(0) > stain.TISSUE]
    return np.stack((density.mean(1), density.std(1)), axis=1)


def test_a_style_is_the_mean_and_deviation_of_tissue():
    image = pictures(side=30)
    image[:, :, :10] = 255  # glass
    found = stain.density_statistics(image, numbers_of(image))
    for row, values in enumerate(image):
        assert np.allclose(found[row, 0], by_numpy(values), atol=1e-5)
    glass = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert bool((stain.density_statistics(glass, numbers_of(glass)) == 0).all())


def test_samples_take_the_style_of_one_of_the_batch():
    image = tissue(6)
    image = (image.float() * torch.linspace(0.4, 1.0, 6).reshape(6, 1, 1, 1)).to(torch.uint8)
    out = batch_of(image, Intensity(stain_exchange=1.0)) * 255
    styles = np.stack([by_numpy(values) for values in image])
    taken = [np.abs(styles - by_numpy(values)).max(axis=(1, 2)) for values in out]
    assert max(distances.min() for distances in taken) < 0.03  # but for values beyond black and white
    partners = [int(distances.argmin()) for distances in taken]
    assert len(set(partners)) > 1
    assert partners != list(range(6))
    assert torch.allclose(batch_of(image, Intensity(stain_exchange=0.0)), normalized(image), atol=1e-7)


def test_glass_keeps_its_white_and_takes_part_in_no_exchange():
    image = tissue(4)
    image[0] = 255
    image[1, :, :6] = 255
    out = batch_of(image, Intensity(stain_exchange=1.0))
    assert bool((out[0] == 1).all())
    assert bool((out[1, :, :6] == 1).all())
    assert bool(out.isfinite().all())


def test_an_exchange_does_not_know_the_order_of_rows_and_one_sample_is_its_own_partner():
    image, samples = tissue(4), (5, 9, 2, 70)
    whole = batch_of(image, Intensity(stain_exchange=1.0), samples=samples)
    assert torch.equal(batch_of(image.flip(0), Intensity(stain_exchange=1.0), samples=samples[::-1]), whole.flip(0))
    alone = batch_of(image[:1], Intensity(stain_exchange=1.0))
    assert torch.allclose(alone, normalized(image[:1]), atol=1e-5)


def exchanged(image, alone):
    from medssl.ops.collectives import rank

    rows = slice(2 * rank(), 2 * rank() + 2)
    samples = tuple(range(4))[rows]
    spec = Intensity(hed_jitter=(0.8, 0.2, 0.02), stain_exchange=0.7)
    if not alone or rank() == 0:  # else the other process does not take part
        return batch_of(image[rows], spec, samples=samples, alone=alone)
    return None


@pytest.mark.ddp
def test_two_processes_equal_one():
    image = tissue(4)
    parts = ddp.run_two(exchanged, image, False)
    whole = batch_of(image, Intensity(hed_jitter=(0.8, 0.2, 0.02), stain_exchange=0.7))
    assert torch.equal(torch.cat(parts), whole)
    one, nothing = ddp.run_two(exchanged, image, True)
    assert one.shape == (2, 3, 24, 24)
    assert nothing is None


# --- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hed_jitter": (1.5, 0.1, 0.0)}, r"view 0: intensity\.hed_jitter takes a probability, a largest change below"),
        ({"hed_jitter": (0.5, 1.0, 0.0)}, r"intensity\.hed_jitter .*: \(0\.5, 1\.0, 0\.0\)"),
        ({"hed_jitter": (0.5, 0.1, -0.1)}, r"intensity\.hed_jitter takes"),
        ({"hed_jitter": (0.5, 0.1, math.nan)}, r"intensity\.hed_jitter takes"),
        ({"stain_exchange": 2.0}, r"intensity\.stain_exchange takes a probability from 0 to 1: 2\.0"),
        ({"grayscale": -0.1}, r"intensity\.grayscale takes a probability from 0 to 1: -0\.1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        batch_of(pictures(), Intensity(**change))


@pytest.mark.parametrize("name", ["hed_jitter", "stain_exchange", "grayscale"])
def test_other_value_domains_are_refused(name):
    spec = Intensity(**{name: (0.5, 0.1, 0.0) if name == "hed_jitter" else 0.5})
    plan = ViewPlan((ViewSpec((8, 8)), ViewSpec((8, 8), intensity=spec)))
    message = (
        rf"^intensity\.{name}: view 1: stain jitter refuses a value domain that is not rgb \(got 'gray, mr'; expected "
        rf"rgb\)\. Set intensity\.{name} to 0, or choose color images$"
    )
    with pytest.raises(UserError, match=message):
        stain.refuse_other_domains(plan, {"rgb", "mr", "gray"})
    stain.refuse_other_domains(plan, {"rgb"})
    stain.refuse_other_domains(ViewPlan((ViewSpec((8, 8)),)), {"mr"})


@pytest.mark.parametrize("channels", [1, 4])
def test_images_without_three_colors_are_refused(channels):
    image = torch.zeros(1, channels, 8, 8, dtype=torch.uint8)
    for spec in (JITTER, Intensity(stain_exchange=0.5)):
        with pytest.raises(UserError, match=f"not rgb: the scans have {channels} channels, and color images have 3"):
            batch_of(image, spec, numbers=PLAIN)
