"""Files that real archives hold (shared/cases): each is read right, or refused with a line that says why.

The folder makes its files itself and says what is right; it is no part of the project, and where it is absent these
tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medssl.cli import main
from medssl.data.formats.reading import ReadError, read
from medssl.data.index.scan_index import Index
from medssl.data.store.store import Store

REPOSITORY = Path(__file__).parent.parent.parent
FOLDER = Path(os.environ.get("MEDSSL_TEST_CASES", REPOSITORY.parent / "shared" / "cases"))
MAKER = FOLDER / "make_cases.py"
NAMES = re.findall(r"^@case\(.*?^def (\w+)\(", MAKER.read_text(), re.DOTALL | re.MULTILINE) if MAKER.is_file() else []
STILL_WRONG: set[str] = set()  # cases that are expected to fail
UNCLEAR = re.compile(r"Traceback|object at 0x|_Layout|NoneType|\bdtype\(|<class|not subscriptable|positional argument")

pytestmark = pytest.mark.skipif(not NAMES, reason="no cases at shared/cases: set MEDSSL_TEST_CASES")


@dataclass
class Outcome:
    """What became of the files of a case: arrays that could be read, reasons of the others, and what was printed."""

    arrays: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]
    reasons: list[str]
    printed: str


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    done = subprocess.run([sys.executable, MAKER, folder], capture_output=True, text=True, timeout=120)
    assert not done.stderr.strip(), done.stderr
    return folder


def index_and_read(case: Path, about: dict, capsys) -> Outcome:
    """Run ``medssl index`` and ``medssl cache`` as a user would, then read every good scan."""
    words = ["--index", str(case / "index" / "i.sqlite"), "--files.key", str(case / "key"), "--files.workers", "0"]
    cache = ["cache", str(case / "index" / "i.sqlite"), str(case / "store"), "--workers", "0"]
    for command in (["index", str(case / "in"), *words, *about["index"]], cache):
        assert main(command) in (0, 1, 2)
    for source, target in about.get("replace", []):
        shutil.copyfile(case / source, case / target)
        for command in (["index", *words], cache):
            assert main(command) in (0, 1, 2)
    said = capsys.readouterr()
    outcome = Outcome([], [], said.out + said.err)
    with Index.open(case / "index" / "i.sqlite") as index:
        for status in ("failed", "rejected"):
            outcome.reasons += [scan.status.reason for scan in index.scans(status=status)]
        outcome.reasons += [reason for _, reason, _ in index.counts()]
        for scan in index.scans():
            outcome.printed += scan.status.reason
            try:
                volume = read(scan, index.root)
                outcome.arrays.append((volume.image, volume.affine, volume.label))
                outcome.printed += " ".join(volume.notes)
            except ReadError as error:
                outcome.reasons.append(str(error))
    return outcome


def problem_of(outcome: Outcome, case: Path, about: dict) -> str:
    """What is wrong with the arrays that were read, or nothing."""
    expected = np.load(case / "expect.npz")
    count = sum(name.startswith("array") for name in expected)
    if len(outcome.arrays) != count:
        return f"{len(outcome.arrays)} scans where {count} are right"
    left = list(range(count))
    for array, affine, label in outcome.arrays:
        fitting = [n for n in left if not _difference(array, affine, label, (expected, n), about)]
        if not fitting:
            return "; ".join(_difference(array, affine, label, (expected, n), about) for n in left)
        left.remove(fitting[0])
    return ""


def _difference(array, affine, label, right, about: dict) -> str:
    expected, number = right
    its_array, its_affine = expected[f"array{number}"], expected[f"affine{number}"].copy()
    if array.shape != its_array.shape:
        return f"shape {array.shape} for {its_array.shape}"
    off = np.abs(array.astype(np.float64) - its_array).max()
    if not off <= about.get("tolerance", 0):
        return f"values differ by up to {off}"
    affine = affine.copy()
    if about.get("any_origin"):
        affine[:-1, -1] = its_affine[:-1, -1] = 0
    corners = np.array([*np.ndindex((2,) * (len(affine) - 1))]) * (np.array(array.shape[1:]) - 1)
    places = [corners @ one[:-1, :-1].T + one[:-1, -1] for one in (affine, its_affine)]
    spacing = np.linalg.norm(its_affine[:-1, :-1], axis=0).min()
    if (far := np.abs(places[0] - places[1]).max()) > about.get("voxel_tolerance", 1e-3) * spacing:
        return f"corners lie up to {far} mm apart"
    if f"label{number}" in expected and (label is None or not np.array_equal(label[0], expected[f"label{number}"])):
        return "the label differs"
    return ""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.xfail] if name in STILL_WRONG else []) for name in NAMES]
)
def test_case_is_right_or_clearly_refused(name, cases, capsys):
    case = cases / name
    about = json.loads((case / "case.json").read_text())
    outcome = index_and_read(case, about, capsys)
    told = " | ".join([*outcome.reasons, outcome.printed])
    assert not UNCLEAR.search(told)
    assert not re.search(about.get("dishonest", "(?!)"), told, re.MULTILINE)
    if outcome.arrays:
        assert about["refusal"] != "right"
        assert not problem_of(outcome, case, about)
        assert re.search(about.get("said", ""), told)
    else:  # "costs" is a clear refusal of what could be read
        assert about["refusal"] in ("right", "fine")
        assert outcome.reasons
        assert re.search(about.get("honest", ""), " | ".join(outcome.reasons))
    if about.get("spread"):
        _check_input_spreads(case / "store")


def _check_input_spreads(folder: Path) -> None:
    """What the network sees of a stored scan is not flat: (code * scale + offset - shift) / divisor."""
    store = Store.open(folder)
    shape = store.shape(0)
    code = store.read(0, (0,) * len(shape), shape).astype(np.float64)
    scale, offset, low, high, shift, divisor = store.intensity(0)[0]
    shown = (np.clip(code * scale + offset, low, high) - shift) / divisor
    assert shown.std() > 0.5
    assert len(np.unique(shown)) > 50
