"""Changes the stains of color images: amounts of hematoxylin, eosin and DAB, style of another sample, grayscale.

All changes act on optical densities of stored gray values v (0 to 255) of each color, in natural logarithms::

    od = -ln((v + 1) / 256)        white (v = 255) has the density 0, black (v = 0) has ln 256 = 5.55

The network's input is converted with the intensity numbers of its crop and back, so that "unit" and "zscore" rules give
the same colors. Every group of three channels is a color image: several stains of a case may be channels of one scan.

Parameters are drawn for each sample (``draw_stain``) and applied to any rows (``apply_stain``). Rows without a change
keep their bits. References: Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 2001 (colors of the stains); Tellez et
al., Medical Image Analysis 2019 (jitter of their amounts).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medssl.ops.collectives import gather
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Shaped
    from torch import Tensor

    from medssl.ops.draws import Draws
    from medssl.types import Intensity, ViewPlan

HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))  # optical density in red, green, blue of each stain
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
TISSUE = 0.15  # mean optical density from which on a pixel counts as tissue, as in Macenko et al. 2009
STYLE_PIXELS = 64  # pixels per axis, at most, that the style of a crop is measured on


@dataclass(frozen=True)
class StainDraw:
    """Parameters of the changes of stains of a batch, for each sample and group of three channels.

    Attributes:
        mixing: Added to the density: this matrix times the density. Zero changes nothing.
        shift: Added to the density. Zero changes nothing.
        gain: Factor on the density of tissue, from the exchange of styles. 1 changes nothing.
        offset: Added to the density of tissue, from the exchange of styles. Zero changes nothing.
        is_gray: Whether the sample becomes gray.
    """

    mixing: Float[Tensor, "B G 3 3"]
    shift: Float[Tensor, "B G 3"]
    gain: Float[Tensor, "B G 3"]
    offset: Float[Tensor, "B G 3"]
    is_gray: Bool[Tensor, " B"]

    def rows(self, rows: slice | Tensor) -> StainDraw:
        """The parameters of the samples ``rows``."""
        return StainDraw(self.mixing[rows], self.shift[rows], self.gain[rows], self.offset[rows], self.is_gray[rows])

    @property
    def is_exchanged(self) -> Bool[Tensor, " B"]:
        """Which samples take the style of another."""
        return ((self.gain != 1) | (self.offset != 0)).flatten(1).any(1)

    @property
    def is_jittered(self) -> Bool[Tensor, " B"]:
        """Which samples get other amounts of stains."""
        return (self.mixing != 0).flatten(1).any(1) | (self.shift != 0).flatten(1).any(1)


@dataclass(frozen=True)
class Styles:
    """Mean and deviation of the optical density of tissue in each color, on the CPU.

    Attributes:
        crops: Those of the samples of a batch.
        candidates: Those of the samples of the batches of all processes, in the order of the sample numbers, so that
            neither the order of rows nor the number of processes matters.
    """

    crops: Float[Tensor, "B G 3 2"]
    candidates: Float[Tensor, "N G 3 2"]

    def partners(self, draws: Draws) -> Float[Tensor, "B G 3 2"]:
        """A random candidate for each sample, which may be the sample itself."""
        share = draws.uniform()
        chosen = (share.double() * len(self.candidates)).long().clamp_max(len(self.candidates) - 1)
        return self.candidates[chosen]


def changes_stains(spec: Intensity) -> bool:
    """Whether a view changes colors, which only color images have."""
    return spec.hed_jitter[0] > 0 or spec.stain_exchange > 0 or spec.grayscale > 0


def refuse_other_domains(plan: ViewPlan, domains: Collection[str]) -> None:
    """Refuses views that change stains of scans that are no color images.

    Args:
        plan: The views.
        domains: Value domains of the scans, such as "hu" or "rgb".

    Raises:
        UserError: Names the view, the setting and the value domain.
    """
    others = sorted(set(domains) - {"rgb"})
    for number, spec in enumerate(plan.views):
        settings = [name for name in ("hed_jitter", "stain_exchange", "grayscale") if _is_set(spec.intensity, name)]
        if settings and others:
            message = f"view {number}: stain jitter refuses a value domain that is not rgb"
            hint = f"Set intensity.{settings[0]} to 0, or choose color images"
            raise UserError(message, key=f"intensity.{settings[0]}", got=", ".join(others), expected="rgb", hint=hint)


def groups_of(channels: int) -> int:
    """Number of color images among the channels.

    Raises:
        UserError: The channels are no groups of red, green and blue.
    """
    if channels % 3:
        message = (
            f"stain jitter refuses a value domain that is not rgb: the scans have {channels} channels, and color "
            "images have 3"
        )
        raise UserError(message, hint="Set intensity.hed_jitter, stain_exchange and grayscale to 0")
    return channels // 3


def draw_stain(spec: Intensity, draws: Draws, *, channels: int, styles: Styles | None = None) -> StainDraw | None:
    """Draws the changes of stains of a batch of views; None where the view has none.

    Args:
        spec: The changes.
        draws: Random numbers keyed by sample and view.
        channels: Channels of the image, a multiple of three.
        styles: Styles of the crops and of the samples they may take one from, for an exchange of styles.

    Raises:
        UserError: The channels are no color images.
    """
    if not changes_stains(spec):
        return None
    count, groups = len(draws), groups_of(channels)
    probability, largest, shift = spec.hed_jitter
    applied = draws.uniform(3)
    ratios = draws.uniform(groups, 3, low=-1.0, high=1.0) * largest
    amounts = draws.uniform(groups, 3, low=-1.0, high=1.0) * shift
    is_jittered = (applied[:, 0] < probability)[:, None, None]
    basis = torch.nn.functional.normalize(torch.tensor(HED, dtype=torch.float64), dim=1)
    # od' - od = (amounts of stains * ratios + shifts) @ basis, with amounts = od @ basis^-1
    mixing = torch.einsum("ij,bgj,jk->bgki", basis.inverse(), ratios.double(), basis).float()
    neutral = torch.zeros(count, groups, 3)
    gain, offset = neutral + 1, neutral
    if styles is not None:
        gain, offset = _exchanged(styles.crops, styles.partners(draws), applied[:, 1] < spec.stain_exchange)
    return StainDraw(
        mixing=torch.where(is_jittered[..., None], mixing, torch.zeros_like(mixing)),
        shift=torch.where(is_jittered, (amounts.double() @ basis).float(), neutral),
        gain=gain,
        offset=offset,
        is_gray=applied[:, 2] < spec.grayscale,
    )


def apply_stain(
    image: Float[Tensor, "B C *s"], drawn: StainDraw, numbers: Float[Tensor, "B C 6"]
) -> Float[Tensor, "B C *s"]:
    """Applies drawn changes in this order: style of another sample, amounts of stains, grayscale.

    Args:
        image: Normalized values; it is not changed.
        drawn: From ``draw_stain``, on the CPU.
        numbers: Per sample and channel (scale, offset, low, high, shift, divisor), on the CPU.
    """
    is_dense = drawn.is_exchanged | drawn.is_jittered
    is_changed = is_dense | drawn.is_gray
    if not bool(is_changed.any()):
        return image
    rows = torch.nonzero(is_changed)[:, 0]
    every = len(rows) == len(image)
    part = image if every else image[rows.to(image.device)]
    changed = _changed(part, drawn.rows(rows), numbers[rows], is_dense[rows])
    return changed if every else image.index_copy(0, rows.to(image.device), changed)


def _changed(
    image: Float[Tensor, "K C *s"], drawn: StainDraw, numbers: Float[Tensor, "K C 6"], is_dense: Bool[Tensor, " K"]
) -> Float[Tensor, "K C *s"]:
    """Rows that are all changed: to gray values, changed there, and back."""
    device, axes = image.device, image.ndim - 2
    shift, divisor = (
        numbers[..., column].to(device, torch.float32).reshape(*image.shape[:2], *[1] * axes) for column in (4, 5)
    )
    values = (image * divisor + shift).clamp_(0, 255)
    values = values.reshape(len(image), -1, 3, *image.shape[2:])
    if bool(is_dense.any()):
        ratio = torch.exp(-_added(values, drawn)).mul_(is_dense.to(device).reshape(-1, 1, 1, *[1] * axes))
        ratio += (~is_dense).to(device, torch.float32).reshape(-1, 1, 1, *[1] * axes)
        values = ((values + 1) * ratio - 1).clamp_(0, 255)
    if bool(drawn.is_gray.any()):
        weights = torch.tensor(LUMINANCE, device=device).reshape(1, 1, 3, *[1] * axes)
        gray = (values * weights).sum(2, keepdim=True).expand_as(values)
        values = torch.where(drawn.is_gray.to(device).reshape(-1, 1, 1, *[1] * axes), gray, values)
    normalized: Tensor = (values.flatten(1, 2) - shift).div_(divisor)
    return normalized


def _added(values: Float[Tensor, "K G 3 *s"], drawn: StainDraw) -> Float[Tensor, "K G 3 *s"]:
    """What is added to the densities of gray values; exactly zero where nothing changes, or where white is not shifted.

    The style of another sample fades out from tissue to glass, so that white stays white.
    """
    density = torch.log((values + 1) / 256).neg_()
    added = torch.zeros_like(density)
    device, shape = values.device, (*values.shape[:3], *[1] * (values.ndim - 3))
    if bool(drawn.is_exchanged.any()):
        weight = (density.mean(2, keepdim=True) / TISSUE).clamp_(0, 1)
        change = density * (drawn.gain - 1).to(device).reshape(shape) + drawn.offset.to(device).reshape(shape)
        added = torch.maximum(weight * change, -density)
    if bool(drawn.is_jittered.any()):
        # sums of three colors one by one: a matrix product depends on the rows beside it in its last bits
        mixing, now = drawn.mixing.to(device), density + added
        for column in range(3):
            factor = mixing[..., column].reshape(shape)
            added = added + factor * now[:, :, column : column + 1]
        added += drawn.shift.to(device).reshape(shape)
    return added


def styles_of(
    raw: Shaped[Tensor, "B C *s"], numbers: Float[Tensor, "B C 6"], samples: Sequence[int], *, alone: bool = False
) -> Styles:
    """Measures the styles of a batch, and collects those of all processes.

    Args:
        raw: Crops as stored.
        numbers: Per sample and channel (scale, offset, low, high, shift, divisor), on the CPU.
        samples: Global number of each sample.
        alone: Whether the other processes make no batch now.

    Raises:
        UserError: The channels are no color images.
    """
    crops = density_statistics(raw, numbers)
    here = torch.tensor(list(samples), device=raw.device)
    everywhere = (here, crops) if alone else (gather(here), gather(crops))
    order = torch.argsort(everywhere[0])
    return Styles(crops.cpu(), everywhere[1][order].cpu())


def density_statistics(raw: Shaped[Tensor, "B C *s"], numbers: Float[Tensor, "B C 6"]) -> Float[Tensor, "B G 3 2"]:
    """Mean and deviation of the optical density of tissue in each color; zeros where there is no tissue.

    Raises:
        UserError: The channels are no color images.
    """
    groups_of(raw.shape[1])
    for axis in range(2, raw.ndim):
        step = max(1, raw.shape[axis] // STYLE_PIXELS)
        raw = raw[(slice(None),) * axis + (slice(None, None, step),)]
    columns = numbers.to(raw.device, torch.float32).reshape(*raw.shape[:2], 6, *[1] * (raw.ndim - 2))
    values = (raw.to(torch.float32) * columns[:, :, 0] + columns[:, :, 1]).clamp_(0, 255)
    density = torch.log((values + 1) / 256).neg_().flatten(2).double()
    density = density.reshape(len(raw), -1, 3, density.shape[-1])
    is_tissue = density.mean(2, keepdim=True) > TISSUE
    count = is_tissue.sum(3).clamp_min(1)
    mean = torch.where(is_tissue, density, 0.0).sum(3) / count
    spread = torch.where(is_tissue, (density - mean[..., None]).square(), 0.0).sum(3) / count
    return torch.stack((mean, spread.sqrt()), dim=-1).float()


def _exchanged(
    styles: Float[Tensor, "B G 3 2"], partners: Float[Tensor, "B G 3 2"], applied: Bool[Tensor, " B"]
) -> tuple[Float[Tensor, "B G 3"], Float[Tensor, "B G 3"]]:
    """Gain and offset that bring one mean and deviation to another; neutral where one of them has no tissue."""
    (mean, deviation), (other_mean, other_deviation) = styles.unbind(-1), partners.unbind(-1)
    usable = (torch.minimum(deviation, other_deviation) > 1e-3).all(2, keepdim=True) & applied[:, None, None]
    gain = torch.where(usable, other_deviation / deviation.clamp_min(1e-3), torch.ones_like(mean))
    return gain, torch.where(usable, other_mean - gain * mean, torch.zeros_like(mean))


def problem(spec: Intensity) -> str:
    """What is wrong with the settings of a view; "" if nothing is."""
    probability, largest, shift = spec.hed_jitter
    if not 0 <= probability <= 1 or not 0 <= largest < 1 or not (math.isfinite(shift) and shift >= 0):
        expected = "a probability, a largest change below 1 and a largest shift of at least 0"
        return f"intensity.hed_jitter takes {expected}: {tuple(spec.hed_jitter)}"
    for name in ("stain_exchange", "grayscale"):
        if not 0 <= getattr(spec, name) <= 1:
            return f"intensity.{name} takes a probability from 0 to 1: {getattr(spec, name)}"
    return ""


def _is_set(spec: Intensity, name: str) -> bool:
    value: float | Sequence[float] = getattr(spec, name)
    return (value if isinstance(value, int | float) else value[0]) > 0
