"""Signals, at moments when what they would need is taken."""

from __future__ import annotations

import signal
import threading

import pytest

from model_store.training.signals import stop_on_signals


def test_a_signal_while_what_told_needs_is_held_stops_all_the_same() -> None:
    terminal, said = threading.Lock(), threading.Event()

    def told() -> None:
        assert terminal.acquire(timeout=10)
        said.set()

    with stop_on_signals(told) as stop:
        with terminal:
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
            assert not said.is_set()
        assert said.wait(10)


def test_the_second_signal_interrupts_at_once_and_the_handlers_before_come_back() -> None:
    former = signal.getsignal(signal.SIGINT)
    with stop_on_signals(lambda: None) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is former
