r"""How far embeddings are from a standard normal distribution, along random directions (Epps-Pulley statistic).

With the projections :math:`x_1 \dots x_n` of n rows on a unit vector, and their empirical characteristic function::

    phi(t)    = mean_j exp(i t x_j)
    statistic = n * integral of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

The integral is a sum over 17 points of [-5, 5], of which the half suffices since the integrand is even. Rows are those
of all processes: sums of cosines and sines are added up, with gradient, before anything is squared.

References: Epps and Pulley, A test for normality based on the empirical characteristic function, Biometrika 1983;
Balestriero and LeCun, LeJEPA, 2025, arXiv 2511.08544 (random directions, SIGReg).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from medssl.ops.collectives import reduce_sum
from medssl.ops.draws import keyed_generator
from medssl.ops.similarity import unit

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

LIMIT, POINTS = 5.0, 9  # of the half axis, both ends included
NULL = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)  # expectation for standard normal rows


def epps_pulley(rows: Float[Tensor, "*views B D"], directions: Float[Tensor, "D S"]) -> Float[Tensor, "*views S"]:
    """The statistic of each direction; about 1.06 on average for rows from a standard normal distribution.

    Args:
        rows: Embeddings of this process, in groups that are judged apart, such as views.
        directions: Unit vectors in columns, the same in all processes.
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        points = torch.linspace(0, LIMIT, POINTS, dtype=rows.dtype, device=rows.device)
        weights = torch.full_like(points, 2 * LIMIT / (POINTS - 1))  # both halves of the axis
        weights[[0, -1]] /= 2
        normal = (-0.5 * points.square()).exp()
        angles = (rows @ directions.to(rows))[..., None] * points
        count = reduce_sum(torch.tensor(float(rows.shape[-2]), dtype=rows.dtype, device=rows.device))
        real, imaginary = reduce_sum(torch.stack((angles.cos().sum(-3), angles.sin().sum(-3)))).unbind()
        distance = (real / count - normal).square() + (imaginary / count).square()
        return count * (distance * normal * weights).sum(-1)


def random_directions(width: int, count: int, seed: int, step: int) -> Float[Tensor, "D S"]:
    """Uniform unit vectors in columns that belong to a step: the same in every process and micro-batch.

    Args:
        width: Channels D.
        count: Number of directions S.
        seed: Seed of the run.
        step: Number of the optimizer step.

    Returns:
        Directions on the CPU.
    """
    numbers = keyed_generator(seed, step, "directions").standard_normal((count, width))
    return unit(torch.from_numpy(numbers)).mT
