"""Runner options that follow from the settings and the available memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.factory import serving_options
from service.inference.memory import needed_to_load
from service.settings import Settings
from tests.support.tiny_model import publish_tiny_model


@pytest.mark.parametrize(
    ("settings", "missing", "streams"),
    [
        ({"threads": 4}, None, 2),
        ({"threads": 4}, 0, 2),
        ({"threads": 4}, 1, 1),  # A container with 1 GB would be killed while the second copy is made.
        ({"threads": 4, "streams": 2}, 1, 2),
        ({"threads": 4, "streams": 1}, 0, 1),
        ({"threads": 1}, 0, 1),
        ({"threads": 4, "device": "cuda:1"}, 0, 1),
    ],
)
def test_two_runs_are_parallel_if_there_is_enough_memory(
    settings: dict[str, Any], missing: int | None, streams: int, tmp_path: Path
) -> None:
    artifact = publish_tiny_model(tmp_path)
    available = None if missing is None else needed_to_load(artifact, streams=2) - missing
    assert serving_options(Settings(home=tmp_path, **settings), artifact, available).streams == streams
