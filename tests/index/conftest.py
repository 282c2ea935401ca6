"""The places where an index can be, for the tests that hold in each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.index.helpers import Opener, open_on_milvus
from tests.index.helpers import open_index as open_local


@pytest.fixture(params=["local", "milvus"])
def open_index(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Open the index of the tests' first model in a folder, or on the Milvus Lite of a folder."""
    if request.param == "local":
        yield open_local
        return
    yield from open_on_milvus()
