"""What was done before a command was stopped: one line a scan, so that the same command goes on where it was."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from medssl.io.atomic_write import atomic_write
from medssl.io.links import open_to_append
from medssl.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from medssl.types import Scan

FILE = "finished.jsonl"


class Finished:
    """The results that a folder holds, by scan; a scan whose files have changed counts as not done.

    The file's first line says what made them: weights and settings, never a path. A line that a kill cut off is left
    out and done again.
    """

    def __init__(self, folder: Path, made_by: dict[str, Any]) -> None:
        """Opens the results of a folder, or begins them.

        Raises:
            UserError: Other weights or settings made the results that are there.
        """
        self.path = folder / FILE
        self.results: dict[tuple[str, str], Any] = {}
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        if len(lines) < 2:
            self._write(json.dumps(made_by).encode() + b"\n")
            return
        header = json.loads(lines[0])
        differing = [
            f"{key} {header.get(key)} there, {made_by.get(key)} here"
            for key in sorted({*header, *made_by})
            if header.get(key) != made_by.get(key)
        ]
        if differing:
            message = (
                f"{folder} holds results of another network or other settings ({'; '.join(differing)}): "
                "choose another folder for results"
            )
            raise UserError(message)
        for line in lines[1:-1]:
            row = json.loads(line)
            self.results[row["scan_id"], row["source"]] = row["result"]
        if lines[-1]:
            self._write(b"\n".join(lines[:-1]) + b"\n")

    def get(self, scan: Scan) -> Any:
        """The result of a scan, or None where it is not done."""
        return self.results.get((scan.scan_id, scan.digests.source))

    def add(self, scan: Scan, result: Any) -> None:
        """Keeps a result, on the disk before this returns."""
        row = {"scan_id": scan.scan_id, "source": scan.digests.source, "result": result}
        with open_to_append(self.path) as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.results[scan.scan_id, scan.digests.source] = result

    def _write(self, content: bytes) -> None:
        atomic_write(self.path, lambda file: file.write(content))
