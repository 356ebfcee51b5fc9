"""What a file of weights is: JSON beside the safetensors."""

from __future__ import annotations

from dataclasses import dataclass

from medssl.types.preprocess import Imported, Preprocess
from medssl.types.provenance import Provenance
from medssl.types.scans import LabelSchema


@dataclass(frozen=True)
class TrainedOn:
    """What the scans are like that a network was fine-tuned on.

    Attributes:
        modalities: Of the index, such as CT; empty where no scan said.
        domains: What the values mean: "hu", "mr", "gray", "rgb".
        spacing_mm: Lowest and highest spacing per stored axis, of the scans as they lie on disk; empty for images.
        missing_classes: Names of classes that none of the scans has: the network has not learned them.
    """

    modalities: tuple[str, ...]
    domains: tuple[str, ...]
    spacing_mm: tuple[tuple[float, float], ...] = ()
    missing_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning put on an encoder.

    ``head`` is its import path with arguments, ``schema`` its outputs in order, ``window`` the voxels per stored axis
    of its crops (two: images, or slices across ``slice_axis``), ``subjects`` digests of those trained or validated on,
    ``trained_on`` what their scans are like, ``flip`` which axes were mirrored in training (None: an older version).
    """

    head: Imported
    schema: LabelSchema
    window: tuple[int, ...]
    slice_axis: int
    subjects: tuple[str, ...]
    trained_on: TrainedOn | None = None
    flip: str | None = None


@dataclass(frozen=True)
class Pretraining(Imported):
    """An objective, how fast the weights moved, and on what their statistics were measured.

    Attributes:
        whole_image_batches: Micro-batches of whole images that batch-norm statistics were measured on; 0: they are
            those of training.
        learning_rate: Highest learning rate, as resolved for the batch of the run; None in cards of older versions.
    """

    whole_image_batches: int = 0
    learning_rate: float | None = None


@dataclass(frozen=True)
class Card:
    """What the encoder's weights are: JSON beside the safetensors.

    ``encoder`` and ``objective`` are import paths with arguments; ``subjects`` are those seen in pretraining; ``step``
    counts optimizer steps; ``tuned`` waits for a head; ``versions`` names "phantoms" where all scans are synthetic.
    """

    encoder: Imported
    preprocess: Preprocess
    objective: Pretraining | None
    index_digest: str
    subjects: Provenance
    step: int
    versions: dict[str, str]
    tuned: Tuned | None = None
