"""Decodes stored numbers, and changes intensities: gamma, contrast, brightness, bias field, blur, resolution, noise.

``draw_intensity`` draws the parameters of a batch, keyed by sample. ``apply_intensity`` (or the function of one change)
applies given parameters and draws nothing, so that a change can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medssl.ops import fields

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor

    from medssl.ops.draws import Draws
    from medssl.types import Intensity


@dataclass(frozen=True)
class CommonDraw:
    """Parameters that most views use; see ``IntensityDraw``.

    Attributes:
        gamma: Exponent (neutral 1).
        contrast: Factor about the mean (neutral 1).
        brightness: Shift (neutral 0).
        bias: Largest log-amplitude of the bias field (neutral 0).
        blur: Standard deviation in voxels (neutral 0).
        noise: Standard deviation (neutral 0).
        control: Control points of the bias field, -1 to 1.
        offsets: Offsets of the noise in its pool.
    """

    gamma: Float[Tensor, " B"]
    contrast: Float[Tensor, " B"]
    brightness: Float[Tensor, " B"]
    bias: Float[Tensor, " B"]
    blur: Float[Tensor, " B"]
    noise: Float[Tensor, " B"]
    control: Float[Tensor, "B *c"]
    offsets: Int[Tensor, "B C 2"]


@dataclass(frozen=True)
class IntensityDraw(CommonDraw):
    """Parameters of the intensity changes of a batch, one row for each sample; neutral values change nothing.

    Attributes:
        factor: Factor on all values (neutral 1).
        inverted: Exponent of the gamma on the inverted range (neutral 1).
        resolution: Share of the voxels per axis (neutral 1).
    """

    factor: Float[Tensor, " B"]
    inverted: Float[Tensor, " B"]
    resolution: Float[Tensor, " B"]

    def rows(self, rows: slice) -> IntensityDraw:
        """The parameters of the samples ``rows``."""
        return IntensityDraw(**{part.name: getattr(self, part.name)[rows] for part in dataclass_fields(self)})


def decode(raw: Shaped[Tensor, "B C *s"], numbers: Float[Tensor, "B C 6"]) -> Float[Tensor, "B C *s"]:
    """Decodes stored codes to float32 values: ``(clip(raw * scale + offset, low, high) - shift) / divisor``.

    Args:
        raw: Codes as stored, on any device.
        numbers: Per sample and channel (scale, offset, low, high, shift, divisor), on the CPU.
    """
    scale, offset, low, high, shift, divisor = numbers.to(torch.float64).unbind(dim=-1)
    parts = torch.stack((scale, offset - shift, low - shift, high - shift)) / divisor
    image = raw.to(torch.float32, copy=True)
    if image.device.type == "cpu":  # plain numbers: vectorized kernels, and neutral operations are skipped
        for row in range(image.shape[0]):
            for channel in range(image.shape[1]):
                _scale_clip(image[row, channel], *parts[:, row, channel].tolist())
        return image
    gain, start, lowest, highest = (
        part.to(raw.device, torch.float32).reshape(*part.shape, *[1] * (raw.ndim - 2)) for part in parts
    )
    return image.mul_(gain).add_(start).clamp_(lowest, highest)


def _scale_clip(image: Float[Tensor, "*s"], gain: float, start: float, low: float, high: float) -> None:
    if gain != 1:
        image.mul_(gain)
    if start != 0:
        image.add_(start)
    if low > -math.inf or high < math.inf:
        image.clamp_(low, high)


def lowest_value(numbers: Float[Tensor, "B C 6"], image: Float[Tensor, "B C *s"]) -> Float[Tensor, "B C *1"]:
    """Value of voxels outside the scan: the lower bound of the intensity rule, or the image's minimum without one."""
    _, _, low, _, shift, divisor = numbers.to(torch.float64).unbind(dim=-1)
    bound = (low - shift) / divisor
    lowest = bound.to(image.device, torch.float32)
    if not bool(torch.isfinite(bound).all()):
        lowest = torch.where(torch.isfinite(lowest), lowest, image.flatten(2).amin(dim=2))
    return lowest.reshape(*lowest.shape, *[1] * (image.ndim - 2))


def draw_intensity(spec: Intensity, draws: Draws, *, channels: int, n: int) -> IntensityDraw:
    """Draws the parameters of a batch of views with ``n`` spatial axes."""
    is_applied = draws.uniform(6) < torch.tensor(
        [spec.gamma[0], spec.contrast[0], spec.brightness[0], spec.bias_field[0], spec.blur[0], spec.noise[0]]
    )
    share = draws.uniform(6)
    gamma = torch.exp(math.log(spec.gamma[1]) + share[:, 0] * math.log(spec.gamma[2] / spec.gamma[1]))
    contrast = spec.contrast[1] + share[:, 1] * (spec.contrast[2] - spec.contrast[1])
    neutral = torch.zeros(len(is_applied))
    common = CommonDraw(
        gamma=torch.where(is_applied[:, 0], gamma, neutral + 1),
        contrast=torch.where(is_applied[:, 1], contrast, neutral + 1),
        brightness=torch.where(is_applied[:, 2], (2 * share[:, 2] - 1) * spec.brightness[1], neutral),
        bias=torch.where(is_applied[:, 3], share[:, 3] * spec.bias_field[1], neutral),
        blur=torch.where(is_applied[:, 4], share[:, 4] * spec.blur[1], neutral),
        noise=torch.where(is_applied[:, 5], share[:, 5] * spec.noise[1], neutral),
        control=fields.draw_control(draws, n),
        offsets=fields.draw_offsets(draws, channels),
    )
    later = _draw_later(spec, draws)
    return IntensityDraw(**{part.name: getattr(common, part.name) for part in dataclass_fields(common)}, **later)


def _draw_later(spec: Intensity, draws: Draws) -> dict[str, Float[Tensor, " B"]]:
    """Draws the changes added after 0.1.0: last, so that the others are drawn as before."""
    changes = {"factor": spec.brightness_factor, "inverted": spec.inverted_gamma, "resolution": spec.reduced_resolution}
    if not any(change[0] for change in changes.values()):
        return {name: torch.ones(len(draws)) for name in changes}
    is_applied = draws.uniform(3) < torch.tensor([change[0] for change in changes.values()])
    share = draws.uniform(3)
    (low, high), (first, last), (fewest, most) = (change[1:] for change in changes.values())
    values = torch.stack(
        (
            low + share[:, 0] * (high - low),
            torch.exp(math.log(first) + share[:, 1] * math.log(last / first)),
            fewest + share[:, 2] * (most - fewest),
        ),
        dim=1,
    )
    return dict(zip(changes, torch.where(is_applied, values, torch.ones_like(values)).unbind(1), strict=True))


def apply_intensity(
    image: Float[Tensor, "B C *s"], drawn: IntensityDraw, *, seed: int, valid: Bool[Tensor, "B 1 *s"] | None = None
) -> Float[Tensor, "B C *s"]:
    """Applies drawn parameters in this order.

    Gamma, gamma on the inverted range, contrast, brightness, factor, bias field, blur, low resolution, noise.

    Args:
        image: Normalized values; it is not changed.
        drawn: From ``draw_intensity``.
        seed: Seed of the run, for the pool of noise.
        valid: False on padding, which means and ranges leave out; None without padding.
    """
    if image.device.type == "cpu" and len(image) > 1:  # a row fits the cache, a batch does not
        rows = [slice(row, row + 1) for row in range(len(image))]
        return torch.cat(
            [apply_intensity(image[row], drawn.rows(row), seed=seed, valid=_rows_of(valid, row)) for row in rows]
        )
    image = _where(image, drawn.gamma != 1, lambda part, at: gamma(part, drawn.gamma[at], _rows_of(valid, at)))
    image = _where(
        image,
        drawn.inverted != 1,
        lambda part, at: inverted_gamma(part, drawn.inverted[at], _rows_of(valid, at)),
    )
    image = _where(image, drawn.contrast != 1, lambda part, at: contrast(part, drawn.contrast[at], _rows_of(valid, at)))
    image = _where(image, drawn.brightness != 0, lambda part, at: brightness(part, drawn.brightness[at]))
    image = _where(image, drawn.factor != 1, lambda part, at: part * _per_sample(drawn.factor[at], part))
    image = _where(
        image,
        drawn.bias != 0,
        lambda part, at: bias_field(part, drawn.bias[at], drawn.control[at], _rows_of(valid, at)),
    )
    image = _where(image, drawn.blur != 0, lambda part, at: blur(part, drawn.blur[at]))
    image = _where(image, drawn.resolution != 1, lambda part, at: reduced_resolution(part, drawn.resolution[at]))
    return _where(
        image, drawn.noise != 0, lambda part, at: fields.add_noise(part, drawn.noise[at], drawn.offsets[at], seed=seed)
    )


def _where(
    image: Float[Tensor, "B C *s"],
    selected: Bool[Tensor, " B"],
    change: Callable[[Tensor, Int[Tensor, " K"]], Tensor],
) -> Float[Tensor, "B C *s"]:
    """Changes the selected rows only; all other rows keep their bits."""
    if not bool(selected.any()):
        return image
    rows = torch.nonzero(selected)[:, 0]
    if len(rows) == len(image):
        return change(image, rows)
    device_rows = rows.to(image.device)
    return image.index_copy(0, device_rows, change(image[device_rows], rows))


def _rows_of(valid: Bool[Tensor, "B 1 *s"] | None, rows: Int[Tensor, " K"] | slice) -> Bool[Tensor, "K 1 *s"] | None:
    if valid is None:
        return None
    return valid[rows if isinstance(rows, slice) else rows.to(valid.device)]


def gamma(
    image: Float[Tensor, "B C *s"], exponent: Float[Tensor, " B"], valid: Bool[Tensor, "B 1 *s"] | None = None
) -> Float[Tensor, "B C *s"]:
    """Gamma: scales each channel's range to [0, 1], raises it to a power, and scales it back."""
    low, high = _range(image, valid)
    width = (high - low).clamp_min(1e-7)
    share = (image - low).mul_(1 / width).clamp_min_(0)
    return (
        share.log_().mul_(_per_sample(exponent, image)).exp_().mul_(width).add_(low)
    )  # twice as fast as pow; log 0 is fine


def inverted_gamma(
    image: Float[Tensor, "B C *s"], exponent: Float[Tensor, " B"], valid: Bool[Tensor, "B 1 *s"] | None = None
) -> Float[Tensor, "B C *s"]:
    """Gamma on the inverted range: the distance from the highest value is raised to a power."""
    return gamma(image.neg(), exponent, valid).neg_()


def reduced_resolution(image: Float[Tensor, "B C *s"], share: Float[Tensor, " B"]) -> Float[Tensor, "B C *s"]:
    """Simulates larger voxels: takes the nearest of fewer voxels, and interpolates them linearly to the former size.

    Args:
        image: Values.
        share: Share of the voxels per axis that is left for each sample, above 0 to 1; at least one voxel is left.
    """
    size = image.shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    rows = []
    for row, left in zip(image, share.tolist(), strict=True):
        fewer = [max(1, round(extent * left)) for extent in size]
        small = functional.interpolate(row[None], size=fewer, mode="nearest-exact")
        rows.append(functional.interpolate(small, size=tuple(size), mode=mode, align_corners=False))
    return torch.cat(rows)


def contrast(
    image: Float[Tensor, "B C *s"], factor: Float[Tensor, " B"], valid: Bool[Tensor, "B 1 *s"] | None = None
) -> Float[Tensor, "B C *s"]:
    """Contrast: multiplies each channel's difference from its mean by a factor."""
    axes = tuple(range(2, image.ndim))
    if valid is None:
        mean = image.mean(dim=axes, keepdim=True)
    else:
        count = valid.sum(dim=axes, keepdim=True).clamp_min(1)
        mean = torch.where(valid, image, image.new_zeros(())).sum(dim=axes, keepdim=True) / count
    wide = _per_sample(factor, image)
    return image * wide + mean * (1 - wide)


def brightness(image: Float[Tensor, "B C *s"], shift: Float[Tensor, " B"]) -> Float[Tensor, "B C *s"]:
    """Brightness: adds a constant to each sample."""
    return image + _per_sample(shift, image)


def bias_field(
    image: Float[Tensor, "B C *s"],
    amplitude: Float[Tensor, " B"],
    control: Float[Tensor, "B *c"],
    valid: Bool[Tensor, "B 1 *s"] | None = None,
) -> Float[Tensor, "B C *s"]:
    """Bias field: multiplies each channel, measured from its lowest value, by a smooth field; air stays unchanged.

    Args:
        image: Normalized values.
        amplitude: Largest logarithm of the field.
        control: Control points between -1 and 1 per spatial axis, as in ``fields.smooth_field``.
        valid: False on padding.
    """
    low, _ = _range(image, valid)
    field = fields.smooth_field(control.to(image.device), image.shape[2:])
    field = field.mul_(_per_sample(amplitude, image)).exp_()
    return (image - low).mul_(field).add_(low)


def blur(image: Float[Tensor, "B C *s"], sigma: Float[Tensor, " B"]) -> Float[Tensor, "B C *s"]:
    """Gaussian blur, axis by axis; the value at the border continues beyond it.

    Args:
        image: Values.
        sigma: Standard deviation in voxels for each sample. The kernel reaches three of these, at least one voxel.
    """
    radii = (3 * sigma.to(torch.float64)).ceil().clamp_min(1).to(torch.long)
    radius = int(radii.max())
    steps = torch.arange(radius + 1)
    weights = torch.exp(-0.5 * (steps / sigma.clamp_min(1e-3)[:, None].to(torch.float64)) ** 2)
    weights = torch.where(steps[None] <= radii[:, None], weights, weights.new_zeros(()))
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - weights[:, :1])
    for axis in range(2, image.ndim):
        image = _blur_axis(image, weights.to(torch.float32), axis)
    return image


def _blur_axis(image: Float[Tensor, "B C *s"], weights: Float[Tensor, "B r"], axis: int) -> Float[Tensor, "B C *s"]:
    """A symmetric kernel by shifted sums: ``weights[:, k]`` belongs to the neighbors at distance k."""
    extent, radius = image.shape[axis], weights.shape[1] - 1
    first, last = image.narrow(axis, 0, 1), image.narrow(axis, extent - 1, 1)
    reach = [radius if k == axis else 1 for k in range(image.ndim)]
    wide = torch.cat((first.repeat(reach), image, last.repeat(reach)), dim=axis)
    out = image * _per_sample(weights[:, 0], image)
    for step in range(1, radius + 1):
        for start in (radius - step, radius + step):
            shifted = wide.narrow(axis, start, extent)
            if len(weights) == 1:
                out.add_(shifted, alpha=float(weights[0, step]))
            else:
                out.addcmul_(shifted, _per_sample(weights[:, step], image))
    return out


def _range(
    image: Float[Tensor, "B C *s"], valid: Bool[Tensor, "B 1 *s"] | None
) -> tuple[Float[Tensor, "B C *1"], Float[Tensor, "B C *1"]]:
    """Lowest and highest value of each channel without padding."""
    axes = tuple(range(2, image.ndim))
    if valid is None:
        low, high = image.flatten(2).aminmax(dim=2)
        shape = (*low.shape, *[1] * len(axes))
        return low.reshape(shape), high.reshape(shape)
    infinite = image.new_full((), math.inf)
    low = torch.where(valid, image, infinite).amin(dim=axes, keepdim=True)
    high = torch.where(valid, image, -infinite).amax(dim=axes, keepdim=True)
    return torch.where(low <= high, low, 0.0), torch.where(low <= high, high, 0.0)


def _per_sample(values: Float[Tensor, " B"], image: Float[Tensor, "B C *s"]) -> Float[Tensor, "B *1"]:
    return values.to(image.device, image.dtype).reshape(-1, *[1] * (image.ndim - 1))
