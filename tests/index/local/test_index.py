"""Adds, replacements, deletes and searches of an index, before and after it is opened again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.errors import (
    CursorError,
    IndexFormatError,
    IndexLockedError,
    IndexModelError,
    IndexReadOnlyError,
    IndexUnavailableError,
    InvalidKeyError,
    KeyNotFoundError,
    MetadataError,
    PictureNotFoundError,
    VectorError,
)
from index.factory import read_stats
from index.interface import ImageIndex
from index.local.index import LocalImageIndex
from index.records import AddOutcome
from index.search.ranking import Hits
from index.search.searcher import Mode
from model_store.errors import ShapeError
from tests.index.helpers import Opener, exact, image, picture, sha256, vector
from tests.index.helpers import open_index as open_local


def keys_near(index: ImageIndex, number: int, k: int = 3) -> list[str]:
    return [neighbour.key for neighbour in index.search(vector(number)[np.newaxis], k)[0]]


def test_an_added_image_is_complete_after_reopening(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        assert index.add_many([image("birds/héron 🐦", 1, {"place": "Camargue", "year": 2024})]) == [AddOutcome.ADDED]
    with open_index(tmp_path) as index:
        record = index.get("birds/héron 🐦")
        assert (record.sha256, record.size, record.width, record.height) == (sha256(1), 3000, 640, 480)
        assert record.metadata == {"place": "Camargue", "year": 2024}
        assert record.added == record.updated
        assert record.added.utcoffset() is not None
        assert index.picture(record.key) == picture(1)
        assert index.lookup([record.key, "other"]) == {record.key: sha256(1)}
        assert index.contains(record.key)
        (neighbour,) = index.search(vector(1)[np.newaxis], 5)[0]
        assert (neighbour.key, neighbour.distance, neighbour.metadata) == (record.key, 0.0, record.metadata)


def test_adding_an_image_again_changes_nothing_and_other_bytes_replace_it(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image("a", 1, {"n": 1}), image("b", 2)])
        before = index.get("a")
        assert index.add_many([image("a", 1, {"n": 1}), image("a", 1)]) == [AddOutcome.UNCHANGED] * 2
        assert index.get("a") == before
        assert index.add_many([image("a", 1, {"n": 2})]) == [AddOutcome.REPLACED]
        assert index.get("a").metadata == {"n": 2}
        assert index.add_many([image("a", 3)]) == [AddOutcome.REPLACED]
        assert index.get("a").metadata == {"n": 2}
        assert index.get("a").sha256 == sha256(3)
        assert index.get("a").added == before.added < index.get("a").updated
        assert index.picture("a") == picture(3)
        for opened in (index, None):
            again = opened or index
            assert keys_near(again, 3) == ["a", "b"]
            assert again.search(vector(3)[np.newaxis], 1)[0][0].distance == 0
            assert again.search(vector(1)[np.newaxis], 1)[0][0].distance > 1
        assert index.stats().vectors == index.stats().images == 2


def test_an_image_without_a_key_gets_its_hash_and_one_key_twice_in_a_call_keeps_the_last(
    open_index: Opener, tmp_path: Path
) -> None:
    with open_index(tmp_path) as index:
        outcomes = index.add_many([image(None, 1), image("a", 2), image("a", 3)])
        assert outcomes == [AddOutcome.ADDED, AddOutcome.ADDED, AddOutcome.REPLACED]
        assert index.get(sha256(1)).key == sha256(1)
        assert index.get("a").sha256 == sha256(3)
        assert keys_near(index, 2, 5) == keys_near(index, 2, 2)
        assert index.search(vector(3)[np.newaxis], 1)[0][0].distance == 0


def test_a_deleted_image_is_found_nowhere(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n) for n in range(5)])
        index.delete("2")
        assert "2" not in keys_near(index, 2, 5)
        assert not index.contains("2")
        for call in (index.get, index.picture, index.delete, lambda key: index.similar(key, 1)):
            with pytest.raises(KeyNotFoundError, match="'2'"):
                call("2")
        assert [record.key for record in index.list(10).images] == ["0", "1", "3", "4"]
    with open_index(tmp_path) as index:
        assert sorted(keys_near(index, 2, 5)) == ["0", "1", "3", "4"]


def test_random_changes_agree_with_a_dictionary_and_numpy(open_index: Opener, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    expected: dict[str, int] = {}
    index = open_index(tmp_path)
    for step in range(120):
        key = f"key{random.integers(40)}"
        if random.random() < 0.3 and key in expected:
            index.delete(key)
            del expected[key]
        else:
            index.add_many([image(key, step)])
            expected[key] = step
        if step % 30 == 29:
            index.close()
            index = open_index(tmp_path)
        if step % 10 == 9:
            query = vector(1000 + step)
            distances = exact(np.stack([vector(n) for n in expected.values()]), query)
            order = sorted(zip(distances.tolist(), expected, strict=True))
            found = index.search(query[np.newaxis], 7)[0]
            assert [neighbour.key for neighbour in found] == [key for _, key in order[:7]]
            assert [neighbour.distance for neighbour in found] == pytest.approx([d for d, _ in order[:7]], rel=1e-6)
    assert {record.key: record.sha256 for record in index.list(100).images} == {
        key: sha256(number) for key, number in expected.items()
    }
    index.close()


def test_similar_excludes_the_image_itself_and_orders_equal_distances_by_key(
    open_index: Opener, tmp_path: Path
) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(key, 1) for key in ("d", "b", "c", "a", "e")] + [image("far", 2)])
        assert [neighbour.key for neighbour in index.similar("b", 3)] == ["a", "c", "d"]
        assert [neighbour.distance for neighbour in index.similar("b", 5)][:4] == [0, 0, 0, 0]
        assert [n.key for n in index.search(vector(1)[np.newaxis], 2, exclude="a")[0]] == ["b", "c"]
        with pytest.raises(ValueError, match="k is 0"):
            index.similar("b", 0)


def test_a_listing_contains_each_image_once_during_changes(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(f"{n:03}", n) for n in range(20)])
        page = index.list(7)
        index.delete("003")
        index.delete("010")
        index.add_many([image("012", 99), image("new", 98)])
        seen = [record.key for record in page.images]
        while page.next_cursor:
            page = index.list(7, page.next_cursor)
            seen += [record.key for record in page.images]
        assert seen == [f"{n:03}" for n in range(20) if n != 10] + ["new"]
        assert index.list(20).next_cursor is None
        cursor = index.list(1).next_cursor
    with open_index(tmp_path / "other") as other:
        for bad in (cursor, "x", "", "é", "AAAA", "W10", "[" * 9999):
            with pytest.raises(CursorError, match="does not belong to this index"):
                other.list(1, bad)


@pytest.mark.parametrize("key", ["", "k" * 201, "nul\0", "line\n", "del\x7f", "half\ud83d"])
def test_an_invalid_key_is_rejected(open_index: Opener, tmp_path: Path, key: str) -> None:
    with open_index(tmp_path) as index:
        for call in (index.get, index.delete, lambda bad: index.add_many([image("fine", 1), image(bad, 2)])):
            with pytest.raises(InvalidKeyError, match="1 to 200 characters"):
                call(key)
        assert index.stats().images == 0
        index.add_many([image("k" * 200, 1)])


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ([1], "is a list"),
        ({"x": "y" * 16384}, "has 16392 bytes"),
        ({"x": [[[[[[[[1]]]]]]]]}, "nested deeper than 8"),
        ({"x": float("nan")}, "contains nan"),
        ({"x": b"bytes"}, "contains a bytes"),
        ({"x": "\ud83d"}, "not valid Unicode"),
        ({1: "x"}, "the name 1"),
    ],
)
def test_invalid_metadata_is_rejected(open_index: Opener, tmp_path: Path, metadata: object, words: str) -> None:
    with open_index(tmp_path) as index:
        with pytest.raises(MetadataError, match=words):
            index.add_many([image("a", 1, metadata)])  # type: ignore[arg-type]
        assert not index.contains("a")


def test_one_invalid_vector_rejects_the_whole_call(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        for value in (np.nan, np.inf, 70000.0):
            bad = image("bad", 2)
            bad.vector[77] = value
            with pytest.raises(VectorError, match="1 has a largest magnitude of"):
                index.add_many([image("good", 1), bad])
            with pytest.raises(VectorError):
                index.search(bad.vector[np.newaxis], 1)
        with pytest.raises(ShapeError, match="4096"):
            index.search(np.zeros((1, 100), np.float32), 1)
        with pytest.raises(ShapeError):
            index.search(np.zeros(4096, np.float32), 1)
        assert index.stats().images == 0
        assert index.search(vector(1)[np.newaxis], 3) == [[]]


def test_pictures_are_stored_only_if_keep_pictures_is_set(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path, keep_pictures=False) as index:
        index.add_many([image("a", 1)])
        assert not index.get("a").has_picture
        with pytest.raises(PictureNotFoundError, match="Add the image again"):
            index.picture("a")
    with open_index(tmp_path) as index:
        assert index.add_many([image("a", 1)]) == [AddOutcome.REPLACED]
        assert index.picture("a") == picture(1)
        assert index.stats().vectors == 1


def test_an_index_of_another_model_is_rejected_and_the_error_says_how_to_migrate(tmp_path: Path) -> None:
    other = {"fingerprint": "e" * 64, "model": "solar:2"}
    with open_local(tmp_path) as index:
        index.add_many([image("a", 1), image("b", 2)])
    with pytest.raises(IndexModelError, match=r"solar:1, and 2 of its images.*solar:2.*fc7 index reembed"):
        open_local(tmp_path, **other)
    with open_local(tmp_path, **other, switch=True) as index:
        assert index.search(vector(1)[np.newaxis], 5) == [[]]
        assert index.lookup(["a"]) == {}
        with pytest.raises(IndexModelError):
            index.similar("a", 1)
        assert index.add_many([image("a", 1)]) == [AddOutcome.REPLACED]
        assert keys_near(index, 1) == ["a"]
    with open_local(tmp_path) as index:  # every image still has its vector of the first model
        assert keys_near(index, 1) == ["a", "b"]
        index.add_many([image("a", 3)])
    with open_local(tmp_path, **other, switch=True) as index:
        assert index.search(vector(1)[np.newaxis], 5) == [[]], "the vector of the replaced picture must be gone"


def test_an_empty_index_accepts_any_model(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        assert index.stats().images == 0
    with open_index(tmp_path, fingerprint="e" * 64, model="solar:2") as index:
        assert index.stats().model == "solar:2"


def test_a_second_process_is_rejected_and_the_error_names_the_first(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.index.helpers import open_index\n"
        "open_index(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(IndexLockedError, match=f"{tmp_path}.*process {other.pid}"):
            open_local(tmp_path)
        assert read_stats(tmp_path).images == 0
        with open_local(tmp_path, read_only=True) as index:
            assert index.search(vector(1)[np.newaxis], 3) == [[]]
            with pytest.raises(IndexReadOnlyError, match="opened read-only"):
                index.add_many([image("a", 1)])
        other.kill()
    with open_local(tmp_path) as index:  # the lock was released when the process ended
        index.add_many([image("a", 1)])


def test_a_missing_or_closed_index_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailableError, match="fc7 index build DIR"):
        open_local(tmp_path, read_only=True)
    with pytest.raises(IndexUnavailableError, match="fc7 index build DIR"):
        read_stats(tmp_path)
    index = open_local(tmp_path)
    index.close()
    index.close()
    with pytest.raises(IndexUnavailableError, match="closed"):
        index.add_many([image("a", 1)])


def test_a_catalog_of_a_newer_release_is_rejected(tmp_path: Path) -> None:
    with open_local(tmp_path) as index:
        index._catalog.writer.run(lambda connection: connection.execute("PRAGMA user_version = 99"))
    with pytest.raises(IndexFormatError, match=r"format 99.*Upgrade fc7"):
        open_local(tmp_path)


def test_searches_during_writes_never_see_an_incomplete_one(open_index: Opener, tmp_path: Path) -> None:
    """Replace one image repeatedly: every search finds it exactly once."""
    with open_index(tmp_path) as index:
        index.add_many([image("moving", 0)] + [image(f"still{n}", 100 + n) for n in range(20)])
        stop = threading.Event()
        problems: list[object] = []

        def search_repeatedly() -> None:
            while not stop.is_set():
                found = [neighbour.key for neighbour in index.search(vector(0)[np.newaxis], 30)[0]]
                if sorted(found) != sorted(["moving", *(f"still{n}" for n in range(20))]):
                    problems.append(found)

        readers = [threading.Thread(target=search_repeatedly) for _ in range(3)]
        for reader in readers:
            reader.start()
        for number in range(1, 150 if isinstance(index, LocalImageIndex) else 20):
            index.add_many([image("moving", number)])
        stop.set()
        for reader in readers:
            reader.join()
        assert problems == []
        assert index.stats().bytes_in_memory < 20_000_000


def test_a_search_is_repeated_if_its_results_are_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_local(tmp_path) as index:
        index.add_many([image("moving", 0), image("going", 1), image("still", 2)])
        searcher = index.spaces.active.searcher
        search = searcher.search

        def search_and_write(queries: NDArray[np.float16], k: int, *, mode: Mode) -> list[Hits]:
            hits = search(queries, k, mode=mode)
            monkeypatch.setattr(searcher, "search", search)
            index.add_many([image("moving", 3)])
            index.delete("going")
            return hits

        monkeypatch.setattr(searcher, "search", search_and_write)
        found = index.search(vector(3)[np.newaxis], 2)[0]
        assert [(neighbour.key, neighbour.distance > 0) for neighbour in found] == [("moving", False), ("still", True)]
        index.add_many([image("after", 4)])


def test_threads_can_add_and_delete_at_the_same_time(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:

        def work(thread: int) -> None:
            for n in range(15):
                index.add_many([image(f"{thread}-{n}", thread * 100 + n)])
                if n % 3 == 0:
                    index.delete(f"{thread}-{n}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = {f"{thread}-{n}" for thread in range(6) for n in range(15) if n % 3}
        assert {record.key for record in index.list(1000).images} == expected
        assert set(keys_near(index, 1, 1000)) == expected
    with open_index(tmp_path) as index:
        assert set(keys_near(index, 1, 1000)) == expected


def test_the_lock_file_names_this_process(tmp_path: Path) -> None:
    with open_local(tmp_path):
        assert (tmp_path / "index" / "lock").read_text() == str(os.getpid())
