"""`fc7 ablate` on small images and narrow nets: statistics compared with NumPy, stopping, and invalid input."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from model_store.errors import CheckpointError, RecipeError
from model_store.training.paper.ablation import CSV_FILE, JSON_FILE, Ablation, RunResult, paper_difference, run_ablation
from model_store.training.reporting import Reporter
from model_store.training.runs.run import load_run
from service.cli.main import app
from tests.support.training.class_folders import TRIAL_RECIPE, write_class_folders

RECIPE = TRIAL_RECIPE
RECIPES = [RECIPE, replace(RECIPE, variant="no-lrn")]


class StopAtStep(Reporter):
    """Sets `stop` at a step, counted over all runs."""

    def __init__(self, step: int) -> None:
        self.stop, self.remaining = threading.Event(), step

    def step(self, *_: float) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            self.stop.set()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), val=4)


@pytest.fixture(scope="module")
def complete(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("complete")
    assert run_ablation(data, RECIPES, [0, 1], out) is not None
    return out


def results(net: str, *errors: tuple[int, float, float]) -> list[RunResult]:
    return [RunResult(net, seed, top1, top5, "") for seed, top1, top5 in errors]


def test_differences_are_between_runs_with_the_same_seed() -> None:
    base, other = [(0, 0.5, 0.2), (1, 0.4, 0.1), (2, 0.6, 0.3)], [(2, 0.63, 0.3), (0, 0.52, 0.25), (1, 0.41, 0.1)]
    result = Ablation("d", "h", 9, 9, (*results("small-full", *base), *results("small-no-lrn", *other)))
    top1, top5 = result.differences("small-no-lrn")
    expected = np.array([0.02, 0.01, 0.03])
    assert [top1.mean, top1.sd, top1.n] == pytest.approx([0.02, expected.std(ddof=1), 3])
    assert [top5.mean, top5.sd] == pytest.approx([0.05 / 3, np.std([0.05, 0, 0], ddof=1)])
    errors = result.errors("small-no-lrn")[0]
    assert errors.mean == pytest.approx(0.52)
    assert errors.sd == pytest.approx(np.std([0.63, 0.52, 0.41], ddof=1))
    assert result.differences("small-full")[0].mean == 0
    assert Ablation("d", "h", 9, 9, tuple(results("x", (0, 0.5, 0.2)))).errors("x")[0].sd is None


def test_the_files_contain_the_last_validation_of_each_run(complete: Path) -> None:
    document = json.loads((complete / JSON_FILE).read_text())
    assert [entry["net"] for entry in document["nets"]] == ["trial-full", "trial-no-lrn"]
    assert [(entry["net"], entry["seed"]) for entry in document["runs"]] == [
        (f"trial-{variant}", seed) for variant in ("full", "no-lrn") for seed in (0, 1)
    ]
    for entry in document["runs"]:
        run = load_run(complete / "runs" / entry["run"])
        assert run.info.architecture.name == ("alexnet" if "full" in entry["net"] else "alexnet-no-lrn")
        assert (run.info.seed, run.finished) == (entry["seed"], True)
        assert entry["top1_error"] == run.metrics[-1]["val_error"]
    found = {(entry["net"], entry["seed"]): entry["top1_error"] for entry in document["runs"]}
    differences = [found["trial-no-lrn", seed] - found["trial-full", seed] for seed in (0, 1)]
    second = document["nets"][1]
    assert second["minus"] == "trial-full"
    assert second["top1_difference"]["mean"] == pytest.approx(np.mean(differences))
    assert second["top1_difference"]["sd"] == pytest.approx(np.std(differences, ddof=1))
    rows = list(csv.DictReader((complete / CSV_FILE).read_text().splitlines()))
    assert [(row["net"], float(row["top1_error"])) for row in rows] == [
        (entry["net"], entry["top1_error"]) for entry in document["runs"]
    ]


def test_a_stopped_ablation_resumes_to_the_same_results(data: Path, tmp_path: Path, complete: Path) -> None:
    reporter = StopAtStep(6)  # each run has 4 steps: step 6 is in the second run, after its first epoch
    assert run_ablation(data, RECIPES, [0, 1], tmp_path, reporter=reporter, stop=reporter.stop) is None
    assert len(json.loads((tmp_path / JSON_FILE).read_text())["runs"]) == 1
    result = run_ablation(data, RECIPES, [0, 1], tmp_path)
    assert result is not None
    assert len(list((tmp_path / "runs").iterdir())) == 4
    expected = json.loads((complete / JSON_FILE).read_text())
    assert result.to_dict()["nets"] == expected["nets"]


def test_finished_runs_are_not_trained_again(data: Path, complete: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (complete / "runs").glob("*/model.safetensors")}
    assert run_ablation(data, RECIPES, [0], complete) is not None
    assert {path: path.stat().st_mtime_ns for path in (complete / "runs").glob("*/model.safetensors")} == before


def test_runs_with_another_recipe_or_other_images_are_rejected(data: Path, complete: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(complete, out)
    with pytest.raises(CheckpointError, match=r"another recipe or seed\. Choose another --out"):
        run_ablation(data, [replace(RECIPE, epochs=3)], [0], out)
    other = write_class_folders(tmp_path / "other", seed=9)
    with pytest.raises(CheckpointError, match="other images"):
        run_ablation(other, RECIPES, [0, 2], out)


def test_the_differences_of_the_paper_are_known_by_variant() -> None:
    assert paper_difference("small-no-lrn") == "+1.4 / +1.2 (section 3.3)"
    assert paper_difference("small-no-conv4") == '+2 (section 7, "about 2%")'
    assert paper_difference("small-full") == ""


def test_fc7_ablate_prints_means_and_spread_and_rejects_invalid_options(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "trial.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in RECIPE.to_dict().items() if key != "name"]
    recipe.write_text("\n".join(lines))
    cli, options = CliRunner(env={"COLUMNS": "160"}), ["ablate", "--data", str(data), "--recipe", str(recipe)]
    out = ["--out", str(tmp_path / "out")]
    command = [*options, *out, "--variants", "full,pool-2x2", "--seeds", "0,1", "--set", "epochs=1"]
    done = cli.invoke(app, command)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    spread = document["nets"][1]["top1_difference"]
    assert f"{100 * spread['mean']:+.1f} ± {100 * spread['sd']:.1f} (2)" in done.output
    assert "+0.4 / +0.3 (section 3.4)" in done.output
    assert "trial-pool-2x2 " in cli.invoke(app, command, env={"COLUMNS": "80"}).output  # names are not truncated
    for wrong, message in ((["--seeds", "one"], "whole numbers"), (["--variants", ","], "contains no name")):
        refused = cli.invoke(app, [*options, *out, *wrong])
        assert refused.exit_code == 2
        assert message in refused.output
    unknown = cli.invoke(app, [*options, *out, "--variants", "full,no-conv9"])
    assert isinstance(unknown.exception, RecipeError)
