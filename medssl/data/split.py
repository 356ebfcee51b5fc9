"""Splits by subject, and the guard against a subject on both sides.

Where a subject goes depends on its own identifier alone, so that new scans never move old ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

from medssl.types import UserError


def parse_shares(text: str) -> dict[str, float]:
    """Read shares such as ``train=0.8,val=0.1,test=0.1``.

    Raises:
        UserError: A part is not ``name=share``, a share is not in 0..1, or they do not add up to 1.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not separator or not name or name in shares or not 0 <= share <= 1:
            message = f"split {part!r}: expected name=share with a share from 0 to 1, as in train=0.8,val=0.1,test=0.1"
            raise UserError(message)
        shares[name] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        message = f"the shares of the split {text!r} add up to {sum(shares.values()):g}, expected 1"
        raise UserError(message)
    return shares


def split_of(subject_id: str, shares: Mapping[str, float], *, seed: int = 0) -> str:
    """Name of the split that ``subject_id`` falls into.

    The shares are reached on average over many subjects; a handful of subjects may fall unevenly.
    """
    digest = hashlib.blake2b(subject_id.encode(), digest_size=8, key=b"split", salt=seed.to_bytes(16, "little"))
    place = int.from_bytes(digest.digest(), "little") / 2**64
    below = 0.0
    for name, share in shares.items():
        below += share
        if place < below:
            return name
    return [name for name, share in shares.items() if share > 0][-1]  # rounding of the sum


def overlap(subjects_a: Iterable[str], subjects_b: Iterable[str]) -> tuple[str, ...]:
    """Subjects on both sides, sorted: none may be left between pretraining and test."""
    return tuple(sorted(set(subjects_a) & set(subjects_b)))
