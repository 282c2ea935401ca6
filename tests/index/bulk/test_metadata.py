"""Labels from class folders, and metadata from tables, in folders and archives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from index.bulk.archive import ArchiveLimits, count_images, read_archive_metadata
from index.bulk.folder import build_index
from index.bulk.metadata import ImageMetadata, read_inner_metadata, read_metadata
from index.filters import parse_where
from model_store.errors import TableError
from model_store.image_files import class_of_path
from model_store.runtime.runner import Runner
from tests.index.bulk.archives import images, tarred, zipped
from tests.index.bulk.helpers import open_index, save_image

LIMITS = ArchiveLimits(entries=1_000, image_bytes=100_000, bytes=3_000_000)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("1.jpg", None),
        ("cat/1.jpg", "cat"),
        ("train/cat/1.jpg", "cat"),
        ("Validation/cat/old/1.jpg", "cat"),
        ("train/1.jpg", "train"),
        ("cat/train/1.jpg", "cat"),
        ("M\\xfcller/1.jpg", "M\\xfcller"),
        ("cafe\u0301/1.jpg", "caf\u00e9"),
    ],
)
def test_the_class_of_a_path(path: str, label: str | None) -> None:
    assert class_of_path(path) == label


def test_class_folders_become_labels_also_of_images_that_are_already_indexed(
    home: Path, folder: Path, runner: Runner
) -> None:
    with open_index(home, runner) as index:
        build_index(folder, index, runner)
        assert index.get("a/0.png").metadata == {}
        index.change_metadata("a/0.png", lambda _: {"note": "mine"})
        save_image(folder / "a/2.png", 50)
        save_image(folder / "b/new.png", 51)
        report = build_index(folder, index, runner, metadata=ImageMetadata(labels=True))
        assert (report.added, report.replaced, report.unchanged, report.metadata_changed) == (1, 1, 8, 8)
        assert index.get("a/0.png").metadata == {"note": "mine", "label": "a"}
        assert index.get("a/2.png").metadata == index.get("a/4.png").metadata == {"label": "a"}
        found = index.list(where=parse_where(["label:b"])).images
        assert {image.key for image in found} == {f"b/{name}.png" for name in (1, 3, 5, 7, "new")}
        assert build_index(folder, index, runner, metadata=ImageMetadata(labels=True)).metadata_changed == 0


def test_a_table_describes_images_by_path(home: Path, folder: Path, runner: Runner) -> None:
    lines = ["path,label,year,zip,sharp", "a/0.png,gull,2020,01234,true", "b/1.png,,2021.5,99999,false"]
    (folder / "t.csv").write_text("\n".join([*lines, f"{folder}/b/3.png,a,-3,1,true", "b/99.png,a,1,1,true"]))
    metadata = read_metadata(folder / "t.csv", folder, labels=True)
    assert metadata.unmatched == ["line 5: b/99.png"]
    with open_index(home, runner) as index:
        build_index(folder, index, runner, metadata=metadata, key_prefix="x/")
        assert index.get("x/a/0.png").metadata == {"label": "gull", "year": 2020, "zip": "01234", "sharp": True}
        assert index.get("x/b/1.png").metadata == {"label": "b", "year": 2021.5, "zip": "99999", "sharp": False}
        assert index.get("x/b/3.png").metadata["year"] == -3
        assert index.get("x/b/5.png").metadata == {"label": "b"}
        found = index.list(where=parse_where(["year>=2020.5"])).images
        assert [image.key for image in found] == ["x/b/1.png"]


def test_paths_may_be_relative_to_the_table(folder: Path) -> None:
    (folder.parent / "t.jsonl").write_text('{"file_name": "photos/a/0.png", "tags": ["x", "y"], "none": null}\n')
    metadata = read_metadata(folder.parent / "t.jsonl", folder, labels=False)
    assert metadata.rows == {"a/0.png": {"tags": ["x", "y"]}}


@pytest.mark.parametrize(
    "path",
    [
        "a\\0.png",
        ".\\a\\0.png",
        "photos\\a\\0.png",
        "a/../a/0.png",
        "../{root}/photos/a/0.png",
        "{folder}/a/0.png",
        "{real}/a/0.png",
    ],
)
def test_every_spelling_of_a_path_is_found(folder: Path, path: str) -> None:
    table, linked = folder.parent / "t.jsonl", folder.parent / "linked"
    linked.symlink_to(folder)
    written = path.format(root=folder.parent.name, folder=linked, real=folder.resolve())
    table.write_text(json.dumps({"path": written, "year": 1}))
    for source in (folder, linked):
        metadata = read_metadata(table, source, labels=False)
        assert (metadata.rows, metadata.unmatched) == ({"a/0.png": {"year": 1}}, [])
    (folder / "metadata.jsonl").write_text(json.dumps({"path": path.format(root="x", folder=folder, real=folder)}))
    inner = read_inner_metadata(folder, labels=False)
    outside = path.startswith(("photos", ".."))
    assert (list(inner.rows), len(inner.unmatched)) == (([], 1) if outside else (["a/0.png"], 0))


def test_the_escaped_names_that_fc7_writes_are_found(folder: Path) -> None:
    odd = os.fsencode(folder) + b"/M\xfcller.png"
    Path(os.fsdecode(odd)).write_bytes((folder / "a/0.png").read_bytes())
    (folder / "t.csv").write_text("path,year\nM\\xfcller.png,1\n")
    assert read_metadata(folder / "t.csv", folder, labels=False).rows == {"M\\xfcller.png": {"year": 1}}


def test_paths_that_cannot_be_names_are_listed(folder: Path) -> None:
    lines = [json.dumps({"path": path, "year": 1}) for path in ("a" * 5000, "a\0b", "/etc/passwd", "../t.jsonl")]
    (folder.parent / "t.jsonl").write_text("\n".join(lines))
    metadata = read_metadata(folder.parent / "t.jsonl", folder, labels=False)
    assert (metadata.rows, len(metadata.unmatched)) == ({}, 4)


def test_paths_in_a_bucket_are_normalized(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,year\n./a/0.png,1\nb\\1.png,2\n")
    metadata = read_metadata(tmp_path / "t.csv", None, labels=False)
    assert metadata.rows == {"a/0.png": {"year": 1}, "b/1.png": {"year": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,year\n", "no rows"),
        ("year\n2020\n", "line 2 has no path"),
        ("path,year\na/0.png,2020\na/0.png,2021\n", "line 3 describes a/0.png again"),
        ("path,text\na/0.png," + "x" * 20_000, "line 2: The metadata has 20"),
    ],
)
def test_a_bad_table_is_rejected_before_anything_is_added(folder: Path, text: str, message: str) -> None:
    (folder / "t.csv").write_text(text)
    with pytest.raises(TableError, match=message):
        read_metadata(folder / "t.csv", folder, labels=True)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_table_in_an_archive(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    path = tmp_path / "archive"
    rows = b'{"file_name": "0.jpg", "label": "gull"}\n{"path": ".\\\\1.jpg", "year": 2020}\n{"path": "9.jpg", "x": 1}'
    path.write_bytes(pack(images(3) | {"birds/metadata.jsonl": rows, "__MACOSX/metadata.jsonl": b"\0"}))
    assert count_images(path, LIMITS) == 3
    found = read_archive_metadata(path, LIMITS)
    assert {name: found.rows[name] for name in ("birds/0.jpg", "birds/1.jpg")} == {
        "birds/0.jpg": {"label": "gull"},
        "birds/1.jpg": {"year": 2020},
    }
    assert found.unmatched == ["birds/9.jpg"]
    path.write_bytes(pack(images(3) | {"birds/metadata.jsonl": b'{"path": "0.jpg"}\nx\n'}))
    with pytest.raises(TableError, match=r"birds/metadata\.jsonl.*line 2 is not valid JSON"):
        count_images(path, LIMITS)
