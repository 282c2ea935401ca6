"""Graceful shutdown on signals."""

from __future__ import annotations

import signal
import threading

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
