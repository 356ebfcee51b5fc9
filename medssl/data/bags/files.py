"""One bag in one file: safetensors, or HDF5 as TRIDENT lays it out; files of CLAM and STAMP are read, too.

=========  =======================================  =================================================================
program    datasets                                 coordinates
=========  =======================================  =================================================================
TRIDENT    ``features`` (N, D), ``coords`` (N, 2)   level-0 pixels, x then y
CLAM       the same, without attributes             level-0 pixels, x then y
STAMP      ``feats`` (N, D), ``coords`` (N, 2)      micrometers, which the attribute ``unit`` says
=========  =======================================  =================================================================

A leading axis of length 1 is dropped. A file is checked before anything uses it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from medssl.data.formats.base import DAMAGE, FormatError
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jaxtyping import Float, Int

    from medssl.types import CoordinateUnit

Layout = Literal["safetensors", "hdf5"]
ENDINGS: dict[str, str] = {"safetensors": ".safetensors", "hdf5": ".h5"}
SUFFIXES = (".safetensors", ".h5", ".hdf5")
NAMES = ("features", "feats")  # of the features in a file
ENCODERS = ("medssl_encoder", "encoder", "extractor")  # attributes that name the encoder
TILE_SIZES = ("patch_size", "tile_size_px")  # in pixels
UNITS = {"um": "um", "level0": "level0", "slice": "slice", "px": "level0", "pixel": "level0"}
MICROMETERS = ("unit", "tile_size_um")  # attributes of files in micrometers


@dataclass(frozen=True)
class Bag:
    """Features of the tiles of one slide.

    Attributes:
        features: Float16 or float32.
        coords: Upper left corner of each tile, x and y, in ``unit``; of slices their number and 0.
        unit: "level0" (pixels of the finest level), "um" (micrometers) or "slice" (numbers of slices).
        facts: What the file says besides, such as "encoder" and "tile_px".
    """

    features: Float[np.ndarray, "N D"]
    coords: Int[np.ndarray, "N 2"]
    unit: CoordinateUnit = "level0"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)


def checked(bag: Bag, name: str, features: int | None = None) -> Bag:
    """A bag that can be used, with coordinates as whole numbers.

    Args:
        bag: Any bag.
        name: Of the bag in messages.
        features: Number of features that each tile must have; None takes any.

    Raises:
        FormatError: Shapes that do not belong together, no tile, numbers that are not finite, or another encoder's
            number of features.
    """
    values, coords = bag.features, bag.coords
    if values.ndim != 2 or values.dtype.kind != "f":
        message = (
            f"{name}: features of shape {values.shape} and type {values.dtype}: expected numbers (tiles, features)"
        )
        raise FormatError(message)
    if not len(values):
        message = f"{name}: an empty bag: the slide has no tiles. Leave it out, or look at its tissue mask"
        raise FormatError(message)
    if coords.shape != (len(values), 2):
        message = (
            f"{name}: {len(values)} rows of features, and coordinates of shape {coords.shape}: expected one x and "
        )
        message += "one y for each row of features"
        raise FormatError(message)
    if features is not None and values.shape[1] != features:
        message = (
            f"{name}: {values.shape[1]} features a tile, the other bags have {features}: another encoder made them"
        )
        raise FormatError(message)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        message = f"{name}: {bad.sum()} of {len(values)} tiles have features that are not finite (first: row "
        message += f"{int(np.argmax(bad))}). Compute them again, in single precision where half precision overflows"
        raise FormatError(message)
    if not np.isfinite(coords.astype(np.float64)).all():
        message = f"{name}: some coordinates are not finite"
        raise FormatError(message)
    refuse_outside(bag, name)
    whole = np.rint(coords.astype(np.float64)).astype(np.int64)
    kept = values if values.dtype in (np.float16, np.float32) else values.astype(np.float32)
    return Bag(np.ascontiguousarray(kept), whole, bag.unit, bag.facts)


def refuse_outside(bag: Bag, name: str) -> None:
    """Refuses coordinates beyond the slide, where the file says how large that is.

    Raises:
        FormatError: Some are: they are of another slide.
    """
    size = bag.facts.get("level0_size")
    if size is None or bag.unit != "level0":
        return
    outside = (bag.coords < 0).any(1) | (bag.coords >= np.asarray(size)).any(1)
    if outside.any():
        furthest = tuple(int(value) for value in bag.coords[outside][0])
        message = f"{name}: {outside.sum()} of {len(bag)} tiles lie outside the slide of {size[0]} x {size[1]} pixels "
        message += f"(first: x {furthest[0]}, y {furthest[1]}): the coordinates are of another slide"
        raise FormatError(message)


def read_bag(path: Path, name: str = "", features: int | None = None) -> Bag:
    """Reads and checks the bag of a file.

    Args:
        path: A safetensors or HDF5 file.
        name: Of the bag in messages; "" takes the name of the file.
        features: Number of features that each tile must have; None takes any.

    Raises:
        FormatError: The file is damaged, or holds no bag that can be used (``checked``).
    """
    name = name or path.name
    if not path.is_file():
        message = f"{name}: there is no such file"
        raise FormatError(message)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_hdf5
    try:
        bag = read(path)
    except FormatError as error:
        message = f"{name}: {error}"
        raise FormatError(message) from error
    except (UserError, MemoryError):
        raise
    except (OSError, KeyError, *DAMAGE) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120].replace(str(path), "the file")
        message = f"{name}: damaged or no file of features ({reason})"
        raise FormatError(message) from error
    return checked(bag, name, features)


def write_bag_file(file: IO[bytes], bag: Bag, layout: Layout) -> None:
    """Writes a bag into an open file; ``facts`` become attributes."""
    facts = {**bag.facts, "unit": bag.unit}
    if layout == "safetensors":
        from safetensors.numpy import save

        file.write(save({"features": bag.features, "coords": bag.coords}, {"medssl_bag": json.dumps(facts)}))
        return
    h5py = _h5py()
    with h5py.File(file, "w") as stream:
        features = stream.create_dataset(
            "features", data=bag.features, chunks=(1, bag.features.shape[1]), maxshape=(None, bag.features.shape[1])
        )
        coords = stream.create_dataset("coords", data=bag.coords, chunks=(1, 2), maxshape=(None, 2))
        for dataset in (features, coords):
            dataset.attrs.update({"name": facts.get("name", ""), "savetodir": ""})
        features.attrs["encoder"] = str(facts.get("encoder", ""))
        coords.attrs.update(_trident_attributes(facts))
        stream.attrs["medssl_bag"] = json.dumps(facts)


def _trident_attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What readers of TRIDENT's files ask for; what is not known is the text None."""
    size = facts.get("level0_size") or (None, None)
    known = {
        "patch_size": facts.get("tile_px"),
        "patch_size_level0": facts.get("tile_level0"),
        "level0_magnification": facts.get("level0_magnification"),
        "target_magnification": facts.get("magnification"),
        "overlap": facts.get("overlap", 0),
        "level0_width": size[0],
        "level0_height": size[1],
    }
    return {key: "None" if value is None else value for key, value in known.items()}


def _read_safetensors(path: Path) -> Bag:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            names = set(file.keys())
            facts = json.loads((file.metadata() or {}).get("medssl_bag", "{}"))
            key = _features_in(names)
            arrays = file.get_tensor(key), file.get_tensor("coords")
    except SafetensorError as error:
        message = f"damaged or no safetensors file ({str(error).splitlines()[0][:120]})"
        raise FormatError(message) from error
    return _laid_out(*arrays, facts)


def _read_hdf5(path: Path) -> Bag:
    with _h5py().File(path, "r", locking=False) as file:
        key = _features_in(set(file.keys()))
        attributes = {**file.attrs, **file[key].attrs, **file["coords"].attrs}
        arrays = file[key][()], file["coords"][()]
    if "medssl_bag" in attributes:
        return _laid_out(*arrays, json.loads(attributes["medssl_bag"]))
    return _laid_out(*arrays, _foreign_facts(attributes))


def _foreign_facts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder, tile size, size of the slide and unit of coordinates, as other programs say them."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in attributes.items()}
    plain = {key: value for key, value in plain.items() if value not in ("None", "")}
    facts: dict[str, Any] = {}
    for name, keys in (("encoder", ENCODERS), ("tile_px", TILE_SIZES)):
        stated = next((plain[key] for key in keys if key in plain), None)
        facts |= {} if stated is None else {name: stated}
    if {"level0_width", "level0_height"} <= plain.keys():
        facts["level0_size"] = [int(plain["level0_width"]), int(plain["level0_height"])]
    if "tile_size_um" in plain and plain.get("tile_size_px"):
        facts["spacing_mm"] = float(plain["tile_size_um"]) / float(plain["tile_size_px"]) / 1000
    unit = plain.get("unit", "um" if "tile_size_um" in plain else "level0")
    return facts | {"unit": str(unit)}


def _laid_out(features: np.ndarray, coords: np.ndarray, facts: dict[str, Any]) -> Bag:
    """The bag of arrays as they are in a file."""
    if features.ndim == 3 and len(features) == 1:
        features = features[0]
    if coords.ndim == 3 and len(coords) == 1:
        coords = coords[0]
    if features.shape == (0,):
        features, coords = features.reshape(0, 1), coords.reshape(0, 2)
    unit = facts.pop("unit", "level0")
    if unit not in UNITS:
        message = f"coordinates in {unit!r}: expected um (micrometers), level0 (pixels) or slice"
        raise FormatError(message)
    return Bag(features, coords, UNITS[unit], facts)  # type: ignore[arg-type]  # a value of UNITS


def _features_in(names: set[str]) -> str:
    """Name of the features among the names of a file.

    Raises:
        FormatError: There are none, or no coordinates.
    """
    key = next((name for name in NAMES if name in names), "")
    if not key or "coords" not in names:
        listed = ", ".join(sorted(names)[:6]) or "nothing"
        message = f"holds {listed}: expected features (or feats) and coords"
        raise FormatError(message)
    return key


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        message = "HDF5 needs h5py: pip install 'medssl[hdf5]'"
        raise FormatError(message) from error
    return h5py
