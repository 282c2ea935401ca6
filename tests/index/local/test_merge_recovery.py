"""Merged files survive kills, damage and restarts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.local import vector_files
from index.local.verify import verify
from index.search import merging
from index.search.segment_file import write_segment
from tests.index.helpers import flip_bit, open_index
from tests.index.local.small_segments import LARGE, SMALL, use_small_segments
from tests.index.local.test_vector_files import add, files, mapped, wait_until


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_segments(monkeypatch.setattr)


KILLED = """
import os, signal, sys
from pathlib import Path
from index.local import vector_files
from tests.index.helpers import activations, open_index
from tests.index.local.small_segments import use_small_segments
from tests.index.local.test_vector_files import add
use_small_segments(setattr)
home, deleted = Path(sys.argv[1]), int(sys.argv[2])
rows, remove = activations(2000), vector_files.remove

def delete_or_die(path):
    global deleted
    if deleted == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    deleted -= 1
    remove(path)

vector_files.remove = delete_or_die
index = open_index(home, fast_from=100)
for start in range(0, 600, 20):
    add(index, rows[start : start + 20], start)
    if start == 40:
        index.delete("0")
        index.delete("33")
    index.optimize()
"""


@pytest.mark.parametrize("deleted", [0, 1, 4])
def test_nothing_is_lost_by_a_kill_while_merged_files_are_deleted(
    tmp_path: Path, rows: NDArray[np.float16], deleted: int
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, str(deleted)], check=False, capture_output=True, text=True
    )
    assert killed.returncode == -9, killed.stderr
    with open_index(tmp_path, fast_from=100) as index:
        count = index.stats().vectors
        assert count % 20 == 18, "all additions that finished, and one deletion of two vectors"
        left = [n for n in range(count + 2) if n not in (0, 33)]
        assert mapped(index) >= count - 2 * SMALL
        assert index.spaces.active.searcher.segments[0].file is not None
        assert index.spaces.active.searcher.segments[0].count > LARGE - 2 * SMALL, "the merged file is preferred"
        for n in left:
            nearest = index.search(rows[n : n + 1].astype(np.float32), 1, mode="exact")[0][0]
            assert (nearest.key, nearest.distance) == (str(n), 0)
        assert sorted(int(hit.key) for hit in index.search(rows[:1].astype(np.float32), 5000)[0]) == left
        index.optimize()
        used = {each.file.path for each in index.spaces.active.searcher.segments if each.file is not None}
        assert set(files(tmp_path)) == used
    assert not verify(tmp_path).findings


@pytest.fixture(scope="module")
def merged_home(rows: NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("merged")
    with pytest.MonkeyPatch.context() as patch:
        use_small_segments(patch.setattr)
        with open_index(home, fast_from=500) as index:
            for start in range(0, 1000, 50):
                add(index, rows[start : start + 50], start)
            index.optimize()
    return home


@pytest.fixture
def home(merged_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged_home, tmp_path / "home"))


def largest(home: Path) -> Path:
    return max(files(home), key=lambda path: path.stat().st_size)


def test_a_reopened_index_returns_the_same_and_uses_as_little_memory(home: Path, rows: NDArray[np.float16]) -> None:
    answers = []
    for _ in range(2):
        with open_index(home, fast_from=500) as index:
            assert index.mode() == "fast"
            assert index.stats().bytes_in_memory <= 2 * SMALL * 8201 + 90 * 1100
            assert mapped(index) >= 1000 - 2 * SMALL
            found = index.search(rows[:20].astype(np.float32), 10)
            answers.append([[(hit.key, hit.distance) for hit in hits] for hits in found])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("offset", [50, -8192 * 3 + 1], ids=["header", "row"])
def test_a_damaged_merged_file_is_replaced(home: Path, rows: NDArray[np.float16], offset: int) -> None:
    path = largest(home)
    flip_bit(path, offset % path.stat().st_size, 6)
    [finding] = verify(home).findings
    assert str(path) in finding.problem
    with open_index(home, fast_from=500) as index:
        index.optimize()
        wait_until(lambda: not path.exists())
        for n in range(1000):
            nearest = index.search(rows[n : n + 1].astype(np.float32), 1, mode="exact")[0][0]
            assert (nearest.key, nearest.distance) == (str(n), 0)
    assert not path.exists()
    assert not verify(home).findings


def test_vectors_between_files_do_not_stay_in_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "SAVED_ROWS", 24)  # there are 17 of them
    with open_index(home, fast_from=500) as index:
        middle = next(each for each in index.spaces.active.searcher.segments[1:-1] if each.capacity == SMALL)
        assert middle.file is not None
        for vector_id in middle.ids[:15].tolist():
            index.delete(str(vector_id - 1))
    middle.file.path.unlink()
    with open_index(home, fast_from=500) as index:
        index.optimize()
        assert index.stats().vectors == 985
        assert all(each.mapped for each in index.spaces.active.searcher.segments[:-1])


def test_only_one_thread_writes_files_at_a_time(
    tmp_path: Path, rows: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = most = 0

    def write_slowly(*arguments: Any) -> object:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        time.sleep(0.02)
        file = write_segment(*arguments)
        writing -= 1
        return file

    monkeypatch.setattr(vector_files, "write_segment", write_slowly)
    with open_index(tmp_path) as index:
        for start in range(0, 600, 50):
            add(index, rows[start : start + 50], start)  # saved in the background
            index.optimize()
        used = {each.file.path for each in index.spaces.active.searcher.segments if each.file is not None}
        assert set(files(tmp_path)) == used
    assert most == 1, "a thread would delete the file that another one is about to use"
