"""What a fine-tuning learns to say of a scan, by its head and its target; what the training labels set beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from medssl.data.labels.kinds.base import kind_of, kind_of_task
from medssl.data.labels.selection import constant_labels, groups_of, schema_of
from medssl.training.configuration import class_of
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from medssl.heads.base import Network
    from medssl.training.settings import Examples
    from medssl.types import LabeledScans, LabelSchema


def schema_for(store: LabeledScans, target: str, head: Any) -> LabelSchema:
    """What a target says to a head: classes, findings or a number.

    Args:
        store: A store with labels.
        target: As of ``data.target``.
        head: The head's class, or what makes it.

    Raises:
        UserError: The target does not fit the head, or the store has no such labels.
    """
    task = task_of(head)
    if task is None:  # a function of the user: what it makes is known once it is called
        return schema_of(store, target)
    kind = kind_of_task(task)
    kind.refuse_target(target)
    return kind.schema(store, target, key="data.target")


def task_of(head: Any) -> str | None:
    """The task of a head's class; of heads that answer in several ways that of their arguments. None where unknown."""
    made = class_of(head)
    if made is not None and hasattr(made, "task_of"):
        return str(made.task_of(getattr(head, "keywords", {})))
    return getattr(made, "kind", None)


def targets_of(values: Sequence[Mapping[str, str]], schema: LabelSchema) -> Tensor:
    """What heads for whole scans learn from (``Head.loss``): class numbers [B], findings [B, K] or numbers [B].

    Raises:
        UserError: A value that cannot be.
    """
    return torch.from_numpy(kind_of(schema).targets(values, schema))


def prepare(network: Network, store: LabeledScans, scans: Sequence[int]) -> None:
    """Lets the head take what it needs from the labels that are learned from."""
    if not kind_of(network.head.schema).per_voxel:
        network.head.prepare(targets_of([store.values(n) for n in scans], network.head.schema))


def balanced_groups(
    store: LabeledScans, scans: Sequence[int], schema: LabelSchema, data: Examples
) -> tuple[int, ...] | None:
    """Class of each scan, where they are to be balanced.

    Raises:
        UserError: The target has no scan-level classes.
    """
    if data.sampling.balance == "none":
        return None
    if not kind_of(schema).has_groups:
        message = (
            f"data.sampling.balance {data.sampling.balance} draws scans by their class, the target {schema.name!r} "
            "gives them none: set it to none"
        )
        raise UserError(message)
    return tuple(groups_of(store, scans, schema))


def target_notes(store: LabeledScans, scans: Sequence[int], schema: LabelSchema, *, where: str) -> list[str]:
    """What the first line tells of findings that are the same in all scans; ``where`` says what is done with them."""
    alike = constant_labels(store, scans, schema)
    return [f"the same in all scans to {where} where it is known: {', '.join(alike)}"] if alike else []
