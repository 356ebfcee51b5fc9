"""Fixtures that every room shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medssl.io.console import log_to_console

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_state_folder(tmp_path_factory: pytest.TempPathFactory):
    """Keeps what commands remember for the user away from the home of whoever runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def _console():
    """Shows what functions log as the command line does, for tests that read it."""
    log_to_console()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans, or a skip that says so."""
    folder = Path(os.environ.get("MEDSSL_TEST_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder.name}: set MEDSSL_TEST_DATA")
    return folder


# Cards that tests write name encoders and heads of the tests: such classes run only where somebody trusts them.
OWN_CLASSES = (
    "commands.fitted.Plain", "commands.fitted.Bands", "commands.fitted.Sides", "commands.fitted.Mean",
    "commands.toys.ToyEncoder", "commands.toys.ToyObjective",
    "commands.asked.Halves", "commands.asked.Broken", "commands.asked.Shade",
)  # fmt: skip
os.environ.setdefault("MEDSSL_TRUST", ",".join(OWN_CLASSES))
