"""Predictions as files that other programs read: NIfTI and PNG label maps, names of classes, a table."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.io.atomic_write import atomic_write
from medssl.io.csv_text import as_csv
from medssl.metrics.scoring import scoring_of
from medssl.reporting.overlay import color_of
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from jaxtyping import Int
    from numpy.typing import NDArray

    from medssl.types import LabelSchema

COMMENT = 6  # NIfTI's code of an extension that holds text
SCANNER = 1  # NIfTI's code of coordinates as the scanner gives them


def write_nifti(path: Path, labels: Int[np.ndarray, "i j k"], affine: NDArray[np.float64], schema: LabelSchema) -> None:
    """Writes a label map as ``.nii.gz`` (NIfTI-1, 2003): qform and sform, millimeters, intent "label".

    The names of the classes stand in the header as JSON (an extension of code 6, a comment). The compressed stream
    holds neither a name nor a time, so equal label maps give equal files.
    """
    import nibabel

    image = nibabel.Nifti1Image(labels, affine)
    header = image.header
    image.set_qform(affine, SCANNER)
    image.set_sform(affine, SCANNER)
    header.set_xyzt_units("mm")
    header.set_intent("label", name=schema.name[:15])
    header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, json.dumps(_named(schema)).encode()))

    def write(file: Any) -> None:
        with gzip.GzipFile("", "wb", compresslevel=3, fileobj=file, mtime=0) as stream:
            image.to_stream(stream)

    atomic_write(path, write)


def write_picture(path: Path, labels: Int[np.ndarray, "H W"]) -> None:
    """Writes a label map as a gray PNG of 8 bits, 16 where needed; a pixel is the stored value of its class.

    Raises:
        UserError: Values that a PNG cannot hold.
    """
    from PIL import Image

    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= 65535:
        message = f"classes have values from {labels.min()} to {labels.max()}: a PNG holds 0 to 65535"
        raise UserError(message)
    picture = Image.fromarray(labels.astype(np.uint8 if int(labels.max(initial=0)) < 256 else np.uint16))
    atomic_write(path, lambda file: picture.save(file, format="PNG"))


def write_classes(folder: Path, schema: LabelSchema) -> None:
    """Writes ``classes.json``, and ``classes.txt`` in the form of ITK-SNAP's label descriptions."""
    text = json.dumps(_named(schema), indent=1) + "\n"
    atomic_write(folder / "classes.json", lambda file: file.write(text.encode()))
    lines = ["# IDX R G B A VIS MSH LABEL"]
    for place, (value, name) in enumerate(schema.classes):
        color = " ".join(map(str, color_of(schema, value))) if place else "0 0 0"
        shown = "1 1 1" if place else "0 0 0"
        lines.append(f'{value} {color} {shown} "{name.replace(chr(34), chr(39))}"')
    table = "\n".join(lines) + "\n"
    atomic_write(folder / "classes.txt", lambda file: file.write(table.encode()))


def write_answers(path: Path, rows: Iterable[tuple[str, Sequence[float]]], schema: LabelSchema, *, first: str) -> None:
    """Writes a table: who (the column ``first``), then what is answered.

    Of classes the one of the highest probability, and a probability for each; of findings a probability for each; of a
    number the number, in a column of its name.
    """
    scoring = scoring_of(schema)
    table: list[list[object]] = [[first, *scoring.columns(schema)]]
    table += [[name, *scoring.cells(prediction, schema)] for name, prediction in rows]
    atomic_write(path, lambda file: file.write(as_csv(table).encode()))


def _named(schema: LabelSchema) -> dict[str, Any]:
    return {"label": schema.name, "classes": [{"value": value, "name": name} for value, name in schema.classes]}
