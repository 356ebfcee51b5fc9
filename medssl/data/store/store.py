"""The store: every scan of an index preprocessed once, in chunks that a crop can be read from.

A folder (mode 0700) without names of people or paths: ``store.json`` (what made it), ``records.sqlite`` (what each scan
is), ``scans/`` (one blosc2 array a scan, or raw arrays) and ``packs/`` (small images, hundreds to a file). A file's
name is the digest of its scan and of Preprocess, so a changed rule or a changed source never meets an old chunk.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.store import checksums, chunks, records, slides
from medssl.data.store.coding import EXCLUDED
from medssl.data.store.contents import Contents
from medssl.data.store.naming import FORMAT, Tier, scan_file
from medssl.io.documents import read_json
from medssl.io.older_keys import with_present_keys
from medssl.types import (
    Imported,
    IntensityRule,
    IntensityRules,
    LabelSchema,
    Preprocess,
    StainRule,
    TileRule,
    TissueRule,
    UserError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medssl.data.store.tiles import Tiles


class Store(Contents):
    """A store that is open for reading (and, through ``records.connect``, for adding).

    Attributes:
        path: Its folder.
        preprocess: The rules that made it.
        requested: The rules as they were given, where a median or a collection was measured for them; else None.
        tier: "chunked" (compressed), "raw" (mapped into memory) or "slides" (read from whole slides).
        schema: Classes of the labels, or None.
        synthetic: Whether all scans are synthetic.
        records: What is in it, as arrays; a scan's number is its place there.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.preprocess = preprocess_from(description["preprocess"])
        requested = description.get("requested")  # absent where the rules were numbers from the start
        self.requested = None if requested is None else preprocess_from(requested)
        self.tier: Tier = description["tier"]
        schema = description["schema"]
        self.schema = schema and LabelSchema(schema["name"], tuple(map(tuple, schema["classes"])), schema["ignore"])
        self.index_digest: str = description["index"]
        self.synthetic: bool = description.get("synthetic", False)
        self.records = records.load(path / "records.sqlite")
        self._handles = chunks.Handles()
        self._sources = slides.Sources(path)
        self._checks = checksums.Entries(path / "records.sqlite")
        self._other_labels: dict[int, Path] = {}

    @classmethod
    def create(
        cls,
        path: Path,
        preprocess: Preprocess,
        *,
        tier: Tier = "chunked",
        schema: LabelSchema | None = None,
        index_digest: str = "",
        synthetic: bool = False,
        requested: Preprocess | None = None,
    ) -> Store:
        """Makes an empty store, or opens the one that is there if the same rules made it.

        ``requested`` are the rules as they were given, where a median or a collection was measured for them.

        Raises:
            UserError: A store of other rules or another tier is there, or a folder that is no store.
        """
        path = Path(path)
        if not (path / "store.json").exists():
            refuse_other_files(path)
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            records.connect(path / "records.sqlite").close()
        else:
            store = cls.open(path, preprocess)
            if store.tier != tier:
                message = f"the store {path} is {store.tier}, not {tier}: take another folder"
                raise UserError(message)
            synthetic = synthetic and (store.synthetic or not len(store))
            requested = requested or store.requested
        description = {
            "format": FORMAT,
            "tier": tier,
            "preprocess": dataclasses.asdict(preprocess),
            "digest": preprocess.digest(),
            "schema": schema and dataclasses.asdict(schema),
            "index": index_digest,
            **({"synthetic": True} if synthetic else {}),
            **({"requested": dataclasses.asdict(requested)} if requested is not None else {}),
        }
        chunks.write_parts(path / "store.json", [json.dumps(description, indent=1).encode()])
        return cls(path, json.loads(json.dumps(description)))

    @classmethod
    def open(cls, path: Path, preprocess: Preprocess | None = None) -> Store:
        """Opens a store; with ``preprocess`` only one that these rules made.

        Raises:
            UserError: There is no store, or other rules made it (the message names the keys that differ).
        """
        path = Path(path)
        try:
            description = with_present_keys(read_json(path / "store.json"))
        except (OSError, ValueError) as error:
            message = f"{path} is no store (no readable store.json): cache an index first"
            raise UserError(message) from error
        checksums.refuse_broken(path, "store.json")
        if description.get("format") != FORMAT:
            message = f"{path} has store format {description.get('format')}, this version reads {FORMAT}: cache again"
            raise UserError(message)
        stored_rules = preprocess_from(description["preprocess"])  # the file may give another digest
        requested = description.get("requested") and preprocess_from(description["requested"]).digest()
        if preprocess is not None and preprocess.digest() not in (stored_rules.digest(), requested):
            wanted = json.loads(json.dumps(dataclasses.asdict(preprocess)))
            keys = ", ".join(sorted(differences(description["preprocess"], wanted)))
            message = (
                f"the store {path} was made by another Preprocess ({stored_rules.digest()}, asked for "
                f"{preprocess.digest()}): {keys}; take another folder or the same rules"
            )
            raise UserError(message)
        return cls(path, description)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": chunks.Handles()}

    def read(
        self, number: int, start: tuple[int, ...], size: tuple[int, ...], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Reads a box of a scan; only the chunks that it touches are decoded.

        Args:
            number: Which scan.
            start: First voxel per stored axis; may lie outside the scan.
            size: Voxels per stored axis.
            out: Array [C, *size] in C order to write to; its dtype may be wider than the store's.

        Returns:
            Codes [C, *size]; outside the scan the code of the lowest value.

        Raises:
            UserError: The scan's bytes are damaged (the message names scan_id and file).
        """
        shape = (int(self.records.facts[number]["channels"]), *self.records.shape(number))
        if out is None:
            out = np.empty((shape[0], *size), self.dtype(number))
        self._fill(number, "", shape, start, out)
        return out

    def read_label(
        self, number: int, start: tuple[int, ...], size: tuple[int, ...], out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Reads a box [1, *size] of a scan's label; -1 outside the scan and everywhere where it has no label."""
        dtype = self.label_dtype(number)
        if out is None:
            out = np.empty((1, *size), np.int32)
        if dtype is None:
            out[...] = -1
        else:
            self._fill(number, "label", (1, *self.records.shape(number)), start, out)
        return out

    def tile_table(self, number: int) -> NDArray[np.int32]:
        """Tiles of a whole slide, [N, 3]: first row, first column, share of tissue times 65535."""
        try:
            opened = self._handles.get((number, "tiles"), lambda: self._open_table(number))
        except (checksums.DamagedError, OSError, ValueError) as error:
            checksums.mark(self.path, self.scan_id(number))
            message = f"scan {self.scan_id(number)}: its table of tiles is damaged ({error}): cache the index again"
            raise UserError(message) from error
        assert isinstance(opened, chunks.Table)
        return opened.array

    def tiles(self, number: int) -> Tiles:
        """Tiles of a whole slide with their places in pixels of level 0.

        Raises:
            UserError: The scan is no whole slide.
        """
        if self.tier != "slides":
            message = f"{self.path} holds no whole slides: its tier is {self.tier}"
            raise UserError(message)
        level0_mm = self._sources.spacing_mm(self.key(number))
        return slides.tiles_of(np.asarray(self.tile_table(number)), self.preprocess, level0_mm)

    def thumbnail(self, number: int, longest: int) -> tuple[NDArray[np.uint8], float]:
        """A whole slide as a small picture.

        Args:
            number: Which slide.
            longest: Most rows and most columns of the picture.

        Returns:
            The picture [3, h, w], and its pixels per stored pixel (at most 1).

        Raises:
            UserError: The slide cannot be read.
        """
        scale = min(1.0, longest / max(self.shape(number)))
        shape = tuple(max(1, round(n * scale)) for n in self.shape(number))
        spacing_mm = np.sqrt(np.square(self.affine(number)[:-1, :-1]).sum(0)) / scale
        try:
            reader = self._sources.reader(self.key(number))
            picture = reader.read((0, 0), (shape[0], shape[1]), (float(spacing_mm[0]), float(spacing_mm[1])))
        except (OSError, RuntimeError, ValueError) as error:
            message = f"scan {self.scan_id(number)}: its slide cannot be read: {error}"
            raise UserError(message) from error
        return picture, scale

    def scored(self, number: int, codes: NDArray[Any]) -> NDArray[np.bool_]:
        """Which voxels [1, *s] of what was read of a scan [C, *s] a loss may look at: all that are not excluded."""
        if not self.records.facts[number]["excluded"]:
            return np.ones((1, *codes.shape[1:]), bool)
        counted: NDArray[np.bool_] = codes[:1] != EXCLUDED
        return counted

    def with_labels(self, files: dict[int, Path], dtype: np.dtype[Any]) -> Store:
        """The same store in which some scans have labels from elsewhere instead of their own or none.

        Args:
            files: File of each of these scans, as ``chunks.chunked_bytes`` of [1, *s] makes it.
            dtype: Integer type of the labels.
        """
        other = copy.copy(self)
        facts = self.records.facts.copy()
        facts["label"][list(files)] = records.LABELS[dtype.name]
        other.records = dataclasses.replace(self.records, facts=facts)
        other._handles, other._other_labels = chunks.Handles(), self._other_labels | files
        return other

    def file(self, number: int, part: str = "") -> Path:
        """File that holds a scan (``part`` "label": its label)."""
        fact = self.records.facts[number]
        if part and number in self._other_labels:
            return self._other_labels[number]
        if fact["nbytes"]:
            return self.path / "packs" / str(self.records.tables["pack"][fact["pack"]])
        return scan_file(self.path, self.records.key[number].decode(), part, self.tier)

    def _fill(self, number: int, part: str, shape: tuple[int, ...], start: tuple[int, ...], out: NDArray[Any]) -> None:
        dtype = self.label_dtype(number) if part else self.dtype(number)
        low = tuple(max(0, a) for a in start)
        high = tuple(min(n, a + k) for a, k, n in zip(start, out.shape[1:], shape[1:], strict=True))
        inside = all(a == b for a, b in zip(low, start, strict=True)) and out.shape[1:] == tuple(
            b - a for a, b in zip(low, high, strict=True)
        )
        if inside and out.dtype == dtype and out.flags.c_contiguous:
            self._decode(number, part, (shape, dtype), ((0, *low), (shape[0], *high)), out)
            return
        if not inside:
            out[...] = -1 if part else self.records.fill(number).reshape(-1, *([1] * len(start)))
        if all(b > a for a, b in zip(low, high, strict=True)):
            box = np.empty((shape[0], *(b - a for a, b in zip(low, high, strict=True))), dtype)
            self._decode(number, part, (shape, dtype), ((0, *low), (shape[0], *high)), box)
            out[(slice(None), *(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True)))] = box

    def _decode(
        self,
        number: int,
        part: str,
        like: tuple[tuple[int, ...], Any],
        box: tuple[tuple[int, ...], tuple[int, ...]],
        out: NDArray[Any],
    ) -> None:
        try:
            self._handles.get((number, part), lambda: self._open(number, part, like)).read(*box, out)
        except checksums.DamagedError as error:
            checksums.mark(self.path, self.scan_id(number))
            message = (
                f"scan {self.scan_id(number)}: its stored voxels are damaged ({error}): cache the index again with "
                "the same index and store, which stores it anew"
            )
            raise UserError(message) from error
        except (OSError, RuntimeError, ValueError) as error:
            if self.tier == "slides":
                message = f"scan {self.scan_id(number)}: its slide cannot be read: {error}"
                raise UserError(message) from error
            message = (
                f"scan {self.scan_id(number)}: its stored voxels cannot be read ({error}); "
                f"delete {self.file(number, part).name} from the store and cache the index again"
            )
            raise UserError(message) from error

    def _open_table(self, number: int) -> chunks.Table:
        return chunks.open_table(self.file(number), self._checks.of(self.scan_id(number), ""))

    def _open(self, number: int, part: str, like: tuple[tuple[int, ...], Any]) -> chunks.Opened:
        path, fact = self.file(number, part), self.records.facts[number]
        if part and number in self._other_labels:
            return chunks.open_chunked(path)
        if self.tier == "slides":
            spacing_mm = np.sqrt(np.square(self.affine(number)[:-1, :-1]).sum(0))
            return slides.StoredSlide(self._sources.reader(self.key(number)), (spacing_mm[0], spacing_mm[1]))
        known = self._checks.of(self.scan_id(number), part)
        if fact["nbytes"]:
            prefix = "label_" if part else ""
            return chunks.open_packed(path, (int(fact[f"{prefix}first"]), int(fact[f"{prefix}nbytes"])), like, known)
        return chunks.open_chunked(path, known) if self.tier == "chunked" else chunks.open_raw(path, known)


def refuse_other_files(path: Path) -> None:
    """Refuses a folder that holds other files than a store that was begun.

    Raises:
        UserError: Names the folder.
    """
    known = {records.TABLE, *(("scans", "packs") if (path / records.TABLE).exists() else ())}
    if path.is_dir() and any(not p.name.startswith(".") for p in path.iterdir() if p.name not in known):
        message = f"{path} is a folder with other files: give an empty or a new one for the store"
        raise UserError(message)


def preprocess_from(data: dict[str, Any]) -> Preprocess:
    """Returns the Preprocess that ``dataclasses.asdict`` and JSON made a dictionary of."""
    data = dict(data)
    rules = {domain: IntensityRule(**rule) for domain, rule in data.pop("intensity").items()}
    steps = tuple(Imported(**step) for step in data.pop("transforms"))
    for name in ("spacing_mm", "image_size"):
        data[name] = tuple(data[name]) if isinstance(data[name], list | tuple) else data[name]
    stain = data.pop("stain", {})  # an older store does not say
    stain = StainRule(**stain | {"reference": stain.get("reference") and tuple(stain["reference"])})
    data["domains"] = tuple(data.get("domains", ()))  # an older store does not say
    data |= {"tissue": TissueRule(**data.get("tissue", {})), "tiles": TileRule(**data.get("tiles", {}))}
    return Preprocess(**data, intensity=IntensityRules(**rules), transforms=steps, stain=stain)


def differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """Names of the keys in which two nested dictionaries differ, each with both values."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted(stored.keys() | wanted.keys())
        return [x for k in keys for x in differences(stored.get(k), wanted.get(k), f"{name}.{k}".strip("."))]
    return [] if stored == wanted else [f"{name} {stored} -> {wanted}"]
