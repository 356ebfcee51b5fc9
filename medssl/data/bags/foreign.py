"""Features that other programs computed become a folder of bags, with labels and subjects from a table.

Names of slides and subjects become keyed digests. Which slide a digest is stands in a file beside the folder, which
stays with the institution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.bags.description import BagFacts, BagRecord, encoder_of_name
from medssl.data.bags.files import SUFFIXES, Bag, Layout, read_bag
from medssl.data.bags.writer import BagWriter
from medssl.data.formats.base import FormatError
from medssl.data.index.label_sources import LabelOptions, names_of, read_table
from medssl.data.index.pseudonyms import SubjectRule, named_digest
from medssl.data.split import parse_shares, split_of
from medssl.io.atomic_write import atomic_write
from medssl.io.csv_text import as_csv
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SHARES = "train=0.6,val=0.2,test=0.2"
COLUMN = "column:"
LISTED = 3  # names in a message


@dataclass(frozen=True)
class BagTable:
    """Where labels, subjects and splits of slides stand.

    Attributes:
        file: CSV or TSV file with a row for each slide.
        slide: Column that names the files, with or without their ending.
        values: Columns with labels, with commas. Other columns are not read.
        subject: Subject of a slide: "column:NAME", or a regular expression with one group that is searched in the name
            of the file. Slides of one subject are in one split.
        split: Split of a subject: "column:NAME", or shares such as train=0.6,val=0.2,test=0.2.
    """

    file: Path
    values: str
    slide: str = "slide_id"
    subject: str = "column:case_id"
    split: str = SHARES


@dataclass(frozen=True)
class Slide:
    """One file of features: its name, the file, its row of the table, and its subject."""

    name: str
    file: Path
    row: Mapping[str, str]
    subject: str


@dataclass(frozen=True)
class ImportedBags:
    """What became of files of features.

    Attributes:
        written: Bags that this call wrote.
        there: Bags that were there before.
        skipped: Name of each file that could not be read, with the reason.
        single: Bags of one tile.
    """

    written: int
    there: int
    skipped: tuple[tuple[str, str], ...]
    single: int = 0


def bags_from_files(
    folder: Path,
    table: BagTable,
    out: Path,
    *,
    key: bytes,
    encoder: str = "",
    layout: Layout = "safetensors",
    missing: bool = False,
) -> ImportedBags:
    """Makes a folder of bags from files of TRIDENT, CLAM, STAMP, or safetensors; continues where it was stopped.

    Args:
        folder: Holds one file of features a slide, in any depth.
        table: Labels, subjects and splits.
        out: Folder of the bags.
        key: The institution's key.
        encoder: Name of the encoder; "" takes what the files say.
        layout: Of the bags that are written.
        missing: Whether slides of the table may have no file.

    Raises:
        UserError: No file, a table that does not fit, a subject in two splits, or files of several encoders.
    """
    slides = slides_of(folder, table, missing=missing)
    splits = splits_of(slides, table, key)
    facts = facts_of(slides, encoder)
    written = there = 0
    skipped: list[tuple[str, str]] = []
    keep = columns_of(table)
    with BagWriter(out, facts, layout=layout) as writer:
        for slide in slides:
            record = BagRecord(
                named_digest(key, "bags", slide.name),
                named_digest(key, "bags", f"subject {slide.subject}"),
                splits[slide.subject],
                {name: slide.row[name] for name in keep if slide.row.get(name)},
                known=bool(slide.subject),
            )
            if writer.has(record.scan_id):
                writer.describe(record)
                there += 1
                continue
            try:
                bag = read_bag(slide.file, slide.name, facts.features)
                refuse_other_encoder(bag, slide.name, facts, encoder)
                writer.write(record, replace(bag, facts=without_names(bag)))
            except FormatError as error:
                skipped.append((slide.name, str(error)))
                continue
            written += 1
        single = sum(record.tiles == 1 for record in writer.records.values())
    write_names(out, slides, key)
    return ImportedBags(written, there, tuple(skipped), single)


def slides_of(folder: Path, table: BagTable, *, missing: bool) -> list[Slide]:
    """The files of features that the table has a row for, in the order of their names.

    Raises:
        UserError: No file, no row for any file, two files of one name, or rows without a file.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not files:
        message = f"there is no file of features ({', '.join(SUFFIXES)})"
        raise UserError(message, key="folder", got=str(folder))
    rule = SubjectRule(table.subject)
    also = [name.removeprefix(COLUMN) for name in (table.subject, table.split) if name.startswith(COLUMN)]
    options = LabelOptions(values=str(table.file), key=table.slide, columns=table.values)
    rows = read_table(options, also=also).rows
    slides: dict[str, Slide] = {}
    for file in files:
        name = next((name for name in names_of(file.name)[::-1] if name in rows), "")
        if not name:
            continue
        if name in slides:
            message = f"two files have the name {name!r}: {slides[name].file.name} and {file.name}"
            raise UserError(message, key="folder", hint="Give one folder of features of one encoder")
        subject = rows[name].get(rule.column, "") if rule.column else rule.name_in(file.name)
        slides[name] = Slide(name, file, rows[name], subject or f"slide {name}")
    if not slides:
        message = f"none of the {len(files)} files has a row in {table.file.name} (first: {files[0].name})"
        raise UserError(message, key="table.slide", got=table.slide, hint="Name the column that names the files")
    refuse_missing(sorted(rows.keys() - slides.keys()), len(rows), table, missing=missing)
    return [slides[name] for name in sorted(slides)]


def refuse_missing(names: Sequence[str], count: int, table: BagTable, *, missing: bool) -> None:
    """Refuses a table that names slides without features.

    Raises:
        UserError: Counts them and names the first.
    """
    if names and not missing:
        message = f"{len(names)} of {count} rows of {table.file.name} name slides that are not there "
        message += f"(first: {', '.join(names[:LISTED])})"
        hint = "Compute their features, remove the rows, or set allow to missing"
        raise UserError(message, key="table.file", hint=hint)


def splits_of(slides: Iterable[Slide], table: BagTable, key: bytes) -> dict[str, str]:
    """Split of each subject.

    Raises:
        UserError: The table puts slides of one subject into two splits.
    """
    column = table.split.removeprefix(COLUMN) if table.split.startswith(COLUMN) else ""
    if not column:
        shares = parse_shares(table.split)
        names = {slide.subject for slide in slides}
        return {name: split_of(named_digest(key, "bags", f"subject {name}"), shares) for name in names}
    found: dict[str, set[str]] = {}
    for slide in slides:
        found.setdefault(slide.subject, set()).add(slide.row[column])
    shared = [(name, sorted(splits)) for name, splits in sorted(found.items()) if len(splits) > 1]
    if shared:
        name, splits = shared[0]
        message = f"{len(shared)} of {len(found)} subjects have slides in two splits (first: {name!r} in "
        message += f"{' and '.join(map(repr, splits))})"
        hint = "Give all slides of a subject one split"
        raise UserError(message, key="table.split", got=table.split, hint=hint)
    return {name: next(iter(splits)) for name, splits in found.items()}


def facts_of(slides: Sequence[Slide], encoder: str) -> BagFacts:
    """What all bags have in common, by the first file that can be read.

    Raises:
        UserError: None can be read, or nothing names the encoder.
    """
    reasons = []
    for slide in slides:
        try:
            bag = read_bag(slide.file, slide.name)
        except FormatError as error:
            reasons.append(str(error))
            continue
        name = encoder or str(bag.facts.get("encoder", ""))
        if not name:
            message = "the files do not name the encoder that made the features"
            raise UserError(message, key="encoder", expected="a name, such as uni")
        tile, spacing = bag.facts.get("tile_px"), bag.facts.get("spacing_mm")
        return BagFacts(
            encoder_of_name(name),
            bag.features.shape[1],
            None if tile is None else int(tile),
            None if spacing is None else float(spacing),
            bag.unit,
        )
    message = f"none of the {len(slides)} files can be read (first: {reasons[0]})"
    raise UserError(message, key="folder")


def refuse_other_encoder(bag: Bag, name: str, facts: BagFacts, encoder: str) -> None:
    """Refuses a file that names another encoder or tile size than the first.

    Raises:
        FormatError: Names both.
    """
    stated = str(bag.facts.get("encoder", ""))
    if stated and not encoder and stated != facts.encoder.name:
        message = f"{name}: features of another encoder ({stated}; the first file has {facts.encoder.name})"
        raise FormatError(message)
    tile = bag.facts.get("tile_px")
    if tile is not None and facts.tile_px is not None and int(tile) != facts.tile_px:
        message = f"{name}: tiles of {tile} pixels, the first file has {facts.tile_px}"
        raise FormatError(message)


def without_names(bag: Bag) -> dict[str, object]:
    """Facts of a bag that name neither slide nor path."""
    known = ("tile_px", "spacing_mm", "level0_size", "tile_level0")
    return {name: bag.facts[name] for name in known if name in bag.facts}


def columns_of(table: BagTable) -> tuple[str, ...]:
    """Columns with labels."""
    return tuple(name.strip() for name in table.values.split(",") if name.strip())


def names_file(out: Path) -> Path:
    """The file beside a folder of bags that says which slide a digest is."""
    return out.with_name(f"{out.name}.names.csv")


def write_names(out: Path, slides: Iterable[Slide], key: bytes) -> None:
    """Writes which slide a digest is, for the owner alone."""
    rows: list[tuple[object, ...]] = [("scan_id", "slide")]
    rows += [(named_digest(key, "bags", slide.name), slide.name) for slide in slides]
    file = names_file(out)
    atomic_write(file, lambda stream: stream.write(as_csv(rows).encode()))
    file.chmod(0o600)
