"""Feature cache: arrays of each scan in one file, so that an interrupted command does not compute them again."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from medssl.io.atomic_write import atomic_write
from medssl.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

EVERY = 30.0  # seconds between writings: a kill costs no more


class FeatureCache:
    """Named arrays of each scan, in a safetensors file that says what made them (never a path).

    Use it as a context manager: new arrays are written at the end, also after an error.

    Args:
        path: The file.
        encoder: Encoder and preprocessing of the features: a folder holds those of one encoder alone.
        settings: What else changes the arrays; arrays in the file with other settings are not used.

    Raises:
        UserError: The file is of another encoder, or damaged.
    """

    def __init__(self, path: Path, encoder: dict[str, Any], settings: dict[str, Any]) -> None:
        self.path = path
        self.made_by = json.loads(json.dumps({"encoder": encoder, "settings": settings}))
        self.arrays: dict[str, dict[str, NDArray[Any]]] = {}
        self.written, self.new = time.monotonic(), 0
        if path.exists():
            self._read()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        if self.new:
            self._write()

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of a scan, or None where there are none."""
        return self.arrays.get(key)

    def add(self, key: str, **arrays: NDArray[Any]) -> None:
        """Adds the arrays of a scan; writes the file every 30 seconds."""
        self.arrays[key] = arrays
        self.new += 1
        if time.monotonic() - self.written >= EVERY:
            self._write()

    def _read(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "numpy") as file:
                header = json.loads((file.metadata() or {})["made_by"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            message = f"{self.path} is damaged ({error})"
            raise UserError(message, hint="Delete it, and the same command computes it again") from error
        if header["encoder"] != self.made_by["encoder"]:
            differing = ", ".join(
                key for key, value in self.made_by["encoder"].items() if header["encoder"].get(key) != value
            )
            message = f"{self.path.parent} holds features of another encoder or store (other {differing})"
            raise UserError(message, key="out", hint="Choose another folder for results")
        if header["settings"] == self.made_by["settings"]:
            for name, array in tensors.items():
                key, _, part = name.partition("/")
                self.arrays.setdefault(key, {})[part] = array

    def _write(self) -> None:
        from safetensors.numpy import save

        tensors = {f"{key}/{part}": array for key, arrays in self.arrays.items() for part, array in arrays.items()}
        content = save(tensors, metadata={"made_by": json.dumps(self.made_by)})
        atomic_write(self.path, lambda file: file.write(content))
        self.written, self.new = time.monotonic(), 0
