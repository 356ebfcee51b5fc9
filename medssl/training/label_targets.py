"""What a fine-tuning learns to say of a scan, by its head and its target; what the training labels set beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from medssl.data.labels.selection import MASK, class_number, classes_of, groups_of, lacking
from medssl.data.labels.values import findings_of, number_of
from medssl.heads.base import LABELS
from medssl.training import describe
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from medssl.data.store.store import Store
    from medssl.heads.base import HeadKind, Network
    from medssl.training.settings import Examples
    from medssl.types import LabelSchema


def schema_for(store: Store, target: str, head: Any) -> LabelSchema:
    """What a target says to a head: classes, findings or a number.

    Args:
        store: A store with labels.
        target: As of ``data.target``.
        head: The head's class, or what makes it.

    Raises:
        UserError: The target does not fit the head, or the store has no such labels.
    """
    kind: HeadKind = getattr(describe.class_of(head), "kind", "classification")
    if target == MASK and LABELS[kind] != "classes":
        message = f"the head is for {kind}, the target is {target!r}: choose another --head or --data.target"
        raise UserError(message)
    if "," in target and LABELS[kind] != "findings":
        message = f"the head is for {kind}, the target {target!r} names several values: "
        message += "choose --head multi_label, or name one value"
        raise UserError(message)
    return classes_of(store, target, LABELS[kind])


def targets_of(values: Sequence[Mapping[str, str]], schema: LabelSchema) -> Tensor:
    """What heads for whole scans learn from (``Head.loss``): class numbers [B], findings [B, K] or numbers [B].

    Raises:
        UserError: A value that cannot be.
    """
    if schema.kind == "findings":
        return torch.tensor([findings_of(row, schema) for row in values])
    if schema.kind == "number":
        return torch.tensor([number_of(row, schema) for row in values], dtype=torch.float64).float()
    return torch.tensor([class_number(dict(row), schema) for row in values])


def in_words(values: Mapping[str, str], answer: Sequence[float], schema: LabelSchema) -> str:
    """Label and prediction of a scan, such as "label benign, prediction malignant 0.73"."""
    names = [name for _, name in schema.classes]
    if schema.kind == "number":
        return f"label {number_of(values, schema):.4g}, prediction {answer[0]:.4g}"
    if schema.kind == "findings":
        truth = dict(zip(names, findings_of(values, schema), strict=True))
        there = ", ".join(name for name, known in truth.items() if known == 1) or "none"
        told = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, answer, strict=True))
        return f"label {there}, prediction {told}"
    share, name = max(zip(answer, names, strict=True))
    return f"label {values.get(schema.name) or 'unknown'}, prediction {name} {share:.2f}"


def prepare(network: Network, store: Store, scans: Sequence[int]) -> None:
    """Lets the head take what it needs from the labels that are learned from."""
    if network.head.kind != "segmentation":
        network.head.prepare(targets_of([store.values(n) for n in scans], network.head.schema))


def balanced_groups(store: Store, scans: Sequence[int], schema: LabelSchema, data: Examples) -> tuple[int, ...] | None:
    """Class of each scan, where they are to be balanced.

    Raises:
        UserError: The target has no scan-level classes.
    """
    if data.sampling.balance == "none":
        return None
    if schema.name == MASK or schema.kind == "number":
        message = (
            f"data.sampling.balance {data.sampling.balance} draws scans by their class, the target {schema.name!r} "
            "gives them none: set it to none"
        )
        raise UserError(message)
    return tuple(groups_of(store, scans, schema))


def target_notes(store: Store, scans: Sequence[int], schema: LabelSchema, *, where: str) -> list[str]:
    """What the first line tells of findings that are the same in all scans; ``where`` says what is done with them."""
    alike = lacking(store, scans, schema) if schema.kind == "findings" else []
    return [f"the same in all scans to {where} where it is known: {', '.join(alike)}"] if alike else []
