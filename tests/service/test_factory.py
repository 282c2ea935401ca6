"""What a service runs a version with, by its settings and by the memory that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.factory import serving_options
from service.inference.memory import needed_to_load
from service.settings import Settings
from tests.support.tiny_model import publish_tiny_model


@pytest.mark.parametrize(
    ("settings", "short", "streams"),
    [
        ({"threads": 4}, None, 2),
        ({"threads": 4}, 0, 2),
        ({"threads": 4}, 1, 1),  # a container of a gigabyte would be killed while the second copy is made
        ({"threads": 4, "streams": 2}, 1, 2),
        ({"threads": 4, "streams": 1}, 0, 1),
        ({"threads": 1}, 0, 1),
        ({"threads": 4, "device": "cuda:1"}, 0, 1),
    ],
)
def test_two_runs_go_side_by_side_where_there_is_room(
    settings: dict[str, Any], short: int | None, streams: int, tmp_path: Path
) -> None:
    artifact = publish_tiny_model(tmp_path)
    free = None if short is None else needed_to_load(artifact, streams=2) - short
    assert serving_options(Settings(home=tmp_path, **settings), artifact, free).streams == streams
