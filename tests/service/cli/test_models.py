"""`fc7 models list|show|activate|rollback`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from model_store.classes.figures import FigureCounter
from model_store.errors import ArtifactCorruptError, ModelNotFoundError, NoActiveModelError, NoBetterThanBaselineError
from model_store.store import ModelStore
from service.cli.main import app
from tests.service.cli.helpers import invoke
from tests.support.tiny_model import publish_tiny_model


def fc7(home: Path, *arguments: str) -> Result:
    return invoke(home, "models", *arguments)


def test_list_without_models_explains_how_to_publish_one(tmp_path: Path) -> None:
    result = fc7(tmp_path, "list")
    assert result.exit_code == 0
    assert "No model is published yet" in result.output
    assert "fc7 train" in result.output
    assert "make demo" in result.output
    assert json.loads(fc7(tmp_path, "list", "--json").stdout) == []
    assert isinstance(fc7(tmp_path, "show").exception, NoActiveModelError)
    assert isinstance(fc7(tmp_path, "activate", "solar:1").exception, ModelNotFoundError)


def test_list_marks_the_active_version_and_reports_a_broken_one(tmp_path: Path) -> None:
    for seed in range(3):
        publish_tiny_model(tmp_path, "solar", seed=seed, activate=seed == 1)
    (tmp_path / "models" / "solar" / "1" / "manifest.json").write_text("{")
    result = fc7(tmp_path, "list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines if "*" in line] == [["*", "solar:2"]]
    assert "solar:3" in result.stdout
    assert "50.0%" in result.stdout
    assert "solar/1/manifest.json cannot be read" in result.stderr
    listed = json.loads(fc7(tmp_path, "list", "--json").stdout)
    assert [(entry["name"], entry["version"], entry["active"]) for entry in listed] == [
        ("solar", 2, True),
        ("solar", 3, False),
    ]


def test_list_says_why_versions_do_not_run_in_bf16(tmp_path: Path) -> None:
    agrees = {"images": 1000, "top1_agreement": 1.0, "fc7_cosine": 1.0, "fc7_distance": 0.001}
    for seed, measured in enumerate((None, None, agrees, agrees | {"top1_agreement": 0.99})):
        publish_tiny_model(tmp_path, "solar", seed=seed, metrics={"bf16": measured} if measured else {})
    lines = [line for line in fc7(tmp_path, "list").stderr.splitlines() if "f32 on CPUs" in line]
    assert [line.partition(":")[2].partition(":")[0] for line in lines] == ["1, solar", "4"]
    assert "at least 100 validation images" in lines[0]
    assert "the best class of f32 for 99.00% of the images, and not for 99.9%" in lines[1]
    listed = json.loads(fc7(tmp_path, "list", "--json").stdout)
    assert [entry["bf16_obstacle"] is None for entry in listed] == [False, False, True, False]


def test_show_prints_the_manifest_of_a_verified_version(tmp_path: Path) -> None:
    artifact = publish_tiny_model(tmp_path, classes=[f"class [{number}]" for number in range(30)])
    text = fc7(tmp_path, "show").stdout
    for expected in (
        artifact.fingerprint,
        "top1_error",
        "[N, 224, 224, 3]",
        "class [19]",
        "and 10 more",
        "weights.bin",
        "active",
    ):
        assert expected in text
    assert json.loads(fc7(tmp_path, "show", "tiny:1", "--json").stdout)["fingerprint"] == artifact.fingerprint
    artifact.weights_path.write_bytes(b"other")
    assert isinstance(fc7(tmp_path, "show", "tiny").exception, ArtifactCorruptError)


def weak_metrics(correct: int = 3) -> dict[str, object]:
    """Return the figures of a net that always predicts the first of three classes, or finds some of the others."""
    counter = FigureCounter(3)
    truth = np.array([0] * 6 + [1] * 3 + [2] * 3)
    counter.add(truth, np.where(np.arange(12) < 6 + correct, truth, 0), np.full(12, 0.5))
    figures = counter.figures(["a", "b", "c"])
    return figures.to_dict() | {"images": figures.images}


def test_a_version_no_better_than_the_baseline_is_activated_only_with_force(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, activate=False, metrics=weak_metrics(0))
    refused = fc7(tmp_path, "activate", "tiny:1")
    assert isinstance(refused.exception, NoBetterThanBaselineError)
    message = str(refused.exception)
    assert "50.0% of 12 validation images are correct (95 % interval 25.4% to 74.6%)" in message
    assert "fc7 train --from" in message
    assert "--force" in message
    assert ModelStore(tmp_path).active() is None
    assert "tiny:1 is the active version" in fc7(tmp_path, "activate", "tiny:1", "--force").stdout
    assert fc7(tmp_path, "activate", "tiny:1").exit_code == 1  # rolling back is not affected
    publish_tiny_model(tmp_path, activate=False, metrics=weak_metrics(6))
    assert "tiny:2 is the active version" in fc7(tmp_path, "activate", "tiny:2").stdout
    assert "tiny:1 is the active version" in fc7(tmp_path, "rollback").stdout


def test_list_and_show_print_figures_beside_the_baseline(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, metrics=weak_metrics())
    listed = fc7(tmp_path, "list").stdout
    for figure in ("25.0%", "8.9%-53.2%", "50.0%", "66.7%"):
        assert figure in listed
    shown = fc7(tmp_path, "show").stdout
    assert "metrics.class b" in shown
    assert "3 images, precision 100.0%, recall 100.0%" in shown
    assert "reliability" not in shown


def test_activate_and_rollback_switch_the_active_version(tmp_path: Path) -> None:
    for seed in range(3):
        publish_tiny_model(tmp_path, seed=seed, activate=False)
    assert "fc7 models activate tiny:3" in fc7(tmp_path, "list").stderr
    assert "tiny:1 is the active version" in fc7(tmp_path, "activate", "tiny:1").stdout
    assert "tiny:3 is the active version (previous: tiny:1)" in fc7(tmp_path, "activate", "tiny").stdout
    assert "tiny:1 is the active version (previous: tiny:3)" in fc7(tmp_path, "rollback").stdout
    assert ModelStore(tmp_path).active_artifact().id == "tiny:1"


def test_home_can_be_given_as_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_tiny_model(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert "tiny:1" in CliRunner().invoke(app, ["models", "list", "--home", str(tmp_path / "elsewhere")]).stdout
