"""Stain normalization of color images: brings the colors of a scan to those of a reference, fitted once a scan.

Macenko: optical densities are mixtures of two stains, whose colors lie at the ends of the plane of most variance. The
amounts of both, scaled by their 99th percentiles, are shown in the colors of the reference. Reinhard: mean and
deviation of tissue in the color space l alpha beta become those of the reference.

References: Macenko et al., ISBI 2009; Reinhard et al., IEEE Computer Graphics and Applications 2001; numbers of the
reference of Reinhard: Amgad et al., Bioinformatics 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medssl.types import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medssl.types import StainRule

    Colors = NDArray[np.float64]  # [3, N]: red, green and blue of each pixel

NUMBERS = {"macenko": 8, "reinhard": 6}  # numbers of a fit: colors of two stains and their amounts; means, deviations
REFERENCES = {
    "macenko": (0.5626, 0.7201, 0.4062, 0.2159, 0.8012, 0.5581, 1.9705, 1.0308),
    "reinhard": (8.74108109, -0.12440419, 0.0444982, 0.6135447, 0.10989545, 0.0286032),
}
GLASS = 240.0  # gray value of light that meets no stain, as in Macenko's published code
TISSUE = 0.15  # optical density from which on a pixel is stained, as published
TAILS = (1.0, 99.0)  # percentiles of the angles, and of the amounts the upper one, as published
LEAST = 64  # stained pixels that a fit takes
PARALLEL = 0.999  # cosine of two stains from which on they are one
SAMPLE = 1 << 20  # pixels that a fit looks at
LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LAB = np.diag(1 / np.sqrt([3.0, 6.0, 2.0])) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])


@dataclass(frozen=True)
class StainFit:
    """What was measured on a scan.

    Attributes:
        method: "macenko" or "reinhard".
        numbers: Macenko: color of hematoxylin, color of eosin (optical density in red, green and blue, of unit length)
            and the 99th percentile of the amount of each. Reinhard: mean and deviation of l, alpha and beta.
    """

    method: str
    numbers: tuple[float, ...]


def check_rule(rule: StainRule) -> None:
    """Refuses a rule whose reference cannot be one.

    Raises:
        UserError: Names the key and what it takes.
    """
    if rule.method == "none" or rule.reference is None:
        return
    count, numbers = NUMBERS[rule.method], np.asarray(rule.reference, np.float64)
    spreads = numbers[-2:] if rule.method == "macenko" else numbers[-3:]
    if len(numbers) != count or not np.isfinite(numbers).all() or not (spreads > 0).all():
        expected = f"{count} finite numbers, the last {len(spreads)} above 0"
        message = "is no reference of colors"
        raise UserError(message, key="preprocess.stain.reference", got=list(rule.reference), expected=expected)


def fit(image: NDArray[np.uint8], rule: StainRule) -> StainFit | None:
    """Measures the stains of a color image.

    Args:
        image: Gray values [3, *s]; of a slide, a picture of low resolution or some of its tiles.
        rule: The method.

    Returns:
        The fit; None where there is too little tissue, or one stain only: such an image is left as it is.
    """
    pixels = image.reshape(3, -1)
    colors: Colors = pixels[:, :: max(1, pixels.shape[1] // SAMPLE)].astype(np.float64)
    numbers = _macenko(colors) if rule.method == "macenko" else _reinhard(colors)
    return None if numbers is None else StainFit(rule.method, tuple(float(x) for x in numbers))


def normalize(image: NDArray[np.uint8], fitted: StainFit | None, rule: StainRule) -> NDArray[np.uint8]:
    """Gives an image [3, *s] the colors of the reference; without a fit it stays as it is."""
    if fitted is None:
        return image
    reference = np.asarray(rule.reference or REFERENCES[rule.method], np.float64)
    change = _macenko_change if fitted.method == "macenko" else _reinhard_change
    colors = change(image.reshape(3, -1).astype(np.float64), np.asarray(fitted.numbers), reference)
    return np.clip(np.rint(colors), 0, 255).astype(np.uint8).reshape(image.shape)


def _density(colors: Colors, glass: float) -> Colors:
    density: Colors = -np.log((colors + 1) / glass)
    return density


def _macenko(colors: Colors) -> NDArray[np.float64] | None:
    """Colors of hematoxylin and eosin and the 99th percentiles of their amounts, eight numbers."""
    density = _density(colors, GLASS)
    stained = density[:, (density > TISSUE).all(axis=0)]
    if stained.shape[1] < LEAST:
        return None
    plane = np.linalg.eigh(np.cov(stained))[1][:, [2, 1]]
    plane *= np.where(plane.sum(axis=0) < 0, -1.0, 1.0)  # the main axis shows to more stain
    angles = np.arctan2(*(plane.T @ stained)[::-1])
    ends = np.percentile(angles, TAILS)
    basis = (plane @ np.stack((np.cos(ends), np.sin(ends)))).T
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    if basis[0, 0] < basis[1, 0]:
        basis = basis[::-1]
    if abs(basis[0] @ basis[1]) > PARALLEL:
        return None
    amounts = np.percentile(np.linalg.pinv(basis.T) @ stained, TAILS[1], axis=1)
    return np.concatenate((basis.ravel(), amounts)) if (amounts > 1e-3).all() else None


def _macenko_change(colors: Colors, fitted: NDArray[np.float64], reference: NDArray[np.float64]) -> Colors:
    """What the two stains do not explain (a third color, noise) stays; the published code leaves it out."""
    density = _density(colors, GLASS)
    basis, target = fitted[:6].reshape(2, 3).T, reference[:6].reshape(2, 3).T
    amounts = np.linalg.pinv(basis) @ density
    density += (target * (reference[6:] / fitted[6:]) - basis) @ amounts
    changed: Colors = GLASS * np.exp(-density) - 1
    return changed


def _reinhard(colors: Colors) -> NDArray[np.float64] | None:
    """Mean and deviation of l, alpha and beta of tissue, six numbers."""
    stained = colors[:, _density(colors, 256.0).mean(axis=0) > TISSUE]
    if stained.shape[1] < LEAST:
        return None
    lab = LAB @ np.log(LMS @ (stained + 1))
    spread = lab.std(axis=1)
    return np.concatenate((lab.mean(axis=1), spread)) if (spread > 1e-4).all() else None


def _reinhard_change(colors: Colors, fitted: NDArray[np.float64], reference: NDArray[np.float64]) -> Colors:
    """The change fades out from tissue to glass, so that glass stays white."""
    lab = LAB @ np.log(LMS @ (colors + 1))
    moved = (lab - fitted[:3, None]) / fitted[3:, None] * reference[3:, None] + reference[:3, None]
    weight = np.clip(_density(colors, 256.0).mean(axis=0) / TISSUE, 0, 1)
    changed: Colors = np.linalg.inv(LMS) @ np.exp(np.linalg.inv(LAB) @ (lab + weight * (moved - lab))) - 1
    return changed
