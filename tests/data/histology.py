"""Rendered histology: pictures of hematoxylin and eosin of known colors and amounts, with noise and glass."""

from __future__ import annotations

import numpy as np

# optical density in red, green and blue of each stain, of unit length: not the reference, nor the basis of the jitter
STAINS = np.array([[0.60, 0.72, 0.35], [0.15, 0.92, 0.36]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)


def tile(seed=0, side=96, *, stains=STAINS, noise=4.0, glass=0, strength=1.0):
    """A picture [3, side, side] uint8: round nuclei of hematoxylin in eosin; ``glass`` rows at the top are empty.

    ``noise`` is the standard deviation in gray values; ``strength`` multiplies the amount of both stains.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    nuclei = np.zeros((side, side))
    for y, x, radius in zip(*generator.random((2, 40)) * side, 2 + 4 * generator.random(40), strict=True):
        nuclei = np.maximum(nuclei, ((rows - y) ** 2 + (columns - x) ** 2 < radius**2) * (0.6 + generator.random()))
    eosin = 0.6 + 1.4 * generator.random((side // 8, side // 8)).repeat(8, 0).repeat(8, 1)
    amounts = strength * np.stack((nuclei + 0.08, np.where(nuclei > 0, 0.1 * eosin, eosin)))
    amounts[:, :glass] = 0
    colors = 240 * np.exp(-np.einsum("sc,sij->cij", stains, amounts))
    colors += noise * generator.standard_normal(colors.shape)
    return np.clip(np.rint(colors), 0, 255).astype(np.uint8)
