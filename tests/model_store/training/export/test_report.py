"""The report's files hold the numbers given, and its pictures can be looked at."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.training.export.report import (
    Curve,
    curves_of,
    draw_confusion,
    draw_conv1,
    draw_curves,
    kernel_tiles,
    write_confusion_table,
    write_metrics,
)


def is_a_picture(path: Path, least: int = 300) -> bool:
    """Tell whether it is a picture of some size with more than its background."""
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24) or []
        return picture.format == "PNG" and min(picture.size) >= least and len(colours) > 20


def test_the_confusion_table_reads_back_with_labels_that_have_commas_and_quotes(tmp_path: Path) -> None:
    labels = ("mono, sound", 'the "best"', "ä")
    confusion = np.array([[5, 1, 0], [0, 7, 2], [1, 1, 1]])
    write_confusion_table(tmp_path, labels, confusion)
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["true class", *labels]
    assert [row[0] for row in rows[1:]] == list(labels)
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], dtype=int), confusion)


def test_metrics_read_back(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"top1_error": 0.125, "label": "ä"})
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == {"top1_error": 0.125, "label": "ä"}


@pytest.mark.parametrize("classes", [1, 8, 40, 300])
def test_the_confusion_is_drawn_for_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    confusion = np.random.default_rng(0).integers(0, 9, (classes, classes))
    draw_confusion(tmp_path, [f"class {index}" for index in range(classes)], confusion, "title")
    assert is_a_picture(tmp_path / "confusion.png")


def test_kernels_are_laid_out_eight_a_row_and_scaled_about_grey() -> None:
    kernels = np.zeros((48, 3, 11, 11), np.float32)
    kernels[9, 0, 2, 3] = -4  # second row, second column; red is channel 0
    kernels[9, 2, 2, 3] = 2
    sheet = kernel_tiles(kernels)
    assert sheet.shape == (6 * 12 - 1, 8 * 12 - 1, 3)
    assert sheet[12 + 2, 12 + 3] == pytest.approx([0, 0.5, 0.75])
    assert sheet[11, 50] == pytest.approx([1, 1, 1])  # between two rows
    sheet[12 + 2, 12 + 3] = 0.5
    between = np.arange(71)[:, None] % 12 == 11, np.arange(95)[None] % 12 == 11
    assert np.all(sheet[~(between[0] | between[1])] == 0.5)


def test_kernels_of_two_towers_and_of_one_are_drawn(tmp_path: Path) -> None:
    kernels = np.random.default_rng(0).standard_normal((96, 3, 11, 11), np.float32)
    draw_conv1(tmp_path, kernels, "title")
    assert is_a_picture(tmp_path / "conv1.png")
    with Image.open(tmp_path / "conv1.png") as two:
        width = two.width
    draw_conv1(tmp_path, kernels[:48], "title", towers=1)
    with Image.open(tmp_path / "conv1.png") as one:
        assert 2 * one.width == width


def test_curves_are_those_of_the_epochs_and_gaps_stay_gaps(tmp_path: Path) -> None:
    log = [
        {"kind": "step", "step": 10, "epoch": 1, "loss": 2.0, "error": 0.9, "rate": 0.01},
        {"kind": "epoch", "epoch": 1, "train_loss": 1.5, "train_error": 0.5},
        {"kind": "epoch", "epoch": 2, "train_loss": 1.0, "train_error": 0.4}
        | {"val_loss": 1.2, "val_error": 0.45, "val_top5_error": 0.0},
    ]
    curves = {curve.label + " " + curve.kind: curve.points for curve in curves_of(log)}
    assert curves == {
        "training loss": ((1, 1.5), (2, 1.0)),
        "validation loss": ((2, 1.2),),
        "training, top-1 error": ((1, 0.5), (2, 0.4)),
        "validation, top-1 error": ((2, 0.45),),
    }
    log.append({"kind": "epoch", "epoch": 3, "train_loss": 1.0, "train_error": 0.4, "val_top5_error": 0.1})
    assert Curve("error", "val", "validation, top-5", ((2, 0.0), (3, 0.1))) in curves_of(log)
    draw_curves(tmp_path, curves_of(log), "title")
    assert is_a_picture(tmp_path / "curves.png")


def test_a_run_without_an_epoch_has_a_picture_all_the_same(tmp_path: Path) -> None:
    draw_curves(tmp_path, curves_of([]), "title")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_drawing_needs_no_global_state_of_matplotlib() -> None:
    code = "import sys, model_store.training.export.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
