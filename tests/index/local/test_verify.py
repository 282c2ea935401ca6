"""Verification finds damaged records, pages and files, and names the images; repair drops only what is damaged."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from index.errors import IndexLockedError
from index.filters import parse_where
from index.local.verify import Report, verify
from tests.index.helpers import (
    LABELS,
    add_labeled_images,
    all_rows,
    flip_bit,
    image,
    open_index,
    picture,
    sha256,
    vector,
)


def problems(report: Report) -> str:
    return "\n".join(f"{finding.key}: {finding.problem}: {finding.fix}" for finding in report.findings)


@pytest.mark.parametrize(
    ("statement", "key", "words"),
    [
        ("UPDATE images SET metadata = '{\"label\":\"herom\"}' WHERE key = 'heron'", "heron", "Delete the image"),
        ("UPDATE images SET width = 641 WHERE key = 'heron'", "heron", "record differs"),
        ("UPDATE images SET added = added + 1 WHERE key = 'heron'", "heron", "record differs"),
        ("UPDATE pictures SET jpeg = zeroblob(3000) WHERE image_id = 2", "gull", "picture differs"),
        ("UPDATE vectors SET vector = zeroblob(8192) WHERE image_id = 3", "ferry", "fc7 index reembed"),
        ("UPDATE vectors SET crc = crc + 1 WHERE image_id = 3", "ferry", "vector differs"),
        ("DELETE FROM attributes WHERE image_id = 1 AND value = 'heron'", "heron", "attributes that filters compare"),
        ("UPDATE fields SET name = 'lapel' WHERE name = 'label'", "heron", "attributes that filters compare"),
        ("UPDATE fields SET type = 'strung' WHERE type = 'string'", "heron", "attributes that filters compare"),
        ("UPDATE spaces SET model = 'lunar:1'", None, "record of the model"),
        ("UPDATE meta SET value = '7' WHERE name = 'active_space'", None, "does not say which model"),
        ("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'images'", None, "the id counter of images"),
        ("DELETE FROM images WHERE key = 'gull'", None, "belongs to nothing"),
        ("PRAGMA user_version = 1", None, "which has no checksums"),
    ],
)
def test_verify_finds_and_names_every_change(tmp_path: Path, statement: str, key: str | None, words: str) -> None:
    add_labeled_images(tmp_path)
    report = verify(tmp_path)
    assert (report.images, report.pictures, report.vectors, report.findings) == (3, 3, 3, [])
    connection = sqlite3.connect(tmp_path / "index/catalog.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
    found = verify(tmp_path).findings
    assert key in {finding.key for finding in found}
    assert words in problems(verify(tmp_path))


def test_repair_drops_only_what_is_damaged(tmp_path: Path) -> None:
    add_labeled_images(tmp_path)
    connection = sqlite3.connect(tmp_path / "index/catalog.db")
    connection.execute("UPDATE vectors SET vector = zeroblob(8192) WHERE image_id = 1")
    connection.execute("UPDATE pictures SET jpeg = zeroblob(3000) WHERE image_id = 2")
    connection.execute("DELETE FROM attributes WHERE image_id = 3")
    connection.commit()
    connection.close()
    report = verify(tmp_path, repair=True)
    assert len(report.findings) == report.repaired == 3
    assert not verify(tmp_path).findings
    with open_index(tmp_path) as index:
        assert index.lookup(LABELS).keys() == {"gull", "ferry"}
        assert [index.get(key).has_picture for key in LABELS] == [True, False, True]
        assert [record.key for record in index.list(9, where=parse_where(["n>=1"])).images] == ["gull", "ferry"]
        with pytest.raises(IndexLockedError):
            verify(tmp_path, repair=True)
        assert not verify(tmp_path).findings, "without repair, verify must work while the index is open"


def test_any_flipped_bit_is_found_or_has_no_effect(tmp_path: Path) -> None:
    add_labeled_images(tmp_path)
    catalog = tmp_path / "index/catalog.db"
    original, rows = catalog.read_bytes(), all_rows(catalog)
    rng = random.Random(5)
    content = [b"gull", sha256(1).encode(), b'"label":"gull"', b"solar:1", b"f" * 64, b"CREATE TABLE vectors"]
    content += [picture(1)[start : start + 40] for start in (0, 1000, 2900)]
    stored = vector(1).astype(np.float16).tobytes()
    content += [stored[start : start + 40] for start in (0, 4000, 8150)]
    offsets = []
    for text in content:
        offset = original.find(text)
        assert offset >= 0, text
        while offset >= 0:
            offsets.append(offset + rng.randrange(len(text)))
            offset = original.find(text, offset + 1)
    for offset in offsets:
        flip_bit(catalog, offset, rng.randrange(8))
        assert verify(tmp_path).findings, (offset, original[offset - 40 : offset + 40])
        catalog.write_bytes(original)
    for _ in range(100):
        flip_bit(catalog, rng.randrange(len(original)), rng.randrange(8))
        assert verify(tmp_path).findings or all_rows(catalog) == rows, "only unused bytes may change unnoticed"
        catalog.write_bytes(original)
    assert not verify(tmp_path).findings


def test_a_flipped_bit_in_the_log_of_a_killed_server_is_found(tmp_path: Path) -> None:
    with open_index(tmp_path / "home") as index:
        for n in range(3):
            index.add_many([image(str(n), n)])
        shutil.copytree(tmp_path / "home", tmp_path / "killed")
    log = tmp_path / "killed/index/catalog.db-wal"
    original = log.read_bytes()
    assert len(original) > 50_000
    assert not verify(tmp_path / "killed").findings
    rng = random.Random(6)
    for offset in (0, 20, 33, 40, 50, *(rng.randrange(len(original)) for _ in range(10))):
        shutil.rmtree(tmp_path / "killed")
        shutil.copytree(tmp_path / "home", tmp_path / "killed")
        log.write_bytes(original)
        flip_bit(log, offset)
        assert "catalog.db-wal is damaged" in problems(verify(tmp_path / "killed")), offset
    log.write_bytes(original[:-100])
    assert "damaged" not in problems(verify(tmp_path / "killed")), "an incomplete last frame was never committed"
