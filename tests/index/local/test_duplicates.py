"""Near-duplicates of a local index are reported by key, and can be filtered by metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.filters import parse_where
from index.records import NewImage
from tests.index.helpers import grouped, image, open_index, vector


def test_duplicates_have_keys_and_respect_filters(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        assert index.duplicates(10, 10).groups == []
        index.add_many([image(str(n), n, {"even": n % 2 == 0}) for n in range(10)])
        near = vector(4) + np.float32(0.01)
        index.add_many(
            [NewImage("near 4", "a" * 64, 1, 1, 1, {"even": True}, None, near), image("as 3", 3, {"even": False})]
        )
        found = index.duplicates(5, 10)
        assert (grouped(found), found.complete, found.note) == ([["3", "as 3"], ["4", "near 4"]], True, "")
        assert found.groups[0].others[0].distance == 0
        assert 0 < found.groups[1].others[0].distance < 1
        assert grouped(index.duplicates(5, 10, where=parse_where(["even:true"]))) == [["4", "near 4"]]
        shortened = index.duplicates(5, 1)
        assert (grouped(shortened), shortened.complete) == ([["3", "as 3"]], False)
        assert "limit" in shortened.note
        stopped = index.duplicates(5, 10, stopped=lambda: True)
        assert (stopped.groups, stopped.complete) == ([], False)
        assert "Use a filter" in stopped.note
        index.delete("3")
        assert grouped(index.duplicates(5, 10)) == [["4", "near 4"]]
