"""An index without write permission can be verified, searched and exported, and errors of reading are not damage."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from index.catalog.catalog import Catalog
from index.catalog.database import connect, translate
from index.errors import IndexBusyError, IndexCorruptError, IndexFullError, IndexUnreadableError
from index.local.verify import verify
from tests.index.helpers import add_labeled_images, image, open_index

# Everything that only reads, as another user than root, whom permissions do not stop.
READ = """
import os, sys
from pathlib import Path
import numpy as np
import pyarrow.compute  # now, because the other user may not be allowed to read it later
from index.catalog.queries.export import export_parquet
from index.catalog.backup import take_snapshot
from index.factory import read_stats
from index.local.verify import verify
from model_store.errors import Fc7Error
from tests.index.helpers import open_index, vector

home, out = Path(sys.argv[1]), Path(sys.argv[2])
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
try:
    print("images", read_stats(home).images)
    print("findings", len(verify(home).findings))
    with open_index(home, read_only=True) as index:
        print("nearest", index.search(vector(1)[np.newaxis], 1)[0][0].key)
    print("exported", export_parquet(home, out / "all.parquet"))
    print("copied", take_snapshot(home, out / "copy").images)
except Fc7Error as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a home that every user can read, with a closed index of three images."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    add_labeled_images(folder / "home")
    yield folder / "home"
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def out() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def make_read_only(home: Path) -> None:
    for path in (home / "index").iterdir():
        path.chmod(0o444)
    for path in (home / "index", home):
        path.chmod(0o555)


def read(home: Path, out: Path) -> str:
    done = subprocess.run([sys.executable, "-c", READ, home, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


ALL_READ = "images 3\nfindings 0\nnearest gull\nexported 3\ncopied 3\n"


def test_an_index_without_write_permission_is_read(home: Path, out: Path) -> None:
    make_read_only(home)
    before = sorted((home / "index").iterdir())
    assert read(home, out) == ALL_READ
    assert sorted((home / "index").iterdir()) == before, "nothing was written"


def test_an_index_without_write_permission_is_read_while_a_server_writes(home: Path, out: Path) -> None:
    with open_index(home) as index:
        index.change_metadata("gull", lambda old: old | {"n": 7})
        make_read_only(home)
        assert read(home, out) == ALL_READ
        assert not verify(home).findings
        index.add_many([image("new", 9)])


def test_changes_that_only_the_log_has_are_never_left_out(home: Path, out: Path) -> None:
    with open_index(home) as index:
        index.add_many([image("new", 9)])
        shutil.copytree(home, home.parent / "copy")
    copy = home.parent / "copy"
    assert (copy / "index/catalog.db-wal").stat().st_size > 0
    (copy / "index/catalog.db-shm").unlink()
    make_read_only(copy)
    answer = read(copy, out)
    assert answer.startswith("IndexUnreadableError")
    assert "write-ahead log" in answer
    assert "damaged (" not in answer


@pytest.mark.parametrize("part", ["catalog.db", "."])
def test_an_unreadable_file_is_not_damaged(home: Path, out: Path, part: str) -> None:
    (home / "index" / part).chmod(0)
    answer = read(home, out)
    assert answer.startswith("IndexUnreadableError")
    assert "Permission denied" in answer
    assert "move the index away" not in answer


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_IOERR_READ, IndexUnreadableError),
        (sqlite3.SQLITE_IOERR_FSTAT, IndexUnreadableError),
        (sqlite3.SQLITE_IOERR_WRITE, IndexFullError),
        (sqlite3.SQLITE_BUSY, IndexBusyError),
        (sqlite3.SQLITE_BUSY_RECOVERY, IndexBusyError),
        (sqlite3.SQLITE_CORRUPT_INDEX, IndexCorruptError),
        (sqlite3.SQLITE_NOTADB, IndexCorruptError),
    ],
)
def test_each_cause_has_its_own_error(code: int, kind: type[Exception]) -> None:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    translated = translate(error, Path("catalog.db"))
    assert type(translated) is kind
    assert ("move the index away" in str(translated)) == (kind is IndexCorruptError)


def test_a_disk_error_ends_verification_without_a_finding(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise error

    monkeypatch.setattr("index.local.verify._CatalogCheck._images", fail)
    with pytest.raises(IndexUnreadableError, match="disk I/O error"):
        verify(home)


def test_a_locked_catalog_is_busy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_index(home) as index:
        index.change_metadata("gull", lambda old: old)
    with sqlite3.connect(home / "index/catalog.db", isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr("index.catalog.database.BUSY_S", 0.05)
        with pytest.raises(IndexBusyError, match="Try again"):
            connect(home / "index/catalog.db", read_only=True)
    other.close()


def test_a_file_that_disappears_is_reported_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(IndexUnreadableError, match=os.strerror(errno.ENOENT)):
        Catalog(tmp_path / "catalog.db", read_only=True)
