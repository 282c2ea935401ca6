"""Fixtures of the tests of bulk operations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_store.runtime.runner import Runner
from tests.index.bulk.helpers import save_image
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def runner(home: Path) -> Iterator[Runner]:
    runner = Runner(publish_tiny_model(home))
    yield runner
    runner.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nine images, in the folders a and b."""
    folder = tmp_path / "photos"
    for n in range(9):
        save_image(folder / f"{'ab'[n % 2]}" / f"{n}.png", n)
    return folder
