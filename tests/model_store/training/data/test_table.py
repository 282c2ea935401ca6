"""Data sets as tables: paths, labels, splits, what is skipped, errors that name the line, and writing them."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from model_store.errors import DatasetError, TableError
from model_store.image_files import SkipKind
from model_store.training.data.image_file import ALL
from model_store.training.data.sources import require_trainable
from model_store.training.data.table import read_table, write_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("1.jpg", "2.jpg", "3.jpg", os.fsdecode(b"M\xfcller.jpg")):
        (tmp_path / "photos" / name).touch()
    return tmp_path


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def test_splits_paths_and_labels(folder: Path) -> None:
    file = table(
        folder,
        f"Path,Label,Split\nphotos/1.jpg,cat,train\n{folder}/photos/2.jpg, dog ,Valid\nphotos/3.jpg,7,test\n"
        "photos\\M\\xfcller.jpg,cat,train\n".replace("photos\\M", "photos/M"),
    )
    source = read_table(file)
    assert {split: [(image.file.name, image.label) for image in found] for split, found in source.splits.items()} == {
        "train": [("1.jpg", "cat"), (os.fsdecode(b"M\xfcller.jpg"), "cat")],
        "val": [("2.jpg", "dog")],
        "test": [("3.jpg", "7")],
    }
    assert source.classes == ("7", "cat", "dog")


def test_rows_without_a_label_or_file_are_skipped_with_the_line(folder: Path) -> None:
    source = read_table(
        table(folder, "path,label\nphotos/1.jpg,cat\nphotos/9.jpg,cat\nphotos/2.jpg,\nphotos/1.jpg,cat\n")
    )
    assert [image.name for image in source.splits[ALL]] == ["photos/1.jpg"]
    assert [(item.kind, item.reason.split(" names")[0]) for item in source.ignored] == [
        (SkipKind.UNREADABLE, "line 3 of labels.csv"),
        (SkipKind.NO_LABEL, "line 4 of labels.csv has no label."),
    ]
    assert any("1 rows" in note for note in source.notes)


def test_paths_are_found_as_they_are_written_on_other_systems(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "photos" / "cafe\u0301.jpg").touch()
    names = {
        "~/photos/1.jpg": "1.jpg",
        "photos\\2.jpg": "2.jpg",
        ".\\photos\\caf\u00e9.jpg": "cafe\u0301.jpg",
        "photos/M\\xfcller.jpg": os.fsdecode(b"M\xfcller.jpg"),
    }
    source = read_table(table(folder, "\r\n".join(["path,label", *(f'"{name}",cat' for name in names)])))
    assert [image.file.name for image in source.splits[ALL]] == list(names.values())
    assert source.ignored == ()


def test_a_file_with_two_spellings_of_its_path_is_one_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    rows = f"photos/1.jpg,cat\n{folder}/photos/1.jpg,cat\n./photos/../photos/1.jpg,cat\n"
    table(folder, f"path,label\n{rows}")
    source = read_table(Path("labels.csv"))
    assert len(source.splits[ALL]) == 1
    table(folder, f"path,label\n{rows.replace('.jpg,cat', '.jpg,dog', 1)}")
    with pytest.raises(TableError, match="label 'dog' in line 2, but 'cat' in line 3"):
        read_table(Path("labels.csv"))


def test_a_class_whose_files_are_all_missing_is_an_error_of_training(folder: Path) -> None:
    source = read_table(table(folder, "path,label\nphotos/1.jpg,cat\nphotos/2.jpg,dog\nphotos/9.jpg,cow\n"))
    assert source.classes == ("cat", "cow", "dog")
    with pytest.raises(
        DatasetError, match=r"'cow' has no images in .*labels\.csv.*do not exist; fc7 data check .*lists"
    ):
        require_trainable(source)


def test_one_class_in_a_table_is_an_error_about_the_table(folder: Path) -> None:
    source = read_table(table(folder, "path,label\nphotos/1.jpg,cat\nphotos/2.jpg,cat\n"))
    with pytest.raises(DatasetError, match=r"labels\.csv has one class \('cat'\).*check the column label") as raised:
        require_trainable(source)
    assert "folder" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file_id,label\n1,cat\n",
            r"line 2 has no path \(columns with a value: file_id, label\). Columns are expected as path,label",
        ),
        ("path,kind\nphotos/1.jpg,cat\n", r"no row has a path and a label \(columns: path, kind\)"),
        ("path,label\n", "it has no rows. Columns are expected as path,label"),
        ("path,label,split\nphotos/1.jpg,cat,holdout\n", "line 2 has the split 'holdout'. Use train, val or test"),
        ("path,label,split\nphotos/1.jpg,cat,train\nphotos/2.jpg,cat,\n", "line 3 has no split, unlike"),
        ("path,label\nphotos/1.jpg,cat\nphotos/1.jpg,dog\n", "label 'cat' in line 2, but 'dog' in line 3"),
        ("path,label,split\nphotos/1.jpg,a,train\nphotos/1.jpg,a,val\n", "split train in line 2, but val in line 3"),
    ],
)
def test_a_table_that_contradicts_itself_is_an_error(folder: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_table(table(folder, text))


def test_a_name_that_no_file_can_have_is_skipped(folder: Path) -> None:
    source = read_table(table(folder, f"path,label\n{'x' * 300}.jpg,cat\na\\{'x' * 300},cat\nphotos/1.jpg,cat\n"))
    assert [item.kind for item in source.ignored] == [SkipKind.UNREADABLE] * 2
    lines = (r'{"path": "a\u0000.jpg", "label": "cat"}', r'{"path": "\ud800\\x41.jpg", "label": "cat"}')
    (folder / "labels.jsonl").write_text("\n".join([*lines, '{"path": "photos/1.jpg", "label": "cat"}']))
    assert [item.path for item in read_table(folder / "labels.jsonl").ignored] == [
        f"{folder}/a\\x00.jpg",
        f"{folder}/\\xed\\xa0\\x80\\x5cx41.jpg",
    ]


def test_a_label_is_one_name(folder: Path) -> None:
    (folder / "labels.jsonl").write_text('{"path": "photos/1.jpg", "label": ["cat", "dog"]}\n')
    with pytest.raises(TableError, match=r"line 1 has a label that is not one name: \['cat', 'dog'\]"):
        read_table(folder / "labels.jsonl")


def test_images_inside_a_table_are_refused_without_printing_them(folder: Path) -> None:
    for image in ({"bytes": b"\xff\xd8" * 1_000, "path": "1.jpg"}, b"\xff\xd8" * 1_000):
        parquet.write_table(pyarrow.Table.from_pylist([{"image": image, "label": 1}]), folder / "set.parquet")
        with pytest.raises(TableError, match="row 1 has a path that is not a file name") as raised:
            read_table(folder / "set.parquet")
        assert len(str(raised.value)) < 300


def test_a_table_whose_files_do_not_exist_is_an_error(folder: Path) -> None:
    with pytest.raises(DatasetError, match=rf"None of the 2 files.*relative to the folder of the table, {folder}"):
        read_table(table(folder, "path,label\n1.jpg,cat\n2.jpg,dog\n"))


@pytest.mark.parametrize("name", ["split.csv", "split.tsv", "split.jsonl", "split.parquet"])
def test_a_written_table_is_read_back(folder: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    outside = tmp_path_factory.mktemp("outside") / 'a "quoted",\u2028 name.png'
    outside.touch()
    rows = [
        (folder / "photos" / os.fsdecode(b"M\xfcller.jpg"), "cat, small", "train"),
        (outside, "M\\xfcller", "train"),
        (folder / "photos" / "1.jpg", "cat, small", "val"),
    ]
    write_table(folder / name, rows, relative_to=folder)
    source = read_table(folder / name)
    found = [(image.file, image.label, split) for split, images in source.splits.items() for image in images]
    assert found == rows
    assert source.splits["val"][0].name == "photos/1.jpg"
