"""What a folder of bags says of itself: ``bags.json`` and the table of its bags.

The folder (mode 0700) names no person and no path: slides and subjects are keyed digests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medssl.io.atomic_write import atomic_write
from medssl.io.documents import read_json
from medssl.io.sqlite import refuse_programs
from medssl.types import UserError
from medssl.types.provenance import Provenance, facts_of_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from medssl.types import CoordinateUnit

DESCRIPTION, TABLE, FOLDER = "bags.json", "records.sqlite", "bags"
FORMAT = 1
COLUMNS = ("scan_id", "subject_id", "split", "scores", "file", "tiles", "content", "known")
CREATE = f"CREATE TABLE IF NOT EXISTS bags ({', '.join(COLUMNS)}, PRIMARY KEY (scan_id)) WITHOUT ROWID"


@dataclass(frozen=True)
class BagEncoder:
    """Which encoder made the features, and whom it was trained on.

    Attributes:
        digest: Digest of its weights; of other programs that of its name.
        name: What it is called.
        subjects: Subjects that it was trained on.
        card: Its model card as plain data; None where it has none.
    """

    digest: str
    name: str = ""
    subjects: Provenance = field(default_factory=lambda: Provenance(complete=False))
    card: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class BagFacts:
    """What all bags of a folder have in common.

    Attributes:
        encoder: What made the features.
        features: Number of features of a tile.
        tile_px: Pixels of a tile per axis; None where that is not known.
        spacing_mm: Spacing of the tiles in mm; None where that is not known.
        unit: Unit of the coordinates: "level0", "um" or "slice".
        index_digest: Digest of the index of the slides; "" where there is none.
        synthetic: Whether all slides are synthetic.
    """

    encoder: BagEncoder
    features: int
    tile_px: int | None = None
    spacing_mm: float | None = None
    unit: CoordinateUnit = "level0"
    index_digest: str = ""
    synthetic: bool = False


@dataclass(frozen=True)
class BagRecord:
    """One bag of the table.

    Attributes:
        scan_id: Keyed digest of the slide.
        subject_id: Keyed digest of the subject.
        split: Split of the subject.
        values: Labels of the whole slide by name.
        known: Whether the subject is known; else the slide stands for its subject.
        file: Name of the file of the bag.
        tiles: How many tiles it has.
        content: Digest of the bytes of its features and coordinates.
    """

    scan_id: str
    subject_id: str
    split: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    known: bool = True
    file: str = ""
    tiles: int = 0
    content: str = ""


def is_bags(path: Path) -> bool:
    """Whether a path is a folder of bags."""
    return (path / DESCRIPTION).is_file()


def encoder_of_name(name: str) -> BagEncoder:
    """An encoder of which only the name is known."""
    return BagEncoder(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), name)


def write_facts(path: Path, facts: BagFacts) -> None:
    """Writes ``bags.json``."""
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(facts)}, indent=1) + "\n"
    atomic_write(path / DESCRIPTION, lambda file: file.write(text.encode()))


def read_facts(path: Path) -> BagFacts:
    """Reads ``bags.json``.

    Raises:
        UserError: There is none, it is damaged, or a later version wrote it.
    """
    try:
        content = read_json(path / DESCRIPTION)
        stated = content.pop("format")
        encoder = content.pop("encoder")
        subjects = Provenance(**facts_of_json(encoder.pop("subjects")))
        facts = BagFacts(BagEncoder(**encoder, subjects=_tuples(subjects)), **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} is no folder of bags (no readable {DESCRIPTION})"
        raise UserError(message, key="store", hint="Make it with the function bags, or embed slides") from error
    if stated != FORMAT:
        message = f"{path} has bags of format {stated}, this version reads {FORMAT}"
        raise UserError(message, key="store", hint="Make the bags again, or use the version that made them")
    return facts


def connect(path: Path) -> sqlite3.Connection:
    """Opens the table of bags for writing, made if it is not there."""
    connection = sqlite3.connect(path / TABLE, timeout=120)
    refuse_programs(connection, TABLE)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(CREATE)
    (path / TABLE).chmod(0o600)
    return connection


def insert(connection: sqlite3.Connection, record: BagRecord) -> None:
    """Enters a bag whose file is in its place."""
    scores = json.dumps(dict(record.values), sort_keys=True)
    row = (record.scan_id, record.subject_id, record.split, scores, record.file, record.tiles, record.content)
    with connection:
        marks = ", ".join("?" * len(COLUMNS))
        connection.execute(f"INSERT OR REPLACE INTO bags VALUES ({marks})", (*row, int(record.known)))


def read_records(path: Path) -> list[BagRecord]:
    """All bags in the order of their identifiers.

    Raises:
        UserError: The table cannot be read.
    """
    try:
        address = f"{(path / TABLE).resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=120)) as connection:
            refuse_programs(connection, TABLE)
            rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM bags ORDER BY scan_id").fetchall()
        return [
            BagRecord(scan_id, subject_id, split, json.loads(scores), bool(known), file, tiles, content)
            for scan_id, subject_id, split, scores, file, tiles, content, known in rows
        ]
    except (sqlite3.Error, ValueError) as error:
        message = f"the table {TABLE} of {path} cannot be read ({error})"
        raise UserError(message, key="store", hint="Make the bags again: finished ones are kept") from error


def _tuples(subjects: Provenance) -> Provenance:
    return Provenance(tuple(subjects.known), subjects.complete)
