"""Reductions over processes with correct gradients; the identity on one process.

Every process computes the same global loss from its own rows. The gradients of parameters are averaged over processes
afterwards, as DistributedDataParallel does. The backward pass of each process starts with the whole gradient of the
loss. The backward of a sum over processes is therefore again a sum over processes, and the averaged gradient of the
parameters is the gradient of the global loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 to ``world_size() - 1``."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def reduce_sum(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Sum over processes of tensors of one shape, with gradient."""
    return _ReduceSum.apply(x) if world_size() > 1 else x


def mean_over(
    total: Float[Tensor, ""], count: Tensor | float, step_count: Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Global sum divided by global count, for unequal counts in the processes; 0 if the global count is 0.

    Half precision is summed in float32.

    Args:
        total: Sum of this process; the result has a gradient with respect to it.
        count: Number of terms in ``total``.
        step_count: Divisor to use instead: the count over all processes, as a mean over the micro-batches of an
            optimizer step. The mean of the results over the micro-batches is then the mean over all terms of the step.
    """
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    total_count = torch.as_tensor(count, dtype=total.dtype, device=total.device).detach()
    if world_size() > 1:
        total, total_count = reduce_sum(torch.stack((total, total_count))).unbind()
    if step_count is not None:
        total_count = step_count.to(total)
    is_defined = total_count > 0
    return torch.where(is_defined, total / torch.where(is_defined, total_count, 1.0), 0.0)


def gather(x: Shaped[Tensor, "B *rest"]) -> Shaped[Tensor, "N *rest"]:
    """Rows of all processes in the order of their ranks, with gradient; processes may hold unequal numbers of rows."""
    if world_size() == 1:
        return x
    counts = [torch.empty(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    rows: Tensor = _Gather.apply(x, [int(count) for count in counts])
    return rows


def broadcast(x: Shaped[Tensor, "*shape"], source: int = 0) -> Shaped[Tensor, "*shape"]:
    """The tensor of process ``source``, without gradient; shapes must agree."""
    x = x.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.broadcast(x, source)
    return x


class _ReduceSum(Function):
    """Sum over processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return reduce_sum(gradient)


class _Gather(Function):
    """Concatenation over processes; backward sums the gradients of all processes for the rows of this one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        rows = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(rows, padded)
        return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        process = rank()
        start = sum(ctx.counts[:process])
        return reduce_sum(gradient)[start : start + ctx.counts[process]], None
