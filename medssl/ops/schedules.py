"""Schedules: pure functions of the share of training done, ``progress`` in [0, 1] (values outside are clamped)."""

from __future__ import annotations

from math import cos, pi


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


def linear_warmup_cosine(
    progress: float, peak: float, *, warmup: float = 0.0, start: float = 0.0, end: float = 0.0
) -> float:
    """A straight line from ``start`` to ``peak`` during the share ``warmup``, then half a cosine to ``end``.

    >>> [linear_warmup_cosine(p, 1.0, warmup=0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Raises:
        ValueError: ``warmup`` is no share of the training.
    """
    if not 0.0 <= warmup <= 1.0:
        message = f"warmup must be a share of the training between 0 and 1, got {warmup}"
        raise ValueError(message)
    progress = _clamp(progress)
    if progress < warmup:
        return linear(progress / warmup, start, peak)
    return cosine((progress - warmup) / (1.0 - warmup), peak, end) if warmup < 1.0 else peak


def _clamp(progress: float) -> float:
    return min(1.0, max(0.0, progress))
