"""The files of one series -> rows of the table of scans."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from medssl.data.formats.array import lay_out
from medssl.data.formats.base import FormatError
from medssl.data.formats.dicom.pixels import same_pixels
from medssl.data.formats.dicom.series.films import stacks_of_films
from medssl.data.formats.dicom.series.volumes import SeriesFiles, stacks_of
from medssl.data.formats.dicom.slices import Slice, Stack, from_json
from medssl.data.formats.modality import domain_of, normalized
from medssl.data.formats.units import in_unit, out_of_range
from medssl.data.index import slides
from medssl.data.index.neighbors import unread_beside
from medssl.data.index.pseudonyms import keyed_digest
from medssl.data.index.scan_index import Index
from medssl.types import Grid, Part, Status

_MOST_CHANNELS = 8  # of frames that are taken as channels
_ABOUT = (
    "manufacturer", "model", "field_strength_t", "slice_thickness_mm", "body_part", "sequence", "kernel",
    "echo_time_ms", "repetition_time_ms", "kvp", "sex", "age_band",
)  # fmt: skip


def regroup(index: Index, series: str, key: bytes) -> None:
    """Replace the scans of ``series`` by what its files now say; without files it has none."""
    connection = index.connection
    connection.execute("DELETE FROM parts WHERE scan_id IN (SELECT scan_id FROM scans WHERE series = ?)", (series,))
    connection.execute("DELETE FROM scans WHERE series = ?", (series,))
    query = """
        SELECT files.*, shared.text AS about FROM files LEFT JOIN shared ON shared.id = files.shared
        WHERE series = ? ORDER BY path
    """
    files = connection.execute(query, (series,)).fetchall()
    if not files:
        return
    dataset = str(files[0]["dataset"])
    folder, text = connection.execute("SELECT folder, options FROM datasets WHERE name = ?", (dataset,)).fetchone()
    options: dict[str, Any] = json.loads(text)["files"]
    base = {"dataset": dataset, "series": series, "modality": ""}
    if any(file["state"] == "level" for file in files):
        _add_slide(connection, keyed_digest(key, "scan", series, "slide"), files, base, options)
        return
    readable = [file for file in files if file["state"] == "slice" or (file["state"] == "failed" and file["about"])]
    slices = [one for file in readable for one in _slices(file)]
    known = {str(file["path"]) for file in readable}
    left_out = [
        file for file in files if file["state"] in ("rejected", "failed", "ignored") and file["path"] not in known
    ]
    by_path = {str(file["path"]): file for file in files}
    if not slices:
        for file in files:
            if file["state"] == "scan":
                below = _below(file["path"], index.root, Path(folder))
                for frame, row in _of_file(file, options):
                    words = (dataset, below) if frame is None else (dataset, below, str(frame))
                    _add(connection, keyed_digest(key, "scan", *words), row, base, [file], [frame])
        _add_left_out(connection, left_out, base, key)
        return
    lost = [(PurePath(file["path"]).name, str(file["reason"])) for file in left_out if file["state"] == "failed"]
    series_files = SeriesFiles(
        damaged={str(file["path"]): str(file["reason"]) for file in readable if file["state"] == "failed"},
        unreadable=tuple(lost),
        unassigned=partial(unread_beside, connection, dataset, sorted({one.path for one in slices})),
        as_images=options.get("slices", "volume") == "image",
        count=len(files),
    )
    stacks = _stacks(slices, index.root, options, series_files)
    for stack in stacks:
        row = _from_stack(stack)
        parts = [by_path[one.path] for one in stack.slices]
        frames = [one.frame for one in stack.slices]
        _add(connection, keyed_digest(key, "scan", series, stack.name), row, base, parts, frames)
    if any(stack.slices[0].kind == "volume" and not series_files.as_images for stack in stacks):
        left_out = [file for file in left_out if file["state"] == "rejected"]  # what is lost stands with its volumes
    _add_left_out(connection, left_out, base, key)


def _add_slide(
    connection: sqlite3.Connection,
    scan_id: str,
    files: Sequence[sqlite3.Row],
    base: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """The one row of a DICOM slide."""
    slide = slides.of_levels(files, burned_in=bool(options["burned_in"]))
    facts = json.loads(slide.files[0]["about"])
    row = {name: facts[name] for name in _ABOUT} | {"kind": "slide", "modality": facts["modality"]} | slide.columns
    row |= _file_facts(slide.status, facts["subject"], facts["study"])
    row["found"] |= slide.facts | {"reference": facts.get("reference", "")}
    _add(connection, scan_id, row, base, slide.files)


def _slices(file: sqlite3.Row) -> list[Slice]:
    return from_json(file["header"], file["about"], file["path"])


def _below(path: str, root: Path, folder: Path) -> str:
    """Path below the data set's own folder: the same wherever the folder lies."""
    return Path(path_of(root, path)).relative_to(folder).as_posix()


def path_of(root: Path, path: str) -> str:
    """Absolute path without following links."""
    import os.path

    return os.path.normpath(root / path)


def _stacks(slices: list[Slice], root: Path, options: dict[str, Any], series_files: SeriesFiles) -> list[Stack]:
    """Volumes and images of a series, and what the options of the data set leave out."""
    out = {
        "burned-in": "burned-in annotation: files.burned_in true takes it anyway",
        "capture": "secondary capture with a place in space: files.captures true takes it as a derived volume",
    }
    usable: list[Slice] = []
    left: dict[str, list[Slice]] = {}
    for one in slices:
        if one.facts["burned_in"] and not options["burned_in"]:
            left.setdefault("burned-in", []).append(one)
        elif one.facts.get("capture") and not options.get("captures"):
            left.setdefault("capture", []).append(one)
        else:
            usable.append(one)
    equal = lambda a, b: same_pixels(root, Part(a.path, a.frame), Part(b.path, b.frame))  # noqa: E731
    films = [one for one in usable if one.is_film]
    stacks = stacks_of([one for one in usable if not one.is_film], equal, series_files)
    stacks += stacks_of_films(films, options["frames"], series_files.damaged, equal)
    return stacks + [Stack(tuple(some), Status("rejected", out[name]), name=name) for name, some in left.items()]


def _of_file(file: sqlite3.Row, options: dict[str, Any]) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """Rows of a file that is a scan by itself, or of its frames where these are to be scans, each with its frame."""
    header, reasons, reading = json.loads(file["header"]), file["reason"], ""
    if header["kind"] == "slide":
        slide = slides.of_file(header, reasons)
        row = {"modality": normalized(str(options["modality"])) or slides.MODALITY} | slide.columns
        row |= _file_facts(slide.status, "", "")
        row["found"] |= slide.facts
        yield None, row
        return
    if arrays := header.get("details", {}).get("arrays"):
        try:
            laid, reading = lay_out(arrays, options.get("arrays", {}))
        except FormatError as error:
            yield None, {"kind": header["kind"]} | _file_facts(Status("rejected", str(error)), "", "")
            return
        header, reasons = asdict(laid), "; ".join(laid.notes)
    modality, domain = normalized(str(options["modality"])), header["value_domain"]
    if domain == "gray":
        domain = domain_of(modality)
    status = Status("ok", reasons)
    count, channels = header["frames"]["count"], header["channels"]
    if count > 1 and options["frames"] == "channels":
        channels *= count
    if count > 1 and (options["frames"] == "refuse" or channels > _MOST_CHANNELS):
        reason = (
            f"several frames in a file: {count} {header['frames']['noun']}; take them as scans of their own with "
            f"files.frames scans, or up to {_MOST_CHANNELS} of them as channels with files.frames channels"
        )
        status = Status("rejected", reason)
    grid = Grid(*(_tuples(header["grid"][name]) for name in ("shape", "spacing_mm", "affine")))
    grid = in_unit(header, grid, unit := options.get("length_unit", ""))
    if status.code == "ok" and (problem := out_of_range(grid, unit)):
        status = Status("rejected", problem)
    row = {"kind": header["kind"], "modality": modality, "value_domain": domain, "channels": channels}
    row |= _place(grid) | {"volume": 1, "volumes": 1} | _file_facts(status, "", "")
    if reading:
        row["found"] |= {"reading": reading}
    if count == 1 or options["frames"] != "scans":
        yield None, row
        return
    for frame in range(count):
        yield frame, row | {"volume": frame + 1, "volumes": count}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _from_stack(stack: Stack) -> dict[str, Any]:
    """Row of a stack of DICOM slices."""
    first = stack.slices[0]
    row: dict[str, Any] = {name: first.facts[name] for name in _ABOUT}
    kind = "image" if stack.grid is not None and len(stack.grid.shape) == 2 else first.kind
    row |= {"kind": kind, "modality": first.facts["modality"], "value_domain": first.value_domain}
    channels = first.shape[2] * (len(stack.slices) if kind == "image" and stack.status.code == "ok" else 1)
    row |= {"channels": channels, "volume": stack.volume[0], "volumes": stack.volume[1]}
    row |= _place(stack.grid) | _file_facts(stack.status, first.facts["subject"], first.facts["study"])
    row["found"]["reference"] = first.facts.get("reference", "")
    return row


def _place(grid: Grid | None) -> dict[str, Any]:
    if grid is None:
        return {}
    axes = "ijk"[: len(grid.shape)]
    row: dict[str, Any] = {f"size_{axis}": size for axis, size in zip(axes, grid.shape, strict=True)}
    row |= {f"spacing_{axis}_mm": step for axis, step in zip(axes, grid.spacing_mm, strict=True)}
    return row | {"affine": json.dumps(grid.affine)}


def _file_facts(status: Status, subject: str, study: str) -> dict[str, Any]:
    """What the files alone say; the rules of the data set start from it, however often they are applied."""
    facts = {"status": status.code, "reason": status.reason, "subject": subject}
    return {"status": status.code, "reason": status.reason, "subject_id": subject, "study_id": study, "found": facts}


def _add_left_out(
    connection: sqlite3.Connection, files: Sequence[sqlite3.Row], base: dict[str, Any], key: bytes
) -> None:
    """One row for each reason why files of a series are no scan; files of one reason stand together."""
    alike: dict[tuple[str, str], list[sqlite3.Row]] = {}
    for file in files:
        if file["state"] != "ignored":
            alike.setdefault((str(file["state"]), str(file["reason"])), []).append(file)
    for (state, reason), parts in sorted(alike.items(), key=lambda item: item[0]):
        row = _file_facts(Status("rejected" if state == "rejected" else "failed", reason), "", "")
        _add(connection, keyed_digest(key, "left out", base["series"], state, reason), row, base, parts)


def _add(
    connection: sqlite3.Connection,
    scan_id: str,
    row: dict[str, Any],
    base: dict[str, Any],
    files: Sequence[sqlite3.Row],
    frames: Iterable[int | None] | None = None,
) -> None:
    """Insert a scan and its parts."""
    row = base | row
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(json.dumps([file["size"], file["modified_ns"], file["header"], file["about"]]).encode())
    row |= {"scan_id": scan_id, "source_digest": digest.hexdigest(), "files": len({file["id"] for file in files})}
    if reading := row["found"].get("reading"):  # stated axes are part of what an array is
        digest.update(reading.encode())
        row["source_digest"] = digest.hexdigest()
    row["found"] = json.dumps(row["found"] | {"digest": row["source_digest"]})
    names = list(row)
    connection.execute(
        f"INSERT INTO scans ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", [row[name] for name in names]
    )
    numbered = enumerate(zip(files, frames or [None] * len(files), strict=True))
    connection.executemany(
        "INSERT INTO parts VALUES (?, 'image', ?, ?, ?)",
        [(scan_id, number, file["id"], frame) for number, (file, frame) in numbered],
    )
