"""What tests of the index share: an index, local and on Milvus, and vectors with a trained code."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from index.search.product_code import ProductCode
from tests.index.helpers import Opener, activations, open_on_milvus
from tests.index.helpers import open_index as open_local


@pytest.fixture(params=["local", "milvus"])
def open_index(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Return a function that opens the index of the tests' first model, locally or on Milvus Lite."""
    if request.param == "local":
        yield open_local
        return
    yield from open_on_milvus()


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float16]:
    """Return 2,000 vectors, float16 [2000, 4096]."""
    return activations(2000)


@pytest.fixture(scope="module")
def code(rows: NDArray[np.float16]) -> ProductCode:
    """Return a code of `fast` that was trained on half of `rows`."""
    trained = ProductCode.train(rows[:1000])
    assert trained is not None
    return trained
