"""Features of stored scans by a frozen encoder, and the scans that probes use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medssl.data.labels.selection import labeled_scans
from medssl.data.split import overlap
from medssl.encoders.weights import CARD, make_encoder
from medssl.heads.sliding import encode
from medssl.inference.predictor import Windows, device_of
from medssl.training.configuration import as_data
from medssl.training.initial_weights import load_encoder, read_initial_weights, weights_in_words
from medssl.training.loop import keyed_seed
from medssl.training.selection import select_scans
from medssl.training.settings import Examples
from medssl.training.supervised import StoredScan
from medssl.types import UserError, ViewSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from medssl.data.store.store import Store
    from medssl.encoders.base import Encoder
    from medssl.training.initial_weights import InitialWeights
    from medssl.types import Features, LabelSchema


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder in evaluation mode that nothing changes.

    Attributes:
        encoder: On its device.
        window: Voxels per axis of its input.
        slice_axis: Stored axis that slices are taken across, where it is 2D and scans are volumes.
        windows: Sliding windows.
        made_by: Names the weights and settings of the features, without a path.
    """

    encoder: Encoder
    window: tuple[int, ...]
    slice_axis: int
    windows: Windows
    made_by: dict[str, Any]

    def scan(self, store: Store, number: int) -> StoredScan:
        """A stored scan as it is read window by window."""
        return StoredScan(store, number, self.window, self.slice_axis)

    def computing(self) -> Any:
        """The precision that it computes in."""
        device = next(self.encoder.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.windows.precision == "bf16")

    def features(self, scan: StoredScan) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Features]]:
        """Features of the fewest windows that cover a scan (``heads.sliding.encode``)."""
        batch, plane = self.windows.batch_size, scan.plane
        with self.computing():
            yield from encode(
                self.encoder, scan.read, scan.shape, window=self.window, axis=scan.axis, plane=plane, batch_size=batch
            )

    def embedding(self, scan: StoredScan) -> NDArray[np.float32]:
        """Mean of the pooled features of the windows that cover a scan, [D]."""
        total: NDArray[np.float32] = np.mean([x.pooled[0].float().cpu().numpy() for _, _, x in self.features(scan)], 0)
        return total


@dataclass(frozen=True)
class Splits:
    """Numbers in the store of labeled scans.

    Attributes:
        learned: For fitting.
        validated: For choosing settings.
        tested: For measuring.
        everything: All labeled scans of the three splits.
    """

    learned: tuple[int, ...]
    validated: tuple[int, ...]
    tested: tuple[int, ...]
    everything: tuple[int, ...]


def initial_weights_of_run(
    run: Path, encoder: Callable[[], Encoder] | None, *, from_scratch: bool, trust: Collection[str] = ()
) -> InitialWeights:
    """Initial weights from a run folder, its card, or a file of weights.

    Raises:
        UserError: As of ``read_initial_weights``.
    """
    try:
        return read_initial_weights(run, encoder, from_scratch=from_scratch, trust=trust)
    except UserError as error:
        raise error.changed(key="run" if error.key == "pretrained" else error.key) from error


def freeze(
    initial: InitialWeights,
    store: Store,
    windows: Windows,
    *,
    window: tuple[int, ...] | None,
    slice_axis: int | None,
    seed: int,
) -> tuple[FrozenEncoder, str]:
    """Makes the encoder, and a line on its weights.

    Random weights are those that fine-tuning from scratch starts from with the same seed.

    Raises:
        UserError: The weights or the window do not fit, or the window is not known.
    """
    window = window or _window_of(initial)
    tuned = initial.card.tuned if initial.card else None
    axis = slice_axis if slice_axis is not None else tuned.slice_axis if tuned else 2
    torch.manual_seed(keyed_seed(seed))
    encoder = make_encoder(initial.encoder, "encoder" if initial.card is None else CARD, initial.trust)
    refuse_misfit(encoder, window)
    report = load_encoder(encoder, initial)
    arguments = {key: value for key, value in initial.encoder.init_args.items() if key != "pretrained"}
    made_by: dict[str, Any] = {
        "weights": f"random, seed {seed}" if initial.digest == "random" else initial.digest,
        "encoder": {"class_path": initial.encoder.class_path, "init_args": as_data(arguments)},
        "window": list(window),
        "slice_axis": axis,
        "precision": windows.precision,
        "preprocess": store.preprocess.digest(),
    }
    step = f" of step {initial.card.step}" if initial.card else ""
    loaded = weights_in_words(initial) if report is None else f"weights{step}: {report}"
    encoder.to(device_of(windows.accelerator)).eval().requires_grad_(requires_grad=False)
    return FrozenEncoder(encoder, window, axis, windows, made_by), loaded


def _window_of(initial: InitialWeights) -> tuple[int, ...]:
    """The window of a fine-tuned network, or the view of pretraining.

    Raises:
        UserError: The card has neither.
    """
    if initial.card and initial.card.tuned:
        return initial.card.tuned.window
    view = (initial.card.objective.init_args if initial.card and initial.card.objective else {}).get("view")
    if not isinstance(view, dict) or "size" not in view:
        message = "the card does not state the window of the encoder"
        raise UserError(message, key="window", expected="voxels per axis, such as 48,48,48")
    return tuple(view["size"])


def refuse_misfit(encoder: Encoder, window: tuple[int, ...]) -> None:
    """Refuses a window that the encoder cannot take.

    Raises:
        UserError: Names both sides.
    """
    if len(window) not in encoder.ndims:
        dimensions = " or ".join(f"{ndim}D" for ndim in sorted(encoder.ndims))
        message = f"the encoder is {dimensions}, the window has {len(window)} axes"
        raise UserError(message, key="window", got=list(window))
    for size, stride in zip(window, encoder.strides[-1], strict=True):
        if size < 1 or size % stride:
            message = f"{size} is not a multiple of the encoder's stride {stride}"
            raise UserError(message, key="window", got=list(window))


def split_scans(
    store: Store, schema: LabelSchema, axes: int, *, labels: float | None, validation_labels: int | None, seed: int
) -> Splits:
    """The labeled scans of the splits train, val and test; subjects are selected as for fine-tuning.

    Raises:
        UserError: A split without a labeled scan, too few subjects, or a subject in two splits.
    """
    data = Examples(ViewSpec((1,) * axes), schema.name, validation_labels=validation_labels, label_seed=seed)
    try:
        chosen = select_scans(store, schema, data, labels, seed)
    except UserError as error:
        raise error.changed(key="validation_labels" if error.key == "data.validation_labels" else error.key) from error
    pools = {split: labeled_scans(store, axes, split, schema) for split in ("train", "val", "test")}
    names = {split: store.distinct_subjects(scans) for split, scans in pools.items()}
    for split, others in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := overlap(names[split], names[others]):
            message = (
                f"{len(shared)} of the {len(names[split])} subjects of split {split!r} are in split {others!r} too"
            )
            hint = "Give each subject one split when indexing (label.split), and cache again"
            raise UserError(message, hint=hint)
    everything = tuple(sorted({number for scans in pools.values() for number in scans}))
    return Splits(chosen.learned, chosen.validated, pools["test"], everything)
