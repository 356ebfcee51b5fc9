"""Masks: a class for each voxel, learned by segmentation heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from medssl.data.labels.kinds.base import MASK, TargetKind, refuse_one_class, values_of_scans
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medssl.types import LabeledScans, LabelSchema, Scan


class Mask(TargetKind):
    """A class for each voxel. The labels lie in the masks of a store; values of whole scans are not used."""

    name = MASK
    task = "segmentation"
    per_voxel = True
    one_class = True
    has_groups = False

    def refuse_target(self, target: str) -> None:
        """Refuses nothing: ``schema`` checks first whether the store has a target that is no mask."""
        del target

    def schema(self, store: LabeledScans, target: str, *, key: str) -> LabelSchema:
        """The classes of a store's masks.

        Raises:
            UserError: The target is another one, or the store has no masks, or they have no class names or one class.
        """
        if target != MASK:
            values_of_scans(store, target, key)
            message = f"the head is for {self.task}, the target is {target!r}"
            raise UserError(message, key=key, hint="Choose another head or target")
        if not store.has_masks:
            values = sorted({name for number in store.scans_with_values for name in store.values(number)})
            other = f", or choose a value of whole scans: {', '.join(values)}" if values else ""
            hint = f"Index with label.masks and cache again{other}"
            message = f"{store.path} has no masks"
            raise UserError(message, key=key, got=target, hint=hint)
        if store.schema is None:
            message = f"the masks of {store.path} have no class names"
            hint = "Index with label.class_names 0=background,1=NAME,... and cache again"
            raise UserError(message, key=key, got=target, hint=hint)
        refuse_one_class(store.schema)
        return store.schema

    def is_known(self, values: Mapping[str, str], schema: LabelSchema) -> bool:
        """False: values of whole scans are no masks."""
        del values, schema
        return False

    def is_labeled(self, store: LabeledScans, number: int, schema: LabelSchema) -> bool:
        """Whether a stored scan has a mask."""
        del schema
        return store.has_mask(number)

    def is_labeled_in_index(self, scan: Scan, schema: LabelSchema) -> bool:
        """Whether a scan of an index has a mask."""
        del schema
        return bool(scan.labels.mask)

    def targets(self, rows: Sequence[Mapping[str, str]], schema: LabelSchema) -> NoReturn:
        """Not for masks: their targets go through the geometry of the views.

        Raises:
            NotImplementedError: Always.
        """
        message = "targets of masks go through the geometry of the views"  # heads of whole scans never learn masks
        raise NotImplementedError(message)

    def in_words(self, values: Mapping[str, str], prediction: Sequence[float], schema: LabelSchema) -> str:
        """Nothing: a segmentation is shown as a picture."""
        del values, prediction, schema
        return ""

    def groups(self, rows: Sequence[Mapping[str, str]], schema: LabelSchema) -> list[int]:
        """One group: masks give scans no class."""
        del schema
        return [0] * len(rows)

    def missing(
        self, rows: Sequence[Mapping[str, str]], voxel_values: set[int] | None, schema: LabelSchema
    ) -> tuple[str, ...]:
        """Names of classes that stand in no mask; nothing where the store does not count the values of its masks."""
        del rows
        return (
            () if voxel_values is None else tuple(name for value, name in schema.classes if value not in voxel_values)
        )
