"""Score of one run on each test subject, read from the tables of its evaluation, so that runs can be compared.

In segmentation, a class that is absent from label and prediction of a scan scores 1 here. Its Dice is not defined, but
that of a run which predicts it is 0, and a subject that counts in one run only would make the two incomparable.

An AUROC takes only the classes that at least two subjects have and two lack: that of any other depends on one subject,
so that its interval over subjects is not defined.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.metrics.bootstrap import subject_means
from medssl.metrics.cases import CASES
from medssl.metrics.classification import auroc
from medssl.metrics.comparison import pseudo_values
from medssl.metrics.label_efficiency import Trained
from medssl.metrics.scoring import scoring_of_task
from medssl.metrics.tables import SUMMARY, read_summary
from medssl.types import Note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Bool, Float, Int

    from medssl.metrics.cases import SegmentationRow

FEWEST = 2  # subjects that have a class, and that lack it
SHOWN = 3  # reasons that a note names


@dataclass(frozen=True)
class Ranked:
    """A class or finding: of each of N scans its probability, whether it is there, and whether that is known."""

    name: str
    scores: Float[np.ndarray, "N"]
    positive: Bool[np.ndarray, "N"]
    known: Bool[np.ndarray, "N"]

    def on(self, places: Int[np.ndarray, "M"]) -> float | None:
        """AUROC on some of the scans; None where it is not defined."""
        chosen = places[self.known[places]]
        return auroc(self.scores[chosen], self.positive[chosen])


def judged(
    positive: Bool[np.ndarray, "N"], subjects: Sequence[str], known: Bool[np.ndarray, "N"] | None = None
) -> bool:
    """Whether an AUROC stays defined whichever subject is left out.

    Args:
        positive: Whether each scan is of the class.
        subjects: Subject of each scan.
        known: Whether that is known; None where it always is.
    """
    names, known_scans = np.array(subjects), np.ones(len(positive), bool) if known is None else known
    return all(len(set(names[known_scans & side])) >= FEWEST for side in (positive, ~positive))


def read_trained(what: tuple[str, int, int], folder: Path) -> Trained:
    """Scores of a run.

    Args:
        what: Arm, labeled subjects and number of the run.
        folder: Results of an evaluation.

    Raises:
        UserError: Its tables were damaged.
    """
    summary = read_summary(folder / SUMMARY)
    trained = scoring_of_task(summary["kind"]).run_scores(what, folder / CASES)
    return replace(trained, notes=(*trained.notes, *_notes_of(summary)))


def _notes_of(summary: Mapping[str, Any]) -> list[Note]:
    """Notes of an evaluation on subjects that may have been used in pretraining, and on skipped scans."""
    leaks = summary.get("leaks", summary["notes"])  # earlier versions had one kind of notes
    notes = [Note("leak", f"{note}.") for note in leaks]
    if skipped := summary["skipped"]:
        reasons = Counter(scan["reason"] for scan in skipped).most_common()
        shown = "; ".join(f"{count}: {reason}" for reason, count in reasons[:SHOWN])
        more = f"; and {len(reasons) - SHOWN} more reasons" if len(reasons) > SHOWN else ""
        text = f"{len(skipped)} test scans could not be scored and are left out ({shown}{more})."
        notes.append(Note("skipped", text))
    return notes


def by_dice(what: tuple[str, int, int], rows: Sequence[SegmentationRow]) -> Trained:
    """Dice of a run: the mean over the classes of a scan, then over the scans of a subject."""
    of_scan: dict[str, list[float]] = {row.scan_id: [] for row in rows}
    for row in rows:
        of_scan[row.scan_id].append(1.0 if row.score.dice is None else row.score.dice)
    subject_of = {row.scan_id: row.subject_id for row in rows}
    means = subject_means([_mean_of(values) for values in of_scan.values()], [subject_of[scan] for scan in of_scan])
    lacking = len({row.subject_id for row in rows if not row.score.true_voxels})
    text = f"{lacking} of {len(means)} test subjects lack a class: it scores 1 if it is not predicted either, else 0."
    note = Note("other", text)
    return Trained(*what, "dice", mean_of_subjects(means), means, (note,) if lacking else ())


def by_auroc(what: tuple[str, int, int], classes: Sequence[Ranked], subjects: Sequence[str]) -> Trained:
    """Mean AUROC of classes of a run, with the contribution of each subject.

    Args:
        what: Arm, labeled subjects and number of the run.
        classes: Each against the rest.
        subjects: Subject of each scan.
    """
    judged_classes = [one for one in classes if judged(one.positive, subjects, one.known)]
    left_out = [one.name for one in classes if not judged(one.positive, subjects, one.known)]
    text = f"The AUROC leaves {', '.join(left_out)} out: fewer than {FEWEST} test subjects have it or lack it."
    note = Note("skipped", text)

    def measure(places: Int[np.ndarray, "M"]) -> float | None:
        values = [value for value in (one.on(places) for one in judged_classes) if value is not None]
        return float(np.mean(values)) if values and len(values) == len(judged_classes) else None

    whole = measure(np.arange(len(subjects)))
    contributions = pseudo_values(measure, subjects)
    scores = {subject: None if math.isnan(value) else value for subject, value in contributions.items()}
    return Trained(*what, "auroc", math.nan if whole is None else whole, scores, (note,) if left_out else ())


def mean_of_subjects(means: dict[str, float | None]) -> float:
    """Mean of the subjects that have a score; NaN where none has."""
    known = [value for value in means.values() if value is not None]
    return _mean_of(known) if known else math.nan


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)
