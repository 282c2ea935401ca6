"""Evaluation, compared with a plain count in NumPy: views, averages of nets, skipped files, and the commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from model_store.errors import DatasetError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.evaluate import RunnerPredictor, SplitImages, TorchPredictor, evaluate
from model_store.training.export.publish import export_run
from model_store.training.runs.run import load_run
from service.cli.main import app
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.run_folder import CLASSES, write_pictures, write_run

LABELS = tuple("abcdefg")


@dataclass
class ColorPredictor:
    """Classifies by a linear map of the mean colors in a 2x2 grid, which differ from view to view."""

    seed: int
    labels: tuple[str, ...] = LABELS
    name: str = "colors"

    def both(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.of_grid(pixels.reshape(-1, 2, 112, 2, 112, 3).mean(axis=(2, 4))), np.empty(
            (len(pixels), 0), np.float32
        )

    def of_grid(self, grid: NDArray[Any]) -> NDArray[np.float32]:
        weights = dict(zip(LABELS, np.random.default_rng(self.seed).standard_normal((7, 12)), strict=True))
        logits = grid.reshape(-1, 12) @ np.array([weights[label] for label in self.labels]).T / 100
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, list[NDArray[np.uint8]]]:
    """Write lossless 256x256 images, which `prepare` does not change. Each label has a different number of them."""
    random = np.random.default_rng(0)
    found: dict[str, list[NDArray[np.uint8]]] = {}
    for index, label in enumerate(LABELS[:6]):  # class g has no images
        (tmp_path / "val" / label).mkdir(parents=True)
        found[label] = []
        for number in range(3 + index):
            pixels = random.integers(0, 256, (256, 256, 3)).astype(np.uint8)
            pixels = np.repeat(np.repeat(pixels[::64, ::64], 64, 0), 64, 1)
            Image.fromarray(pixels).save(tmp_path / "val" / label / f"{number}.png")
            found[label].append(pixels)
    return found


def expected(
    pictures: dict[str, list[NDArray[np.uint8]]], predictors: list[ColorPredictor], corners: list[tuple[int, int]]
) -> tuple[NDArray[np.int64], int]:
    """Count image by image and view by view. Returns (confusion, number of top-5 errors)."""
    confusion, wrong5 = np.zeros((7, 7), np.int64), 0
    for label, images in pictures.items():
        for pixels in images:
            answers = []
            for predictor in predictors:
                for top, left in corners:
                    view = pixels[top : top + 224, left : left + 224]
                    turned = [view] if len(corners) == 1 else [view, np.fliplr(view)]
                    for each in turned:
                        quarters = [
                            each[a : a + 112, b : b + 112].mean(axis=(0, 1)) for a in (0, 112) for b in (0, 112)
                        ]
                        answer = predictor.of_grid(np.array(quarters))[0]
                        answers.append(answer[[predictor.labels.index(name) for name in LABELS]])
            ranking = np.argsort(-np.mean(answers, axis=0))
            confusion[LABELS.index(label), ranking[0]] += 1
            wrong5 += LABELS.index(label) not in ranking[:5]
    return confusion, wrong5


CENTER = [(16, 16)]
FIVE = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]


@pytest.mark.parametrize(("view_count", "corners"), [(1, CENTER), (10, FIVE)])
def test_errors_and_confusion_match_a_plain_count(
    tmp_path: Path, pictures: dict[str, list[NDArray[np.uint8]]], view_count: int, corners: list[tuple[int, int]]
) -> None:
    predictor = ColorPredictor(1)
    counted: list[int] = []
    result = evaluate([predictor], SplitImages(tmp_path), view_count=view_count, progress=counted.append)
    confusion, wrong5 = expected(pictures, [predictor], corners)
    assert np.array_equal(result.confusion, confusion)
    total = sum(range(3, 9))
    assert (result.seen, sum(counted), result.skipped, result.views) == (total, total, (), view_count)
    assert 0 < np.trace(confusion) < total
    assert 0 < wrong5 < total
    assert result.top1_error == pytest.approx(1 - np.trace(confusion) / total)
    assert result.top5_error == pytest.approx(wrong5 / total)
    assert result.figures.majority_accuracy == pytest.approx(8 / total)
    classes = {entry["label"]: entry for entry in result.to_dict()["per_class"]}
    assert classes["f"]["images"] == 8
    assert classes["f"]["recall"] == pytest.approx(confusion[5, 5] / 8)
    assert (classes["g"]["images"], classes["g"]["recall"], classes["g"]["top5_error"]) == (0, None, None)
    assert sum((entry["top5_error"] or 0) * entry["images"] for entry in classes.values()) == pytest.approx(wrong5)


def test_ten_views_and_one_view_differ_on_these_images(pictures: dict[str, list[NDArray[np.uint8]]]) -> None:
    one, _ = expected(pictures, [ColorPredictor(1)], CENTER)
    ten, _ = expected(pictures, [ColorPredictor(1)], FIVE)
    assert not np.array_equal(one, ten)  # otherwise the test above would not detect a missing view


def test_nets_with_differently_ordered_classes_are_averaged_by_label(
    tmp_path: Path, pictures: dict[str, list[NDArray[np.uint8]]]
) -> None:
    nets = [ColorPredictor(1), ColorPredictor(2, LABELS[::-1], "other"), ColorPredictor(3)]
    result = evaluate(nets, SplitImages(tmp_path))
    confusion, wrong5 = expected(pictures, nets, CENTER)
    assert np.array_equal(result.confusion, confusion)
    assert round(result.top5_error * result.seen) == wrong5
    assert result.models == ("colors", "other", "colors")
    assert not np.array_equal(confusion, expected(pictures, nets[:1], CENTER)[0])


@pytest.mark.usefixtures("pictures")
def test_nets_with_different_classes_are_not_averaged(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"small cannot be averaged.*classes differ: g"):
        evaluate([ColorPredictor(1), ColorPredictor(1, LABELS[:6], "small")], SplitImages(tmp_path))


@pytest.mark.usefixtures("pictures")
def test_a_class_that_the_net_does_not_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"class 'f'.*Classes of the net: a, b, c, d, e\.$"):
        evaluate([ColorPredictor(1, LABELS[:5])], SplitImages(tmp_path))


@pytest.mark.usefixtures("pictures")
def test_broken_files_are_skipped_and_reported(tmp_path: Path) -> None:
    whole = evaluate([ColorPredictor(1)], SplitImages(tmp_path))
    (tmp_path / "val" / "a" / "0a.jpg").write_bytes(b"no picture")
    (tmp_path / "val" / "f" / "zero.png").touch()
    images = SplitImages(tmp_path)
    for _ in range(2):  # a second pass starts counting again
        result = evaluate([ColorPredictor(1)], images)
        assert [Path(skipped.path).name for skipped in result.skipped] == ["0a.jpg", "zero.png"]
        assert all(skipped.reason for skipped in result.skipped)
        assert np.array_equal(result.confusion, whole.confusion)
        assert result.data_sha256 == whole.data_sha256
    (tmp_path / "val" / "a" / "0.png").unlink()
    fewer = evaluate([ColorPredictor(1)], SplitImages(tmp_path))
    assert fewer.seen == whole.seen - 1
    assert fewer.data_sha256 != whole.data_sha256


def test_a_split_without_readable_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no class folders"):
        SplitImages(tmp_path)
    (tmp_path / "val" / "a").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no images in class folders"):
        SplitImages(tmp_path)
    (tmp_path / "val" / "a" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"None of the 1 images.*x\.jpg"):
        evaluate([ColorPredictor(1)], SplitImages(tmp_path))


def test_a_sample_is_spread_over_the_classes(tmp_path: Path, pictures: dict[str, list[NDArray[np.uint8]]]) -> None:
    everything = [pixels for label in LABELS[:6] for pixels in pictures[label]]
    sample = SplitImages(tmp_path).sample(11)  # of 33
    assert np.array_equal(sample, np.stack(everything[::3]))
    assert len(SplitImages(tmp_path).sample(1000)) == 33


def test_a_run_and_its_published_version_have_the_same_errors(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", images=4, side=300)
    run = load_run(write_run(tmp_path, tmp_path / "data"))
    artifact = export_run(run, ModelStore(tmp_path)).artifact
    images = SplitImages(tmp_path / "data")
    for view_count in (1, 10):
        torch = evaluate(
            [TorchPredictor("run", run.info.classes, run.network, run.statistics.mean)], images, view_count=view_count
        )
        served = evaluate(
            [RunnerPredictor(Runner(artifact, RunnerOptions(device="cpu")))], images, view_count=view_count
        )
        assert np.array_equal(torch.confusion, served.confusion)
        assert 0 < torch.top1_error < 1
    assert served.models == ("small:1",)


def test_fc7_export_and_evaluate_on_the_command_line(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", images=2)
    run = write_run(tmp_path, tmp_path / "data")
    (tmp_path / "data" / "val" / "red" / "cut.jpg").write_bytes(b"no picture")
    cli, home = CliRunner(), ["--home", str(tmp_path)]

    first = cli.invoke(app, ["export", "small", "--name", "solar", "--views", "10", "--force", *home])
    assert first.exit_code == 0
    assert "Published solar:1" in first.output
    assert "fc7 index build" in first.output
    assert "cut.jpg" in first.output
    second = cli.invoke(app, ["export", str(run), "--name", "solar", *home])
    assert "solar:2 was not activated, because it is no better" in second.output
    active = ModelStore(tmp_path).active()
    assert str(active and active.active) == "solar:1"
    third = cli.invoke(app, ["export", "small", "--name", "solar", "--activate", "--force", *home])
    assert "solar:3 is the active version" in third.output
    active = ModelStore(tmp_path).active()
    assert str(active and active.active) == "solar:3"
    metrics = ModelStore(tmp_path).get("solar", 1).manifest.metrics

    for models in (["small"], ["solar:1", "--data", str(tmp_path / "data")], ["small", "solar:1", "solar"]):
        evaluated = cli.invoke(app, ["evaluate", *models, "--views", "10", "--json", *home])
        assert evaluated.exit_code == 0, evaluated.output
        result = json.loads(evaluated.stdout)
        assert (result["images_seen"], result["images_skipped"], result["views"]) == (6, 1, 10)
        assert result["top1_error"] == metrics["top1_error"]
        assert [entry["label"] for entry in result["per_class"]] == list(CLASSES)
        assert [int(cell) for cell in np.array(result["confusion"]).sum(axis=1)] == [2, 2, 2]
    shown = cli.invoke(app, ["evaluate", "small", "solar:1", "--views", "10", *home])
    assert f"top-1 error {metrics['top1_error']:.1%}" in shown.output

    assert cli.invoke(app, ["evaluate", "small", "--views", "3", *home]).exit_code == 2
    publish_tiny_model(tmp_path, activate=False)
    no_data = cli.invoke(app, ["evaluate", "tiny:1", *home])
    assert isinstance(no_data.exception, DatasetError)
    assert "--data DIR" in str(no_data.exception)


def test_versions_are_averaged_by_their_probabilities(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", images=6)
    for name, seed in (("a", 1), ("b", 2), ("b", 3)):
        publish_tiny_model(tmp_path, name, CLASSES, seed)
    home = ["--home", str(tmp_path), "--data", str(tmp_path / "data")]
    wrong = {}
    for models in (("a:1",), ("b:1",), ("b:2",), ("a:1", "b:1", "b:2")):
        shown = CliRunner().invoke(app, ["evaluate", *models, "--views", "10", "--json", *home])
        assert shown.exit_code == 0, shown.output
        result = json.loads(shown.stdout)
        assert result["models"] == list(models)
        sessions = [
            onnxruntime.InferenceSession(tmp_path / "models" / model.replace(":", "/") / "model.onnx")
            for model in models
        ]
        confusion = np.zeros((3, 3), np.int64)
        for label, name in enumerate(CLASSES):
            for path in sorted((tmp_path / "data" / "val" / name).glob("*.png")):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                crops = [pixels[top : top + 224, left : left + 224] for top, left in FIVE]
                rows = np.stack([*crops, *[crop[:, ::-1] for crop in crops]])
                answers = [session.run(["probabilities"], {"pixels": rows})[0].mean(axis=0) for session in sessions]
                confusion[label, np.mean(answers, axis=0).argmax()] += 1
        assert np.array_equal(result["confusion"], confusion)
        assert result["top1_error"] == pytest.approx(1 - np.trace(confusion) / 18)
        wrong[models] = result["confusion"]
    assert (
        len({str(confusion) for confusion in wrong.values()}) == 4
    )  # otherwise the average could be the result of a single version
