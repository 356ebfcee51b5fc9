"""What a file of weights is: JSON beside the safetensors."""

from __future__ import annotations

from dataclasses import dataclass

from medssl.seen import Seen
from medssl.types.preprocess import Imported, Preprocess
from medssl.types.scans import LabelSchema


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning put on an encoder.

    ``head`` is its import path with arguments, ``schema`` its outputs in order, ``window`` the voxels per stored axis
    of its crops (two: images, or slices across ``slice_axis``), ``subjects`` digests of those trained or validated on.
    """

    head: Imported
    schema: LabelSchema
    window: tuple[int, ...]
    slice_axis: int
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """What the encoder's weights are: JSON beside the safetensors.

    ``encoder`` and ``objective`` are import paths with arguments; ``subjects`` are those seen in pretraining; ``step``
    counts optimizer steps; ``tuned`` waits for a head.
    """

    encoder: Imported
    preprocess: Preprocess
    objective: Imported | None
    index_digest: str
    subjects: Seen
    step: int
    versions: dict[str, str]
    tuned: Tuned | None = None
