"""Snapshots are consistent, and only complete and undamaged ones are restored."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.catalog.backup import read_manifest, restore_snapshot, take_snapshot
from index.errors import IndexUnavailableError, SnapshotError, TargetExistsError
from index.filters import parse_where
from index.local.verify import verify
from tests.index.helpers import (
    add_labeled_images,
    all_rows,
    flip_bit,
    image,
    open_index,
    picture,
    truncate_to_half,
    vector,
)


def fill(home: Path) -> None:
    with open_index(home, cache_after=1) as index:
        for n, key in enumerate(KEYS):
            index.add_many([image(key, n, {"label": key, "n": n, "tags": ["a", key]})])


def rows(catalogue: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything that the database holds."""
    connection = sqlite3.connect(f"file:{catalogue}?mode=ro", uri=True)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in tables}
    finally:
        connection.close()


def problems(report: Report) -> str:
    return "\n".join(f"{finding.key}: {finding.problem}: {finding.fix}" for finding in report.findings)


def test_a_restored_snapshot_is_the_index_row_by_row(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    manifest = take_snapshot(tmp_path / "one", tmp_path / "copy")
    assert (manifest.images, manifest.vectors, manifest.model) == (3, 3, "solar:1")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["catalog.db", "manifest.json"]
    assert restore_snapshot(tmp_path / "copy", tmp_path / "two") == manifest
    original = all_rows(tmp_path / "one/index/catalog.db")
    assert all_rows(tmp_path / "two/index/catalog.db") == original
    assert len(original["vectors"]) == len(original["pictures"]) == 3
    with open_index(tmp_path / "two") as index:
        assert index.picture("gull") == picture(1)
        found = index.search(vector(1)[np.newaxis], 1, where=parse_where(["tags:gull"]))[0]
        assert (found[0].key, found[0].distance) == ("gull", 0)
        index.add_many([image("new", 9)])


def test_a_snapshot_taken_during_writes_shows_one_moment(tmp_path: Path) -> None:
    with open_index(tmp_path / "home") as index:
        index.add_many(
            [image(f"base{n}", n) for n in range(400)] + [image("left", 0, {"n": 0}), image("right", 0, {"n": 0})]
        )
        stop = threading.Event()

        def write() -> None:
            n = 0
            while not stop.is_set():
                # Both images always change in one transaction, so every snapshot must show them equal.
                index.add_many([image("left", n, {"n": n}), image("right", n, {"n": n})])
                n += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            calls: list[tuple[int, int]] = []
            for n in range(3):
                take_snapshot(tmp_path / "home", tmp_path / f"copy{n}", advance=lambda *c: calls.append(c))
        finally:
            stop.set()
            writer.join()
    assert calls[-1][0] == calls[-1][1] > 100
    assert len(calls) < 20, "writes must not restart the copy"
    counts = []
    for n in range(3):
        assert not verify(tmp_path / f"copy{n}").findings
        restore_snapshot(tmp_path / f"copy{n}", tmp_path / f"home{n}")
        with open_index(tmp_path / f"home{n}") as index:
            left, right = index.get("left"), index.get("right")
            assert left.metadata == right.metadata
            assert left.sha256 == right.sha256
            assert index.stats().vectors == index.stats().images == 402
            counts.append(left.metadata["n"])
    assert counts == sorted(set(counts)), "the writer must have written between the snapshots"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "it is incomplete"),
        (lambda folder: (folder / "catalog.db").unlink(), "it is incomplete"),
        (lambda folder: truncate_to_half(folder / "catalog.db"), "it is incomplete"),
        (lambda folder: truncate_to_half(folder / "manifest.json"), "it is incomplete or damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 9999), "it is incomplete or damaged"),
        (lambda folder: flip_bit(folder / "catalog.db", 9000), "SHA-256 differs from the manifest"),
        (lambda folder: edit_manifest(folder, format=2), "has format 2, but this fc7 reads format 1"),
        (lambda folder: edit_manifest(folder, format="1"), "has format '1'"),
        (lambda folder: edit_manifest(folder, schema_version=99), "catalog of format 99"),
        (lambda folder: edit_manifest(folder, size="many"), "invalid value for size"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_bad_snapshot_is_rejected_and_nothing_is_restored(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    add_labeled_images(tmp_path / "one")
    take_snapshot(tmp_path / "one", tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(SnapshotError, match=words):
        restore_snapshot(tmp_path / "copy", tmp_path / "two")
    assert not (tmp_path / "two/index/catalog.db").exists()
    if (tmp_path / "copy/manifest.json").exists():
        assert verify(tmp_path / "copy").findings
    with open_index(tmp_path / "two") as index:
        assert index.stats().images == 0


def edit_manifest(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_existing_files_are_never_overwritten(tmp_path: Path) -> None:
    add_labeled_images(tmp_path / "one")
    take_snapshot(tmp_path / "one", tmp_path / "copy")
    manifest = (tmp_path / "copy/manifest.json").read_bytes()
    with pytest.raises(TargetExistsError):
        take_snapshot(tmp_path / "one", tmp_path / "copy")
    assert (tmp_path / "copy/manifest.json").read_bytes() == manifest
    with pytest.raises(TargetExistsError, match="FC7_HOME"):
        restore_snapshot(tmp_path / "copy", tmp_path / "one")
    with pytest.raises(IndexUnavailableError):
        take_snapshot(tmp_path / "nowhere", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "one"]
    assert read_manifest(tmp_path / "copy").images == 3


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
def test_verify_finds_what_was_changed_and_names_it(
    tmp_path: Path, statement: str, key: str | None, words: str
) -> None:
    fill(tmp_path)
    report = verify(tmp_path)
    assert (report.images, report.pictures, report.vectors, report.findings) == (3, 3, 3, [])
    connection = sqlite3.connect(tmp_path / "index/catalog.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
    found = verify(tmp_path).findings
    assert key in {finding.key for finding in found}
    assert words in problems(verify(tmp_path))


def test_repair_drops_what_is_damaged_and_keeps_the_rest(tmp_path: Path) -> None:
    fill(tmp_path)
    connection = sqlite3.connect(tmp_path / "index/catalog.db")
    connection.execute("UPDATE vectors SET vector = zeroblob(8192) WHERE image_id = 1")
    connection.execute("UPDATE pictures SET jpeg = zeroblob(3000) WHERE image_id = 2")
    connection.execute("DELETE FROM attributes WHERE image_id = 3")
    connection.commit()
    connection.close()
    flip(tmp_path / "index/vectors.snapshot", 20_000)
    report = verify(tmp_path, repair=True)
    assert len(report.findings) == report.repaired == 4
    assert not verify(tmp_path).findings
    with open_index(tmp_path) as index:
        assert index.lookup(KEYS).keys() == {"gull", "ferry"}
        assert [index.get(key).has_picture for key in KEYS] == [True, False, True]
        assert [record.key for record in index.list(9, where=parse_where(["n>=1"])).images] == ["gull", "ferry"]
        with pytest.raises(IndexLockedError):
            verify(tmp_path, repair=True)
        assert not verify(tmp_path).findings, "looking is possible while it is open"


def test_any_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    catalogue, snapshot = tmp_path / "index/catalog.db", tmp_path / "index/vectors.snapshot"
    whole, before = catalogue.read_bytes(), rows(catalogue)
    chance = random.Random(5)
    content = [b"gull", sha256(1).encode(), b'"label":"gull"', b"solar:1", b"f" * 64, b"CREATE TABLE vectors"]
    content += [picture(1)[start : start + 40] for start in (0, 1000, 2900)]
    stored = vector(1).astype(np.float16).tobytes()
    content += [stored[start : start + 40] for start in (0, 4000, 8150)]
    places = []
    for text in content:
        place = whole.find(text)
        assert place >= 0, text
        while place >= 0:
            places.append(place + chance.randrange(len(text)))
            place = whole.find(text, place + 1)
    for place in places:
        flip(catalogue, place, chance.randrange(8))
        assert verify(tmp_path).findings, (place, whole[place - 40 : place + 40])
        catalogue.write_bytes(whole)
    for _ in range(100):
        flip(catalogue, chance.randrange(len(whole)), chance.randrange(8))
        assert verify(tmp_path).findings or rows(catalogue) == before, "bytes that nothing reads"
        catalogue.write_bytes(whole)
    for place in (5, 4096, 4096 + 24, 4096 + 24 + 8000, snapshot.stat().st_size - 1):
        flip(snapshot, place)
        assert "vectors.snapshot" in problems(verify(tmp_path)), place
        flip(snapshot, place)
    assert not verify(tmp_path).findings


def test_a_flipped_bit_in_the_log_of_a_killed_server_is_found(tmp_path: Path) -> None:
    with open_index(tmp_path / "home") as index:
        for n in range(3):
            index.add_many([image(str(n), n)])
        shutil.copytree(tmp_path / "home", tmp_path / "killed")
    log = tmp_path / "killed/index/catalog.db-wal"
    whole = log.read_bytes()
    assert len(whole) > 50_000
    assert not verify(tmp_path / "killed").findings
    chance = random.Random(6)
    for place in (0, 20, 33, 40, 50, *(chance.randrange(len(whole)) for _ in range(10))):
        shutil.rmtree(tmp_path / "killed")
        shutil.copytree(tmp_path / "home", tmp_path / "killed")
        log.write_bytes(whole)
        flip(log, place)
        assert "catalog.db-wal is damaged" in problems(verify(tmp_path / "killed")), place
    log.write_bytes(whole[:-100])
    assert "damaged" not in problems(verify(tmp_path / "killed")), "a cut last frame was never committed"
