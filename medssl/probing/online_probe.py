"""Probes during pretraining: nearest neighbors and a linear probe, every few steps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.labels.kinds.base import MASK
from medssl.data.labels.kinds.classes import class_number
from medssl.data.labels.selection import few, labeled_scans, schema_of
from medssl.data.split import overlap
from medssl.encoders.base import Encoder
from medssl.inference.predictor import Windows
from medssl.metrics import scan_probe as probes
from medssl.objectives.base import evaluation_mode
from medssl.probing.feature_extractor import FrozenEncoder
from medssl.probing.scan_probe import group_of, refuse_kind
from medssl.training.events import Listener, Measures
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.data.store.store import Store
    from medssl.objectives.base import Objective
    from medssl.training.events import StepRecord
    from medssl.training.loop import TrainingLoop
    from medssl.training.settings import OnlineProbe
    from medssl.types import LabelSchema, ViewPlan

log = logging.getLogger(__name__)

SHOWN = {"knn": "nearest neighbors", "logistic": "linear probe"}


class OnlineProbeListener(Listener):
    """Embeds labeled scans with the encoder as it is, and logs ``probe_knn_auroc`` and ``probe_logistic_auroc``.

    Probes learn from scans of the split "train" and are judged on "val", where their settings are chosen as well: a
    curve to follow, not a result (measure on test scans with the function ``probe``). The first process alone does
    this, in evaluation mode and without a random draw: the training does not change.

    Args:
        store: Where the scans are.
        plan: The views of the objective; the encoder sees scans through windows of the first view's size.
        settings: Which labels, and how often.
        half: Compute in bfloat16.

    Raises:
        UserError: There are no such labels, they are no classes of whole scans, a split lacks a class, or subjects are
            in both splits.
    """

    name = "online_probe"

    def __init__(self, store: Store, plan: ViewPlan, settings: OnlineProbe, *, half: bool) -> None:
        assert settings.target is not None
        if settings.target == MASK:
            message = "only whole scans are probed during training"
            raise UserError(message, key="probe.target", got=MASK)
        self.store, self.every = store, settings.every
        self.window, self.axis = tuple(plan.views[0].size), plan.sampling.slice_axis
        self.windows = Windows(precision="bf16" if half else "fp32")
        self.schema = schema_of(store, settings.target, key="probe.target")
        refuse_kind(self.schema)
        self.probed = {"target": settings.target, "subjects": settings.subjects, "seed": settings.seed}
        self.training_scans, self.validation_scans = (
            bounded(store, len(self.window), split, self.schema, settings) for split in ("train", "val")
        )
        if shared := overlap(
            store.distinct_subjects(self.training_scans), store.distinct_subjects(self.validation_scans)
        ):
            message = f"{len(shared)} subjects are in both splits, 'train' and 'val'"
            hint = "Give each subject one split when indexing (label.split), and cache again"
            raise UserError(message, key="probe.target", hint=hint)
        self.names = [name for _, name in self.schema.classes]
        self.start: dict[str, float] = {}

    def on_start(self, loop: TrainingLoop) -> None:
        """Probes the encoder before its first step."""
        if loop.progress.step > 0:
            return
        with loop.as_exported():
            if loop.rank == 0:
                self.start = self.measure(loop.objective)
                self.report(0, self.start)

    def on_step(self, loop: TrainingLoop, record: StepRecord) -> Measures | None:
        """Probes where it is time to."""
        step = record.step
        if step % self.every and step < loop.steps:
            return None
        with loop.as_exported():
            if loop.rank > 0:
                return None
            try:
                values = self.measure(loop.objective)
            except UserError as error:  # features that are not finite: the training continues without a probe
                log.info(f"probe of {self.schema.name}, step {step}: skipped, {error}")
                return None
        self.report(step, values)
        return Measures(values)

    def state_dict(self) -> dict[str, Any]:
        """Scores before the first step, and the settings of the probe ("asked")."""
        return {"start": self.start, "asked": self.probed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the scores where the settings are the same."""
        self.start = dict(state_dict["start"]) if state_dict.get("asked") == self.probed else {}

    # --- one measurement

    def measure(self, objective: Objective) -> dict[str, float]:
        """AUROC on the validation scans of the probes, each with the setting that is best there."""
        encoder = objective.exported()["encoder"]
        assert isinstance(encoder, Encoder)
        frozen = FrozenEncoder(encoder, self.window, self.axis, self.windows, {})
        with evaluation_mode(objective):
            features = {
                n: frozen.embedding(frozen.scan(self.store, n)) for n in (*self.training_scans, *self.validation_scans)
            }
        train, validation = (
            group_of(self.store, self.schema, scans, features) for scans in (self.training_scans, self.validation_scans)
        )
        fitted = [probe for probe in probes.fit_probes(train, validation, self.names) if probe.name in SHOWN]
        return {f"probe_{probe.name}_auroc": max(auroc for _, auroc, _ in probe.tried) for probe in fitted}

    def report(self, step: int, values: dict[str, float]) -> None:
        """Logs a line."""
        parts = [f"{what} {values[f'probe_{name}_auroc']:.3f}" for name, what in SHOWN.items()]
        before = [f"{self.start[f'probe_{name}_auroc']:.3f}" for name in SHOWN if self.start]
        since = f" (before training {' and '.join(before)})" if step and before else ""
        scans = (
            f"{len(self.training_scans)} scans to fit on, {len(self.validation_scans)} to measure on"
            if not step
            else ""
        )
        line = f"probe of {self.schema.name}, step {step}: validation AUROC {', '.join(parts)}{since}; {scans}"
        log.info(line.rstrip("; "))


def bounded(store: Store, axes: int, split: str, schema: LabelSchema, settings: OnlineProbe) -> tuple[int, ...]:
    """The labeled scans of a split, of at most so many subjects.

    Raises:
        UserError: There are none, or a class is lacking; names the split and the settings.
    """
    try:
        scans = labeled_scans(store, axes, split, schema)
        number = min(settings.subjects, len(store.distinct_subjects(scans)))
        chosen = few(store, scans, schema, subjects=number, seed=settings.seed)
        truth = [class_number(store.values(scan), schema) for scan in chosen]
        probes.refuse_lacking("labeled", np.array(truth), [name for _, name in schema.classes])
    except UserError as error:
        message = f"target {schema.name} in split {split!r}, of at most {settings.subjects} subjects: {error.message}"
        hint = "Raise probe.subjects, or split anew."
        raise error.changed(message=message, key="probe.target", hint=hint) from error
    return chosen
