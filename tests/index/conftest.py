"""A fixture that runs a test on a local index and on Milvus Lite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.index.helpers import Opener, open_on_milvus
from tests.index.helpers import open_index as open_local


@pytest.fixture(params=["local", "milvus"])
def open_index(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Yield a function that opens the index of the first test model, in a folder or on Milvus Lite."""
    if request.param == "local":
        yield open_local
        return
    yield from open_on_milvus()
