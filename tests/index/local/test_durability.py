"""Acknowledged changes survive kills, full disks and flipped bits; incomplete changes leave no trace."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from index.errors import IndexCorruptError
from tests.index.helpers import image, open_index, picture, sha256, vector

# Four threads, each with its own keys, print each change when it is started and when it is acknowledged:
# "+ key number" for an addition, "- key" for a deletion.
WRITER = """
import os, sys, threading
from pathlib import Path
from index.errors import IndexFullError
from tests.index.helpers import image, open_index

def report(text):
    os.write(1, (text + "\\n").encode())

def work(thread):
    number = int(sys.argv[2]) + thread * 1000
    while True:
        number += 1
        key = f"{thread}-{number % 7}"
        if number % 5 == 0 and index.contains(key):
            report(f"start - {key}")
            index.delete(key)
            report(f"done - {key}")
        else:
            report(f"start + {key} {number}")
            index.add_many([image(key, number)])
            report(f"done + {key} {number}")

index = open_index(Path(sys.argv[1]))
for thread in range(4):
    threading.Thread(target=work, args=(thread,), daemon=True).start()
sys.stdin.read()
"""

FILLER = """
import resource, sys
from pathlib import Path
from index.errors import IndexFullError
from tests.index.helpers import image, open_index, vector

index = open_index(Path(sys.argv[1]))
index.add_many([image("first", 0)])
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
number = 0
try:
    while number < 1000:
        number += 1
        index.add_many([image(str(number), number)])
        print(number)
except IndexFullError as error:
    print("full:", error)
found = index.search(vector(1)[None], 2)[0]
print("nearest", found[0].key, found[0].distance, index.get("first").key)
try:
    index.delete("first")
except IndexFullError:
    pass
index.close()
"""


def possible_values(lines: list[str], earlier: dict[str, set[int | None]]) -> dict[str, set[int | None]]:
    """Return the numbers that each key may have: the last acknowledged one, and those started later. None: no image."""
    possible = dict(earlier)
    for line in lines:
        stage, change, key, *number = line.split()
        value = int(number[0]) if change == "+" else None
        possible[key] = {value} if stage == "done" else possible.get(key, {None}) | {value}
    return possible


def test_after_a_kill_every_acknowledged_change_is_complete(tmp_path: Path) -> None:
    random.seed(1)
    expected: dict[str, set[int | None]] = {}
    for start in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(start * 100_000)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(20)]
            time.sleep(random.random() * 0.5)
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        expected = possible_values([line for line in lines if line.endswith("\n")], expected)
        with open_index(tmp_path) as index:
            records = {record.key: record for record in index.list(1000).images}
            assert len(expected) > 4
            for key, possible in expected.items():
                found = {sha256(number): number for number in possible if number is not None}
                if key not in records:
                    assert None in possible, f"{key} is gone"
                    expected[key] = {None}
                    continue
                assert records[key].sha256 in found, f"{key} is not one of {possible}"
                number = found[records[key].sha256]
                expected[key] = {number}
                assert index.picture(key) == picture(number)
                nearest = index.search(vector(number)[np.newaxis], 1)[0][0]
                assert (nearest.key, nearest.distance) == (key, 0)
            assert set(records) <= set(expected)
            assert index.stats().vectors == len(records)


def test_a_full_disk_rejects_the_write_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    *added, full, nearest = done.stdout.splitlines()
    assert len(added) > 10
    assert full.startswith("full: The disk is too full")
    assert str(tmp_path) in full
    assert nearest == "nearest 1 0.0 first"
    with open_index(tmp_path) as index:
        assert {record.key for record in index.list(1000).images} - {"first"} == set(added)
        for key in added:
            assert index.similar(key, 1)
        index.add_many([image("later", 5000)])


def test_a_flipped_bit_in_a_stored_vector_is_detected(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n) for n in range(3)])
    flipped = bytearray(vector(1).astype(np.float16).tobytes())
    flipped[100] ^= 4
    connection = sqlite3.connect(tmp_path / "index" / "catalog.db")
    connection.execute("UPDATE vectors SET vector = ? WHERE id = 2", (bytes(flipped),))
    connection.commit()
    connection.close()
    with pytest.raises(
        IndexCorruptError, match=r"catalog\.db is damaged \(the vector of '1' differs from its checksum\)"
    ):
        open_index(tmp_path)


def test_a_file_that_is_not_a_database_is_rejected_and_named(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "catalog.db").write_bytes(b"not a database at all" * 500)
    with pytest.raises(IndexCorruptError, match=r"catalog\.db is damaged \(file is not a database\)"):
        open_index(tmp_path)
