"""Learning rates: how high, how they rise and fall, and how much of them each layer and each name gets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, Self

from medssl.encoders.base import Encoder
from medssl.ops.limits import expect
from medssl.ops.schedules import constant_then_decay, linear_warmup, linear_warmup_cosine, polynomial
from medssl.types import UserError

if TYPE_CHECKING:
    from torch import nn

WARMUP_START = 0.005  # a first step of rate 0 would be lost
USUAL_RATE, USUAL_POWER, USUAL_SHARE = 1e-3, 0.9, 0.2


@dataclass(frozen=True)
class RateDecay:
    """How the learning rate falls, where the schedule leaves a choice.

    Attributes:
        power: Power of the schedule "polynomial", above 0; None takes 0.9, as nnU-Net. Other schedules have none.
        share: Share of all steps, 0 to 1, in which the rate falls at the end of "constant_then_decay"; None takes 0.2.
            Other schedules have none.
        horizon: Number of steps that the warm-up, the weight decay and the objective's own schedules are shares of, at
            least 1, for "constant_then_decay". It stays as it is when the run is prolonged. None takes the steps that
            the run has at first.
    """

    power: float | None = None
    share: float | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        for name, good, what in (
            ("power", self.power is None or 0 < self.power < math.inf, "above 0"),
            ("share", self.share is None or 0 <= self.share <= 1, "from 0 to 1"),
            ("horizon", self.horizon is None or self.horizon >= 1, "at least 1"),
        ):
            expect(good, f"optimizer.rate_decay.{name}", getattr(self, name), what)


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of each step and of each parameter.

    Attributes:
        learning_rate: Highest learning rate, above 0, for the whole batch of a step; it is not scaled. None takes that
            of `learning_rate_per`, or 0.001.
        learning_rate_per: A learning rate, above 0, and the global batch that it was chosen for, at least 1, such as
            0.0024,4096. The highest learning rate is this rate times the square root of global batch / this batch. Give
            it or `learning_rate`, not both.
        final_share: Learning rate of the last step as a share of the highest, 0 to 1.
        warmup: Share of all steps in which the learning rate rises, 0 to 1.
        schedule: How the rate falls after the warm-up: half a "cosine"; "polynomial", as nnU-Net; or
            "constant_then_decay", which stays at the highest rate and falls along a line at the end, so that a run can
            be prolonged from before its fall.
        rate_decay: The numbers of the schedule.
        layer_decay: Learning rate of each encoder layer as a share of the next layer's, above 0 to 1, all that is no
            encoder being the last (Clark et al., ELECTRA, ICLR 2020); 1 trains all layers alike.
        rates: Share of the learning rate, above 0, for parameters whose names match a pattern, such as
            {"encoder.patch_embed.*": 0.2}. Where several patterns match, the last counts.
    """

    learning_rate: float | None = None
    learning_rate_per: tuple[float, int] | None = None
    final_share: float = 1e-3
    warmup: float = 0.05
    schedule: Literal["cosine", "polynomial", "constant_then_decay"] = "cosine"
    rate_decay: RateDecay = field(default_factory=RateDecay)
    layer_decay: float = 1.0
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rate, per = self.learning_rate, self.learning_rate_per
        for name, good, what in (
            ("learning_rate", rate is None or 0 < rate < math.inf, "above 0"),
            (
                "learning_rate_per",
                per is None or (0 < per[0] < math.inf and per[1] >= 1),
                "a rate above 0 and a batch of at least 1",
            ),
            ("final_share", 0 <= self.final_share <= 1, "from 0 to 1"),
            ("warmup", 0 <= self.warmup <= 1, "from 0 to 1"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, 1 at most"),
            ("rates", all(0 < share < math.inf for share in self.rates.values()), "shares above 0"),
        ):
            expect(good, f"optimizer.{name}", getattr(self, name), what)
        refuse_numbers_of_others(self.schedule, self.rate_decay)

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        if self.learning_rate is None and self.learning_rate_per is not None:
            message = "the learning rate depends on the batch: call resolved first"
            raise RuntimeError(message)
        return USUAL_RATE if self.learning_rate is None else self.learning_rate

    @property
    def restartable(self) -> bool:
        """Whether a run can be prolonged from before the fall of its rate."""
        return self.schedule == "constant_then_decay"

    @property
    def decay_share(self) -> float:
        """Share of all steps in which the rate of "constant_then_decay" falls."""
        return USUAL_SHARE if self.rate_decay.share is None else self.rate_decay.share

    def resolved(self, global_batch: int, steps: int) -> Self:
        """The settings with the learning rate and the horizon in numbers.

        Args:
            global_batch: Samples of an optimizer step, over all processes and micro-batches.
            steps: Optimizer steps of the run when it was started.

        Raises:
            UserError: ``learning_rate`` and ``learning_rate_per`` are both given, and differ.
        """
        rate = self.learning_rate
        if self.learning_rate_per is not None:
            base, reference = self.learning_rate_per
            rate = scaled_rate(base, reference, global_batch)
            if self.learning_rate is not None and not math.isclose(rate, self.learning_rate, rel_tol=1e-6):
                message = (
                    f"optimizer.learning_rate_per {base:g},{reference} gives {rate:.6g} for {global_batch} samples"
                )
                hint = "Give one of them and set the other to null."
                raise UserError(message, key="optimizer.learning_rate", got=self.learning_rate, hint=hint)
        decay = self.rate_decay
        if self.restartable and decay.horizon is None:
            decay = replace(decay, horizon=steps)
        return replace(self, learning_rate=self.peak if rate is None else rate, rate_decay=decay)

    def horizon(self, steps: int) -> int:
        """Steps that everything but the fall of the rate is a share of, in a run of ``steps`` steps."""
        return (self.rate_decay.horizon or steps) if self.restartable else steps

    def decay_start(self, steps: int) -> int | None:
        """Steps that are done when the rate begins to fall; None where the schedule has no constant part."""
        return math.ceil((1 - self.decay_share) * steps - 1e-9) if self.restartable else None

    def rate(self, progress: float, *, encoder: bool, early: float | None = None) -> float:
        """Learning rate of a step, of the encoder or of everything else.

        Args:
            progress: Share of all steps that is done, 0 to 1.
            encoder: Whether the rate of the encoder is wanted.
            early: Share of the horizon that is done; None takes ``progress``.
        """
        del encoder
        peak = self.peak
        start, end = WARMUP_START * peak, self.final_share * peak
        if self.schedule == "cosine":
            return linear_warmup_cosine(progress, peak, warmup=self.warmup, start=start, end=end)
        if self.schedule == "polynomial":
            power = USUAL_POWER if self.rate_decay.power is None else self.rate_decay.power
            falling = lambda share: polynomial(share, peak, end, power)  # noqa: E731
            return linear_warmup(progress, peak, falling, warmup=self.warmup, start=start)
        early = progress if early is None else early
        rising = linear_warmup(early, peak, lambda _: peak, warmup=self.warmup, start=start)
        return rising * constant_then_decay(progress, 1.0, self.final_share, self.decay_share)


def scaled_rate(rate: float, reference: int, global_batch: int) -> float:
    """A learning rate for another batch, by the square root (Krizhevsky 2014; for Adam, Malladi et al., NeurIPS 2022).

    >>> scaled_rate(2.4e-3, 4096, 1024)
    0.0012
    """
    return rate * math.sqrt(global_batch / reference)


def refuse_numbers_of_others(schedule: str, decay: RateDecay) -> None:
    """Refuses a number that belongs to another schedule.

    Raises:
        UserError: Names the number and its schedule.
    """
    for name, owner in (("power", "polynomial"), ("share", "constant_then_decay"), ("horizon", "constant_then_decay")):
        value = getattr(decay, name)
        if value is not None and schedule != owner:
            message = f'is a number of the schedule "{owner}", and optimizer.schedule is "{schedule}"'
            hint = f'Set optimizer.schedule to "{owner}", or this key to null.'
            raise UserError(message, key=f"optimizer.rate_decay.{name}", got=value, hint=hint)


def parameter_shares(module: nn.Module, settings: LearningRate) -> dict[str, float]:
    """Share of the learning rate of each trained parameter whose share is not 1, by its name.

    It is the product of the shares of its layer, of its name (``rates``) and of the objective (``rate_of``).

    Raises:
        UserError: A pattern of ``rates`` matches no parameter that is trained.
    """
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    layers, named = layer_shares(module, settings), shares_by_name(names, settings.rates)
    rate_of = getattr(module, "rate_of", lambda _: 1.0)
    shares = {name: layers.get(name, 1.0) * named.get(name, 1.0) * rate_of(name) for name in names}
    return {name: share for name, share in shares.items() if share != 1.0}


def layer_shares(module: nn.Module, settings: LearningRate) -> dict[str, float]:
    """Learning rate of each parameter of the encoder as a share of the encoder's, where layers differ."""
    layers = {} if settings.layer_decay == 1.0 else layer_numbers(module)
    behind = max(layers.values(), default=0) + 1
    return {name: settings.layer_decay ** (behind - layer) for name, layer in layers.items()}


def layer_numbers(module: nn.Module) -> dict[str, int]:
    """Number of the layer of each parameter of the encoder of a module (``Encoder.layers``), by its name there."""
    encoder = getattr(module, "encoder", None)
    return (
        {f"encoder.{name}": layer for name, layer in encoder.layers().items()} if isinstance(encoder, Encoder) else {}
    )


def shares_by_name(names: list[str], rates: dict[str, float]) -> dict[str, float]:
    """The share of each name that a pattern matches.

    >>> shares_by_name(["encoder.stem.weight", "head.bias"], {"head.*": 0.5})
    {'head.bias': 0.5}

    Raises:
        UserError: A pattern matches nothing.
    """
    shares: dict[str, float] = {}
    for pattern, share in rates.items():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            refuse_pattern(pattern, names)
        shares |= dict.fromkeys(matching, share)
    return shares


def refuse_pattern(pattern: str, names: list[str]) -> None:
    """Refuses a pattern that matches nothing, with patterns that do.

    Raises:
        UserError: Always.
    """
    parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    close = get_close_matches(pattern, [*(f"{parent}.*" for parent in sorted(parents)), *names], 1)
    similar = f" (did you mean {close[0]!r}?)" if close else ""
    tops = sorted({f"{name.split('.')[0]}.*" for name in names})
    message = f"matches no parameter that is trained{similar}"
    expected = f"a pattern of names, such as {', '.join(tops[:4])}"
    raise UserError(message, key="optimizer.rates", got=pattern, expected=expected)
