"""Optimizers, which parameters decay, and the learning rate and weight decay of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from medssl.ops.schedules import cosine, linear_warmup_cosine
from medssl.types import UserError

if TYPE_CHECKING:
    from torch import nn


WARMUP_START = 0.005  # a first step of rate 0 would be lost


@dataclass(frozen=True)
class Optimization:
    """How weights move.

    Attributes:
        name: "adamw", or "lamb" for batches of thousands.
        learning_rate: Highest learning rate, for the whole batch of a step (nothing is scaled behind your back).
        final_share: Learning rate of the last step as a share of the highest.
        warmup: Share of all steps over which the learning rate rises.
        weight_decay: First and last weight decay; between them a cosine.
        betas: Decay rates of the two moments.
        clip: Largest norm of the gradient over all parameters; None does not clip.
    """

    name: Literal["adamw", "lamb"] = "adamw"
    learning_rate: float = 1e-3
    final_share: float = 1e-3
    warmup: float = 0.05
    weight_decay: tuple[float, float] = (0.05, 0.05)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 5.0

    def __post_init__(self) -> None:
        wanted = {
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "final_share": (0 <= self.final_share <= 1, "from 0 to 1"),
            "warmup": (0 <= self.warmup <= 1, "from 0 to 1"),
            "weight_decay": (min(self.weight_decay) >= 0, "two numbers of at least 0"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            "clip": (self.clip is None or self.clip > 0, "above 0, or null"),
        }
        for name, (good, what) in wanted.items():
            if not good:
                message = f"optimizer.{name} must be {what}, got {getattr(self, name)}"
                raise UserError(message)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, layer scales, tokens and position embeddings."""
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and last != "bias" and "token" not in last and not last.startswith("pos")


def make_optimizer(module: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    """An optimizer with two groups: what decays and what does not."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in trained if decays(name, parameter) is decay], "decays": decay}
        for decay in (True, False)
    ]
    groups = [group | {"weight_decay": 0.0} for group in groups if group["params"]]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
    from timm.optim import Lamb

    # the engine clips, so that the norm in the log is the one before clipping
    optimizer: torch.optim.Optimizer = Lamb(groups, lr=settings.learning_rate, betas=settings.betas, max_grad_norm=None)
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, settings: Optimization, progress: float) -> tuple[float, float]:
    """Sets and returns the learning rate and the weight decay of the step at ``progress`` (0 to 1)."""
    peak = settings.learning_rate
    rate = linear_warmup_cosine(
        progress, peak, warmup=settings.warmup, start=WARMUP_START * peak, end=settings.final_share * peak
    )
    decay = cosine(progress, *settings.weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = decay if group["decays"] else 0.0
    return rate, decay
