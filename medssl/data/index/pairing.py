"""Which files of a data set are masks of which of its images, by the rules of its labels."""

from __future__ import annotations

import json
import os.path
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from medssl.data.formats import masks
from medssl.data.formats.base import make_grid
from medssl.data.index.label_sources import MaskOptions, PathRule
from medssl.types import Grid, UserError

_TURNED = "as its tag Orientation says"  # in the notes of pictures
_SHOWN = 3  # paths that a message names
MASKS = {"mask": "mask", "excluded": "mask of excluded voxels"}


@dataclass(frozen=True)
class Mask:
    """A mask of an image: the rule that led to it, the digest of its files, and these (file, frame) in order.

    ``classes`` holds the value of each part where these are segments (``frame``) of DICOM objects.
    """

    rule: PathRule
    digest: str
    parts: tuple[tuple[int, int | None], ...]
    classes: tuple[int, ...] = ()


@dataclass
class Pairing:
    """Finds masks, and counts for each rule how many images have one.

    Attributes:
        connection: The index.
        prefix: Folder of the data set below the root of the index.
        options: Rules of the masks.
        matched: Images with a file where their mask should be, by role; "usable ROLE": that can be used.
        tried: The first paths that had no mask, with the paths where it was looked for, by role.
    """

    connection: sqlite3.Connection
    prefix: str
    options: MaskOptions
    matched: Counter[str] = field(default_factory=Counter)
    tried: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)

    def masks(self, path: str, row: sqlite3.Row, given: Mapping[str, str]) -> tuple[list[Mask], str]:
        """The masks of the image at ``path``.

        Args:
            path: Below the folder of the data set.
            row: The scan, with the ``frame`` of its file.
            given: Path of the mask by role, where a manifest names it.

        Returns:
            The masks, and why the scan cannot be used with one of them (nothing where it can).
        """
        masks, problem = [], ""
        for rule in self.options.rules(given):
            wanted = [given[rule.role]] if rule.role in given else rule.masks_of(path)
            at, rows = self._first(wanted)
            if not rows:
                self._miss(rule.role, path, wanted)
                self.matched[f"lost {rule.role}"] += rule.role in given
                continue
            self.matched[rule.role] += 1
            mask, unusable = self._usable(rule, at, row, rows)
            problem = problem or unusable
            if mask is not None:
                masks.append(mask)
                self.matched[f"usable {rule.role}"] += 1
        return masks, problem

    def channels(self, row: sqlite3.Row, paths: Sequence[str]) -> tuple[list[sqlite3.Row], str]:
        """The scans of further files that are channels of a scan, or why it cannot have them."""
        channels = []
        for path in paths:
            name, rows = PurePosixPath(path).name, self._scans(path)
            if not rows or rows[0]["scan_id"] is None or json.loads(rows[0]["found"])["status"] != "ok":
                return [], f"channel missing: {name} {rows[0]['reason'] if rows else 'does not exist'}".rstrip()
            match = masks.compare(_grid(row), _grid(rows[0]))
            if match.problem:
                return [], f"channel {match.problem.format(name=name)}"
            channels.append(rows[0])
        return channels, ""

    def belongs(self, path: str) -> tuple[str, str] | None:
        """Status of a file that is not a scan: a mask, or a mask whose image is missing; None for all others."""
        missing = None
        for rule in self.options.rules():
            images = rule.images_of(path)
            for image in images:
                if self._scans(image) and self._first(rule.masks_of(image))[0] == path:
                    return "label", ""
            if images and not rule.names_image(path):
                missing = missing or ("rejected", f"{rule.noun} without an image")
        return missing

    def failure(self) -> UserError | None:
        """The error of a rule ``label.masks`` that leads to no file at all. Masks of excluded voxels may come later."""
        for rule in self.options.rules():
            if rule.role != "mask" or self.matched[rule.role] or not (self.paths or rule.role in self.tried):
                continue
            tried = self.tried.get(rule.role, [])
            if tried:
                shown = ", ".join(f"{mask} for {image}" for image, mask in tried[:_SHOWN])
                return UserError(f"leads to no file: tried {shown}", key=rule.option, got=rule.text)
            left = " or ".join(repr(left) for left, _ in rule.pairs())
            message = f"fits no path: {left} is not in {', '.join(self.paths[:_SHOWN])}"
            return UserError(message, key=rule.option, got=rule.text)
        return None

    def notes(self, scans: int) -> list[str]:
        """What the user should know about the masks of ``scans`` images, with counts and a first example."""
        notes, roles = [], [rule.role for rule in self.options.rules()]
        for role in roles:
            lost = scans - self.matched[f"usable {role}"]
            end = ": none of their voxels is excluded" if role == "excluded" else ""
            tried = self.tried.get(role, [])
            first = f" (first: {tried[0][0]}, tried {tried[0][1]})" if tried else ""
            if lost:
                notes.append(f"{lost:,} scans have no usable {MASKS[role]}{end}{first}")
        for given, noun in MASKS.items():
            if given not in roles and (lost := self.matched[f"lost {given}"]):
                image, mask = self.tried[given][0]
                notes.append(f"{lost:,} files named as {noun} do not exist (first: {mask} for {image})")
        if turned := sum(self.matched[f"turned {role}"] for role in MASKS):
            notes.append(f"{turned:,} masks have other axes than their images and are turned to them")
        if upright := sum(self.matched[f"upright {role}"] for role in MASKS):
            notes.append(
                f"{upright:,} pictures are turned as their tag Orientation says, their masks have no such tag: "
                "they are taken as drawn on the turned picture; look at some of them"
            )
        if trusted := sum(self.matched[f"trusted {role}"] for role in MASKS):
            notes.append(
                f"{trusted:,} masks have another position in their headers and are used voxel by voxel (label.grid "
                "trust): mirrored masks are not detected"
            )
        return notes

    def _miss(self, role: str, path: str, wanted: Sequence[str]) -> None:
        if wanted:
            tried = self.tried.setdefault(role, [])
            if len(tried) < _SHOWN:
                tried.append((path, wanted[0]))
        if len(self.paths) < _SHOWN:
            self.paths.append(path)

    def _first(self, paths: Sequence[str]) -> tuple[str, list[sqlite3.Row]]:
        """The first of ``paths`` where there is a file, and the scans that it makes."""
        for path in paths:
            if rows := self._scans(path):
                return path, rows
        return "", []

    def _scans(self, path: str) -> list[sqlite3.Row]:
        """The file at ``path`` below the data set, once for each scan that it is part of."""
        query = """
            SELECT files.id AS file, files.path, files.state AS state, parts.frame, scans.* FROM files
            LEFT JOIN parts ON parts.file = files.id AND parts.role = 'image'
            LEFT JOIN scans ON scans.scan_id = parts.scan_id WHERE files.path = ? GROUP BY scans.scan_id
        """
        return self.connection.execute(query, (os.path.normpath(f"{self.prefix}/{path}"),)).fetchall()

    def _usable(
        self, rule: PathRule, path: str, row: sqlite3.Row, rows: Sequence[sqlite3.Row]
    ) -> tuple[Mask | None, str]:
        """The mask for a scan, or why it cannot be used."""
        name = PurePosixPath(path).name
        frame, volumes = (row["frame"], row["volumes"]) if row["state"] == "scan" else (None, 1)
        if (frame is None) != (rows[0]["frame"] is None) and rows[0]["state"] == "scan":
            return None, f"{rule.noun} with another number of volumes: {name} has {len(rows)}, its image {volumes}"
        frames = [one for one in rows if frame is not None and one["frame"] == frame]
        mask = frames[0] if frames else rows[0]
        if mask["scan_id"] is None or json.loads(mask["found"])["status"] != "ok":
            return None, f"{rule.noun} unusable: {name} {mask['reason'] or 'is no image'}"
        if frame is not None and mask["volumes"] != volumes:
            count = mask["volumes"]
            return None, f"{rule.noun} with another number of volumes: {name} has {count}, its image {volumes}"
        if mask["kind"] == "volume" and (count := of_files(mask, "channels")) > 1:
            return None, f"{rule.noun} with several channels: {name} has {count}, expected one"
        match = masks.compare(_grid(row), _grid(mask), trust=self.options.grid == "trust")
        if match.problem:
            return None, f"{rule.noun} {match.problem.format(name=name)}"
        if mask["kind"] == "image" and self._runs_otherwise(row, mask):
            return None, f"{rule.noun} on another grid: {name} is one slice that lies otherwise than its image: turn it"
        if match.reorientation.changes_array and mask["state"] == "slice":
            return None, f"{rule.noun} on another grid: {name} is DICOM with other axes than its image: convert it"
        self.matched[f"trusted {rule.role}"] += (
            bool(match.note) and match.reorientation.offset_voxels > masks.SAME_VOXELS
        )
        self.matched[f"turned {rule.role}"] += match.reorientation.changes_array
        self.matched[f"upright {rule.role}"] += _TURNED in row["reason"] and _TURNED not in mask["reason"]
        query = "SELECT file, frame FROM parts WHERE scan_id = ? AND role = 'image' ORDER BY number"
        parts = tuple((part["file"], part["frame"]) for part in self.connection.execute(query, (mask["scan_id"],)))
        return Mask(rule, of_files(mask, "digest"), parts), ""

    def _runs_otherwise(self, row: sqlite3.Row, mask: sqlite3.Row) -> bool:
        """Whether two files of one slice with an affine (NIfTI) differ in it: mirrored pictures look like any other."""
        query = "SELECT json_extract(header, '$.details.plane') FROM files WHERE path = ? AND state = 'scan'"
        planes = [self.connection.execute(query, (one["path"],)).fetchone() for one in (row, mask)]
        if not all(plane and plane[0] for plane in planes) or self.options.grid == "trust":
            return False
        shape = (row["size_j"], row["size_i"], 1)
        image, other = (make_grid(shape, np.array(json.loads(plane[0]))) for plane in planes)
        match = masks.compare(image, other)
        return bool(match.problem) or match.reorientation.changes_array


def of_files(row: sqlite3.Row, name: str) -> Any:
    """What a scan is by its files alone ("digest", "channels"), whatever rules have made of its row."""
    facts: dict[str, Any] = json.loads(row["found"])
    return facts["digest"] if name == "digest" else facts.get("base", row)[name]


def _grid(row: sqlite3.Row) -> Grid:
    """Grid of a row of ``scans``."""
    axes = [axis for axis in "ijk" if row[f"size_{axis}"] is not None]
    affine = tuple(tuple(float(value) for value in line) for line in json.loads(row["affine"]))
    return Grid(tuple(row[f"size_{axis}"] for axis in axes), tuple(row[f"spacing_{axis}_mm"] for axis in axes), affine)
