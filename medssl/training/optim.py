"""Optimizers, which parameters decay, and the learning rate and weight decay of a step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from medssl.encoders.base import Encoder
from medssl.ops.limits import expect
from medssl.ops.schedules import cosine, linear, linear_warmup_cosine
from medssl.training.lora import LoRA
from medssl.types import UserError

if TYPE_CHECKING:
    from torch import nn


WARMUP_START = 0.005  # a first step of rate 0 would be lost


@dataclass(frozen=True)
class Optimization:
    """How weights move.

    Attributes:
        name: Optimizer: "adamw", or "lamb" for batches of thousands.
        learning_rate: Highest learning rate, above 0, for the whole batch of a step. It is not scaled by the batch
            size.
        final_share: Learning rate of the last step as a share of the highest, 0 to 1.
        warmup: Share of all steps in which the learning rate rises, 0 to 1.
        weight_decay: First and last weight decay, 0 or more, with a cosine between them.
        betas: Decay rates of the two moments, 0 to below 1.
        clip: Largest norm of the gradient over all parameters, above 0; None does not clip.
    """

    name: Literal["adamw", "lamb"] = "adamw"
    learning_rate: float = 1e-3
    final_share: float = 1e-3
    warmup: float = 0.05
    weight_decay: tuple[float, float] = (0.05, 0.05)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 5.0

    def __post_init__(self) -> None:
        for name, good, what in (
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("final_share", 0 <= self.final_share <= 1, "from 0 to 1"),
            ("warmup", 0 <= self.warmup <= 1, "from 0 to 1"),
            ("weight_decay", min(self.weight_decay) >= 0, "two numbers of at least 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("clip", self.clip is None or self.clip > 0, "above 0, or null"),
        ):
            expect(good, f"optimizer.{name}", getattr(self, name), what)

    def rate(self, progress: float, *, encoder: bool) -> float:
        """Learning rate at ``progress`` (0 to 1) of the encoder, or of everything else."""
        del encoder
        peak = self.learning_rate
        return linear_warmup_cosine(
            progress, peak, warmup=self.warmup, start=WARMUP_START * peak, end=self.final_share * peak
        )


@dataclass(frozen=True)
class FineTuning(Optimization):
    """How the weights of a head and of its encoder move.

    Attributes:
        head_first: Share of all steps, 0 to 1, in which only the head is trained while its learning rate rises; then
            both rise and fall together (the "sawtooth" of Wald et al., An OpenMind for 3D medical vision
            self-supervised learning, ICCV 2025). 0 trains both from the start, 1 freezes the encoder.
        encoder_rate: Learning rate of the encoder as a share of the head's, above 0.
        average: Share of the averaged weights that each step keeps, 0 to below 1, such as 0.99 (Polyak and Juditsky
            1992; less at first, so that the start is forgotten). The averaged weights are validated and written; 0 does
            not average.
        layer_decay: Learning rate of each encoder layer as a share of the next layer's, above 0 to 1, the head being
            the last (Clark et al., ELECTRA, ICLR 2020); 1 trains all layers alike.
        drop_path: Probability of dropping the last residual branch of the encoder, 0 to below 1; None keeps the
            encoder's own.
        lora: Low-rank adaptation: train small matrices instead of the encoder.
    """

    head_first: float = 0.0
    encoder_rate: float = 1.0
    average: float = 0.0
    layer_decay: float = 1.0
    drop_path: float | None = None
    lora: LoRA = field(default_factory=LoRA)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, good, what in (
            ("head_first", 0 <= self.head_first <= 1, "from 0 to 1 (1 leaves the encoder as it is)"),
            ("encoder_rate", self.encoder_rate > 0, "above 0 (optimizer.head_first 1 leaves the encoder as it is)"),
            ("average", 0 <= self.average < 1, "from 0 to below 1"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, 1 at most"),
            ("drop_path", self.drop_path is None or 0 <= self.drop_path < 1, "from 0 to below 1, or null"),
        ):
            expect(good, f"optimizer.{name}", getattr(self, name), what)
        if self.lora.rank and self.head_first == 1:
            message = "optimizer.head_first 1 leaves the encoder as it is, optimizer.lora adapts it: choose one of them"
            raise UserError(message)

    def rate(self, progress: float, *, encoder: bool) -> float:
        """Learning rate at ``progress`` (0 to 1) of the encoder, or of the head."""
        share = self.encoder_rate if encoder else 1.0
        if self.head_first == 1:
            return 0.0 if encoder else super().rate(progress, encoder=False)
        if progress < self.head_first:
            peak = self.learning_rate
            return 0.0 if encoder else linear(progress / self.head_first, WARMUP_START * peak, peak)
        return share * super().rate((progress - self.head_first) / (1 - self.head_first), encoder=encoder)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, layer scales, tokens and position embeddings."""
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and last != "bias" and "token" not in last and not last.startswith("pos")


def make_optimizer(module: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    """An optimizer whose groups are: encoder or not, by what decays and what does not, by the layer's share."""
    shares = layer_shares(module, settings)
    held: dict[tuple[bool, bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            held[name.startswith("encoder."), decays(name, parameter), shares.get(name, 1.0)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": held[key], "encoder": key[0], "decays": key[1], "share": key[2], "weight_decay": 0.0}
        for key in sorted(held, reverse=True)
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
    from timm.optim import Lamb

    # the engine clips, so that the norm in the log is the one before clipping
    optimizer: torch.optim.Optimizer = Lamb(groups, lr=settings.learning_rate, betas=settings.betas, max_grad_norm=None)
    return optimizer


def layer_shares(module: nn.Module, settings: Optimization) -> dict[str, float]:
    """Learning rate of each parameter of the encoder as a share of the encoder's, where layers differ."""
    decay = settings.layer_decay if isinstance(settings, FineTuning) else 1.0
    encoder = getattr(module, "encoder", None)
    if decay == 1.0 or not isinstance(encoder, Encoder):
        return {}
    layers = encoder.layers()
    behind = max(layers.values()) + 1
    return {f"encoder.{name}": decay ** (behind - layer) for name, layer in layers.items()}


def set_rates(optimizer: torch.optim.Optimizer, settings: Optimization, progress: float) -> tuple[float, float]:
    """Sets the rates of the step at ``progress`` (0 to 1); returns the learning rate of the head and the weight decay.

    A group of learning rate 0 does not move at all: its gradients are to be dropped (``drop_unmoved``).
    """
    decay = cosine(progress, *settings.weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = group["share"] * settings.rate(progress, encoder=group["encoder"])
        group["weight_decay"] = decay if group["decays"] else 0.0
    return settings.rate(progress, encoder=False), decay


def drop_unmoved(optimizer: torch.optim.Optimizer) -> None:
    """Drops the gradients of groups of learning rate 0: no clipping and no moment takes them into account."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["lr"] == 0 else ():
            parameter.grad = None
