"""A home with a tiny real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_model import publish_tiny_model


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    publish_tiny_model(folder)
    return folder
