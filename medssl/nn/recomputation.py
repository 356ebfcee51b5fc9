"""Activations that are computed again in the backward pass: under the same mask, with the same branches dropped."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.utils import checkpoint as torch_checkpoint

from medssl.nn.drop_path import drop_paths, numbers_from
from medssl.nn.visibility import contexts_of


def checkpoint(module: nn.Module, *args: Any) -> Any:
    """Runs ``module(*args)`` and recomputes it in the backward pass under the current mask.

    This saves the memory of the activations inside ``module`` at the cost of a second forward. Unlike
    ``torch.utils.checkpoint`` alone, the recomputation does not change running statistics, and drops the same branches
    of the same samples.
    """
    contexts = contexts_of(module)
    frames = [context.frame for context in contexts]
    layers = drop_paths(module)
    numbers = layers[0].numbers if layers else None
    used = numbers.used if numbers else 0
    recomputing = False

    def run(*args: Any) -> Any:
        nonlocal recomputing
        saved_buffers = [(buffer, buffer.clone()) for buffer in module.buffers()] if recomputing else []
        now_used = numbers.used if numbers else 0
        if numbers and recomputing:
            numbers.used = used
        try:
            with ExitStack() as stack:
                stack.enter_context(numbers_from(layers, numbers))
                for context, frame in zip(contexts, frames, strict=True):
                    stack.enter_context(context.entered(frame))
                return module(*args)
        finally:
            if numbers and recomputing:
                numbers.used = now_used
            recomputing = True
            for buffer, value in saved_buffers:
                buffer.data.copy_(value)

    return torch_checkpoint.checkpoint(run, *args, use_reentrant=False)
