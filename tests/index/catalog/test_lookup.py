"""How much of the catalog is read to find a few images."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from index.catalog import catalog as catalog_module
from index.catalog.database import connect
from tests.index.helpers import image, open_index, sha256

_INSTRUCTIONS = 10


def test_the_work_to_look_up_a_few_keys_does_not_grow_with_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    def counting(path: Path, *, read_only: bool) -> sqlite3.Connection:
        connection = connect(path, read_only=read_only)
        if read_only:
            connection.set_progress_handler(count, _INSTRUCTIONS)
        return connection

    monkeypatch.setattr(catalog_module, "connect", counting)
    work = []
    with open_index(tmp_path) as index:
        for start, end in ((0, 20), (20, 400)):
            index.add_many([image(str(number), number) for number in range(start, end)])
            counted = 0
            assert index.lookup(["3", "7", "new"]) == {"3": sha256(3), "7": sha256(7)}
            work.append(counted)
    assert work[1] == pytest.approx(work[0], abs=5)
