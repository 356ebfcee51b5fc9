from __future__ import annotations

import os
import signal
import threading

import pytest

from medssl.training.stop_signals import SIGNALS, StopSignals


@pytest.fixture
def signals():
    former = {number: signal.getsignal(number) for number in SIGNALS}
    listening = StopSignals()
    listening.listen()
    yield listening
    listening.close()
    assert {number: signal.getsignal(number) for number in SIGNALS} == former


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_stops_nothing(signals, number):
    assert signals.received == 0
    os.kill(os.getpid(), number)
    assert signals.received == number


def test_only_a_second_ctrl_c_does_not_wait(signals):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt, match="a second Ctrl-C"):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_training_in_another_thread_leaves_the_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    listening = StopSignals()
    thread = threading.Thread(target=listening.listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    listening.close()
