"""Adding a thing touches few files: CONTRIBUTING says which, and each count is proved on a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("medssl", "configs", "docs", "tests", "README.md", "pyproject.toml")

VERB = '''"""The verb `greet`: say hello."""

import logging


def greet(*, name: str = "you") -> int:
    """Say hello.

    Args:
        name: Whom to greet.

    Returns:
        0.
    """
    logging.getLogger(__name__).info(f"hello {name}")
    return 0
'''
FORMAT = '''"""Text with the length of two axes in its first line and one number for each pixel below."""

import numpy as np

from medssl.data.formats.base import FileHeader, picture_grid

SUFFIXES, NOUN, NEEDS_SUFFIX = (".digits",), "a file of digits", False


def matches(first):
    return first.startswith(b"DIGITS ")


def read_header(path):
    height, width = map(int, path.read_text().splitlines()[0].split()[1:])
    return FileHeader("image", "gray", 1, picture_grid(height, width), dtype="uint8")


def read_pixels(path, frame, reading):
    header = read_header(path)
    return np.loadtxt(path, skiprows=1, dtype=np.uint8).reshape(1, *header.grid.shape), header.grid
'''


class Copy:
    """A copy of the checkout to which something is added, and the files that were touched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.touched: set[str] = set()
        root.mkdir()
        for name in COPIED:
            source = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__", "_build", "results", "images")
            (shutil.copytree(source, root / name, ignore=ignore) if source.is_dir() else shutil.copy(source, root))

    def add(self, name: str, text: str) -> None:
        assert not (self.root / name).exists()
        (self.root / name).write_text(text)
        self.touched.add(name)

    def change(self, name: str, before: str, after: str) -> None:
        text = (self.root / name).read_text()
        assert text.count(before) == 1
        (self.root / name).write_text(text.replace(before, after))
        self.touched.add(name)

    def text(self, name: str) -> str:
        return (self.root / name).read_text()

    def run(self, *words: object, fails: bool = False) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=280)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "copy")


def places(thing: str) -> int:
    """How many files the table of CONTRIBUTING.md says that an addition touches."""
    rows = re.findall(r"^\| an? ([a-z ]+) \| (\d+) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return int(dict(rows)[thing])


def add_objective(copy: Copy) -> None:
    """SimCLR under another name: what matters is who finds it."""
    source = copy.text("medssl/objectives/simclr.py")
    source = source.replace("SimCLR:", "Near crops:").replace("class SimCLR", "class NearCrops")
    copy.add("medssl/objectives/near_crops.py", source.replace("which two views", "which two pictures"))
    preset = copy.text("configs/objectives/simclr_2d.yaml").replace("simclr.SimCLR", "near_crops.NearCrops")
    copy.add("configs/objectives/near_crops_2d.yaml", preset)


def test_an_objective(copy):
    add_objective(copy)
    assert len(copy.touched) == places("objective")
    assert "near_crops_2d" in copy.run("-m", "medssl", "configs")
    assert "--objective.temperature" in copy.run("-m", "medssl", "pretrain", "--objective.help", "near_crops")
    copy.run("docs/objective_pages.py")
    assert "| `near_crops` | which two pictures show the same crop (Chen et al. 2020) | yes | no | any |" in copy.text(
        "README.md"
    )
    program = f"import sys; sys.path.insert(0, {str(copy.root / 'docs')!r})\n"
    program += "from pathlib import Path\nimport objective_pages as o\n"
    copy.run("-c", f"{program}o.write_pages(Path('docs/objectives'), o.objectives())")
    pages = sorted(path.name for path in (copy.root / "docs/objectives/generated").iterdir())
    named = [
        re.findall(r"medssl[.]objectives[.](\w+)", p.read_text()) for p in (copy.root / "configs/objectives").iterdir()
    ]
    with_page = {path.stem for path in (copy.root / "docs/objectives").glob("*.md")}
    assert pages == sorted(f"{name}.md" for name in {part[0] for part in named} - with_page)
    assert "near_crops.md" in pages
    page = copy.text("docs/objectives/generated/near_crops.md")
    assert page.startswith("# Near crops\n")
    assert all(words in page for words in ("z_i  = g(f(x_i))", "- `temperature`: ", "class_path: medssl.objec"))


@pytest.mark.slow
def test_the_sweeps_check_a_new_objective(copy):
    add_objective(copy)
    kept = "test_shipped_objectives_keep_the_contract and near_crops"
    printed = copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/objectives/test_contract.py", "-k", kept)
    assert re.search(r"^2 passed", printed, re.MULTILINE)
    copy.run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/test_house.py", fails=True)  # it has no test


def add_encoder(copy: Copy) -> None:
    source = copy.text("medssl/encoders/resenc.py").replace("class ResEnc(", "class Residual(")
    copy.add("medssl/encoders/residual.py", source)
    preset = copy.text("configs/encoders/resenc_small_2d.yaml").replace("resenc.ResEnc", "residual.Residual")
    copy.add("configs/encoders/residual_2d.yaml", preset)


def test_an_encoder(copy):
    add_encoder(copy)
    assert len(copy.touched) == places("encoder")
    assert "residual_2d" in copy.run("-m", "medssl", "configs")
    assert "--encoder.blocks" in copy.run("-m", "medssl", "pretrain", "--encoder.help", "residual_2d")


@pytest.mark.slow
def test_the_sweeps_check_a_new_encoder(copy):
    add_encoder(copy)
    tests = ("tests/heads/test_fragments.py", "tests/objectives/test_fragments.py")
    printed = copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "residual_2d")
    assert re.search(r"^[1-9]\d* passed", printed, re.MULTILINE)


def test_a_verb(copy):
    copy.add("medssl/commands/greet.py", VERB)
    row = 'Verb("medssl.commands.greet:greet", "say hello", TASKS[4], "greet --name Ada", ("name",))'
    copy.change("medssl/cli/verbs.py", "VERBS = {\n", f'VERBS = {{\n    "greet": {row},\n')
    assert len(copy.touched) == places("verb")
    assert re.search(r"greet +say hello", copy.run("-m", "medssl", "--help"))
    assert "Whom to greet" in copy.run("-m", "medssl", "greet", "--help")
    assert copy.run("-m", "medssl", "greet", "--name", "Ada") == "hello Ada\n"


def test_a_file_format(copy):
    copy.add("medssl/data/formats/digits.py", FORMAT)
    recognition = "medssl/data/formats/recognition.py"
    copy.change(recognition, '    "tiff": tiff,\n', '    "tiff": tiff,\n    "digits": digits,\n')
    copy.change(
        recognition, "from medssl.data.formats import array, ", "from medssl.data.formats import array, digits, "
    )
    assert len(copy.touched) == places("file format")
    for number in range(3):
        folder = copy.root / f"scans/p{number}"
        folder.mkdir(parents=True)
        rows = "\n".join(" ".join(str((i * j + number) % 250) for j in range(40)) for i in range(32))
        (folder / "image.digits").write_text(f"DIGITS 32 40\n{rows}\n")
    key = copy.root.parent / "key"
    key.write_text("0" * 64 + "\n")
    key.chmod(0o600)
    options = ("--index", "index.sqlite", "--files.modality", "XR", "--files.key", key)
    copy.run("-m", "medssl", "index", "scans", *options, "--subject", "(p[0-9])")
    copy.run("-m", "medssl", "cache", "index.sqlite", "store", "--preprocess", "image", "--workers", "0")
    program = "from pathlib import Path\nfrom medssl.data.store.store import Store\n"
    assert copy.run("-c", f"{program}print(len(Store.open(Path('store')).records))").splitlines()[-1] == "3"


SCORES = """
import sys
from pathlib import Path
from medssl.metrics.cases import NumberRow, write_regression
from medssl.metrics.regression import summarize_regression
from medssl.metrics.tables import write_summary

rows = [NumberRow(f"{n:016x}", f"{n:016x}", float(n), n + 1.5) for n in range(8)]
write_regression(Path("scores/cases.csv"), rows)
write_summary(Path("scores/summary.json"), summarize_regression(rows, "age"))
"""


def test_a_measure(copy):
    measure = '    "worst_error": lambda predicted, truth: float(np.abs(predicted - truth).max()),\n'
    copy.change("medssl/metrics/regression.py", '    "bias": bias,\n', f'    "bias": bias,\n{measure}')
    assert len(copy.touched) == places("measure")
    copy.run("-c", SCORES)
    assert '"worst_error"' in copy.text("scores/summary.json")
    copy.run("-m", "medssl", "report", "report.html", "scores")
    assert re.search(r"worst_error.*?1\.50", copy.text("report.html"), re.DOTALL)


MASK_SCORES = """
from pathlib import Path
import numpy as np
from medssl.metrics.cases import SegmentationRow, read_segmentation, write_segmentation
from medssl.metrics.segmentation import score_case
from medssl.metrics.tables import summarize_segmentation, write_summary
from medssl.types import LabelSchema

schema = LabelSchema("mask", ((0, "background"), (1, "organ")))
label = np.zeros((9, 9, 9), np.uint8)
label[2:6, 2:6, 2:6] = 1
rows = []
for n in range(8):
    score = score_case(np.roll(label, n % 3, 0), label, schema, (1.0, 1.0, 1.0), nsd_tolerance_mm=1.0)["organ"]
    rows.append(SegmentationRow(f"{n:016x}", f"{n:016x}", "organ", score))
write_segmentation(Path("scores/cases.csv"), rows)
assert read_segmentation(Path("scores/cases.csv")) == rows
write_summary(Path("scores/summary.json"), summarize_segmentation(rows, schema))
"""
JACCARD = """def jaccard(masks, other):
    return None if masks is None else (masks.true & masks.predicted).sum() / (masks.true | masks.predicted).sum()


MEASURES: dict"""


def test_a_measure_of_masks(copy):
    """Jaccard's index: tables check, average and show it."""
    measures = "medssl/metrics/mask_measures.py"
    copy.change(measures, "MEASURES: dict", JACCARD)
    entry = '    "jaccard": Measure(jaccard, high=1.0),\n'
    copy.change(measures, '    "lesion_f1": Measure(', f'{entry}    "lesion_f1": Measure(')
    assert len(copy.touched) == places("measure")
    copy.run("-c", MASK_SCORES)
    assert '"jaccard:organ"' in copy.text("scores/summary.json")
    copy.run("-m", "medssl", "report", "report.html", "scores")
    expected = (3 * 1 + 3 * 3 / 5 + 2 * 2 / 6) / 8  # overlaps of cubes that are 0, 1 and 2 voxels off
    assert re.search(rf"jaccard.*?{expected:.2f}", copy.text("report.html"), re.DOTALL)


KINDS = """
from medssl.data.labels.kinds.base import kind_named, kind_of, kind_of_task
from medssl.metrics.cases import NumberRow
from medssl.metrics.scoring import Options, scoring_of, tasks
from medssl.types import LabelSchema

schema = LabelSchema("stage", ((0, "stage"),), kind="rank")
kind = kind_of(schema)
assert kind is not None and type(kind_named("rank")) is type(kind) is type(kind_of_task("ranking"))
assert kind.targets([{"stage": "2.5"}, {"stage": ""}], schema).tolist()[0] == 2.5
assert "ranking" in tasks()
rows = [NumberRow(f"{n:016x}", f"{n:016x}", float(n), n + 1.5) for n in range(8)]
print(scoring_of(schema).summarize(rows, schema, Options())["metrics"]["mae"]["value"])
"""


def test_a_label_kind(copy):
    """A copy of numbers under another name: what matters is who finds it."""
    kind = copy.text("medssl/data/labels/kinds/number.py").replace("class Number(", "class Rank(")
    kind = kind.replace("Number.name", "Rank.name").replace('name = "number"', 'name = "rank"')
    copy.add("medssl/data/labels/kinds/rank.py", kind.replace('task = "regression"', 'task = "ranking"'))
    scoring = copy.text("medssl/metrics/kinds/regression.py").replace("class Regression(", "class Ranking(")
    copy.add("medssl/metrics/kinds/ranking.py", scoring.replace('task = "regression"', 'task = "ranking"'))
    assert len(copy.touched) == places("label kind")
    assert copy.run("-c", KINDS).splitlines()[-1] == "1.5"
