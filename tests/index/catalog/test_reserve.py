"""Images can be deleted when the disk is full."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from index.catalog.reserve import RESERVE_FILE
from index.errors import IndexFullError
from index.interface import ImageIndex
from tests.index.helpers import image, open_index


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 7 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(folder)], stderr=subprocess.DEVNULL):
        pytest.skip("mounting a file system is not permitted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def add_until_full(index: ImageIndex) -> int:
    """Add images; return how many were added."""
    for number in itertools.count():
        try:
            index.add_many([image(f"image {number}", number)])
        except IndexFullError:
            return number
    raise AssertionError


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_every_image_can_be_deleted_when_the_disk_is_full(small_disk: Path) -> None:
    reserve = small_disk / "index" / RESERVE_FILE
    with open_index(small_disk) as index:
        assert reserve.stat().st_size == 4_000_000
        added = add_until_full(index)
        assert added > 10
        fill(small_disk / "other")  # another program takes what is left
        for number in range(added):
            index.delete(f"image {number}")
        assert index.stats().images == 0
        assert not reserve.exists()  # it was needed
    (small_disk / "other").unlink()
    with open_index(small_disk):
        assert reserve.exists()
