from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(norm, tmp_path):
    """Two workers, two micro-batches, dropout; kills inside a step, in a checkpoint, after a row of the log."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("resume_child.py"), tmp_path, norm],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["codes"] == [0, -9, -9, -9, 143, 0, 0], done.stdout + done.stderr
    assert result["straight"] == result["broken"]
    assert result["watched"] == 3
    assert "stopped by SIGTERM at step 8: saved; run the same command to continue" in done.stdout
    assert "all 12 steps are done already" in done.stdout

    rows = [rows_of(tmp_path / run / "metrics.jsonl") for run in ("straight", "broken")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(1, 13))
    assert [row["step"] for row in rows[0] if "embedding_rank" in row] == [5, 10, 12]
    timed = {"seconds", "waiting", "samples_per_second"}
    for a, b in zip(*rows, strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}

    files = {path.name for path in (tmp_path / "broken").rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith(".part")]
    assert {"encoder.safetensors", "card.json", "objective.safetensors", "last.pt", "best.pt"} <= files


def rows_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
