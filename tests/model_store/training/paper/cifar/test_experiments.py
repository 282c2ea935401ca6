"""`fc7 paper figure1` and `fc7 paper cifar-lrn` on a few images: tables, charts, resuming, invalid input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from model_store.errors import DatasetError, TrainingError
from model_store.training.paper.cifar.experiments import (
    Figure1Options,
    LrnOptions,
    best_rate,
    norms_change,
    run_figure1,
    run_lrn,
)
from model_store.training.paper.cifar.train import Curve, Epoch, Plan
from service.cli.main import app
from tests.support.training.cifar import small_cifar, write_cifar


class RecordingReporter:
    """Records the calls of an experiment."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.images = 0
        self.lines: list[str] = []

    def start(self, label: str, images: int) -> None:
        """Record the label."""
        assert images >= 0
        self.labels.append(label)

    def advance(self, images: int) -> None:
        """Count images."""
        self.images += images

    def finish(self, line: str) -> None:
        """Record the line."""
        self.lines.append(line)


OPTIONS = Figure1Options(rates=(1e-9, 0.001), search_epochs=2, max_epochs=25, seeds=(0, 1))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_figure_1_searches_then_trains_to_the_threshold_and_trains_nothing_twice(tmp_path: Path) -> None:
    data = small_cifar(train=48)
    reporter = RecordingReporter()
    document = run_figure1(data, tmp_path, OPTIONS, reporter)
    assert json.loads((tmp_path / "figure1.json").read_text()) == json.loads(json.dumps(document))
    assert [(one["neuron"], one["rate"]) for one in document["search"]] == [
        (neuron, rate) for neuron in ("relu", "tanh") for rate in OPTIONS.rates
    ]
    for one in document["curves"]:
        assert one["rate"] == 0.001  # the other rate changes nothing in two epochs
        assert one["last_error"] <= 0.25
        assert one["epochs_to_threshold"] <= one["epochs_trained"] <= 25
        assert one["epochs_to_threshold"] - 1 < one["epochs_interpolated"] <= one["epochs_to_threshold"]
    relu, tanh = (
        [one["epochs_interpolated"] for one in document["curves"] if one["neuron"] == n] for n in ("relu", "tanh")
    )
    assert document["tanh_over_relu"] == pytest.approx(sum(tanh) / sum(relu), abs=0.006)

    table = rows(tmp_path / "figure1.csv")
    for one in document["curves"]:
        own = [
            row
            for row in table
            if (row["kind"], row["neuron"], row["seed"]) == ("train", one["neuron"], str(one["seed"]))
        ]
        assert [int(row["epoch"]) for row in own] == list(range(1, one["epochs_trained"] + 1))
        assert float(own[-1]["error"]) == pytest.approx(one["last_error"], abs=1e-5)
    with Image.open(tmp_path / "figure1.png") as chart:
        assert chart.size[0] > 600
    # The search at the best rate is the start of the trained curve, not a separate curve.
    trained = 48 * (2 * 2 + sum(one["epochs_trained"] for one in document["curves"]))
    assert reporter.images == trained

    again = RecordingReporter()
    written = (tmp_path / "figure1.csv").read_bytes()
    assert run_figure1(data, tmp_path, OPTIONS, again) == document
    assert (tmp_path / "figure1.csv").read_bytes() == written
    assert again.images == 0
    assert len(again.lines) == 8


def test_there_is_no_ratio_if_a_curve_does_not_reach_the_threshold(tmp_path: Path) -> None:
    options = Figure1Options(rates=(1e-9,), search_epochs=1, max_epochs=1)
    document = run_figure1(small_cifar(train=20), tmp_path, options, RecordingReporter())
    assert document["tanh_over_relu"] is None
    assert [one["epochs_to_threshold"] for one in document["curves"]] == [None, None]


def curve(rate: float, *errors: float, diverged: bool = False) -> Curve:
    """Return a curve with the given errors."""
    epochs = tuple(Epoch(number, 1.0, error, error, 1.0) for number, error in enumerate(errors, start=1))
    return Curve(Plan("18pct", rate, "data"), epochs, diverged)


def test_the_best_rate_has_the_lowest_last_error_without_divergence() -> None:
    assert best_rate([curve(0.1, 0.2, diverged=True), curve(0.01, 0.5, 0.4), curve(0.001, 0.3, 0.5)]) == 0.01
    assert best_rate([curve(0.01, 0.4), curve(0.001, 0.4)]) == 0.001
    with pytest.raises(TrainingError, match=r"0\.1, 0\.2"):
        best_rate([curve(0.1, diverged=True), curve(0.2, 0.9, diverged=True)])


def test_normalization_is_compared_in_both_nets(tmp_path: Path) -> None:
    data = small_cifar(train=20, test=9)
    document = run_lrn(data, tmp_path, LrnOptions(epochs=2), RecordingReporter())
    assert [(one["net"], one["norms"]) for one in document["nets"]] == [
        ("13pct", False),
        ("13pct", True),
        ("11pct", False),
        ("11pct", True),
    ]
    assert [change["net"] for change in document["norms_change"]] == ["13pct", "11pct"]
    assert len(rows(tmp_path / "cifar-lrn.csv")) == 8
    assert (tmp_path / "cifar-lrn.png").stat().st_size > 5000
    again = RecordingReporter()
    assert run_lrn(data, tmp_path, LrnOptions(epochs=2), again) == document
    assert again.images == 0


def test_the_change_is_the_error_with_norms_minus_the_error_without() -> None:
    errors = {(False, 0): 0.30, (False, 1): 0.32, (True, 0): 0.28, (True, 1): 0.31}
    results = [
        {"net": "13pct", "norms": norms, "test_error": error, "test_error_ten_views": error / 2}
        for (norms, _), error in errors.items()
    ]
    assert norms_change(results) == [{"net": "13pct", "test_error": -0.015, "test_error_ten_views": -0.0075}]


def test_the_learning_rate_drops_after_80_and_90_percent_of_the_epochs() -> None:
    assert LrnOptions(epochs=10).drops() == (8, 9)
    assert LrnOptions(epochs=160).drops() == (128, 144)


def test_a_loss_that_is_not_finite_stops_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"13pct without LRN.*lower --rate"):
        run_lrn(small_cifar(train=20), tmp_path, LrnOptions(epochs=4, rate=1e9), RecordingReporter())


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["paper", *map(str, arguments)])


def test_the_commands_print_their_results_and_the_next_step(tmp_path: Path) -> None:
    data = write_cifar(tmp_path / "cifar10", train=8, test=4)
    out = tmp_path / "out"
    options = ["--rates", "0.002", "--search-epochs", 1, "--max-epochs", 2]
    result = invoke("figure1", "--data", data, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert "24 training and 12 test images, 3 classes" in result.output
    assert "Run the command again with a higher --max-epochs" in result.output
    assert str(out / "figure1.png") in result.output
    assert "Next: fc7 paper cifar-lrn" in result.output
    assert len(list((out / "cache").iterdir())) == 1

    result = invoke("cifar-lrn", "--data", data, "--out", out, "--epochs", 2, "--bfloat16")
    assert result.exit_code == 0, result.output
    assert "11pct: normalization changes the test error by" in result.output
    assert json.loads((out / "cifar-lrn.json").read_text())["options"]["precision"] == "bfloat16"


def test_the_error_for_missing_data_names_the_path(tmp_path: Path) -> None:
    result = invoke("figure1", "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert isinstance(result.exception, DatasetError)
    assert "nowhere" in str(result.exception)
    assert not (tmp_path / "out").exists()
