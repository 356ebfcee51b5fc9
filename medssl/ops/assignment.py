r"""Targets that a teacher sets by its scores of K prototypes: centering, Sinkhorn-Knopp, and how they are judged.

With scores :math:`s_{ik}` of row i (an image or a position) and a temperature T::

    centering   q_i = softmax((s_i - center) / T),   center <- m center + (1 - m) mean_i s_i
    Sinkhorn    q   = softmax(s_i / T); several times: divide each column by its share of 1 / K, each row by its sum

Both keep the teacher from naming one prototype for everything: centering by what was named lately, Sinkhorn by equal
shares within the batch. Sums run over the rows of all processes. All is computed in float32 at least, whatever autocast
says, and targets have no gradient.

References: Caron et al., Emerging Properties in Self-Supervised Vision Transformers (DINO), ICCV 2021 (centering);
Cuturi, Sinkhorn Distances, NeurIPS 2013, and Caron et al., SwAV, NeurIPS 2020 (equal shares).

Sinkhorn is our own: SciPy has none, and POT neither sums over the rows of all processes nor leaves rows out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medssl.ops.collectives import mean_over, reduce_sum

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@torch.no_grad()
def centered_targets(
    scores: Float[Tensor, "N K"], center: Float[Tensor, "K"], temperature: float
) -> Float[Tensor, "N K"]:
    """Softmax of what the scores are above the center; rows sum to 1.

    Args:
        scores: Scores of each row.
        center: Mean score of each prototype lately (:func:`moved_center`).
        temperature: Divides the difference; the lower, the sharper.
    """
    return ((_precise(scores) - center) / temperature).softmax(-1)


@torch.no_grad()
def moved_center(
    center: Float[Tensor, "K"], total: Float[Tensor, "K"], count: Float[Tensor, ""], momentum: float
) -> Float[Tensor, "K"]:
    """The center after a step: a mean over time of the mean scores of all processes; unchanged where there are no rows.

    Args:
        center: The center before.
        total: Sum of this process's scores in the step.
        count: Number of rows in it.
        momentum: Share of the center that stays.
    """
    sums = reduce_sum(torch.cat((_precise(total), count.reshape(1).to(_precise(total)))))
    total, count = sums[:-1], sums[-1]
    mean = total / count.clamp(min=1)
    return torch.where(count > 0, momentum * center + (1 - momentum) * mean, center).to(center.dtype)


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "N K"],
    temperature: float,
    *,
    counted: Bool[Tensor, "N"] | None = None,
    iterations: int = 3,
) -> Float[Tensor, "N K"]:
    """Targets that use every prototype equally often over the rows of all processes.

    Holds always: a counted row sums to 1, others are 0; a constant added to a row's scores changes nothing; the order
    of the rows and the number of processes are irrelevant. Holds in the limit of many iterations: every column sums to
    the number of counted rows over K. A prototype whose scores underflow in all rows gets nothing. With fewer rows than
    prototypes equal shares make targets blurred: prefer centering there.

    Args:
        scores: Scores of each row of this process; processes may hold unequal numbers of rows, also none.
        temperature: Divides the scores; the lower, the sharper.
        counted: False where a row is left out; None counts all.
        iterations: How often columns and rows are normalized.
    """
    with torch.autocast(scores.device.type, enabled=False):
        targets = (_precise(scores) / temperature).softmax(-1)
        if counted is not None:
            targets = torch.where(counted[:, None], targets, 0.0)
        for _ in range(iterations):
            columns = reduce_sum(targets.sum(0))
            targets = targets / torch.where(columns > 0, columns, torch.inf)
            rows = targets.sum(-1, keepdim=True)
            targets = targets / torch.where(rows > 0, rows, torch.inf)
    return targets


def cross_entropy(
    scores: Float[Tensor, "N K"], targets: Float[Tensor, "N K"], temperature: float
) -> Float[Tensor, "N"]:
    """-sum_k q_ik log softmax(s_i / T)_k of each row, in nats; log K where the scores of a row are all alike.

    Args:
        scores: The student's.
        targets: The teacher's; rows sum to 1.
        temperature: Divides the scores.
    """
    with torch.autocast(scores.device.type, enabled=False):
        return -(targets * (_precise(scores) / temperature).log_softmax(-1)).sum(-1)


def cross_view(
    scores: Float[Tensor, "V B K"], targets: Float[Tensor, "G B K"], temperature: float
) -> Float[Tensor, "V B"]:
    """Sum of the cross-entropies of each view with the targets of all other views (Caron et al., DINO, ICCV 2021).

    The first G views are those that the targets come from; none is compared with its own target.

    Args:
        scores: The student's, of V views of B samples.
        targets: The teacher's, of the first G of them; rows sum to 1.
        temperature: Divides the scores.

    Returns:
        G - 1 terms are summed for each of the first G views, and G for the others.
    """
    others = targets.sum(0).expand_as(scores)
    own = torch.cat((targets, targets.new_zeros(len(scores) - len(targets), *targets.shape[1:])))
    return cross_entropy(scores, others - own, temperature)


@torch.no_grad()
def entropies(targets: Float[Tensor, "N K"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How sharp targets are, and how many prototypes they use, over the rows of all processes, in nats.

    Returns:
        Mean entropy of the rows: log K if the teacher says nothing. Entropy of the mean row: near 0 if the teacher
        names the same prototype for everything, log K if all are named equally often. Both are 0 without a row.
    """
    targets = _precise(targets)
    sums = reduce_sum(torch.cat((targets.sum(0), targets.new_tensor([float(len(targets))]))))
    mean = sums[:-1] / sums[-1].clamp(min=1)
    return mean_over(_entropy(targets).sum(), len(targets)), _entropy(mean)


def _entropy(shares: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    return -torch.xlogy(shares, shares).sum(-1)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
