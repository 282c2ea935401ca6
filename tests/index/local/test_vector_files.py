"""The files of the vectors make a restart fast, also after a kill, and never change what a search returns."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.catalog.catalog import Catalog
from index.local.index import LocalImageIndex
from index.local.vector_files import remove_unfinished_files, remove_unused_files
from index.local.verify import verify
from index.records import NewImage
from index.search.searcher import Mode
from index.search.segment_file import open_segment, write_segment
from tests.index.helpers import MODEL, activations, flip_bit, open_index, sha256

ROWS = 2600  # three segments of 1,024 rows: two are full


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float16]:
    return activations(ROWS + 100)


@pytest.fixture(scope="module")
def filled(rows: NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with 2,600 images, two full segments in files, and learned codes."""
    home = tmp_path_factory.mktemp("filled")
    with open_index(home, fast_from=2000) as index:
        add(index, rows[:1024])
        add(index, rows[1024:2048], 1024)
        add(index, rows[2048:ROWS], 2048)
        wait_until(lambda: index.mode() == "fast" and len(list((home / "index").glob("*.codes"))) == 2)
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "home"))


def add(index: LocalImageIndex, rows: NDArray[np.float16], start: int = 0) -> None:
    index.add_many(
        [
            NewImage(str(n), sha256(n % 7), 1, 1, 1, None, None, row)
            for n, row in enumerate(rows.astype(np.float32), start)
        ]
    )


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def files(home: Path) -> list[Path]:
    return sorted((home / "index").glob("*.vectors"))


def mapped(index: LocalImageIndex) -> int:
    return sum(segment.capacity for segment in index.spaces.active.searcher.segments if segment.mapped)


def check(index: LocalImageIndex, rows: NDArray[np.float16], gone: int = -1) -> None:
    """Check that every image is found at distance 0 in both modes, and that the deleted one is not found."""
    for n in (0, 7, 1023, 1024, 2047, 2048, ROWS - 1):
        modes: tuple[Mode | None, ...] = ("exact", None)
        for mode in modes:
            nearest = index.search(rows[n : n + 1].astype(np.float32), 1, mode=mode)[0][0]
            assert (nearest.key == str(n) and nearest.distance == 0) == (n != gone), (n, mode)


def test_a_restart_maps_the_files_and_sees_all_changes(home: Path, rows: NDArray[np.float16]) -> None:
    for _ in range(2):
        with open_index(home, fast_from=2000) as index:
            assert mapped(index) == 2048
            assert index.mode() == "fast"
            check(index, rows)
            assert index.stats().bytes_in_memory < 2200 * 8192, "rows of full segments are not in memory"
    with open_index(home, fast_from=2000) as index:
        index.delete("7")
        replaced = NewImage("1030", sha256(99), 1, 1, 1, None, None, rows[ROWS].astype(np.float32))
        index.add_many([replaced])  # its vector gets a new id
    with open_index(home, fast_from=2000) as index:
        assert mapped(index) == 2048
        check(index, rows, gone=7)
        assert index.search(rows[ROWS : ROWS + 1].astype(np.float32), 1)[0][0].key == "1030"
        assert index.stats().vectors == ROWS - 1


def test_files_written_before_a_kill_are_used(tmp_path: Path, rows: NDArray[np.float16]) -> None:
    code = """
import os, signal, sys, time
from pathlib import Path
from tests.index.helpers import activations, open_index
from tests.index.local.test_vector_files import ROWS, add, files
home, rows = Path(sys.argv[1]), activations(ROWS + 100)
index = open_index(home)
for start in range(0, 2048, 1024):
    add(index, rows[start : start + 1024], start)
while len(files(home)) < 2:
    time.sleep(0.01)
add(index, rows[2048:ROWS], 2048)
index.delete("5")
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], check=False, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    (tmp_path / "index" / f".{files(tmp_path)[0].name}.0123").write_bytes(b"unfinished")
    with open_index(tmp_path) as index:
        assert mapped(index) == 2048
        check(index, rows, gone=5)
        add(index, rows[ROWS : ROWS + 50], ROWS)
    assert not verify(tmp_path).findings


@pytest.mark.parametrize(
    ("damage", "used"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), 1024),
        (lambda path: path.write_bytes(b""), 1024),
        (lambda path: path.write_bytes(b"{}" + path.read_bytes()[2:]), 1024),
        (lambda path: flip_bit(path, 4096 + 80), 1024),  # an id
        (lambda path: flip_bit(path, 4096 + 8 * 1024 + 40), 1024),  # a checksum
        (lambda path: path.unlink(), 1024),
        (lambda path: flip_bit(path.with_suffix(".codes"), 9000), 2048),
        (lambda path: path.with_suffix(".codes").unlink(), 2048),
    ],
    ids=["cut", "empty", "header", "id", "checksum", "deleted", "codes", "no codes"],
)
def test_a_damaged_file_is_not_used(
    home: Path, rows: NDArray[np.float16], damage: Callable[[Path], object], used: int
) -> None:
    damage(files(home)[0])
    with open_index(home, fast_from=2000) as index:
        assert mapped(index) >= used
        check(index, rows)
        wait_until(lambda: index.mode() == "fast")
        check(index, rows)
        wait_until(lambda: mapped(index) == 2048)
    assert not verify(home).findings, "what was damaged was written again"


def test_a_damaged_row_is_found_and_read_from_the_catalog(home: Path, rows: NDArray[np.float16]) -> None:
    path = files(home)[0]
    flip_bit(path, path.stat().st_size - 8192 * 3 + 1, 6)
    [finding] = verify(home).findings
    assert "damaged copy of vector" in finding.problem
    with open_index(home, fast_from=2000) as index:
        wait_until(lambda: not path.exists())
        wait_until(lambda: mapped(index) == 2048)
        check(index, rows)
    assert not verify(home).findings


def test_verify_repairs_damaged_files(home: Path) -> None:
    path = files(home)[0]
    flip_bit(path, path.stat().st_size - 8192)
    assert verify(home, repair=True).repaired == 1
    assert not path.exists()
    assert not verify(home).findings


def test_files_of_another_index_are_not_used(home: Path, tmp_path: Path, rows: NDArray[np.float16]) -> None:
    with open_index(tmp_path / "other") as index:
        add(index, rows[50:60])
    for path in (home / "index").glob(f"{MODEL['fingerprint'][:16]}-*"):
        shutil.copy(path, tmp_path / "other/index")
    with open_index(tmp_path / "other") as index:
        assert mapped(index) == 0
        assert len(index.search(rows[:1].astype(np.float32), 100)[0]) == 10


def test_rows_stay_in_memory_if_the_disk_is_full(
    home: Path, rows: NDArray[np.float16], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for path in files(home):
        path.unlink()
    monkeypatch.setattr("index.local.vector_files.write_segment", full)
    with open_index(home, fast_from=2000) as index:
        check(index, rows)
        add(index, rows[ROWS : ROWS + 1], ROWS)
        assert mapped(index) == 0
    assert files(home) == []


def test_files_are_deleted_with_their_segments(home: Path) -> None:
    with open_index(home, fast_from=2000) as index:
        assert len(files(home)) == 2
        for n in range(2048):
            index.delete(str(n))
        wait_until(lambda: files(home) == [])
        assert index.stats().vectors == ROWS - 2048
        assert list((home / "index").glob("*.codes")) == []


def test_a_file_that_lacks_a_vector_is_not_used(home: Path, rows: NDArray[np.float16]) -> None:
    with Catalog(home / "index/catalog.db", read_only=True) as catalog:
        owner = f"{catalog.identity} {MODEL['fingerprint']}"
    file = open_segment(files(home)[0], owner)
    assert file is not None
    whole = file.rows.view(np.float16).reshape(-1, 4096)
    left = np.delete(np.arange(1024), 5)
    write_segment(file.path, owner, file.ids[left], file.checksums[left], [whole[left]])
    with open_index(home, fast_from=2000) as index:
        check(index, rows)


def test_files_that_are_being_written_are_not_deleted_with_those_of_other_models(tmp_path: Path) -> None:
    used, unused, written = (
        tmp_path / name for name in ("f" * 16 + "-1.vectors", "e" * 16 + "-1.vectors", ".f.codes.1")
    )
    for path in (used, unused, written):
        path.write_bytes(b"")
    remove_unused_files(tmp_path, ["f" * 64])
    assert sorted(tmp_path.iterdir()) == sorted([used, written])
    remove_unfinished_files(tmp_path)
    assert list(tmp_path.iterdir()) == [used]
