"""The estimate of the memory that a model needs."""

from __future__ import annotations

from pathlib import Path

from service.inference.memory import needed_to_load
from tests.support.tiny_model import publish_tiny_model


def test_a_second_stream_needs_memory_for_a_second_copy(home: Path) -> None:
    artifact = publish_tiny_model(home, "sized")
    assert needed_to_load(artifact) > 2.75 * 2_500_000
