"""The verb ``bags``: features that other programs computed become a folder of bags."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medssl.data.bags.foreign import BagTable, bags_from_files, names_file
from medssl.data.index.pseudonyms import load_key
from medssl.io.permissions import owner_only

log = logging.getLogger(__name__)

_SHOWN = 10


@dataclass(frozen=True)
class BagsResult:
    """A folder of bags.

    Attributes:
        out: The folder.
        written: Bags that this call wrote.
        there: Bags that were there before.
        skipped: Name of each file that could not be read, with the reason.
        exit_code: 0; 1 where no bag could be made.
    """

    out: Path
    written: int
    there: int
    skipped: tuple[tuple[str, str], ...] = field(repr=False)
    exit_code: int = 0


@owner_only()
def bags(
    folder: Path,
    out: Path,
    *,
    table: BagTable,
    encoder: str = "",
    layout: Literal["safetensors", "hdf5"] = "safetensors",
    allow: tuple[Literal["missing"], ...] = (),
    key: Path | None = None,
) -> BagsResult:
    """Make a folder of bags from features of TRIDENT, CLAM or STAMP and a table of labels.

    The same command goes on where it was stopped. The folder names no person and no slide. Which slide an identifier
    is, stands in a file beside the folder, OUT.names.csv.

    Args:
        folder: Folder with one file of features for each slide.
        out: Folder of the bags; created if missing.
        table: Labels, subjects and splits of the slides.
        encoder: Name of the encoder that made the features, where the files do not say it.
        layout: "safetensors", or "hdf5" as TRIDENT writes it.
        allow: "missing": leave out rows of the table whose slides have no features.
        key: File of the institution's key; None takes that of the user.

    Returns:
        How many bags there are, and which files were skipped.

    Raises:
        UserError: A table that does not fit the files, a subject in two splits, or features of another encoder.
    """
    secret = load_key(key, away_from=[folder, out])
    made = bags_from_files(folder, table, out, key=secret, encoder=encoder, layout=layout, missing="missing" in allow)
    for name, reason in made.skipped[:_SHOWN]:
        log.info(f"skipped {name}: {reason}")
    if len(made.skipped) > _SHOWN:
        log.info(f"skipped {len(made.skipped) - _SHOWN} more")
    if made.single:
        log.info(f"note: {made.single} bags have one tile: look at their tissue masks")
    count = made.written + made.there
    log.info(
        f"{out}: {count} bags ({made.written} new, {made.there} already present), {len(made.skipped)} skipped; which "
        f"slide a scan_id is: {names_file(out)}"
    )
    return BagsResult(out, made.written, made.there, made.skipped, exit_code=0 if count else 1)
