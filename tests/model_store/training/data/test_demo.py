"""The demo's photographs, from the installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from model_store.errors import DatasetError, MissingExtraError
from model_store.training.data import demo as demo_data
from model_store.training.data.class_folders import find_class_folders
from model_store.training.data.demo import copy_demo

installed = pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")


@installed
def test_the_demo_is_eight_classes_with_a_fixed_fifth_held_out(tmp_path: Path) -> None:
    arranged = copy_demo(tmp_path)
    assert arranged.copied == 2624
    assert arranged.val["mono, sound"] == 118
    assert sum(arranged.train.values()) == 2099
    for label, images in arranged.train.items():
        assert arranged.val[label] == round((images + arranged.val[label]) / 5)
    folders = find_class_folders(tmp_path)
    assert folders.classes == (
        "mono, defective",
        "mono, likely defective",
        "mono, possibly defective",
        "mono, sound",
        "poly, defective",
        "poly, likely defective",
        "poly, possibly defective",
        "poly, sound",
    )
    names = {split: {image.file.name for image in images} for split, images in folders.splits.items()}
    assert not names["train"] & names["val"]
    assert len(names["train"] | names["val"]) == 2624
    # Fixed: these two are on their sides whatever machine arranges them.
    assert (tmp_path / "train" / "mono, defective" / "cell0001.png").is_file()
    assert "CC-BY-NC-SA 4.0" in (tmp_path / "SOURCE.md").read_text()
    broken = tmp_path / "train" / "mono, defective" / "cell0001.png"
    broken.write_bytes(b"half")
    assert copy_demo(tmp_path).copied == 1
    assert broken.stat().st_size > 10_000


@installed
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DatasetError, match=str(tmp_path / "file")):
        copy_demo(tmp_path / "file")


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "PACKAGE", "elpv_dataset_that_is_not_installed")
    with pytest.raises(MissingExtraError, match=r"elpv-dataset.*fc7\[demo\]"):
        copy_demo(tmp_path)
