"""How many parameters a training has, and how much memory a step needs."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.objectives.base import Objective


def count_parameters(objective: Objective) -> tuple[int, int]:
    """Numbers of trained values: of the encoder, and of everything."""
    counts = [
        sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        for module in (objective.encoder, objective)
    ]
    return counts[0], counts[1]


def memory_in_words(objective: Objective, batch_size: int, *, half: bool) -> str:
    """What a step needs at least: weights, gradients, two moments; the encoder's maps, where they can be counted."""
    needed = step_bytes(objective, half=half)
    states = 16 * count_parameters(objective)[1]
    if needed is None:
        return f"at least {bytes_in_words(states)} of memory for weights and optimizer"
    maps = needed[1] * batch_size
    parts = f"{bytes_in_words(states)} weights and optimizer, {bytes_in_words(maps)} the encoder's maps"
    return f"about {bytes_in_words(states + maps)} of memory ({parts})"


def step_bytes(objective: Objective, *, half: bool) -> tuple[int, int] | None:
    """Bytes of a step at least: of weights, gradients and two moments, and of the encoder's maps of one sample.

    None where the maps cannot be counted. A transformer that drops hidden patches holds the others alone. An encoder
    that learns holds the maps of all views.
    """
    learns = any(parameter.requires_grad for parameter in objective.encoder.parameters())
    views = [view.size for view in objective.needs.views][: None if learns else 1]
    counts = {size: count_activations(objective.encoder, size) for size in set(views)}
    if None in counts.values():
        return None
    values = sum(counts[size] or 0 for size in views)
    visible = 1.0 - getattr(objective, "mask_ratio", 0.0) if getattr(objective, "mode", None) == "drop" else 1.0
    return 16 * count_parameters(objective)[1], max(1, int(values * visible) * (2 if half else 4))


def count_activations(encoder: Encoder, view: tuple[int, ...]) -> int | None:
    """Values that an encoder holds for the backward pass of one view; None where they cannot be counted.

    They are what its layers put out, counted without computing it. An encoder that recomputes holds what its parts put
    out, and all of the largest part while that is computed again.
    """
    try:
        ghost = copy.deepcopy(encoder).to("meta").eval()  # one view has no statistics of a batch
        parts = ghost.parts() if encoder.recompute else []
        inside = {module for part in parts for module in part.modules()}
        leaves = [module for module in ghost.modules() if not list(module.children())]
        counts: dict[torch.nn.Module, int] = {}

        def count(module: torch.nn.Module, inputs: object, output: object) -> None:
            counts[module] = counts.get(module, 0) + (output.numel() if isinstance(output, torch.Tensor) else 0)

        for module in {*leaves, *parts}:
            module.register_forward_hook(count)
        with torch.no_grad():  # nothing is computed a second time
            ghost(torch.empty(1, encoder.in_channels, *view, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    outside = sum(counts.get(module, 0) for module in {*leaves, *parts} if module in parts or module not in inside)
    within = [sum(counts.get(leaf, 0) for leaf in leaves if leaf in set(part.modules())) for part in parts]
    return outside + max(within, default=0)


def bytes_in_words(values: float) -> str:
    """Bytes for people."""
    power = min(4, int(math.log(max(values, 1), 1024)))
    return f"{values / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
