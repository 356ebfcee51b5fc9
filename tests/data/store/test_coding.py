"""Stored integers: exact where they can be, bounded and counted where they cannot."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medssl.data.store import coding
from medssl.types import IntensityRule, UserError

NONE = IntensityRule("none", normalize="none")


def everywhere(image):
    return np.ones(image.shape[1:], bool)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([np.uint8, np.int8, np.int16, np.uint16]),
    channels=st.sampled_from([1, 7]),
    data=st.data(),
)
def test_integers_of_up_to_16_bits_are_exact(dtype, channels, data):
    image = data.draw(arrays.arrays(dtype, (channels, 3, 4, 2)))
    codes, numbers = coding.encode(image, NONE, everywhere(image))
    assert codes.dtype == (np.uint8 if dtype == np.uint8 else np.int16)
    np.testing.assert_array_equal(coding.decode(codes, numbers.intensity, normalize=False), image.astype(np.float32))
    assert numbers.error == 0
    assert numbers.clipped == 0
    np.testing.assert_array_equal(numbers.fill, codes.reshape(channels, -1).min(1))


@pytest.mark.parametrize("low", [-70_000, 0, 1_000_000])
def test_integers_of_more_than_16_bits_are_exact_if_their_range_fits_16_bits(low):
    image = (low + np.random.default_rng(0).integers(0, 65_536, (1, 8, 8, 8))).astype(np.int32)
    codes, numbers = coding.encode(image, NONE, everywhere(image))
    np.testing.assert_array_equal(coding.decode(codes, numbers.intensity, normalize=False), image.astype(np.float32))
    assert numbers.error == 0


def test_whole_numbers_in_floating_point_are_exact():
    image = np.random.default_rng(0).integers(-1024, 3071, (1, 8, 8, 8)).astype(np.float32)
    codes, numbers = coding.encode(image, NONE, everywhere(image))
    np.testing.assert_array_equal(codes, image)
    assert numbers.error == 0


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-3, 1e6), shift=st.floats(-1e4, 1e4), seed=st.integers(0, 99))
def test_coding_errors_of_real_values_are_at_most_the_stated_error(scale, shift, seed):
    image = (np.random.default_rng(seed).normal(size=(2, 6, 7, 5)) * scale + shift).astype(np.float32)
    codes, numbers = coding.encode(image, NONE, everywhere(image))
    decoded = coding.decode(codes, numbers.intensity, normalize=False)
    error = np.abs(decoded.astype(np.float64) - image).max()
    span = max(float(np.ptp(channel)) for channel in image)
    rounding = 8 * float(np.spacing(np.float32(np.abs(image).max() + span)))
    assert error <= numbers.error + rounding
    assert numbers.error <= span / 131_070 + rounding


def test_values_beyond_the_bounds_are_clipped_and_counted():
    image = np.random.default_rng(0).normal(size=(1, 10, 10, 10)).astype(np.float32)
    image[0, 0, 0, :3] = [1e5, -1e5, 7.0]
    rule = IntensityRule("percentile", 1.0, 99.0)
    codes, numbers = coding.encode(image, rule, everywhere(image))
    low, high, shift, divisor = numbers.intensity[0, 2:]
    assert numbers.clipped == int((image < low).sum() + (image > high).sum())
    assert numbers.error < 1e-4  # the two outliers would have made it above 1
    np.testing.assert_allclose([low, high], np.percentile(image, [1, 99]), rtol=1e-5)
    clipped = np.clip(image, low, high)
    np.testing.assert_allclose([shift, divisor], [clipped.mean(), clipped.std()], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        coding.decode(codes, numbers.intensity), (clipped - shift) / divisor, atol=float(numbers.error / divisor) + 1e-5
    )


def test_hounsfield_units_are_stored_without_clipping():
    image = np.array([-2000, -1000, 0, 1000, 3071], np.int16).reshape(1, 5, 1, 1)
    codes, numbers = coding.encode(image, IntensityRule("range", -1000, 1000, "unit"), everywhere(image))
    np.testing.assert_array_equal(codes, image)
    np.testing.assert_array_equal(coding.decode(codes, numbers.intensity).ravel(), [0, 0, 0.5, 1, 1])
    assert numbers.clipped == 0


def test_resampled_whole_units_are_rounded_and_state_an_error_of_half_a_unit():
    image = np.linspace(-1000, 1000, 400, dtype=np.float32).reshape(1, 20, 20)
    codes, numbers = coding.encode(image, NONE, everywhere(image), whole=True)
    assert np.abs(codes - image).max() <= numbers.error == 0.5


@pytest.mark.parametrize("value", [0, -7, 40_000])
def test_a_constant_scan_divides_by_one(value):
    image = np.full((1, 4, 4, 4), value, np.float32)
    codes, numbers = coding.encode(image, IntensityRule("percentile", 0.5, 99.5), everywhere(image))
    np.testing.assert_array_equal(coding.decode(codes, numbers.intensity), np.zeros_like(image))


def test_mean_and_deviation_are_those_of_the_foreground():
    image = np.zeros((1, 10, 10, 10), np.int16)
    image[0, 5:] = np.random.default_rng(0).integers(100, 200, (5, 10, 10))
    mask = image[0] > 0
    _, numbers = coding.encode(image, IntensityRule("none"), mask)
    np.testing.assert_allclose(numbers.intensity[0, 4:], [image[0][mask].mean(), image[0][mask].std()], rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((1, 4, 0, 4), np.int16), r"no voxels: its shape is \(4, 0, 4\)"),
        (np.array([[[1.0, np.nan], [np.inf, -np.inf]]], np.float32), "3 of 4 voxels are NaN or infinite"),
    ],
)
def test_unusable_scans_are_refused(image, message):
    with pytest.raises(UserError, match=message):
        coding.refuse_unusable(image)


def test_foreground_of_ct_and_color_images():
    air = np.full((1, 8, 8, 8), -1000, np.int16)
    air[0, 2:5, 3:6, 1:8] = 30
    mask = coding.foreground_mask(air, coding.thresholds(air, "hu", None))
    assert coding.bounding_box(mask) == ((2, 3, 1), (5, 6, 8))
    assert coding.thresholds(air, "hu", 50.0).tolist() == [50.0]
    photo = np.zeros((3, 8, 8), np.uint8)
    photo[1, 4:6, 2:7] = 90  # one channel is enough
    assert coding.bounding_box(coding.foreground_mask(photo, coding.thresholds(photo, "rgb", None))) == ((4, 2), (6, 7))


def test_magnetic_resonance_noise_in_air_is_background():
    generator = np.random.default_rng(0)
    image = np.abs(generator.normal(0, 12, (1, 40, 40, 20)))
    image[0, 10:30, 8:32, 3:17] = generator.normal(600, 150, (20, 24, 14)).clip(120)
    mask = coding.foreground_mask(image, coding.thresholds(image, "mr", None))
    assert coding.bounding_box(mask) == ((10, 8, 3), (30, 32, 17))
    assert coding.bounding_box(np.zeros((3, 4), bool)) == ((0, 0), (3, 4))


def test_foreground_cells_are_at_most_512_and_at_least_half_foreground():
    assert coding.cell_side((256, 256, 160)) == 32
    assert coding.cell_side((16, 16)) == 16
    assert np.prod([-(-n // coding.cell_side((512, 512, 900))) for n in (512, 512, 900)]) <= 512
    mask = np.zeros((40, 16, 16), bool)
    mask[:8] = True  # exactly half of the first cell
    mask[32:36] = True  # half of the last cell, which is cut off at 40
    mask[16:20] = True
    np.testing.assert_array_equal(coding.foreground_cells(mask), [True, False, True])
    thin = np.zeros((32, 16, 16), bool)
    thin[20, 3, 3] = True
    np.testing.assert_array_equal(coding.foreground_cells(thin), [False, True])
    assert not coding.foreground_cells(np.zeros((32, 16, 16), bool)).any()


def test_whole_numbers_too_large_for_float32_state_their_error():
    image = np.array([[[2_000_000_001, 2_000_000_003, 2_000_000_090]]], np.int32)
    codes, numbers = coding.encode(image, NONE, everywhere(image))
    error = np.abs(coding.decode(codes, numbers.intensity, normalize=False).astype(np.float64) - image).max()
    assert 0 < error <= numbers.error <= 256


# --- excluded voxels


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([np.uint8, np.int8, np.int16, np.uint16]),
    channels=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_integers_with_excluded_voxels_are_exact_if_one_code_is_free(dtype, channels, data):
    image = data.draw(arrays.arrays(dtype, (channels, 3, 4, 2)))
    included = data.draw(arrays.arrays(bool, (3, 4, 2)).filter(np.any))
    codes, numbers = coding.encode(image, NONE, included, included=included)
    decoded = coding.decode(codes, numbers.intensity, normalize=False).astype(np.float64)[:, included]
    truth = image[:, included].astype(np.float64)
    exact = np.ptp(truth, axis=1) <= 65_534
    assert codes.dtype == np.int16
    np.testing.assert_array_equal(codes == coding.EXCLUDED, np.broadcast_to(~included, codes.shape))
    np.testing.assert_array_equal(decoded[exact], truth[exact])
    assert np.abs(decoded - truth).max() <= numbers.error
    assert (numbers.error == 0) == exact.all()
    np.testing.assert_array_equal(numbers.fill, codes[:, included].min(1))
    assert (numbers.clipped, numbers.excluded) == (0, np.count_nonzero(~included))


@pytest.mark.parametrize(("highest", "error"), [(32_766, 0.0), (32_767, 0.51)])
def test_largest_range_of_whole_numbers_that_is_exact_with_excluded_voxels(highest, error):
    image = np.array([[[-32_768, 0, 5, highest]]], np.int16)
    included = np.array([[True, True, False, True]])
    codes, numbers = coding.encode(image, NONE, included, included=included)
    assert codes[0, 0, [0, 2, 3]].tolist() == [-32_767, coding.EXCLUDED, 32_767]
    decoded = coding.decode(codes, numbers.intensity, normalize=False)
    assert np.abs(decoded - image)[0, included].max() <= numbers.error <= error


RULES = {
    "none": NONE,
    "range": IntensityRule("range", -1000.0, 1000.0),
    "percentile": IntensityRule("percentile", 2.0, 98.0),
    "unit": IntensityRule("range", 0.0, 255.0, "unit"),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_excluded_voxels_decode_to_the_lower_bound(rule, dtype):
    generator = np.random.default_rng(0)
    image = generator.integers(3, 250, (2, 9, 8, 7)).astype(dtype)
    image[1] *= dtype(0.5) if dtype == np.float32 else dtype(1)
    image += dtype(0.25) if dtype == np.float32 else dtype(0)
    included = generator.random((9, 8, 7)) > 0.3
    codes, numbers = coding.encode(image, rule, included, included=included)
    lowest, step = image[:, included].min(1), numbers.intensity[:, 0]
    plain = coding.decode(codes, numbers.intensity, normalize=False)[:, ~included]
    first = np.maximum(lowest, numbers.intensity[:, 2]) if dtype == np.float32 else lowest  # real ones are clipped
    np.testing.assert_allclose(plain, np.broadcast_to((first - step)[:, None], plain.shape), atol=2e-3)
    seen = coding.decode(codes, numbers.intensity)
    assert (seen[:, ~included] <= seen[:, included].min(1)[:, None]).all()
    assert (seen[:, ~included] >= coding.decode(codes, numbers.intensity).min()).all()


def test_excluded_voxels_change_neither_codes_nor_errors_of_real_values():
    image = np.random.default_rng(0).normal(size=(1, 10, 10, 10)).astype(np.float32)
    included = np.random.default_rng(1).random((10, 10, 10)) > 0.4
    rule = IntensityRule("percentile", 1.0, 99.0)
    codes, numbers = coding.encode(image, rule, included, included=included)
    low, high, shift, divisor = numbers.intensity[0, 2:]
    truth = image[0, included]
    np.testing.assert_allclose([low, high], np.percentile(truth, [1, 99]), rtol=1e-5)
    clipped = np.clip(truth, low, high)
    np.testing.assert_allclose([shift, divisor], [clipped.mean(), clipped.std()], rtol=1e-3, atol=1e-3)
    assert numbers.clipped == int((truth < low).sum() + (truth > high).sum())
    assert numbers.error <= (high - low) / 131_068 + 1e-6
    decoded = coding.decode(codes, numbers.intensity, normalize=False)[0, included]
    assert np.abs(decoded - clipped).max() <= numbers.error + 1e-6
    image[0, ~included] = 1e9
    other, others = coding.encode(image, rule, included, included=included)
    np.testing.assert_array_equal(codes, other)
    np.testing.assert_array_equal(numbers.intensity, others.intensity)


def test_excluded_voxels_do_not_change_the_foreground_threshold():
    image = np.zeros((1, 40, 40, 20), np.int16)
    image[0, 10:30, 8:32, 3:17] = np.random.default_rng(0).integers(400, 800, (20, 24, 14))
    included = np.ones((40, 40, 20), bool)
    included[:8] = False
    alone = coding.thresholds(image[:, 8:], "mr", None)
    image[:, :8] = 30_000
    np.testing.assert_array_equal(coding.thresholds(image, "mr", None, included), alone)
    assert coding.thresholds(image, "mr", None)[0] > alone[0]


def test_codes_of_scans_without_excluded_voxels_are_unchanged():
    """Codes and numbers of fixed scans, as they were before there were excluded voxels."""
    digest = hashlib.blake2b(digest_size=8)
    for dtype, high in ((np.uint8, 255), (np.int16, 3000), (np.uint16, 65_535), (np.int32, 100_000)):
        image = (np.arange(2 * 7 * 6 * 5, dtype=np.int64) * 7919 % high).reshape(2, 7, 6, 5).astype(dtype)
        codes, numbers = coding.encode(image, IntensityRule("range", 5.0, 200.0, "unit"), everywhere(image))
        digest.update(codes.tobytes() + numbers.intensity.tobytes() + numbers.fill.tobytes())
        digest.update(f"{codes.dtype} {numbers.error} {numbers.clipped} {numbers.excluded}".encode())
    assert digest.hexdigest() == "95043000c6b46b36"


@pytest.mark.parametrize("size", [1e-14, 1e-8, 1.0, 1e6, 1e9])
@pytest.mark.parametrize("normalize", ["zscore", "unit"])
def test_very_small_and_very_large_values_keep_their_contrast(size, normalize):
    image = (np.random.default_rng(0).random((1, 12, 12, 12)) * size).astype(np.float32)
    codes, numbers = coding.encode(
        image, IntensityRule("percentile", 0.5, 99.5, normalize), np.ones((12, 12, 12), bool)
    )
    shown = coding.decode(codes, numbers.intensity)
    reference = (image - image.min()) / size
    assert np.corrcoef(shown.ravel(), np.clip(reference, *np.percentile(reference, [0.5, 99.5])).ravel())[0, 1] > 0.9999
    assert 0.2 < shown.std() < 1.1


@pytest.mark.parametrize("value", [0.0, 1e-12, 3.7, 1e9])
def test_constant_scans_divide_by_one(value):
    image = np.full((1, 8, 8, 8), value, np.float32)
    _, numbers = coding.encode(image, IntensityRule("percentile", 0.5, 99.5, "zscore"), np.ones((8, 8, 8), bool))
    assert numbers.intensity[0, 5] == 1.0


def test_threshold_of_values_that_differ_by_one_rounding_step():
    values = np.arange(1000, dtype=np.float64) % 3 * 2048 + 2.0**63
    assert coding._towards_otsu(values) == 2.0**63
