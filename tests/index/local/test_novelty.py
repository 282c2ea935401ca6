"""Listings by novelty: their order, their pages, and which images they measure."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.cursor import Listing, NoveltyOrder
from index.errors import CursorError, IndexUnavailableError
from index.filters import parse_where
from index.interface import ImageIndex
from index.records import NewImage
from model_store.novelty.reference import Reference
from tests.index.helpers import image, open_index, vector
from tests.support.novelty import reference_of


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_of()


def listing(where: str = "", prefix: str = "", order: NoveltyOrder = "-novelty") -> Listing:
    return Listing(parse_where([where]) if where else None, prefix, order, 0)


def listed(
    index: ImageIndex,
    reference: Reference,
    wanted: Listing,
    *,
    limit: int = 2,
    between: Callable[[int], object] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[str]:
    """List all pages; `between` is called after each."""
    keys: list[str] = []
    cursor, pages = None, 0
    fingerprint = index.searched.fingerprint
    while True:
        page = index.by_novelty(reference, wanted, limit, cursor, fingerprint=fingerprint, stopped=stopped)
        keys += [record.key for record in page.images]
        cursor, pages = page.next_cursor, pages + 1
        if cursor is None:
            return keys
        assert len(page.images) == limit
        between(pages)


def fill(index: ImageIndex, count: int) -> None:
    index.add_many([image(f"{'even' if n % 2 == 0 else 'odd'}/{n}", n, {"third": n % 3 == 0}) for n in range(count)])


def by_distance(reference: Reference, count: int) -> list[int]:
    """Return the numbers of `fill`, those farthest from the training images first."""
    stored = np.stack([vector(n) for n in range(count)]).astype(np.float16).astype(np.float32)
    return [int(n) for n in np.argsort(-reference.distances_of(stored), kind="stable")]


def test_the_most_unusual_images_come_first_and_a_filter_and_a_prefix_apply(
    tmp_path: Path, reference: Reference
) -> None:
    numbers = by_distance(reference, 11)
    with open_index(tmp_path) as index:
        fill(index, 11)
        expected = [f"{'even' if n % 2 == 0 else 'odd'}/{n}" for n in numbers]
        for limit in (1, 2, 11, 12):
            assert listed(index, reference, listing(), limit=limit) == expected
        assert listed(index, reference, listing(order="novelty")) == expected[::-1]
        assert listed(index, reference, listing(prefix="odd/")) == [key for key in expected if key.startswith("odd/")]
        thirds = [f"{'even' if n % 2 == 0 else 'odd'}/{n}" for n in numbers if n % 3 == 0]
        assert listed(index, reference, listing("third:true")) == thirds
        assert listed(index, reference, listing("third:true", "odd/")) == [key for key in thirds if key[:3] == "odd"]


def test_equal_images_are_listed_exactly_once(tmp_path: Path, reference: Reference) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(f"{n}", 7) for n in range(9)])
        keys = [f"{n}" for n in range(9)]
        assert listed(index, reference, listing()) == keys
        assert listed(index, reference, listing(order="novelty"), limit=4) == keys


def test_changes_between_pages_move_no_other_image(tmp_path: Path, reference: Reference) -> None:
    order = [f"{'even' if n % 2 == 0 else 'odd'}/{n}" for n in by_distance(reference, 12)]
    with open_index(tmp_path) as index:
        fill(index, 12)

        def change(page: int) -> None:
            if page == 2:
                index.delete(order[0])  # already listed
                index.delete(order[7])
                far = NewImage("far", "0" * 64, 1, 1, 1, None, b"", np.full(4096, 50, np.float32))
                index.add_many([far])  # belongs before everything that was listed

        assert listed(index, reference, listing(), between=change) == [key for key in order if key != order[7]]
        assert listed(index, reference, listing())[0] == "far"


def test_an_image_is_measured_once_and_again_when_it_is_replaced(tmp_path: Path, reference: Reference) -> None:
    blocks = 0

    def count() -> bool:  # called once for each block
        nonlocal blocks
        blocks += 1
        return False

    with open_index(tmp_path) as index:
        fill(index, 20)
        before = listed(index, reference, listing(), stopped=count)
        assert blocks == 1
        assert listed(index, reference, listing("third:true", order="novelty"), stopped=count)
        assert blocks == 1
        index.add_many([NewImage(before[-1], "1" * 64, 1, 1, 1, None, b"", np.full(4096, 50, np.float32))])
        assert listed(index, reference, listing(), stopped=count) == [before[-1], *before[:-1]]
        assert blocks == 2


def test_measuring_can_be_stopped_and_continues(tmp_path: Path, reference: Reference) -> None:
    answers = [False, True]
    with open_index(tmp_path) as index:
        index.add_many([image(f"{n:04}", n % 9) for n in range(1200)])
        with pytest.raises(IndexUnavailableError, match="Repeat it to continue"):
            listed(index, reference, listing(), limit=1000, stopped=lambda: answers.pop(0))
        answers = [False, False, True]  # two of three blocks are left
        keys = listed(index, reference, listing(), limit=1000, stopped=lambda: answers.pop(0))
        assert sorted(keys) == [f"{n:04}" for n in range(1200)]
        assert answers == [True]


def test_a_cursor_of_another_listing_or_space_is_rejected(tmp_path: Path, reference: Reference) -> None:
    with open_index(tmp_path) as index:
        fill(index, 4)
        fingerprint = index.searched.fingerprint

        def page(cursor: str | None, wanted: Listing) -> str | None:
            never = lambda: False  # noqa: E731
            found = index.by_novelty(reference, wanted, 2, cursor, fingerprint=fingerprint, stopped=never)
            return found.next_cursor

        cursor = page(None, listing())
        assert cursor is not None
        with pytest.raises(CursorError, match="another filter, prefix or order"):
            page(cursor, listing(order="novelty"))
        identity, digest, last = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        for changed in ([*last[:2], last[2] + 1], last[:2], ["1", *last[1:]], None):
            text = json.dumps([identity, digest, changed]).encode()
            with pytest.raises(CursorError, match="does not belong to this index"):
                page(base64.urlsafe_b64encode(text).decode().rstrip("="), listing())
