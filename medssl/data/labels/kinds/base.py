"""What every kind of label does, and the kind of a name, of a schema, or of the task of a head.

A kind is one file of this package: a subclass of ``TargetKind`` with a name and a task. Nothing lists the kinds.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from medssl.types import LabeledScans, LabelSchema, Scan

    Values = Mapping[str, str]
    Contrast = tuple[NDArray[np.bool_], NDArray[np.bool_]]

MASK = "mask"  # the target, and the name of the schema, of segmentations
UNKNOWN = frozenset({"", "-1", "-1.0", "unknown", "uncertain", "nan", "na", "n/a"})  # cells without a label


class TargetKind(ABC):
    """One kind of label. Values are the labels of a whole scan by name.

    Attributes:
        name: As ``LabelSchema.kind`` says it.
        task: What heads that learn it answer (``Head.kind``).
        per_voxel: Whether each voxel has its own label; otherwise the whole scan has one.
        one_class: Whether each voxel or scan has exactly one of several classes.
        has_groups: Whether scans belong to groups that a sampling can balance.
        group_turns: In which order groups take turns where few subjects are chosen; () starts with the rarest.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    per_voxel: ClassVar[bool] = False
    one_class: ClassVar[bool] = False
    has_groups: ClassVar[bool] = True
    group_turns: ClassVar[tuple[int, ...]] = ()

    # --- targets

    def refuse_target(self, target: str) -> None:
        """Refuses a target that heads of this task cannot learn.

        Raises:
            UserError: The target is "mask", or names several values.
        """
        if target == MASK:
            message, hint = f"the head is for {self.task}", "Choose another head or target"
            raise UserError(message, key="data.target", got=target, hint=hint)
        if "," in target:
            message, hint = (
                f"the head is for {self.task} of one value",
                "Choose the head multi_label, or name one value",
            )
            raise UserError(message, key="data.target", got=target, hint=hint)

    @abstractmethod
    def schema(self, store: LabeledScans, target: str, *, key: str) -> LabelSchema:
        """The classes of a target in a store; ``key`` is the option that names the target.

        Raises:
            UserError: The store has no such labels, or they leave nothing to learn.
        """

    # --- labels of a scan

    @abstractmethod
    def is_known(self, values: Values, schema: LabelSchema) -> bool:
        """Whether the values of a scan hold a label of the target.

        Raises:
            UserError: A value that cannot be.
        """

    def is_labeled(self, store: LabeledScans, number: int, schema: LabelSchema) -> bool:
        """Whether a stored scan has the label."""
        return self.is_known(store.values(number), schema)

    def is_labeled_in_index(self, scan: Scan, schema: LabelSchema) -> bool:
        """Whether a scan of an index has the label."""
        return self.is_known(dict(scan.labels.values), schema)

    @abstractmethod
    def targets(self, rows: Sequence[Values], schema: LabelSchema) -> NDArray[np.generic]:
        """What the loss of a head for whole scans learns from, a row for each scan (``Head.loss``).

        Raises:
            UserError: A value that cannot be.
        """

    @abstractmethod
    def in_words(self, values: Values, prediction: Sequence[float], schema: LabelSchema) -> str:
        """Label and prediction of a scan, such as "label benign, prediction malignant 0.73"."""

    # --- which scans are chosen

    @abstractmethod
    def groups(self, rows: Sequence[Values], schema: LabelSchema) -> list[int]:
        """Group of each scan: scans of one group stand for one another when few are chosen; -1 is no group."""

    def refuse_alike(self, rows: Sequence[Values], schema: LabelSchema) -> None:
        """Refuses training scans that all have the same label.

        Raises:
            UserError: Names the label.
        """
        del rows, schema

    def constant(self, rows: Sequence[Values], schema: LabelSchema) -> list[str]:
        """Names of the findings that are the same in all scans where they are known; [] of other kinds."""
        del rows, schema
        return []

    def contrasts(self, rows: Sequence[Values], schema: LabelSchema) -> list[Contrast]:
        """For each class or finding that probabilities are ranked by: which scans have it, of which that is known."""
        del rows, schema
        return []

    def missing(self, rows: Sequence[Values], voxel_values: set[int] | None, schema: LabelSchema) -> tuple[str, ...]:
        """Names of classes that no scan has.

        Args:
            rows: Values of the scans.
            voxel_values: What stands in their masks; None where the store does not count that.
            schema: The classes.
        """
        del rows, voxel_values, schema
        return ()


@functools.cache
def kinds() -> tuple[TargetKind, ...]:
    """All kinds of labels: one of each subclass in the files of this package."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return tuple(kind() for kind in TargetKind.__subclasses__())


def kind_of(schema: LabelSchema) -> TargetKind:
    """The kind of a schema."""
    return kind_named(MASK if schema.name == MASK else schema.kind)


def kind_named(name: str) -> TargetKind:
    """The kind of a name.

    Raises:
        UserError: There is no such kind.
    """
    for kind in kinds():
        if kind.name == name:
            return kind
    message = f"labels of kind {name!r}: expected one of {', '.join(sorted(kind.name for kind in kinds()))}"
    raise UserError(message)


def kind_of_task(task: str) -> TargetKind:
    """The kind that heads of a task learn.

    Raises:
        UserError: No kind is learned by such heads.
    """
    for kind in kinds():
        if kind.task == task:
            return kind
    message = f"the head is for {task!r}: expected one of {', '.join(sorted(kind.task for kind in kinds()))}"
    raise UserError(message)


def values_of_scans(store: LabeledScans, target: str, key: str) -> list[dict[str, str]]:
    """Values of all scans of a store that have some.

    Raises:
        UserError: The target is empty in all scans, or is the name of no value; lists the names there are.
    """
    rows = [store.values(number) for number in store.scans_with_values]
    refuse_unknown(target, rows, str(store.path), key)
    return rows


def refuse_unknown(target: str, rows: Iterable[Values], where: str, key: str) -> None:
    """Refuses the name of a value that no scan has.

    Raises:
        UserError: It is empty everywhere; or lists the names there are, and which one may be meant.
    """
    rows = list(rows)
    if any(values.get(target) for values in rows):
        return
    known = sorted({name for values in rows for name in values})
    if target in known:
        message = f"{target!r} is empty for all {len(rows)} scans of {where}"
        raise UserError(message, key=key, hint="Fill it in, then index and cache again")
    near = difflib.get_close_matches(target, known, 1)
    message = f"no scan of {where} has a value {target!r}"
    expected = f"one of {', '.join(known)}" if known else ""
    raise UserError(message, key=key, expected=expected, hint=f"Did you mean {near[0]!r}?" if near else "")


def refuse_one_class(schema: LabelSchema) -> None:
    """Refuses a target of one class.

    Raises:
        UserError: Names the class.
    """
    if len(schema.classes) < 2:
        message = f"{schema.name!r} has one class only ({schema.classes[0][1]}): there is nothing to distinguish"
        raise UserError(message)
