"""The console's handler: which stream a record goes to, and what a closed stream does."""

import logging
import subprocess
import sys

import pytest
from tqdm import tqdm

from medssl.io.console import ConsoleHandler, log_to_console

log = logging.getLogger("medssl.a_module")


def test_levels_go_to_the_streams_of_that_moment(capsys):
    log.info("note: 50% of {this}")
    log.warning("attention")
    log.debug("nothing")
    assert capsys.readouterr() == ("note: 50% of {this}\n", "attention\n")


def test_a_second_call_adds_no_second_handler():
    log_to_console()
    handlers = [h for h in logging.getLogger("medssl").handlers if isinstance(h, ConsoleHandler)]
    assert len(handlers) == 1


def test_a_line_clears_the_bar_and_the_bar_comes_back(capsys):
    with tqdm(total=3, desc="scans", mininterval=0, miniters=1) as bar:
        bar.update()
        log.info("skipped one")
    out, err = capsys.readouterr()
    assert out == "skipped one\n"
    assert err.rstrip().split("\r")[-1].startswith("scans:  33%")


def test_a_closed_stream_raises_as_print_does(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError, match="Broken pipe"):
        log.info("a line")


def test_a_library_is_silent_without_the_command_line():
    code = "import logging; from medssl.io import console; logging.getLogger('medssl.io').info('a line')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
