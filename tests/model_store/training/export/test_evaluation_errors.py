"""The worst errors in a version's report."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from model_store.store import ModelStore
from model_store.training.export import evaluation_errors
from model_store.training.export.evaluation_errors import Errors
from model_store.training.export.publish import export_run
from model_store.training.runs.run import load_run
from tests.support.training.run_folder import write_pictures, write_run


def test_the_images_whose_own_class_is_least_probable_are_kept_worst_first(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    truth = random.integers(0, 3, 40)
    probabilities = random.dirichlet([1, 1, 1], 40).astype(np.float32)
    pixels = random.integers(0, 256, (40, 256, 256, 3), np.uint8)
    worst = Errors(5, 9)
    for part in (slice(0, 16), slice(16, 32), slice(32, 40)):
        worst.add(pixels[part], truth[part], probabilities[part])
    worst.write(tmp_path, ("a", "b$c", "d"), [f"{number}.png" for number in range(40)], "title")
    own = probabilities[np.arange(40), truth]
    wrong = [number for number in np.argsort(own).tolist() if probabilities[number].argmax() != truth[number]]
    rows = list(csv.reader((tmp_path / "worst_errors.csv").read_text().splitlines()))[1:]
    assert [row[0] for row in rows] == [f"{number}.png" for number in wrong[:5]]
    assert [float(row[2]) for row in rows] == [round(float(own[number]), 6) for number in wrong[:5]]
    listed = list(csv.reader((tmp_path / "errors.csv").read_text().splitlines()))[1:]
    assert listed[:5] == rows
    assert [row[0] for row in listed] == [f"{number}.png" for number in wrong[:9]]
    with Image.open(tmp_path / "worst_errors.png") as picture:
        assert picture.size[0] > 1000


def test_the_probability_is_shown_also_beside_a_long_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(evaluation_errors, "save_figure", lambda figure, _: figures.append(figure))
    worst = Errors()
    worst.add(np.zeros((1, 256, 256, 3), np.uint8), np.array([1]), np.array([[0.75, 0.25]], np.float32))
    worst.write(
        tmp_path, ("longsleeve", "Egyptian_cat_of_the_second_dynasty"), ["folder/" + 40 * "x" + ".jpg"], "title"
    )
    lines = figures[0].axes[0].get_title(loc="left").splitlines()
    assert lines[0].startswith("Egyptian_cat")
    assert lines[0].endswith("… (25.0%)")
    assert lines[1] == "predicted: longsleeve (75.0%)"
    assert lines[2].endswith("xxx.jpg")


def test_a_net_without_errors_has_no_files(tmp_path: Path) -> None:
    worst = Errors()
    worst.add(np.zeros((1, 256, 256, 3), np.uint8), np.array([1]), np.array([[0.1, 0.9]], np.float32))
    worst.write(tmp_path, ("a", "b"), ["x"], "title")
    assert not list(tmp_path.iterdir())


def test_every_error_is_listed_with_both_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    truth = random.integers(0, 3, 90)
    probabilities = random.dirichlet([1, 1, 1], 90).astype(np.float32)
    errors = Errors(2)
    errors.add(np.zeros((90, 256, 256, 3), np.uint8), truth, probabilities)
    errors.write(tmp_path, "abc", [f"{number}.png" for number in range(90)], "title")
    found = {row[0]: (row[1], row[3]) for row in csv.reader((tmp_path / "errors.csv").read_text().splitlines()[1:])}
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != truth).tolist()
    assert found == {f"{number}.png": ("abc"[truth[number]], "abc"[predicted[number]]) for number in wrong}


def test_an_exported_version_names_its_errors(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data")
    run = load_run(write_run(tmp_path, tmp_path / "data"))
    exported = export_run(run, ModelStore(tmp_path), view_counts=(1, 10))
    rows = list(csv.DictReader((exported.artifact.path / "report" / "worst_errors.csv").read_text().splitlines()))
    wrong = exported.evaluations[-1].seen - int(np.trace(exported.evaluations[-1].confusion))
    assert len(rows) == wrong > 0
    assert rows == list(csv.DictReader((exported.artifact.path / "report" / "errors.csv").read_text().splitlines()))
    assert all(row["image"].startswith(row["class"] + "/") for row in rows)
    assert (exported.artifact.path / "report" / "worst_errors.png").exists()
