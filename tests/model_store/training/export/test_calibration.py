"""The temperature of an exported version: how it is fitted, and that every graph of the version has it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.special import softmax
from typer.testing import CliRunner

from model_store.artifact import Artifact
from model_store.head.graph import replace_head
from model_store.image import prepare, views
from model_store.manifest import MODEL_FILE, WEIGHTS_FILE
from model_store.runtime.explainer import EXPLAIN_FILE, Explainer, Target
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.evaluate import RunnerPredictor, SplitImages, TorchPredictor, evaluate
from model_store.training.export import agreement
from model_store.training.export.calibration import CrossFitted, fit_calibration, fit_temperature
from model_store.training.export.publish import ExportResult, export_run
from model_store.training.export.quantize import add_precisions
from model_store.training.parents import find_parent
from model_store.training.recipe import Recipe, load_recipe
from model_store.training.runs.run import TrainedRun, load_run
from service.cli.main import app
from tests.support.training.run_folder import write_pictures, write_run

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Labels = np.ndarray[Any, np.dtype[np.int64]]


def sharpened(images: int, factor: float, seed: int = 0) -> tuple[Floats, Labels]:
    """Return probabilities whose logits are `factor` times those from which the labels were drawn."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (images, 5))
    drawn = (softmax(logits, axis=1).cumsum(1) > random.random((images, 1))).argmax(1)
    return softmax(factor * logits, axis=1).astype(np.float32), drawn


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_undoes_a_factor_of_the_logits(factor: float) -> None:
    found = fit_calibration(*sharpened(4000, factor))
    assert found.temperature == pytest.approx(factor, rel=0.06)
    assert found.after.calibration_error < 0.03
    assert found.before.calibration_error > 0.08
    assert found.after.likelihood < found.before.likelihood


def test_each_half_is_judged_with_the_temperature_of_the_other_half() -> None:
    probabilities, truth = (
        np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
        for parts in zip(sharpened(800, 1.5, seed=1), sharpened(800, 3.0, seed=2), strict=True)
    )
    found = fit_calibration(probabilities, truth)
    even, odd = found.by_half
    assert (even, odd) == pytest.approx((1.5, 3.0), rel=0.1)
    assert even < found.temperature < odd
    logits = np.log(probabilities)
    scaled = softmax(logits / np.where(np.arange(1600) % 2, even, odd)[:, None], axis=1)
    assert found.after.likelihood == pytest.approx(-np.log(scaled[np.arange(1600), truth]).mean(), rel=1e-5)


def test_the_temperature_is_1_with_few_images_or_without_a_gain_on_other_images() -> None:
    assert fit_calibration(*sharpened(99, 3.0)).temperature == 1
    assert fit_calibration(*sharpened(100, 3.0)).temperature > 1.5
    # One half has too small logits, the other too large ones, so neither temperature helps the other half.
    halves = [sharpened(400, factor, seed=3) for factor in (0.3, 3.0)]
    probabilities, truth = (
        np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:]) for parts in zip(*halves, strict=True)
    )
    opposed = fit_calibration(probabilities, truth)
    assert (opposed.temperature, opposed.by_half, opposed.before) == (1, (1, 1), opposed.after)


def test_images_without_an_error_do_not_make_the_probabilities_certain() -> None:
    logits = np.tile([2.0, 0.0, 0.0], (200, 1))
    assert fit_temperature(logits, np.zeros(200, np.int64)) == pytest.approx(1 / 8, rel=0.01)


@pytest.fixture(scope="module", autouse=True)
def without_bf16() -> Iterator[None]:
    """Export without comparing bf16 with f32, which test_agreement.py tests: emulating bf16 takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "bf16_support", lambda: "none")
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibration")
    write_pictures(root / "data", images=34, side=64)  # a temperature requires 100 images
    write_pictures(root / "data", "train", images=4, side=64)
    write_run(root, root / "data")
    return root


@pytest.fixture(scope="module")
def run(home: Path) -> TrainedRun:
    return load_run(next((home / "runs").iterdir()))


@pytest.fixture(scope="module")
def plain(home: Path, run: TrainedRun) -> ExportResult:
    return export_run(run, ModelStore(home))


@pytest.fixture(scope="module")
def exported(home: Path, run: TrainedRun) -> ExportResult:
    return export_run(run, ModelStore(home), calibrate=True, view_counts=(1, 10))


@pytest.fixture(scope="module")
def pixels(home: Path) -> Any:
    files = sorted((home / "data" / "val").rglob("*.png"))
    return np.concatenate([views(prepare(path.read_bytes())) for path in files])


def outputs(artifact: Artifact, pixels: Any, engine: Literal["onnxruntime", "openvino"], precision: str) -> Any:
    options = RunnerOptions(device="cpu", engine=engine, precision=precision)
    if precision == "fp32":
        options = replace(options, arithmetic="f32")
    with closing(Runner(artifact, options)) as runner:
        return runner.run(pixels)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_serve_the_calibrated_probabilities_and_the_same_fc7(
    run: TrainedRun, plain: ExportResult, exported: ExportResult, pixels: Any, engine: Any
) -> None:
    assert plain.calibration is None
    assert exported.calibration is not None
    temperature = exported.calibration.temperature
    assert temperature > 1.5  # the weights of the small net are random
    trained = TorchPredictor("torch", run.info.classes, run.network, run.statistics.mean)
    uncalibrated, _ = trained.both(pixels)
    expected = softmax(np.log(uncalibrated) / temperature, axis=1)
    before, after = (outputs(each.artifact, pixels, engine, "fp32") for each in (plain, exported))
    np.testing.assert_allclose(after.probabilities, expected, atol=1e-5)
    assert np.array_equal(after.probabilities.argmax(1), before.probabilities.argmax(1))
    assert np.array_equal(after.fc7, before.fc7)
    # An index of the uncalibrated version stays valid.
    assert exported.artifact.fingerprint == plain.artifact.fingerprint
    assert exported.artifact.manifest.files["weights.bin"] == plain.artifact.manifest.files["weights.bin"]


def test_the_manifest_has_the_temperature_and_the_cross_fitted_error(
    plain: ExportResult, exported: ExportResult
) -> None:
    before, after = plain.artifact.manifest.metrics, exported.artifact.manifest.metrics
    assert "calibration" not in before
    assert exported.calibration is not None
    found = after["calibration"]
    assert (found["temperature"], found["images"]) == (exported.calibration.temperature, 102)
    assert found["expected_calibration_error_before"] == pytest.approx(before["expected_calibration_error"], abs=1e-6)
    assert found["negative_log_likelihood"] < found["negative_log_likelihood_before"]
    one_view = exported.evaluations[0]
    assert found["expected_calibration_error"] == pytest.approx(one_view.figures.expected_calibration_error, abs=1e-4)
    assert np.array_equal(one_view.confusion, plain.evaluations[0].confusion)
    assert after["by_views"]["1"] == before["by_views"]["1"]


def test_a_cross_fitted_predictor_counts_the_views_of_an_image_once(exported: ExportResult, pixels: Any) -> None:
    assert exported.calibration is not None
    calibration = replace(exported.calibration, temperature=2.0, by_half=(1.0, 4.0))
    with closing(Runner(exported.artifact, RunnerOptions(device="cpu", engine="onnxruntime"))) as runner:
        served = runner.run(pixels[:12]).probabilities
        predictor = CrossFitted(RunnerPredictor(runner), calibration, 3)  # images of rows 0-2, 3-5, 6-8, 9-11
        found = np.concatenate([predictor.both(part)[0] for part in (pixels[:6], pixels[6:12])])
    exponents = np.array([0.5, 2.0, 0.5, 2.0]).repeat(3)[:, None]
    np.testing.assert_allclose(found, softmax(np.log(served) * exponents, axis=1), atol=1e-5)


def test_explanations_int8_and_fine_tuning_work_with_a_calibrated_version(
    home: Path, run: TrainedRun, plain: ExportResult, exported: ExportResult, pixels: Any
) -> None:
    assert EXPLAIN_FILE in exported.artifact.manifest.files
    explained = [
        Explainer(each.artifact, RunnerOptions(device="cpu")).run(pixels[:3], [Target()] * 3)
        for each in (plain, exported)
    ]
    assert np.array_equal(explained[0].heat, explained[1].heat)
    assert explained[1].heat.max() > 0
    parent = find_parent(home, exported.artifact.id)
    for name, weight in run.network.state_dict().items():
        assert torch.equal(parent.weights[name], weight), name
    quantized = add_precisions(exported.artifact, ModelStore(home), ["int8", "fp16"], home / "data")
    assert quantized.fingerprint == exported.artifact.fingerprint
    served = outputs(exported.artifact, pixels, "onnxruntime", "fp32").probabilities
    for precision, most in (("int8", 0.06), ("fp16", 0.01)):
        other = outputs(quantized, pixels, "onnxruntime", precision).probabilities
        assert np.abs(other - served).max() < most


def test_another_head_has_no_temperature(tmp_path: Path, exported: ExportResult) -> None:
    random = np.random.default_rng(0)
    weights, biases = (random.normal(0, 0.01, shape).astype(np.float32) for shape in ((4, 4096), 4))
    model = replace_head(exported.artifact.read(MODEL_FILE), weights, biases)
    (tmp_path / MODEL_FILE).write_bytes(model)
    shutil.copyfile(exported.artifact.path / WEIGHTS_FILE, tmp_path / WEIGHTS_FILE)
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE, providers=["CPUExecutionProvider"])
    pixels = np.zeros((1, 224, 224, 3), np.uint8)
    probabilities, fc7 = session.run(["probabilities", "fc7"], {"pixels": pixels})
    np.testing.assert_allclose(probabilities, softmax(fc7 @ weights.T + biases, axis=1), atol=1e-5)


def test_the_recipe_decides_unless_the_command_line_does(home: Path) -> None:
    assert load_recipe("small").calibrate
    assert not any(recipe.calibrate for recipe in (Recipe(), load_recipe("paper"), load_recipe("original")))
    cli = CliRunner()
    options = ["export", "small", "--home", str(home), "--name", "cli", "--no-activate", "--views", "1"]
    with_temperature = cli.invoke(app, [*options, "--calibrate"])
    assert with_temperature.exit_code == 0, with_temperature.output
    assert "fitted to 102 images" in with_temperature.output
    without = cli.invoke(app, options)
    assert "emperature" not in without.output
    few = cli.invoke(app, [*options, "--calibrate", "--split", "train"])
    assert "requires 100 validation images, and there are 12" in few.output
    metrics = [artifact.manifest.metrics for artifact in ModelStore(home).list() if artifact.name == "cli"]
    assert ["calibration" in each for each in metrics] == [True, False, True]


def test_a_run_and_its_calibrated_version_have_the_same_errors(
    home: Path, run: TrainedRun, exported: ExportResult
) -> None:
    images = SplitImages(home / "data")
    torch_net = TorchPredictor("run", run.info.classes, run.network, run.statistics.mean)
    with closing(Runner(exported.artifact, RunnerOptions(device="cpu"))) as runner:
        served = evaluate([RunnerPredictor(runner)], images)
    assert np.array_equal(evaluate([torch_net], images).confusion, served.confusion)
