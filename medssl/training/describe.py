"""The resolved configuration of a run as plain data, and the numbers that the first line of a run tells."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medssl.data.synthetic.phantoms import PHANTOMS, VERSION
from medssl.types import Imported, UserError

if TYPE_CHECKING:
    from medssl.encoders.base import Encoder
    from medssl.objectives.base import Objective


def plain(value: Any, name: str = "") -> Any:
    """Turns arguments into what YAML and JSON hold; a ``functools.partial`` of a class into its path and arguments.

    Raises:
        UserError: A value that cannot be written down, such as a lambda or a finished module.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{name}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, type):
        return {"class_path": f"{value.__module__}.{value.__qualname__}", "init_args": {}}
    if isinstance(value, functools.partial) and (made := class_of(value)):
        arguments = {key: plain(item, f"{name}.{key}") for key, item in value.keywords.items()}
        return plain(made) | {"init_args": arguments}
    if isinstance(value, dict):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    message = f"{name.lstrip('.')} cannot be written into config.yaml: give a class, or functools.partial(class, ...)"
    raise UserError(message)


def class_of(value: Any) -> type | None:
    """The class that is a value itself, or that a ``functools.partial`` makes; None of anything else."""
    if isinstance(value, functools.partial):
        # the command line's partial holds the class among its arguments, a user's own is of the class itself
        return next((item for item in (value.func, *value.args) if isinstance(item, type)), None)
    return value if isinstance(value, type) else None


def imported(config: dict[str, Any]) -> Imported:
    """The class and arguments that a configuration names."""
    return Imported(config["class_path"], config["init_args"])


def versions(*, synthetic: bool = False) -> dict[str, str]:
    """Versions of the packages that weights depend on, and of the phantoms where all scans are synthetic."""
    found = {name: metadata.version(name) for name in ("medssl", "torch", "lightning", "monai", "timm", "numpy")}
    return found | ({PHANTOMS: str(VERSION)} if synthetic else {})


def parameters(objective: Objective) -> tuple[int, int]:
    """Numbers of trained values: of the encoder, and of everything."""
    counts = [
        sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        for module in (objective.encoder, objective)
    ]
    return counts[0], counts[1]


def memory(objective: Objective, batch_size: int, *, half: bool) -> str:
    """What a step needs at least: weights, gradients, two moments; the encoder's maps, where they can be counted."""
    needed = step_bytes(objective, half=half)
    states = 16 * parameters(objective)[1]
    if needed is None:
        return f"at least {size(states)} of memory for weights and optimizer"
    held = needed[1] * batch_size
    return (
        f"about {size(states + held)} of memory ({size(states)} weights and optimizer, {size(held)} the encoder's maps)"
    )


def step_bytes(objective: Objective, *, half: bool) -> tuple[int, int] | None:
    """Bytes of a step at least: of weights, gradients and two moments, and of the encoder's maps of one sample.

    None where the maps cannot be counted. A transformer that drops hidden patches holds the others alone.
    """
    values = activations(objective.encoder, objective.needs.views[0].size)
    if values is None:
        return None
    seen = 1.0 - getattr(objective, "mask_ratio", 0.0) if getattr(objective, "mode", None) == "drop" else 1.0
    return 16 * parameters(objective)[1], max(1, int(values * seen) * (2 if half else 4))


def activations(encoder: Encoder, view: tuple[int, ...]) -> int | None:
    """Values that the encoder's layers put out for one view, counted without computing them; None if it cannot be."""
    counted = 0

    def count(module: torch.nn.Module, inputs: object, output: object) -> None:
        nonlocal counted
        counted += output.numel() if isinstance(output, torch.Tensor) else 0

    try:
        ghost = copy.deepcopy(encoder).to("meta").eval()  # one view has no statistics of a batch
        for module in ghost.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        ghost(torch.empty(1, encoder.in_channels, *view, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    return counted


def size(values: float) -> str:
    """Bytes for people."""
    power = min(4, int(math.log(max(values, 1), 1024)))
    return f"{values / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
