"""Listings by every order and prefix, and their cursors, with both kinds of index."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from index.cursor import ORDERS, Order
from index.errors import CursorError
from index.filters import parse_where
from index.interface import ImageIndex
from tests.index.helpers import Opener, image

KEYS = ["cats/b", "dogs/ä", "cats/a", "dogs/\U0010ffff", "cat", "dogs", "cats/\U0010ffff", "zoo", "cats/c"]


def fill(index: ImageIndex) -> None:
    for number, key in enumerate(KEYS):
        index.add_many([image(key, number, {"even": number % 2 == 0})])
    time.sleep(0.001)
    index.change_metadata("cats/a", lambda old: old | {"n": 1})


def listed(index: ImageIndex, order: Order | None, *, limit: int = 2, seed: int = 0, **options: object) -> list[str]:
    """List all pages."""
    found: list[str] = []
    cursor = None
    where = parse_where([str(options["where"])]) if "where" in options else None
    prefix = str(options.get("prefix", ""))
    while True:
        page = index.list(limit, cursor, where=where, prefix=prefix, order=order, seed=seed)
        found += [record.key for record in page.images]
        cursor = page.next_cursor
        if cursor is None:
            return found
        assert len(page.images) == limit


@pytest.mark.milvus
def test_each_order_lists_every_image_once_on_pages_of_any_size(open_index: Opener, tmp_path: Path) -> None:
    changed = [*(key for key in KEYS if key != "cats/a"), "cats/a"]
    with open_index(tmp_path) as index:
        fill(index)
        expected = {"added": KEYS, "updated": changed, "key": sorted(KEYS)}
        for order, keys in expected.items():
            for limit in (2, 9, 100):
                assert listed(index, order, limit=limit) == keys  # type: ignore[arg-type]
                assert listed(index, f"-{order}", limit=limit) == keys[::-1]  # type: ignore[arg-type]
        shuffled = [tuple(listed(index, "random", seed=seed)) for seed in range(8)]
        assert all(sorted(keys) == sorted(KEYS) for keys in shuffled)
        assert len(set(shuffled)) > 5, "each seed has an order of its own"
        assert listed(index, "random", seed=3) == listed(index, "random", seed=3, limit=4)
        natural = listed(index, None)
        assert natural in (KEYS, sorted(KEYS))
        index.delete("zoo")
        assert sorted(listed(index, "random")) == sorted(set(KEYS) - {"zoo"})


@pytest.mark.milvus
def test_a_prefix_is_compared_literally_in_every_order(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        fill(index)
        for prefix in (
            "",
            "cat",
            "cats/",
            "cats/\U0010ffff",
            "dogs/ä",
            "zoo",
            "zoos",
            "%",
            "_",
            "\U0010ffff",
            '"',
            "퟿",
        ):
            expected = sorted(key for key in KEYS if key.startswith(prefix))
            for order in ORDERS:
                assert sorted(listed(index, order, prefix=prefix)) == expected, (prefix, order)
        even = sorted(key for number, key in enumerate(KEYS) if number % 2 == 0 and key.startswith("cats/"))
        assert listed(index, "key", prefix="cats/", where="even:true") == even


@pytest.mark.milvus
def test_a_cursor_is_only_valid_for_its_own_listing(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        fill(index)
        for order in ORDERS:
            cursor = index.list(2, order=order).next_cursor
            for other in ORDERS:
                if other != order:
                    with pytest.raises(CursorError, match="another filter, prefix or order"):
                        index.list(2, cursor, order=other)
            with pytest.raises(CursorError):
                index.list(2, cursor, order=order, prefix="c")
            with pytest.raises(CursorError):
                index.list(2, cursor, order=order, seed=1)
            with pytest.raises(CursorError):
                index.list(2, cursor, order=order, where=parse_where(["even:true"]))
