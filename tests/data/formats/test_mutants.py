"""Damaged files of every format, through the index and the reader: a reason in words, or the values of the file.

Each format has a sound file that is indexed once; its mutants lie in its place. A mutant is read as good only if it
holds the same values, or if no check sum covers the byte that was changed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from data.formats.sound_files import FORMATS, LABELS, Sound

from medssl.data.formats.reading import ReadError, read
from medssl.data.index.entries import read_files
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import ArrayOptions, FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.data.index.walk import FileState
from medssl.types import Scan

KEY = b"k" * 32
SECONDS, BYTES = 10, 2 << 30  # what one mutant may take
COUNT = int(os.environ.get("MEDSSL_TEST_MUTANTS", "2000"))
_JARGON = re.compile(
    r"Traceback|object at 0x|NoneType|dtype\(|<class|not subscriptable|positional argument|_Layout|list index|"
    r"unpack requires|invalid literal for|Error -|could not convert|cannot reshape|buffer size|broadcast|codec can't|"
    r"Error\(|\bb'|Jane|4711|has no attribute|not iterable|unhashable|slice indices|NaN to integer|unsupported operand"
)


@dataclass
class Figures:
    """What became of the mutants."""

    mutants: int = 0
    refused: int = 0
    read: int = 0
    wrong: list[str] = field(default_factory=list)  # values that differ although a check sum covers them
    unclear: list[str] = field(default_factory=list)


# --- mutants

_NUMBERS = [
    number.to_bytes(size, order, signed=number < 0)
    for order in ("little", "big")
    for number, size in (
        (0, 2), (-1, 2), (0, 4), (1, 4), (-1, 4), (65535, 4), (2**31 - 1, 4), (-(2**31), 4), (0, 8), (-1, 8), (2**62, 8)
    )
]  # fmt: skip
_WORDS = [b"0", b"-1", b"65535", b"2147483648", b"99999999999999999999", b"nan", b"1e400", b"", b"x", b"0.0", b"\xff"]


def mutant(content: bytes, generator: random.Random) -> bytes:
    """``content`` with bits flipped, numbers replaced, or a piece cut out, doubled, moved or cut off."""
    data, kind = bytearray(content), generator.randrange(8)
    size = len(data)
    place = generator.randrange(size if generator.random() < 0.4 else min(size, 700))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        del data[place : place + generator.choice([1, 2, 4, 17, 300])]
    elif kind == 2:
        start = generator.randrange(size)
        data[place:place] = data[start : start + generator.choice([1, 2, 8, 60])]
    elif kind == 3:
        start, length = generator.randrange(size), generator.choice([1, 2, 4, 32])
        data[place : place + length] = data[start : start + length]
    elif kind == 4:
        number = generator.choice(_NUMBERS)
        data[place : place + len(number)] = number
    elif kind == 5 and (found := [*re.finditer(rb"(?<![A-Za-z0-9])-?\d[\d.]*", content[:2000])]):
        one = generator.choice(found)
        data[one.start() : one.end()] = generator.choice(_WORDS)
    else:
        for _ in range(generator.choice([1, 1, 2, 8])):
            data[generator.randrange(size)] ^= 1 << generator.randrange(8)
    return bytes(data)


def _first_difference(one: bytes, other: bytes) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass
class Indexed:
    """A sound file in the index: its folder, its scan, and the root of the index."""

    sound: Sound
    folder: Path
    scan: Scan
    root: Path


def indexed(names: Sequence[str], folder: Path) -> dict[str, Indexed]:
    """Write the sound file of each format into a folder of its own, and index them together."""
    sounds = {}
    for name in names:
        (folder / "in" / name).mkdir(parents=True)
        sounds[name] = FORMATS[name](folder / "in" / name)
    labels = LabelOptions(objects=True, class_names="0=background,1=organ")
    options = IndexOptions(labels=labels, files=FileOptions(workers=0, arrays=ArrayOptions("kji", "3,2,2")))
    with Index.open(folder / "i.sqlite", create=True, root=folder / "in") as index:
        update(index, [folder / "in"], options, key=KEY)
        scans = {scan.source.parts[0].path.split("/")[0]: scan for scan in index.scans()}
        return {name: Indexed(sound, folder / "in" / name, scans[name], index.root) for name, sound in sounds.items()}


def try_mutants(one: Indexed, count: int, mark: Callable[[int], None] = lambda _number: None) -> Figures:
    """Read ``count`` mutants of a sound file; ``mark`` is told the number of each before it is read."""
    sound, figures, root = one.sound, Figures(), one.root
    file = one.folder / sound.file
    content = file.read_bytes()
    right = read(one.scan, root)
    values = right.label if sound.label else right.image
    assert values is not None
    generator = random.Random(14)
    for number in range(count):
        data = mutant(content, generator)
        if data == content:
            continue
        mark(number)
        file.write_bytes(data)
        figures.mutants += 1
        entries = read_files([FileState(str(file), len(data), number)], root=root, dataset="d", key=KEY)
        reasons = [entry.reason for entry in entries]
        try:
            volume = read(one.scan, root)
            found = volume.label if sound.label else volume.image
            figures.read += 1
            differs = found is None or not np.array_equal(found, values)
            if differs and sound.covered and _first_difference(content, data) >= sound.covered(content):
                figures.wrong.append(f"mutant {number}")
        except ReadError as error:
            figures.refused += 1
            reasons.append(str(error))
        figures.unclear += [f"mutant {number}: {line}" for line in reasons if _unclear(line)]
    file.write_bytes(content)
    return figures


def _unclear(line: str) -> bool:
    return bool("\n" in line or len(line) > 500 or _JARGON.search(line) or not line.isprintable())


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory) -> dict[str, Indexed]:
    """All formats; the two that label the same series have an index of their own."""
    plain = [name for name in FORMATS if name not in LABELS]
    found = indexed(plain, tmp_path_factory.mktemp("plain"))
    for name in LABELS:
        found |= indexed([name], tmp_path_factory.mktemp(name))
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_mutants_are_refused_in_words_or_read(sound_files, name):
    figures = try_mutants(sound_files[name], 20 if name in LABELS else 60)
    assert figures.unclear == []
    assert figures.wrong == []
    assert figures.refused > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_mutants_within_limits_of_time_and_memory(tmp_path, name):
    command = [sys.executable, __file__, name, str(tmp_path / "work"), str(COUNT)]
    paths = [str(Path(__file__).parents[2]), *sys.path]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    )
    assert done.returncode == 0, f"{name}, {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
    figures = json.loads(done.stdout.splitlines()[-1])
    print(name, {key: value for key, value in figures.items() if isinstance(value, int)})
    assert figures["unclear"] == []
    assert figures["wrong"] == []
    assert figures["mutants"] > 0.9 * COUNT


def _limited(name: str, folder: Path, count: int) -> None:
    """What runs in a child: a mutant that takes too long or too much ends it."""
    one = indexed([name], folder)[name]
    try_mutants(one, 20)  # imports what the readers need
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    faulthandler.enable()

    def mark(number: int) -> None:
        signal.alarm(SECONDS)
        print(f"mutant {number}", flush=number % 50 == 0)

    figures = try_mutants(one, count, mark)
    signal.alarm(0)
    print(json.dumps(vars(figures)), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _limited(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
