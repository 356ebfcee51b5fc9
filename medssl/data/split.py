"""Splits by subject, and the check that no subject is both in training and in the scores.

The split of a subject depends on its identifier alone, so that new scans never move old ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping

from medssl.types import Note, UserError
from medssl.types.provenance import TrainingSubjects


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
    """Subjects on both sides, sorted: there must be none between training and test."""
    return tuple(sorted(set(subjects_a) & set(subjects_b)))


def refuse_leaks(
    scored: Collection[str], training: TrainingSubjects, *, allowed: bool, network: str, group: str
) -> list[Note]:
    """Refuses to score subjects that a network was trained on.

    Args:
        scored: Keyed digests of the subjects that are scored, each once.
        training: Subjects that the network was trained on.
        allowed: Whether the user allows it ("seen").
        network: Name of the network in messages, such as "the encoder".
        group: Name of ``scored`` in messages, such as "subjects of split 'test'".

    Returns:
        Notes on what was allowed, and on subjects of the training that are not known.

    Raises:
        UserError: The network was trained on some of the subjects; it counts them.
    """
    common = {
        "trained or validated with labels": overlap(scored, training.labeled),
        "pretrained": overlap(scored, training.pretrained.known),
    }
    leaks = [
        f"{network} was {how} on {len(subjects)} of the {len(scored)} {group}"
        for how, subjects in common.items()
        if subjects
    ]
    if leaks and not allowed:
        message = f"{'; '.join(leaks)}: their scores would be too good"
        hint = "Choose other weights or another split, or allow it (allow: seen) and report it with the scores"
        raise UserError(message, hint=hint)
    notes = [Note("leak", f"{line} (allowed): scores may be too good") for line in leaks]
    if scored and not training.pretrained.complete:
        text = f"not all subjects that {network} was pretrained on are known: some of the {group} may be among them"
        notes.append(Note("leak", text))
    return notes
