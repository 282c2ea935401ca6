"""The files of a report contain the given numbers, and its charts are drawn."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.figures import FigureCounter
from model_store.training.export.report import (
    Curve,
    chromatic_shares,
    curves_of,
    draw_confusion,
    draw_conv1,
    draw_curves,
    draw_reliability,
    kernel_tiles,
    write_confusion_table,
    write_json,
)


def is_drawn(path: Path, min_side: int = 300) -> bool:
    """Return whether the file is an image of this size with more than a background."""
    with Image.open(path) as image:
        colors = image.convert("RGB").getcolors(1 << 24) or []
        return image.format == "PNG" and min(image.size) >= min_side and len(colors) > 20


def test_the_confusion_table_escapes_commas_and_quotes_in_labels(tmp_path: Path) -> None:
    labels = ("mono, sound", 'the "best"', "ä")
    confusion = np.array([[5, 1, 0], [0, 7, 2], [1, 1, 1]])
    write_confusion_table(tmp_path, labels, confusion)
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["true class", *labels]
    assert [row[0] for row in rows[1:]] == list(labels)
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], dtype=int), confusion)


def test_metrics_are_written_as_json(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"top1_error": 0.125, "label": "ä"})
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == {"top1_error": 0.125, "label": "ä"}


@pytest.mark.parametrize("classes", [1, 8, 40, 300])
def test_the_confusion_matrix_is_drawn_for_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    confusion = np.random.default_rng(0).integers(0, 9, (classes, classes))
    draw_confusion(tmp_path, [f"class {index}" for index in range(classes)], confusion, "title")
    assert is_drawn(tmp_path / "confusion.png")


def test_any_names_of_classes_are_drawn(tmp_path: Path) -> None:
    # Not as formulas, and without a warning for each character that the font does not have.
    draw_confusion(tmp_path, ["$5 to $10", "$\\nothing$", "\u88d9\u5b50"], np.ones((3, 3), np.int64), "title")
    assert is_drawn(tmp_path / "confusion.png")


def test_reliability_is_drawn_for_few_and_many_bins(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for images in (1, 500):
        counter = FigureCounter(3)
        counter.add(random.integers(0, 3, images), random.integers(0, 3, images), random.uniform(0.34, 1, images))
        draw_reliability(tmp_path, counter.figures(["a", "b", "c"]), "title")
        assert is_drawn(tmp_path / "reliability.png")


def test_kernels_are_tiled_eight_per_row_and_scaled_around_gray() -> None:
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


def test_the_chromatic_share_is_0_for_gray_1_for_opponent_and_two_thirds_for_random_kernels() -> None:
    random = np.random.default_rng(0)
    gray = np.repeat(random.standard_normal((48, 1, 11, 11)), 3, axis=1).astype(np.float32)
    drawn = random.standard_normal((48, 3, 11, 11)).astype(np.float32)
    opponent = drawn - drawn.mean(axis=1, keepdims=True)
    assert chromatic_shares(np.concatenate([gray, opponent])) == pytest.approx([0, 1], abs=1e-5)
    assert chromatic_shares(drawn, 1) == pytest.approx([2 / 3], abs=0.01)
    one = np.zeros((2, 3, 1, 1), np.float32)
    one[0, :, 0, 0] = (1, 0, 0)  # gray part: (1/3, 1/3, 1/3); remainder: (2/3, -1/3, -1/3), 6/9 of the energy
    one[1, :, 0, 0] = (1, 1, 0)  # remainder: (1/3, 1/3, -2/3), 6/9 of an energy of 2
    assert chromatic_shares(one) == pytest.approx([2 / 3, 1 / 3])
    assert chromatic_shares(np.zeros((2, 3, 4, 4), np.float32)) == [0, 0]


def test_kernels_are_drawn_for_one_and_two_towers(tmp_path: Path) -> None:
    kernels = np.random.default_rng(0).standard_normal((96, 3, 11, 11), np.float32)
    draw_conv1(tmp_path, kernels, "title")
    assert is_drawn(tmp_path / "conv1.png")
    with Image.open(tmp_path / "conv1.png") as two:
        width = two.width
    draw_conv1(tmp_path, kernels[:48], "title", towers=1)
    with Image.open(tmp_path / "conv1.png") as one:
        assert 2 * one.width == width


def test_curves_have_the_values_of_the_epochs_and_keep_gaps(tmp_path: Path) -> None:
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
    assert is_drawn(tmp_path / "curves.png")


def test_curves_are_drawn_for_a_run_without_epochs(tmp_path: Path) -> None:
    draw_curves(tmp_path, curves_of([]), "title")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_drawing_does_not_import_pyplot() -> None:
    code = "import sys, model_store.training.export.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
