"""Optimizers, which parameters decay, and the learning rate and weight decay of a step."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from medssl.ops.limits import expect
from medssl.ops.schedules import cosine, linear
from medssl.training.lora import LoRA
from medssl.training.rates import WARMUP_START, LearningRate, layer_numbers, parameter_shares
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

MOMENTUM = {"sgd": 0.9, "lars": 0.9}  # where none is given, of the optimizers that have one
LARGE = 1024  # samples of a step from which on LAMB and LARS are worth their norms


@dataclass(frozen=True)
class Update:
    """What becomes of a gradient.

    Attributes:
        name: Optimizer: "adamw"; "sgd", with Nesterov momentum; for global batches of 1024 and more "lamb" in place of
            AdamW and "lars" in place of SGD.
        weight_decay: First and last weight decay, 0 or more, with a cosine between them. "adamw" takes it from the
            weights, apart from the gradient; "sgd" and "lars" add it to the gradient, and need far less (nnU-Net:
            3e-5).
        betas: Decay rates of the two moments of "adamw" and "lamb", 0 to below 1. The others do not use them.
        momentum: Decay rate of the momentum of "sgd" and "lars", 0 to below 1; None takes 0.9. The others have none.
        clip: Largest norm of the gradient, above 0; None does not clip.
        clip_per: Whose norm is clipped: of "all" parameters together, or of each "parameter" alone (Caron et al., DINO,
            ICCV 2021).
    """

    name: Literal["adamw", "lamb", "lars", "sgd"] = "adamw"
    weight_decay: tuple[float, float] = (0.05, 0.05)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float | None = None
    clip: float | None = 5.0
    clip_per: Literal["all", "parameter"] = "all"

    def __post_init__(self) -> None:
        for name, good, what in (
            ("weight_decay", min(self.weight_decay) >= 0, "two numbers of at least 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("momentum", self.momentum is None or 0 <= self.momentum < 1, "from 0 to below 1"),
            ("clip", self.clip is None or self.clip > 0, "above 0, or null"),
        ):
            expect(good, f"optimizer.{name}", getattr(self, name), what)
        if self.momentum is not None and self.name not in MOMENTUM:
            message = f"{self.name} has no momentum, but two moments"
            hint = "Set optimizer.betas instead, or optimizer.name to sgd or lars."
            raise UserError(message, key="optimizer.momentum", got=self.momentum, hint=hint)

    def in_words(self) -> str:
        """The optimizer with the numbers that it uses."""
        if self.name not in MOMENTUM:
            return f"{self.name} with betas {self.betas[0]:g}, {self.betas[1]:g}"
        momentum = MOMENTUM[self.name] if self.momentum is None else self.momentum
        return f"{self.name} with {'Nesterov ' if self.name == 'sgd' else ''}momentum {momentum:g}"


@dataclass(frozen=True)
class Optimization(LearningRate, Update):
    """How weights move."""

    def __post_init__(self) -> None:
        Update.__post_init__(self)
        LearningRate.__post_init__(self)


@dataclass(frozen=True)
class FrozenProbe:
    """What the frozen encoder gives to a fine-tuning with few labels.

    Attributes:
        start: Start from a linear probe of the frozen encoder (LP-FT: Kumar et al., Fine-tuning can distort pretrained
            features, ICLR 2022): the last layer of a head for whole scans is fitted to the training scans' features,
            with a penalty chosen by cross-validation among them. "where_possible" does so where the head is one linear
            layer, and trains other heads without.
        floor: Write the frozen encoder with its head, as ``start`` or ``head_first`` leaves it, if the fine-tuned
            weights validate worse. With "where_possible" and another head there is no floor, unless ``head_first``
            makes one.
    """

    start: bool | Literal["where_possible"] = False
    floor: bool = False


@dataclass(frozen=True)
class FineTuning(Optimization):
    """How the weights of a head and of its encoder move.

    Attributes:
        head_first: Share of all steps, 0 to 1, in which only the head is trained while its learning rate rises; then
            both rise and fall together (the "sawtooth" of Wald et al., An OpenMind for 3D medical vision
            self-supervised learning, ICCV 2025). 0 trains both from the start, 1 freezes the encoder.
        unfreeze: Share of all steps, 0 to 1, over which the layers of the encoder start to move, the last one first and
            the others at equal distances (Howard and Ruder, Universal language model fine-tuning, ACL 2018). It begins
            after ``head_first``; together they are at most 1. 0 starts all layers together.
        encoder_rate: Learning rate of the encoder as a share of the head's, above 0.
        average: Share of the averaged weights that each step keeps, 0 to below 1, such as 0.99 (Polyak and Juditsky
            1992; less at first, so that the start is forgotten). 0 does not average.
        keep: Weights to write: those "average" (of the last steps, by ``average``), those of the "final" step, or of
            the step with the "best" validation, averaged where ``average`` is above 0. The best of a few validation
            subjects is often a matter of chance.
        drop_path: Probability of dropping the last residual branch of the encoder, 0 to below 1; None keeps the
            encoder's own.
        lora: Low-rank adaptation: train small matrices instead of the encoder.
        probe: The frozen encoder as start and as floor.
    """

    head_first: float = 0.0
    unfreeze: float = 0.0
    encoder_rate: float = 1.0
    average: float = 0.99
    keep: Literal["average", "final", "best"] = "average"
    drop_path: float | None = None
    lora: LoRA = field(default_factory=LoRA)
    probe: FrozenProbe = field(default_factory=FrozenProbe)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, good, what in (
            ("head_first", 0 <= self.head_first <= 1, "from 0 to 1 (1 leaves the encoder as it is)"),
            (
                "unfreeze",
                0 <= self.unfreeze <= 1 and self.unfreeze + self.head_first <= max(1.0, self.head_first),
                "from 0 to what head_first leaves of 1",
            ),
            ("encoder_rate", self.encoder_rate > 0, "above 0 (optimizer.head_first 1 leaves the encoder as it is)"),
            ("average", 0 <= self.average < 1, "from 0 to below 1"),
            ("drop_path", self.drop_path is None or 0 <= self.drop_path < 1, "from 0 to below 1, or null"),
        ):
            expect(good, f"optimizer.{name}", getattr(self, name), what)
        if self.keep == "average" and self.average == 0:
            message = "optimizer.keep average writes averaged weights, and optimizer.average 0 averages none"
            hint = "Set optimizer.average to a share such as 0.99, or optimizer.keep to final or best."
            raise UserError(message, hint=hint)
        if self.probe.floor and not self.probe.start and self.head_first == 0:
            message = "nothing is trained on the frozen encoder"
            hint = "Set optimizer.probe.start to true, or optimizer.head_first above 0."
            raise UserError(message, key="optimizer.probe.floor", got=True, hint=hint)
        if self.lora.rank and self.head_first == 1:
            message = "optimizer.head_first 1 leaves the encoder as it is, optimizer.lora adapts it: choose one of them"
            raise UserError(message)

    def rate(self, progress: float, *, encoder: bool, early: float | None = None) -> float:
        """Learning rate of a step, of the encoder or of the head (``LearningRate.rate``)."""
        share = self.encoder_rate if encoder else 1.0
        early = progress if early is None else early
        if self.head_first == 1:
            return 0.0 if encoder else super().rate(progress, encoder=False, early=early)
        if early < self.head_first:
            peak = self.peak
            return 0.0 if encoder else linear(early / self.head_first, WARMUP_START * peak, peak)
        together = (early - self.head_first) / (1 - self.head_first)
        return share * super().rate(progress if self.restartable else together, encoder=encoder, early=together)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, layer scales, tokens and position embeddings."""
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and last != "bias" and "token" not in last and not last.startswith("pos")


def make_optimizer(module: nn.Module, settings: Optimization) -> torch.optim.Optimizer:
    """An optimizer with a group for each kind of parameter.

    A kind is: of the encoder or not, decays or not, its share of the learning rate, and when it starts to move.
    """
    shares, starts = parameter_shares(module, settings), parameter_starts(module, settings)
    held: dict[tuple[bool, bool, float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            of_encoder = name.startswith("encoder.")
            kind = (of_encoder, decays(name, parameter), shares.get(name, 1.0), starts.get(name, 0.0))
            held[kind].append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": held[key],
            "encoder": key[0],
            "decays": key[1],
            "share": key[2],
            "start": key[3],
            "weight_decay": 0.0,
        }
        for key in sorted(held, reverse=True)
    ]
    rate = settings.peak
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=settings.betas)
    momentum = MOMENTUM.get(settings.name, 0.0) if settings.momentum is None else settings.momentum
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
    from timm.optim import Lamb, Lars

    optimizer: torch.optim.Optimizer
    if settings.name == "lars":
        for group in groups:  # biases and norms move as under SGD, weights by their norm even without weight decay
            group["always_adapt"] = group["decays"]
        optimizer = Lars(groups, lr=rate, momentum=momentum)
    else:  # the loop clips, so that the norm in the log is the one before clipping
        optimizer = Lamb(groups, lr=rate, betas=settings.betas, max_grad_norm=None)
    return optimizer


def parameter_starts(module: nn.Module, settings: Optimization) -> dict[str, float]:
    """Share of the steps after which each parameter of the encoder starts to move, where layers differ."""
    share, begin = getattr(settings, "unfreeze", 0.0), getattr(settings, "head_first", 0.0)
    layers = layer_numbers(module) if share else {}
    last = max(layers.values(), default=0)
    return {name: begin + share * (last - layer) / max(1, last) for name, layer in layers.items()}


def set_rates(
    optimizer: torch.optim.Optimizer, settings: Optimization, progress: float, early: float | None = None
) -> tuple[float, float]:
    """Sets the rates of a step; returns the learning rate of the head and the weight decay.

    A group of learning rate 0 does not move at all: its gradients are to be dropped (``drop_unmoved``).

    Args:
        optimizer: Made by ``make_optimizer``.
        settings: How weights move.
        progress: Share of all steps that is done, 0 to 1.
        early: Share of the horizon that is done (``LearningRate.horizon``); None takes ``progress``.
    """
    early = progress if early is None else early
    decay = cosine(early, *settings.weight_decay)
    for group in optimizer.param_groups:
        rate = settings.rate(progress, encoder=group["encoder"], early=early)
        moves = early >= group.get("start", 0.0)  # checkpoints of 0.1.0 name no start
        group["lr"] = group["share"] * rate if moves else 0.0
        group["weight_decay"] = decay if group["decays"] else 0.0
    return settings.rate(progress, encoder=False, early=early), decay


def drop_unmoved(optimizer: torch.optim.Optimizer) -> None:
    """Drops the gradients of groups of learning rate 0: no clipping and no moment takes them into account."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["lr"] == 0 else ():
            parameter.grad = None


def clip_gradients(parameters: Sequence[nn.Parameter], settings: Update) -> float:
    """Clips the gradients of parameters; returns the norm of all of them together before."""
    limit = math.inf if settings.clip is None else settings.clip
    if settings.clip_per == "all":
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    for parameter in parameters:
        torch.nn.utils.clip_grad_norm_([parameter], limit)
    return float(norm)
