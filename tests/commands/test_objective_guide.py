"""The objective of the guide keeps the contract, and trains from the command line without being part of the package."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import toys

from medssl import cli
from medssl.encoders.resenc import ResEnc
from medssl.objectives.base import check_objective
from medssl.types import ViewSpec

GUIDE = Path(__file__).parents[2] / "docs/guides/objective.md"


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """Blocks of the guide by language; the objective lies where Python finds it."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [language for language, _ in found] == ["python", "", "python"]
    (tmp_path / "rotation.py").write_text(found[0][1])
    monkeypatch.syspath_prepend(tmp_path)
    yield [text for _, text in found]
    sys.modules.pop("rotation", None)


def test_the_guide_is_short():
    assert len(GUIDE.read_text().splitlines()) <= 90


def test_the_objective_of_the_guide_keeps_the_contract(guide):
    exec(guide[2], {})
    from rotation import Rotation

    encoder = {"ndim": 3, "channels": (8, 16), "strides": ((1, 2, 2), (2, 2, 2)), "blocks": (1, 1)}
    check_objective(lambda: Rotation(ResEnc(1, **encoder), view=ViewSpec((6, 16, 16))))


def test_the_commands_of_the_guide_run(guide, tmp_path):
    (first,) = re.findall(r"medssl (pretrain .*?)\n(?!    )", guide[1].replace("\\\n", " "))
    words = shlex.split(first)
    store, run = toys.toy_store(tmp_path / "store"), tmp_path / "run"
    words[words.index("--store") + 1], words[words.index("--run") + 1] = str(store), str(run)
    less = ["--training.steps=2", "--training.batch_size=2", "--data.workers=0", "--objective.view.size=[32,32]"]
    assert cli.main([*words, *less, "--objective.dropout=0.1"]) == 0
    card = json.loads((run / "card.json").read_text())
    assert card["objective"]["class_path"] == "rotation.Rotation"
    assert card["objective"]["init_args"]["dropout"] == 0.1
    assert (run / "encoder.safetensors").is_file()
