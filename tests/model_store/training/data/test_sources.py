"""Data sets in the forms that people have: which images are found, with which class and split, and errors."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from model_store.errors import DatasetError, TableError
from model_store.image_files import SkipKind, without_wrapper
from model_store.training.data.image_file import ALL, Source
from model_store.training.data.sources import class_notes, find_source, images_of_split, require_trainable


def write(root: Path, *names: str) -> Path:
    """Create files with these paths. Nothing reads them here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def listed(source: Source) -> dict[str, list[tuple[str, str]]]:
    return {split: [(image.name, image.label) for image in images] for split, images in source.splits.items()}


def test_class_folders_without_a_split(tmp_path: Path) -> None:
    write(
        tmp_path, "cat/1.jpg", "cat/2.png", "dog/1.jpg", "dog/old/3.jpg", "notes.txt", "__MACOSX/cat/._1.jpg", ".git/x"
    )
    source = find_source(tmp_path)
    assert listed(source) == {
        ALL: [("cat/1.jpg", "cat"), ("cat/2.png", "cat"), ("dog/1.jpg", "dog"), ("dog/old/3.jpg", "dog")]
    }
    assert source.classes == ("cat", "dog")
    assert sorted(item.kind for item in source.ignored) == [SkipKind.HIDDEN, SkipKind.HIDDEN, SkipKind.NOT_AN_IMAGE]
    assert any("1 images in deeper folders" in note for note in source.notes)


def test_each_folder_can_be_a_class(tmp_path: Path) -> None:
    write(tmp_path, "bird/gull/1.jpg", "bird/heron/1.jpg", "ship/1.jpg")
    source = find_source(tmp_path, nested=True)
    assert source.classes == ("bird/gull", "bird/heron", "ship")
    assert listed(source)[ALL][1] == ("bird/heron/1.jpg", "bird/heron")


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_folders_with_a_split(tmp_path: Path, val: str) -> None:
    write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", f"{val}/cat/2.jpg", "test/dog/3.jpg", "masks/cat/1.png")
    source = find_source(tmp_path)
    assert {split: [name for name, _ in images] for split, images in listed(source).items()} == {
        "train": ["train/cat/1.jpg", "train/dog/1.jpg"],
        "val": [f"{val}/cat/2.jpg"],
        "test": ["test/dog/3.jpg"],
    }
    assert any("not used: masks" in note for note in source.notes)
    assert any(f"'dog' has no validation images in {tmp_path}" in note for note in class_notes(source))
    assert images_of_split(tmp_path, "val")[1] == source.splits["val"]
    assert len(images_of_split(tmp_path, "all")[1]) == 4


def test_other_names_of_the_splits(tmp_path: Path) -> None:
    write(tmp_path, "Training/cat/1.jpg", "Training/dog/1.jpg", "Testing/cat/2.jpg")
    source = find_source(tmp_path)
    assert {split: len(images) for split, images in source.splits.items()} == {"train": 2, "test": 1}


def test_a_class_can_be_named_train(tmp_path: Path) -> None:
    write(tmp_path, "train/1.jpg", "plane/1.jpg", "car/1.jpg")
    assert find_source(tmp_path).classes == ("car", "plane", "train")
    write(tmp_path, "train/steam/2.jpg")
    assert find_source(tmp_path).classes == ("car", "plane", "train")


def test_a_folder_around_the_class_folders_is_entered(tmp_path: Path) -> None:
    write(tmp_path, "photos/cat/1.jpg", "photos/dog/1.jpg", "__MACOSX/photos/._x")
    source = find_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert listed(source)[ALL][0] == ("cat/1.jpg", "cat")
    assert without_wrapper(tmp_path) == tmp_path / "photos"
    write(tmp_path, "photos.txt")
    assert without_wrapper(tmp_path) == tmp_path
    assert without_wrapper(tmp_path / "photos" / "cat") == tmp_path / "photos" / "cat"
    (tmp_path / "loop" / "x" / "y").mkdir(parents=True)
    (tmp_path / "loop" / "x" / "y" / "z").symlink_to(tmp_path / "loop")
    assert without_wrapper(tmp_path / "loop").is_relative_to(tmp_path / "loop")


def test_names_in_other_encodings_and_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    latin = os.fsdecode(b"M\xfcller")
    write(
        tmp_path, f"train/{composed}/1.jpg", f"val/{decomposed}/2.jpg", f"train/{latin}/{latin}.jpg", "train/Tee/1.jpg"
    )
    write(tmp_path, f"val/{latin}/1.jpg", "train/tee/1.jpg")
    source = find_source(tmp_path)
    assert source.classes == ("M\\xfcller", "Tee", composed, "tee")
    require_trainable(source)
    assert any("in two Unicode forms" in note and "\\u0301" in note for note in source.notes)
    assert any("'Tee' and 'tee', which differ only by upper and lower case" in note for note in class_notes(source))
    assert any("only one training image" in note for note in class_notes(source))
    assert all(str(tmp_path) in note for note in [*source.notes, *class_notes(source)])


def test_spaces_at_the_ends_of_a_name_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, "train/cat /1.jpg", "train/dog/1.jpg", "val/cat/1.jpg")
    source = find_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert any("spelled with other spaces ('cat ' and 'cat')" in note for note in source.notes)


def test_a_link_to_a_folder_inside_a_class_is_reported(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "elsewhere/x/2.jpg")
    (tmp_path / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    [link] = [item for item in find_source(tmp_path).ignored if item.kind is SkipKind.LINK]
    assert link.path == str(tmp_path / "cat" / "more")
    assert "Copy or move the folder here" in link.reason


@pytest.mark.parametrize("target", [".", ".."])
def test_a_link_to_a_folder_around_it_is_not_a_class(tmp_path: Path, target: str) -> None:
    write(tmp_path, "photos/cat/1.jpg", "photos/dog/1.jpg")
    (tmp_path / "photos" / "again").symlink_to(target)
    source = find_source(tmp_path / "photos")
    assert source.classes == ("cat", "dog")
    assert [item.path for item in source.ignored if item.kind is SkipKind.LINK] == [str(tmp_path / "photos" / "again")]


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "photos/cat/1.jpg", "photos/dog/1.jpg")
    assert find_source(Path("~/photos")).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.jpg", "2.jpg"], r"no class folders.*one folder per class"),
        (["cat/notes.txt"], "no images in class folders"),
        (["train/cat/x.txt"], "no images in class folders"),
    ],
)
def test_a_folder_without_a_data_set_is_an_error(tmp_path: Path, names: list[str], message: str) -> None:
    write(tmp_path, *names)
    with pytest.raises(DatasetError, match=message):
        find_source(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.jpg", "cat/2.jpg"], r"one class \('cat'\).*at least two"),
        (["cat/1.jpg", "dog/x.txt", "cow/1.jpg"], r"The class 'dog' has no images in .*remove the folder"),
        (
            ["train/cat/1.jpg", "train/dog/1.jpg", "val/Dog/1.jpg"],
            r"'Dog' has no training images.*val/Dog/1\.jpg.*'dog' and 'Dog', which differ only by upper",
        ),
    ],
)
def test_classes_that_cannot_be_learned_are_named_with_the_fix(tmp_path: Path, names: list[str], message: str) -> None:
    source = find_source(write(tmp_path, *names))
    with pytest.raises(DatasetError, match=message) as raised:
        require_trainable(source)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_folder_without_training_images_is_not_a_class(tmp_path: Path, split: str) -> None:
    source = find_source(write(tmp_path, f"{split}/cat/1.jpg", f"{split}/dog/1.jpg"))
    with pytest.raises(
        DatasetError, match=rf"'cat', 'dog' have no training images.*{split}/cat/1\.jpg.*Add some to train"
    ):
        require_trainable(source)


def test_split_folders_without_class_folders_are_not_classes(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"/train has no class folders; they are expected as train/<class>/\*"):
        find_source(write(tmp_path, "train/1.jpg", "val/2.jpg"))
    write(tmp_path, "val/cat/2.jpg")
    with pytest.raises(DatasetError, match="'cat' has no training images"):
        require_trainable(find_source(tmp_path))


def test_one_folder_around_the_classes_is_named_if_it_is_not_entered(tmp_path: Path) -> None:
    write(tmp_path, "README.txt", "photos/cat/1.jpg", "photos/dog/1.jpg")
    with pytest.raises(DatasetError, match=rf"one class \('photos'\).*give {tmp_path}/photos itself"):
        require_trainable(find_source(tmp_path))


def test_missing_folders_and_other_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"missing is not a folder.*fc7 data demo"):
        find_source(tmp_path / "missing")
    write(tmp_path, "photos.rar", "set/cat/1.jpg", "set/dog/1.jpg")
    with pytest.raises(DatasetError, match="not a table"):
        find_source(tmp_path / "photos.rar")
    with pytest.raises(DatasetError, match=r"no split 'val'.*--split all"):
        images_of_split(tmp_path / "set", "val")


def test_a_table_in_a_folder_of_images_is_used(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label,camera\n1.jpg,cat,D90\n2.jpg,dog,D90\n")
    source = find_source(tmp_path)
    assert listed(source) == {ALL: [("1.jpg", "cat"), ("2.jpg", "dog")]}
    assert any("not used: camera" in note for note in source.notes)
    (tmp_path / "metadata.csv").write_text("name,kind\n1.jpg,cat\n")
    with pytest.raises(TableError, match="no path"):
        find_source(tmp_path)


@pytest.mark.parametrize("place", ["", "images/"])
@pytest.mark.parametrize("around", ["", "set/"])
def test_a_table_beside_a_folder_of_images_is_used(tmp_path: Path, place: str, around: str) -> None:
    write(tmp_path, f"{around}images/1.jpg", f"{around}images/2.jpg", f"{around}images/notes.txt")
    prefix = "" if place else "images/"
    (tmp_path / f"{around}{place}labels.csv").write_text(f"path,label\n{prefix}1.jpg,cat\n{prefix}2.jpg,dog\n")
    source = find_source(tmp_path)
    assert listed(source) == {ALL: [(f"{prefix}1.jpg", "cat"), (f"{prefix}2.jpg", "dog")]}


def test_a_table_beside_class_folders_is_named(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "metadata.csv")
    source = find_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert f"{tmp_path}/metadata.csv was not used, because there are class folders. To train on it, give its path." in (
        source.notes
    )


def test_each_split_can_have_a_table(tmp_path: Path) -> None:
    write(tmp_path, "train/1.jpg", "train/2.jpg", "valid/1.jpg")
    lines = ['{"file_name": "1.jpg", "label": "cat"}', '{"file_name": "2.jpg", "label": "dog", "split": "train"}']
    (tmp_path / "train" / "metadata.jsonl").write_text(
        "\n".join(line.replace(', "split": "train"', "") for line in lines)
    )
    (tmp_path / "valid" / "metadata.jsonl").write_text(lines[0])
    source = find_source(tmp_path)
    expected = {
        "train": [("train/1.jpg", "cat"), ("train/2.jpg", "dog")],
        "val": [("valid/1.jpg", "cat")],
    }
    assert listed(source) == expected
    assert [image.file for image in source.splits["val"]] == [tmp_path / "valid" / "1.jpg"]
    assert images_of_split(tmp_path, "val")[1] == source.splits["val"]
    require_trainable(source)
    (tmp_path / "valid" / "metadata.jsonl").write_text(lines[1].replace("2.jpg", "1.jpg"))
    with pytest.raises(
        TableError, match=r"valid/metadata\.jsonl.* of the split val, but its column split has other values"
    ):
        find_source(tmp_path)
    for split in ("train", "valid"):
        (tmp_path / split / "metadata.jsonl").unlink()
    (tmp_path / "training.csv").write_text("path,label\ntrain/1.jpg,cat\ntrain/2.jpg,dog\n")
    (tmp_path / "val.csv").write_text("path,label\nvalid/1.jpg,cat\n")
    assert listed(find_source(tmp_path)) == expected
    (tmp_path / "val.csv").rename(tmp_path / "more.csv")
    with pytest.raises(DatasetError, match=rf"{tmp_path} has several tables: more\.csv, training\.csv\. Give the path"):
        find_source(tmp_path)
