"""What PNG, JPEG, BMP and TIFF share: notes on colors, and the spacing of pixels that are not square."""

from __future__ import annotations

TRANSPARENCY = "transparency left out"


def uneven_spacing(across: float, down: float) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Spacing of (rows, columns) from the pixel densities across and down, and a note if pixels are not square.

    Densities are those of screens and printers, not of the photographed object. The spacing of columns is therefore
    1 mm, as for all pictures; only the ratio of both densities is used.
    """
    if not (0 < across < 1e9 and 0 < down < 1e9) or abs(across / down - 1) < 0.01:
        return (1.0, 1.0), ()
    ratio = across / down
    return (ratio, 1.0), (f"pixels are not square: {ratio:.4g} times as high as wide",)


def wide_colors(bits: int) -> str:
    """Note on colors of more than 8 bits, which are stored as channels of gray values."""
    return f"colors of {bits} bits: kept as three channels of gray values"
