"""Verbs for the tests of the command line; without torch, so that parsing is all that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.types import Preprocess, UserError


class Animal:
    pass


class Cat(Animal):
    def __init__(self, lives: int = 9, *, paws: tuple[int, ...] = (1, 2, 3, 4)):
        self.lives, self.paws = lives, paws


class Dog(Animal):
    def __init__(self, lives: int = 1, *, tricks: tuple[str, ...] = ()):
        self.lives, self.tricks = lives, tricks


@dataclass(frozen=True)
class Walk:
    minutes: int = 10
    legs: int = 4


class Park:
    def __init__(self, encoder: Animal, *, walk: Walk, share: float = 0.5):
        self.encoder, self.walk, self.share = encoder, walk, share


calls: list[dict[str, Any]] = []


def stroll(
    *, store: Path, encoder: Callable[[], Animal], objective: Callable[[Animal], Park], training: Walk, seed: int = 0
) -> int:
    """Goes for a stroll.

    Args:
        store: Where to.
        encoder: Who goes.
        objective: What for.
        training: How long.
        seed: Weather.
    """
    calls.append({"store": store, "park": objective(encoder()), "training": training, "seed": seed})
    return 0


def gather(directories: list[Path], *, index: Path | None = None) -> int:
    """Gathers.

    Args:
        directories: Where from.
        index: Where to.
    """
    calls.append({"directories": directories, "index": index})
    return 1


def store(*, preprocess: Preprocess | None = None) -> None:
    """Stores.

    Args:
        preprocess: How.
    """
    calls.append({"preprocess": preprocess})


def fail(kind: str) -> None:
    """Fails.

    Args:
        kind: How.
    """
    if kind == "interrupt":
        raise KeyboardInterrupt
    raise UserError("two lines\nare one")
