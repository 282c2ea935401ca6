"""The demo data set, copied from the installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from model_store.errors import DatasetError, MissingExtraError
from model_store.training.data import demo as demo_module
from model_store.training.data.demo import copy_demo
from model_store.training.data.sources import find_source

installed = pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")


@installed
def test_the_demo_has_eight_classes_with_a_fixed_fifth_held_out(tmp_path: Path) -> None:
    demo = copy_demo(tmp_path)
    assert demo.copied == 2624
    assert demo.val["mono, sound"] == 118
    assert sum(demo.train.values()) == 2099
    for label, images in demo.train.items():
        assert demo.val[label] == round((images + demo.val[label]) / 5)
    folders = find_source(tmp_path)
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
    # The split is the same on every machine.
    assert (tmp_path / "train" / "mono, defective" / "cell0001.png").is_file()
    assert "CC-BY-NC-SA 4.0" in (tmp_path / "SOURCE.md").read_text()
    broken = tmp_path / "train" / "mono, defective" / "cell0001.png"
    broken.write_bytes(b"half")
    assert copy_demo(tmp_path).copied == 1
    assert broken.stat().st_size > 10_000


@installed
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DatasetError, match=str(tmp_path / "file")):
        copy_demo(tmp_path / "file")


def test_the_error_for_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "PACKAGE", "elpv_dataset_that_is_not_installed")
    with pytest.raises(MissingExtraError, match=r"elpv-dataset.*fc7\[demo\]"):
        copy_demo(tmp_path)
