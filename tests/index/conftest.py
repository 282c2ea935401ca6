"""Run a test once with a local index and once with an index on Milvus."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.index.helpers import Opener, open_on_milvus
from tests.index.helpers import open_index as open_local


@pytest.fixture(params=["local", "milvus"])
def open_index(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Return a function that opens the index of the tests' first model, locally or on Milvus Lite."""
    if request.param == "local":
        yield open_local
        return
    yield from open_on_milvus()
