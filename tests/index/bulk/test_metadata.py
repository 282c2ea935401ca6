"""Labels from class folders, and metadata from tables, in folders and archives."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.bulk.archive import ArchiveLimits, count_images, read_archive_metadata
from index.bulk.folder import build_index
from index.bulk.metadata import ImageMetadata, read_metadata
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
    rows = b'{"file_name": "0.jpg", "label": "gull"}\n{"path": "./1.jpg", "year": 2020}\n'
    path.write_bytes(pack(images(3) | {"birds/metadata.jsonl": rows, "__MACOSX/metadata.jsonl": b"\0"}))
    assert count_images(path, LIMITS) == 3
    assert read_archive_metadata(path, LIMITS) == {"birds/0.jpg": {"label": "gull"}, "birds/1.jpg": {"year": 2020}}
    path.write_bytes(pack(images(3) | {"birds/metadata.jsonl": b'{"path": "0.jpg"}\nx\n'}))
    with pytest.raises(TableError, match=r"birds/metadata\.jsonl.*line 2 is not valid JSON"):
        count_images(path, LIMITS)
