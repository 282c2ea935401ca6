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


def test_a_restored_snapshot_has_the_same_rows(tmp_path: Path) -> None:
    add_labeled_images(tmp_path / "one")
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
