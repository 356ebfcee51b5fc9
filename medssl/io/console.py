"""What the command line shows of the library's log records: plain lines, beside the progress bars."""

from __future__ import annotations

import logging
import sys

ROOT = "medssl"


class ConsoleHandler(logging.Handler):
    """Writes records as plain lines: up to INFO to ``sys.stdout``, WARNING and above to ``sys.stderr``.

    The streams are looked up for each record, so that whoever replaces them sees the lines. A stream that cannot be
    written to (a closed pipe, a full disk) raises, as ``print`` does.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record.

        Raises:
            OSError: The stream cannot be written to.
        """
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        line = self.format(record)
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(line, file=stream)  # clears progress bars while it writes
        else:
            stream.write(f"{line}\n")
        stream.flush()


def log_to_console() -> None:
    """Shows INFO and above of the package on the console; a second call changes nothing.

    Records go no further than this handler: another library's handler on the root logger would repeat them.
    """
    logger = logging.getLogger(ROOT)
    if any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        return
    logger.addHandler(ConsoleHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
