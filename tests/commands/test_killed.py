"""Killed at 20 random moments, every verb ends with the bytes, tables and weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["index", "cache", "pretrain", "finetune", "compare", "stages"])
def test_killed_at_random_moments_it_ends_with_the_same_result(tmp_path, verb):
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_child.py"), tmp_path, verb, "20", "1"],
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["kills"], result["codes"], result["same"]) == (20, [0, 0], True), done.stdout + done.stderr
