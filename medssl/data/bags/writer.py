"""Write a folder of bags, bag by bag: each is complete or not there, and finished ones are not written again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.bags.description import (
    FOLDER,
    TABLE,
    BagFacts,
    BagRecord,
    connect,
    insert,
    is_bags,
    read_facts,
    read_records,
    write_facts,
)
from medssl.data.bags.files import ENDINGS, Bag, Layout, checked, write_bag_file
from medssl.data.bags.store import content_of
from medssl.data.formats.base import FormatError
from medssl.io.atomic_write import atomic_write
from medssl.types import UserError

if TYPE_CHECKING:
    import sqlite3
    from types import TracebackType
    from typing import Self


class BagWriter:
    """Adds bags to a folder; use it as a context.

    A bag is entered into the table after its file is in place, so that a kill leaves only whole bags. A second writer
    of the same facts continues: ask :meth:`has` before computing features. Files of bags that were not entered are
    overwritten.

    Args:
        path: The folder; made, for its owner alone, if it is missing.
        facts: What all bags have in common; those of a folder that is there must be the same.
        layout: "safetensors", or "hdf5" in TRIDENT's layout.

    Raises:
        UserError: The folder holds other files, or bags of another encoder, tile size or spacing.
    """

    def __init__(self, path: Path, facts: BagFacts, *, layout: Layout = "safetensors") -> None:
        self.path, self.facts, self.layout = Path(path), facts, layout
        if layout not in ENDINGS:
            message = f"layout {layout!r}"
            raise UserError(message, key="layout", expected=" or ".join(ENDINGS))
        if is_bags(self.path):
            refuse_other_facts(self.path, read_facts(self.path), facts)
        else:
            if self.path.exists() and any(entry.name not in (FOLDER, TABLE) for entry in self.path.iterdir()):
                message = f"{self.path} is a folder with other files: give an empty or a new one for the bags"
                raise UserError(message, key="out")
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        (self.path / FOLDER).mkdir(mode=0o700, exist_ok=True)
        self.connection: sqlite3.Connection = connect(self.path)
        if not is_bags(self.path):
            write_facts(self.path, facts)
        self.records = {record.scan_id: record for record in read_records(self.path)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def has(self, scan_id: str) -> bool:
        """Whether the bag of a slide is finished."""
        record = self.records.get(scan_id)
        return record is not None and (self.path / FOLDER / record.file).is_file()

    def describe(self, record: BagRecord) -> None:
        """Brings subject, split and labels of a finished bag up to date; its features stay."""
        former = self.records[record.scan_id]
        now = dataclasses.replace(record, file=former.file, tiles=former.tiles, content=former.content)
        if now != former:
            insert(self.connection, now)
            self.records[record.scan_id] = now

    def write(self, record: BagRecord, bag: Bag) -> None:
        """Writes a bag and enters it.

        Args:
            record: Which slide, whose, in which split, with which labels.
            bag: Its tiles.

        Raises:
            FormatError: The bag cannot be used (``files.checked``), or its coordinates have another unit.
            UserError: The disk refuses the file.
        """
        bag = checked(bag, f"bag {record.scan_id}", self.facts.features)
        if bag.unit != self.facts.unit:
            message = f"bag {record.scan_id}: coordinates in {bag.unit}, the other bags have {self.facts.unit}"
            raise FormatError(message)
        name = f"{record.scan_id}{ENDINGS[self.layout]}"
        facts = {"encoder": self.facts.encoder.name or self.facts.encoder.digest, **bag.facts}
        facts |= {key: value for key in ("tile_px", "spacing_mm") if (value := getattr(self.facts, key)) is not None}
        bag = dataclasses.replace(bag, facts=facts)
        atomic_write(self.path / FOLDER / name, lambda file: write_bag_file(file, bag, self.layout))
        whole = dataclasses.replace(record, file=name, tiles=len(bag), content=content_of(bag))
        insert(self.connection, whole)
        self.records[record.scan_id] = whole


def write_bag(path: Path, facts: BagFacts, record: BagRecord, bag: Bag, *, layout: Layout = "safetensors") -> None:
    """Adds one bag to a folder (``BagWriter.write``)."""
    with BagWriter(path, facts, layout=layout) as writer:
        writer.write(record, bag)


def refuse_other_facts(path: Path, there: BagFacts, facts: BagFacts) -> None:
    """Refuses to mix bags that were made in different ways.

    Raises:
        UserError: Names what differs.
    """
    if there.encoder.digest != facts.encoder.digest:
        message = f"{path} holds features of another encoder ({there.encoder.name or there.encoder.digest})"
        got = facts.encoder.name or facts.encoder.digest
        raise UserError(message, key="out", got=got, hint="Choose another folder for these bags")
    names = ("features", "tile_px", "spacing_mm", "unit")
    differing = [
        f"{name} {getattr(there, name)} there, {getattr(facts, name)} here"
        for name in names
        if getattr(there, name) != getattr(facts, name)
    ]
    if differing:
        message = f"{path} holds bags that were made in another way: {'; '.join(differing)}"
        raise UserError(message, key="out", hint="Choose another folder for these bags")
