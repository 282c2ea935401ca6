"""Graceful shutdown on signals."""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
from pathlib import Path

import pytest

from model_store.training.signals import stop_on_signals


def test_a_signal_stops_even_if_the_callback_must_wait_for_a_lock() -> None:
    terminal, reported = threading.Lock(), threading.Event()

    def on_stop() -> None:
        assert terminal.acquire(timeout=10)
        reported.set()

    with stop_on_signals(on_stop) as stop:
        with terminal:
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
            assert not reported.is_set()
        assert reported.wait(10)


def test_the_second_signal_interrupts_and_the_previous_handlers_are_restored() -> None:
    previous = signal.getsignal(signal.SIGINT)
    with stop_on_signals(lambda: None) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is previous


CLOSED_TERMINAL = """
import sys, time
from pathlib import Path
from model_store.training.signals import stop_on_signals
with stop_on_signals(lambda: print("stopping", flush=True)) as stop:
    print("ready", flush=True)
    assert stop.wait(20)
    print("still here", flush=True)
Path(sys.argv[1]).write_text("stopped")
"""


def test_a_closed_terminal_stops_gracefully(tmp_path: Path) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", CLOSED_TERMINAL, str(tmp_path / "result")])
    assert b"ready" in os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "result").read_text() == "stopped"


def test_sighup_is_ignored_under_nohup_and_never_the_second_signal() -> None:
    with stop_on_signals(lambda: None) as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop.is_set()
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals(lambda: None) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, previous)
