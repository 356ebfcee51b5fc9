"""The known name that is nearest to a mistyped one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LIKE = 0.55  # from here on a known name is worth proposing


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` or nothing: the nearest name, or two that are equally near."""
    scores = {name: likeness(word, name) for name in known}
    best = max(scores.values(), default=0.0)
    if best < LIKE:
        return ""
    close = sorted((name for name, score in scores.items() if score == best), key=lambda name: (len(name), name))
    return f" (did you mean {' or '.join(map(repr, close[:2]))}?)"


def likeness(word: str, name: str) -> float:
    """How near a mistyped key is to a known one, from 0 to 1.

    Of keys below one parent only the last parts are compared, otherwise the parent would make all of them near. An
    abbreviation is near to what it stands for.

    >>> likeness("optimizer.lr", "optimizer.learning_rate") > likeness("optimizer.lr", "optimizer.clip")
    True
    """
    import difflib

    parent, _, last = word.rpartition(".")
    above, _, end = name.rpartition(".")
    if parent == above:
        return _likeness_of_parts(last, end)
    if last == end or _stands_for(last, end):
        return 0.9  # the right key below another parent, or without it
    return 0.9 * difflib.SequenceMatcher(None, name, word).ratio()


def _likeness_of_parts(word: str, name: str) -> float:
    import difflib

    if _stands_for(word, name):
        return 0.97
    if len(word) > 2 and name.startswith(word):
        return 0.95
    if len(word) > 2 and word in name.split("_"):
        return 0.9
    return difflib.SequenceMatcher(None, name, word).ratio()


def _stands_for(word: str, name: str) -> bool:
    """Whether a word is made of the first letters of a name of several words: "lr" of "learning_rate"."""
    parts = name.split("_")
    return len(parts) > 1 and word == "".join(part[:1] for part in parts)
