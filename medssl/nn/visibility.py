"""The mask that masked layers share during one forward, and statistics over visible positions.

A packed implementation that computes visible blocks only could use the same :class:`Frame`. A twin would gather the
visible cells of its input with a margin as wide as its kernel, compute on these, and scatter the results back. Layers
and objectives would not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medssl.ops.collectives import reduce_sum
from medssl.ops.masking import at_resolution
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Frame:
    """The mask of one forward, cached for every resolution that a layer has used."""

    def __init__(self, hidden: Bool[Tensor, "B *cells"]) -> None:
        self._cells = hidden
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def hidden(self, x: Tensor, *, channel_last: bool = False) -> Bool[Tensor, "B 1 *s"]:
        """The mask at the resolution of ``x``, with a channel axis of length 1.

        Raises:
            ValueError: ``x`` has another batch size or another number of axes than the mask.
            UserError: The resolutions do not nest.
        """
        shape = tuple(x.shape[1:-1] if channel_last else x.shape[2:])
        if len(x) != len(self._cells) or len(shape) != self._cells.ndim - 1:
            layout = "B *s C" if channel_last else "B C *s"
            message = f"features of shape {tuple(x.shape)} ({layout}) do not fit a mask of {tuple(self._cells.shape)}"
            raise ValueError(message)
        if self._cells.device != x.device:
            self._cells, self._masks = self._cells.to(x.device), {}
        if shape not in self._masks:
            self._masks[shape] = at_resolution(self._cells, shape)
        return self._masks[shape].unsqueeze(-1 if channel_last else 1)

    def hide(self, x: Tensor, *, channel_last: bool = False) -> Tensor:
        """Sets hidden positions to zero, also where they hold NaN."""
        return x.masked_fill(self.hidden(x, channel_last=channel_last), 0)

    def hide_(self, x: Tensor, *, channel_last: bool = False) -> Tensor:
        """Like ``hide``, in place; only for values that no backward pass needs."""
        return x.masked_fill_(self.hidden(x, channel_last=channel_last), 0)


class Context:
    """Stack of frames of one module tree. Only the layers of the tree hold a reference to it.

    Copies and pickles of a module get a new, empty context.
    """

    def __init__(self) -> None:
        self._frames: list[Frame | None] = []
        self._masked = False  # whether the latest forward was masked

    def __getstate__(self) -> dict[str, Any]:
        return {"_frames": [], "_masked": False}

    @property
    def frame(self) -> Frame | None:
        """The mask of the current forward; None if everything is visible.

        Raises:
            RuntimeError: Activations are recomputed by code that does not restore the mask.
        """
        if self._frames:
            return self._frames[-1]
        if self._masked and torch._C._current_graph_task_id() != -1:
            message = (
                "a masked forward is being recomputed without its mask: recompute through "
                "medssl.nn.sparse.checkpoint, not through torch.utils.checkpoint"
            )
            raise RuntimeError(message)
        return None

    @contextmanager
    def entered(self, frame: Frame | None) -> Iterator[None]:
        """Makes ``frame`` current for the block; nested blocks are stacked."""
        self._frames.append(frame)
        self._masked = frame is not None
        try:
            yield
        finally:
            self._frames.pop()


class Masked(nn.Module):
    """Base class of masked twins: a layer that holds the context of its module tree."""

    visibility: Context

    def frame_for(self, x: Tensor) -> Frame | None:
        """The mask that applies to ``x``; None outside ``visible`` and for pooled features [B, C]."""
        frame = self.visibility.frame
        return None if x.ndim == 2 else frame


def contexts_of(module: nn.Module) -> list[Context]:
    """The distinct contexts of the masked layers of a module."""
    return list({id(m.visibility): m.visibility for m in module.modules() if isinstance(m, Masked)}.values())


@contextmanager
def visible(module: nn.Module, hidden: Bool[Tensor, "B *cells"] | None) -> Iterator[None]:
    """Hides cells from every masked layer of ``module`` until the block ends, also if it raises.

    Blocks can be nested; the innermost mask applies. With ``hidden`` None the layers behave as dense layers.

    Args:
        module: A module that went through :func:`medssl.nn.sparse.sparsify`, or one that holds such modules.
        hidden: True where a cell is hidden.

    Raises:
        UserError: The module has no masked layer.
    """
    contexts = contexts_of(module)
    if hidden is not None and not contexts:
        message = f"{type(module).__name__} has no masked layers: call medssl.nn.sparse.sparsify on it first"
        raise UserError(message)
    frame = None if hidden is None else Frame(hidden)
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context.entered(frame))
        yield


@dataclass(frozen=True)
class Centered:
    """Statistics over visible positions.

    Attributes:
        centered: x - mean where visible, 0 elsewhere.
        mean: Mean.
        variance: Biased variance.
        count: Number of values in each mean.
    """

    centered: Tensor
    mean: Tensor
    variance: Tensor
    count: Tensor


def center(
    x: Float[Tensor, "B C *s"],
    hidden: Bool[Tensor, "B 1 *s"] | None,
    dims: Sequence[int],
    *,
    across_processes: bool = False,
) -> Centered:
    """Mean and variance over the visible positions, in two passes and in at least float32.

    Args:
        x: Features.
        hidden: True where a position is left out; None uses all positions.
        dims: Axes to reduce; they keep length 1.
        across_processes: Compute the statistics over all processes.
    """
    dims = list(dims)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if hidden is None:
        total = x.sum(dims, keepdim=True)
        count = torch.full_like(total, prod(x.shape[dim] for dim in dims))
    else:
        total = x.masked_fill(hidden, 0).sum(dims, keepdim=True)
        repeats = prod(x.shape[dim] // hidden.shape[dim] for dim in dims)
        count = ((~hidden).sum(dims, keepdim=True) * repeats).to(x.dtype).expand_as(total)
    if across_processes:
        total, count = reduce_sum(torch.stack((total, count))).unbind()
    divisor = count.clamp(min=1)
    mean = total / divisor
    centered = x - mean
    if hidden is not None:
        centered.masked_fill_(hidden, 0)
    squares = centered.square().sum(dims, keepdim=True)
    return Centered(centered, mean, (reduce_sum(squares) if across_processes else squares) / divisor, count)


def visible_mean(x: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"] | None = None) -> Float[Tensor, "B C"]:
    """Mean over the visible positions of each sample; 0 for a sample that is hidden entirely."""
    mask = None if hidden is None else Frame(hidden).hidden(x)
    return pooled(x, mask)


def pooled(x: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B 1 *s"] | None) -> Float[Tensor, "B C"]:
    """Like :func:`visible_mean`, with a mask that has the resolution of ``x``."""
    if hidden is None:
        return x.flatten(2).mean(2)
    values = x.masked_fill(hidden, 0).flatten(2).sum(2, dtype=torch.promote_types(x.dtype, torch.float32))
    return (values / (~hidden).flatten(2).sum(2).clamp(min=1)).to(x.dtype)
