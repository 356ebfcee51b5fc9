r"""Optimal transport between two bags of tokens: IPOT, and Gromov-Wasserstein on distances within each bag.

With costs :math:`C_{ij}` and uniform marginals over n and m tokens, plans :math:`T` and distances are::

    Wasserstein         min_T sum_ij T_ij C_ij
    Gromov-Wasserstein  min_T sum_ijkl T_ij T_kl (A_ik - B_jl)^2        A, B: costs within each bag

IPOT solves the first by proximal steps: T becomes the transport plan of exp(-C / beta) * T, scaled to the marginals.
The second is solved by repeating it on its linearization. Columns of a plan have exact sums; those of rows converge.
Gradients flow through the costs, and plans are constants: that is the gradient at the optimum. Everything is computed
in float32 at least, whatever autocast says, and each bag by itself.

References: Xie et al., A fast proximal point method for computing exact Wasserstein distance (IPOT), UAI 2019; Peyre
et al., Gromov-Wasserstein averaging, ICML 2016; Chen et al., Graph optimal transport, ICML 2020 (both together).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.ops.similarity import cosine

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@torch.no_grad()
def ipot(cost: Float[Tensor, "*bags n m"], *, beta: float = 0.5, iterations: int = 30) -> Float[Tensor, "*bags n m"]:
    """Plans that move uniform mass at low cost; all entries of a plan sum to 1, each column to 1 / m.

    Args:
        cost: Cost of each pair of tokens.
        beta: Weight of the distance to the plan before, above 0: smaller steps, and slower, where it is larger.
        iterations: Proximal steps, 1 or more.
    """
    with torch.autocast(cost.device.type, enabled=False):
        cost = _precise(cost)
        n, m = cost.shape[-2:]
        kernel = torch.exp((cost.amin((-2, -1), keepdim=True) - cost) / beta)
        plan, columns = torch.ones_like(kernel), kernel.new_full((*cost.shape[:-2], 1, m), 1 / m)
        tiny = torch.finfo(kernel.dtype).tiny
        for _ in range(iterations):
            plan = kernel * plan
            rows = 1 / (n * (plan * columns).sum(-1, keepdim=True)).clamp_min(tiny)
            columns = 1 / (m * (plan * rows).sum(-2, keepdim=True)).clamp_min(tiny)
            plan = rows * plan * columns
        return plan


def cosine_costs(
    x: Float[Tensor, "*bags n D"], y: Float[Tensor, "*bags m D"], *, share: float = 0.1
) -> Float[Tensor, "*bags n m"]:
    """1 - cosine, less a threshold: costs of a bag that are below ``share`` of its range are 0 (Chen et al. 2020)."""
    cost = 1 - cosine(x, y)
    low, high = cost.amin((-2, -1), keepdim=True), cost.amax((-2, -1), keepdim=True)
    return (cost - (low + share * (high - low)).detach()).clamp_min(0)


def wasserstein(cost: Float[Tensor, "*bags n m"], **options: float) -> Float[Tensor, "*bags"]:
    """Mean cost of each bag under its plan; options as of :func:`ipot`."""
    return (_precise(cost) * ipot(cost, **options)).sum((-2, -1))  # type: ignore[arg-type]


def gromov_wasserstein(
    within: Float[Tensor, "*bags n n"],
    other: Float[Tensor, "*bags m m"],
    *,
    beta: float = 0.1,
    iterations: int = 20,
    rounds: int = 5,
) -> Float[Tensor, "*bags"]:
    """How far distances within one bag are from those within the other, under the best plan that is found.

    Args:
        within: Costs between the tokens of a bag.
        other: Costs between the tokens of the other bag.
        beta: As of :func:`ipot`.
        iterations: Proximal steps of each round.
        rounds: How often the problem is linearized at the present plan.
    """
    with torch.autocast(within.device.type, enabled=False):
        a, b = _precise(within), _precise(other)
        plan = a.new_full((*a.shape[:-2], a.shape[-1], b.shape[-1]), 1 / (a.shape[-1] * b.shape[-1]))
        with torch.no_grad():
            for _ in range(rounds):
                plan = ipot(_linearized(a, b, plan), beta=beta, iterations=iterations)
        return (_linearized(a, b, plan) * plan).sum((-2, -1))


def _linearized(
    a: Float[Tensor, "*bags n n"], b: Float[Tensor, "*bags m m"], plan: Float[Tensor, "*bags n m"]
) -> Float[Tensor, "*bags n m"]:
    """Cost of each pair while the others follow the plan: sum_kl T_kl (A_ik - B_jl)^2."""
    rows, columns = plan.sum(-1, keepdim=True), plan.sum(-2, keepdim=True)
    return a.square() @ rows + columns @ b.square() - 2 * a @ plan @ b.transpose(-1, -2)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
