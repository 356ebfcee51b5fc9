"""Signals that ask a run to stop: the step in hand is finished and saved first."""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SLURM sends SIGUSR1 before the time of a job is up


class StopSignals:
    """Remembers the last signal of this process.

    Attributes:
        received: Number of the signal, 0 before any.
    """

    def __init__(self) -> None:
        self.received = 0
        self.former: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Takes the signals over. Python allows this in the main thread alone: elsewhere nothing happens."""
        if threading.current_thread() is threading.main_thread():
            self.former = {number: signal.signal(number, self.remember) for number in SIGNALS}

    def remember(self, number: int, frame: object) -> None:
        """Handles a signal.

        Raises:
            KeyboardInterrupt: A second Ctrl-C does not wait for the end of the step.
        """
        if number == self.received == signal.SIGINT:
            message = "a second Ctrl-C: the step in hand is not finished"
            raise KeyboardInterrupt(message)
        self.received = number

    def close(self) -> None:
        """Gives the signals back to their former handlers."""
        while self.former:
            number, handler = self.former.popitem()
            signal.signal(number, handler)
