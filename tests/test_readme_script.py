"""The Python script of the README, run as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent


def script() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return next(block for block in blocks if "medssl.pretrain(" in block)


def test_it_is_short():
    lines = [line for line in script().splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) <= 10


def test_it_runs_and_draws_the_loss(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(script(), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(tmp_path / "state")
    }  # fmt: skip
    done = subprocess.run([sys.executable, file], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout) <= 1  # the library prints nothing of its own
    assert len(ElementTree.parse(tmp_path / "loss.svg").findall(".//{http://www.w3.org/2000/svg}polyline")) >= 1
    assert (tmp_path / "run" / "encoder.safetensors").exists()
