"""Networks for bags applied to a folder of bags: predictions, and scores with a threshold of validation subjects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.bags.batches import whole_batch
from medssl.data.bags.store import BagStore
from medssl.data.formats.base import FormatError
from medssl.data.labels.kinds.base import kind_of
from medssl.data.labels.selection import labeled_scans
from medssl.encoders.precomputed import Precomputed
from medssl.heads.mil.base import BagHead, answer_of
from medssl.inference.scan_scores import rows_of
from medssl.metrics.scoring import Options, scoring_of
from medssl.metrics.threshold import Threshold, at_threshold, chosen_threshold
from medssl.types import Digests, Grid, Labels, Note, Scan, Source, Subject, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float

    from medssl.inference.finished_scans import Finished
    from medssl.inference.predictor import Fitted
    from medssl.types import LabelSchema

VALIDATION = "val"  # split that a threshold is chosen on


def open_bags(path: Path, fitted: Fitted) -> BagStore:
    """Opens bags for a network.

    Raises:
        UserError: The network is none for bags, or was trained on features of another encoder.
    """
    store = BagStore.open(path)
    encoder = fitted.network.encoder
    if not isinstance(encoder, Precomputed):
        message = f"{path} is a folder of bags, and the network takes scans"
        raise UserError(message, key="index", hint="Give an index of scans, or a network that was trained on bags")
    made = store.facts.encoder
    if encoder.source != made.digest or encoder.in_channels != store.facts.features:
        got = f"{made.name or made.digest}, {store.facts.features} features"
        message = "the bags hold features of another encoder than those that the network was trained on"
        hint = "Give bags of the same encoder, or train a network on these"
        raise UserError(message, key="index", got=got, hint=hint)
    return store


def refuse_no_bags(fitted: Fitted, slides: Path | None = None) -> None:
    """Refuses scans for a network of bags, and slides of heat maps for scans.

    Raises:
        UserError: Says what it takes.
    """
    if slides is not None:
        message, hint = "heat maps are of bags of slides", "Give a folder of bags as scans, or leave it out"
        raise UserError(message, key="heat_maps", got=str(slides), hint=hint)
    if isinstance(fitted.network.encoder, Precomputed):
        message = "the network was trained on bags, and these are no bags"
        raise UserError(message, key="index", hint="Give a folder of bags of the same encoder")


def scan_of(store: BagStore, number: int) -> Scan:
    """A bag as a scan of an index."""
    record = store.records[number]
    return Scan(
        scan_id=record.scan_id,
        subject=Subject(record.subject_id, split=record.split, known=record.known),
        source=Source("bags", "slide", "", "rgb", ()),
        grid=Grid((), (), ()),
        digests=Digests(record.content),
        labels=Labels(values=tuple(sorted(record.values.items()))),
    )


def labeled_bags(store: BagStore, schema: LabelSchema, split: str) -> list[int]:
    """Numbers of the labeled bags of a split.

    Raises:
        UserError: There are none.
    """
    return list(labeled_scans(store, 1, split, schema))


def answer_all(
    fitted: Fitted, store: BagStore, numbers: Sequence[int], finished: Finished, title: str
) -> tuple[int, list[tuple[str, str]]]:
    """Answers for bags without an answer; returns how many were new, and what was skipped with the reason."""
    from tqdm.auto import tqdm

    new, skipped = 0, []
    for number in tqdm(numbers, desc=title, unit="bag"):
        scan = scan_of(store, number)
        if finished.get(scan) is not None:
            continue
        try:
            bag = whole_batch(store, number).to(fitted.device)
        except FormatError as error:
            skipped.append((scan.scan_id, str(error)))
            continue
        answer = answer_of(fitted.network.head, bag)
        if not np.isfinite(answer).all():
            skipped.append((scan.scan_id, "the answer is not finite"))
            continue
        finished.add(scan, answer)
        new += 1
    return new, skipped


def attention_of(fitted: Fitted, store: BagStore, number: int) -> Float[np.ndarray, "H N"]:
    """Attention of a network to each tile of a bag, a row for each branch.

    Raises:
        UserError: The network is none for bags.
        FormatError: The bag cannot be read.
    """
    import torch

    head = fitted.network.head
    if not isinstance(head, BagHead):
        message = "the network has no attention over tiles"
        raise UserError(message, hint="Give a network that was trained on bags")
    with torch.no_grad():
        weights = head.attention(whole_batch(store, number).to(fitted.device))
    result: Float[np.ndarray, "H N"] = weights[0].float().cpu().numpy()
    return result


# --- scores beside those of scans


def threshold_scores(
    fitted: Fitted, store: BagStore, rows: Sequence[Any], results: tuple[Finished, str]
) -> dict[str, Any]:
    """Measures at a threshold that validation bags chose, of targets with two classes; {} elsewhere.

    Args:
        fitted: The network.
        store: The bags.
        rows: Rows of the bags that are scored.
        results: Where predictions of validation bags are kept, and the split that is scored.
    """
    finished, split = results
    names = [name for _, name in fitted.schema.classes]
    two = kind_of(fitted.schema).one_class and len(names) == 2
    if not two or split == VALIDATION or VALIDATION not in store.splits:
        return {}
    schema = fitted.schema
    numbers = [n for n in store.scans(VALIDATION).tolist() if kind_of(schema).is_labeled(store, n, schema)]
    answer_all(fitted, store, numbers, finished, "threshold")
    judged = rows_of([scan_of(store, number) for number in numbers], finished, schema)
    value = chosen_threshold(*_scores(judged, names[1])) if judged else None
    if value is None:
        return {}
    threshold = Threshold(value, names[1], VALIDATION, len(judged))
    subjects = [row.subject_id for row in rows]
    return {"threshold": at_threshold(threshold, *_scores(rows, names[1]), subjects)}


def subject_scores(
    scans: Sequence[Scan], finished: Finished, schema: LabelSchema, options: Options
) -> tuple[dict[str, Any], list[Note]]:
    """Scores of subjects, by the mean answer of their slides; {} where each has one slide.

    Subjects whose slides have different labels are left out and counted.
    """
    groups: dict[str, list[Scan]] = {}
    for scan in scans:
        if finished.get(scan) is not None:
            groups.setdefault(scan.subject.subject_id, []).append(scan)
    if all(len(group) == 1 for group in groups.values()):
        return {}, []
    scoring, columns, rows, mixed = scoring_of(schema), set(schema.name.split(",")), [], 0
    for group in groups.values():
        labels = {json.dumps([pair for pair in scan.labels.values if pair[0] in columns]) for scan in group}
        if len(labels) > 1:
            mixed += 1
            continue
        mean = np.mean([finished.get(scan) for scan in group], axis=0).tolist()
        rows += scoring.rows(group[0], mean, schema)
    text = f"{mixed} of {len(groups)} subjects have slides with different labels: scores of subjects leave them out"
    notes = [Note("other", text)] if mixed else []
    if not rows:
        return {}, notes
    summary = scoring.summarize(rows, schema, options)
    return {"of_subjects": {"subjects": len(rows), "metrics": summary["metrics"]}}, notes


def _scores(rows: Sequence[Any], positive: str) -> tuple[Float[np.ndarray, "N"], Any]:
    """Probability of the second class, and which rows are of it."""
    return np.array([row.probabilities[1] for row in rows]), np.array([row.truth == positive for row in rows])
