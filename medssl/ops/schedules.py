"""Schedules: pure functions of the share of training done, ``progress`` in [0, 1] (values outside are clamped)."""

from __future__ import annotations

import math
from math import cos, pi
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def constant(progress: float, value: float) -> float:
    """The same value from start to end."""
    del progress
    return value


def linear(progress: float, start: float, end: float) -> float:
    """A straight line.

    >>> linear(0.25, 0.0, 8.0)
    2.0
    """
    share = _clamp(progress)
    return start * (1.0 - share) + end * share


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine, flat at both ends (Loshchilov & Hutter, SGDR, ICLR 2017).

    >>> round(cosine(0.5, 0.0, 8.0), 9)
    4.0
    """
    share = 0.5 - 0.5 * cos(pi * _clamp(progress))
    return start * (1.0 - share) + end * share


def polynomial(progress: float, start: float, end: float, power: float = 0.9) -> float:
    """A power of the share that is left, as nnU-Net lets its learning rate fall (Isensee et al., Nature Methods 2021).

    >>> polynomial(0.5, 8.0, 0.0, power=2.0)
    2.0

    Raises:
        ValueError: ``power`` is not above 0.
    """
    if not power > 0:
        message = f"power must be above 0, got {power}"
        raise ValueError(message)
    share = math.pow(1.0 - _clamp(progress), power)
    return start * share + end * (1.0 - share)


def constant_then_decay(progress: float, start: float, end: float, share: float = 0.2) -> float:
    """The same value, then a straight line in the last ``share`` (Zhai et al., Scaling vision transformers, CVPR 2022).

    >>> [constant_then_decay(p, 8.0, 0.0, share=0.5) for p in (0.0, 0.5, 0.75, 1.0)]
    [8.0, 8.0, 4.0, 0.0]

    Raises:
        ValueError: ``share`` is no share of the training.
    """
    _require_share("share", share)
    left = 1.0 - _clamp(progress)
    return start if left >= share else linear(left / share, end, start)


def linear_warmup_cosine(
    progress: float, peak: float, *, warmup: float = 0.0, start: float = 0.0, end: float = 0.0
) -> float:
    """A straight line from ``start`` to ``peak`` during the share ``warmup``, then half a cosine to ``end``.

    >>> [linear_warmup_cosine(p, 1.0, warmup=0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Raises:
        ValueError: ``warmup`` is no share of the training.
    """
    return linear_warmup(progress, peak, lambda share: cosine(share, peak, end), warmup=warmup, start=start)


def linear_warmup(
    progress: float, peak: float, after: Callable[[float], float], *, warmup: float = 0.0, start: float = 0.0
) -> float:
    """A straight line from ``start`` to ``peak`` during the share ``warmup``, then ``after`` of the share of the rest.

    >>> [linear_warmup(p, 1.0, lambda share: 1.0 - share, warmup=0.5) for p in (0.25, 0.5, 0.75)]
    [0.5, 1.0, 0.5]

    Raises:
        ValueError: ``warmup`` is no share of the training.
    """
    _require_share("warmup", warmup)
    progress = _clamp(progress)
    if progress < warmup:
        return linear(progress / warmup, start, peak)
    return after((progress - warmup) / (1.0 - warmup)) if warmup < 1.0 else peak


def _require_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        message = f"{name} must be a share of the training between 0 and 1, got {value}"
        raise ValueError(message)


def _clamp(progress: float) -> float:
    return min(1.0, max(0.0, progress))
