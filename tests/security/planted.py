"""What attackers hand over: a package whose every import and call leaves a mark, and cards that name it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

CODE = """
from pathlib import Path

import torch

from medssl.encoders.base import Encoder
from medssl.heads.base import Head

MARK = Path({mark!r})
MARK.write_text("imported")


def call(*positional, **named):
    MARK.write_text("called")


class Network(Encoder):
    def __init__(self, *positional, **named):
        call()

    def forward(self, image, hidden=None, mode=None):
        call()


class Answer(Head):
    def __init__(self, *positional, **named):
        call()
"""


class Canary:
    """A package ``stranger`` on the path, and the mark that it leaves when anything of it runs."""

    def __init__(self, folder: Path) -> None:
        self.mark = folder / "mark"
        (folder / "code").mkdir()
        (folder / "code" / "stranger.py").write_text(textwrap.dedent(CODE).format(mark=str(self.mark)))
        self.path = folder / "code"

    @property
    def sings(self) -> bool:
        """Whether it is well: nothing ran."""
        return not self.mark.exists()


def change_card(run: Path, change) -> Path:
    """Applies a function to the content of a card."""
    data = json.loads((run / "card.json").read_text())
    change(data)
    (run / "card.json").write_text(json.dumps(data))
    return run


def named(class_path: str, **arguments) -> dict:
    return {"class_path": class_path, "init_args": arguments}
