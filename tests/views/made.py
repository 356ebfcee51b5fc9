"""Raw crops made for the tests of views."""

from __future__ import annotations

import math

import torch

from medssl.types import Crops, Origin, Placement

PLAIN = (1.0, 0.0, -math.inf, math.inf, 0.0, 1.0)


def raw_crops(image, *, start=None, source=None, spacing=None, world=None, numbers=PLAIN, samples=None, **more):
    """Crops around an image [B, C, *s]; by default they are whole scans of 1 mm voxels, stored as they are."""
    batch, channels, *size = image.shape
    n = len(size)
    start = torch.tensor(start if start is not None else [0] * n).expand(batch, n)
    spacing = torch.tensor(spacing if spacing is not None else [1.0] * n).expand(batch, n)
    if world is None:
        world = torch.diag(torch.cat((spacing[0], torch.ones(1))))
    source = torch.tensor(
        source if source is not None else [a + b for a, b in zip(start[0].tolist(), size, strict=False)]
    )
    names = tuple(f"scan{row}" for row in range(batch))
    return Crops(
        image=image,
        intensity=torch.tensor(numbers, dtype=torch.float32).expand(batch, channels, 6),
        placement=Placement(start, source.expand(batch, n), spacing, world.float().expand(batch, n + 1, n + 1)),
        origin=Origin(
            names, names, tuple(samples or range(batch)), torch.full((batch, n), 0.5), torch.full((batch,), 0.5)
        ),
        **more,
    )


def coordinate_image(size, start=None):
    """Each voxel holds its own stored coordinate: [1, n, *size] float32."""
    start = start or [0] * len(size)
    axes = [torch.arange(extent, dtype=torch.float32) + first for extent, first in zip(size, start, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def where_read(affine, size):
    """Where an affine [n+1, n+1] reads each voxel of a view: [n, *size] float64, computed point by point."""
    voxels = torch.stack(torch.meshgrid(*[torch.arange(e, dtype=torch.float64) for e in size], indexing="ij"), dim=-1)
    homogeneous = torch.cat((voxels, torch.ones(*size, 1, dtype=torch.float64)), dim=-1)
    return torch.einsum("ij,...j->i...", affine.double(), homogeneous)[:-1]
