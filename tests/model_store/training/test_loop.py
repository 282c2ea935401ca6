"""The training loop with small images and a narrow net: resuming, validation, warnings and errors."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.decoder.decoder import Decoder
from model_store.errors import CheckpointError
from model_store.image import prepare
from model_store.training.data.augment import Augmenter, epoch_order
from model_store.training.data.mixup import draw_share, mix
from model_store.training.data.reader import open_dataset
from model_store.training.data.sources import find_source
from model_store.training.errors import NonFiniteLossError
from model_store.training.loop import Resources, resume, train
from model_store.training.recipe import Recipe
from model_store.training.reporting import Reporter
from model_store.training.runs.resuming import Changes
from model_store.training.runs.run import (
    CHECKPOINT_FILE,
    METRICS_FILE,
    MODEL_FILE,
    SKIPPED_FILE,
    find_run,
    load_run,
    read_metrics,
)
from tests.model_store.training.helpers import RECIPE, RecordingReporter, same_weights, train_trial
from tests.support.training.class_folders import write_class_folders


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"))


def epoch_lines(run: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "images_per_second", "wait_share")
    lines = [line for line in read_metrics(run) if line["kind"] == "epoch"]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@pytest.fixture(scope="module")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_trial(data, tmp_path_factory.mktemp("finished_run")).run


def test_a_finished_run_contains_everything_to_rebuild_it(finished_run: Path, data: Path) -> None:
    run = load_run(finished_run)
    assert run.finished
    assert run.info.recipe == RECIPE
    assert run.info.classes == ("blue", "green", "red")
    assert run.statistics.mean.shape == (256, 256, 3)
    assert (run.info.train_images, run.info.val_images, run.info.seed) == (18, 6, 0)
    assert run.info.data == str(data)
    assert run.info.versions["torch"] == torch.__version__
    assert [line["step"] for line in run.metrics if line["kind"] == "epoch"] == [4, 8, 12]
    assert [line["step"] for line in run.metrics if line["kind"] == "step"] == [10]
    assert not run.network.training
    assert not (finished_run / CHECKPOINT_FILE).exists()
    assert any((finished_run / "tensorboard").iterdir())


def test_only_the_same_seed_gives_the_same_weights(finished_run: Path, data: Path, tmp_path: Path) -> None:
    assert same_weights(train_trial(data, tmp_path).run, finished_run)
    assert not same_weights(train_trial(data, tmp_path, seed=1).run, finished_run)


def test_images_over_the_memory_budget_give_the_same_weights(finished_run: Path, data: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    assert same_weights(
        train_trial(data, tmp_path, reporter=reporter, resources=Resources(memory_budget=0)).run, finished_run
    )
    assert any("decoded on demand" in note for note in reporter.notes)


@pytest.mark.parametrize("stop_after", [[1], [4], [6], [2, 3, 4]])
def test_a_resumed_run_gives_the_same_bits(
    finished_run: Path, data: Path, tmp_path: Path, stop_after: list[int]
) -> None:
    check_resumed(finished_run, data, tmp_path, RECIPE, stop_after)


def test_a_resumed_run_with_the_papers_update_in_bfloat16_gives_the_same_bits(data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, update="paper", dropout="paper", precision="bfloat16", colour_noise=0.1, epochs=2)
    check_resumed(train_trial(data, tmp_path / "finished_run", recipe).run, data, tmp_path, recipe, [3])


def check_resumed(finished_run: Path, data: Path, tmp_path: Path, recipe: Recipe, stop_after: list[int]) -> None:
    first = RecordingReporter(stop_after[0])
    result = train_trial(data, tmp_path, recipe, first)
    for steps in [*stop_after[1:], None]:
        assert not result.finished
        assert not (result.run / MODEL_FILE).exists()
        torch.manual_seed(123)  # other random numbers in the process do not matter
        reporter = RecordingReporter(steps)
        result = resume(result.run, reporter=reporter, stop=reporter.stop)
    assert result.finished
    assert same_weights(result.run, finished_run)
    assert epoch_lines(result.run) == epoch_lines(finished_run)


def test_metrics_of_a_killed_run_are_logged_once_after_a_resume(finished_run: Path, data: Path, tmp_path: Path) -> None:
    stopped = train_trial(data, tmp_path, reporter=RecordingReporter(6)).run
    with (stopped / METRICS_FILE).open(
        "a"
    ) as log:  # as if the process had continued and was killed while it wrote a line
        log.write('{"kind": "epoch", "epoch": 2, "step": 8, "train_loss": 9.0}\n{"kind": "ep')
    resume(stopped)
    assert epoch_lines(stopped) == epoch_lines(finished_run)


def test_the_plateau_schedule_ends_a_resumed_run_early(data: Path, tmp_path: Path) -> None:
    # With a rate of zero, the error never improves after the first epoch.
    recipe = replace(RECIPE, schedule="plateau", patience=1, drops=2, learning_rate=0, epochs=50)
    run = train_trial(data, tmp_path, recipe, RecordingReporter(9)).run
    result = resume(run)
    assert result.finished
    assert len(epoch_lines(run)) == 4


def test_validation_counts_every_image_once_in_every_second_epoch(data: Path, tmp_path: Path) -> None:
    result = train_trial(data, tmp_path, replace(RECIPE, validate_every=2))
    errors = [line.get("val_error") for line in epoch_lines(result.run)]
    assert errors[0] is None
    assert errors[1] is not None
    assert result.figures is not None
    assert errors[2] == pytest.approx(1 - result.figures.top1_accuracy)
    run = load_run(result.run)
    wrong = 0
    for label, name in enumerate(run.info.classes):
        for path in sorted((data / "val" / name).iterdir()):
            pixels = prepare(path.read_bytes())[16:240, 16:240] - run.statistics.mean[16:240, 16:240]
            wrong += int(run.network(torch.from_numpy(pixels).permute(2, 0, 1)[None]).argmax()) != label
    assert errors[2] == wrong / 6


def test_a_non_finite_loss_is_an_error_with_step_and_checkpoint(data: Path, tmp_path: Path) -> None:
    # The rate becomes too high after the first epoch, whose checkpoint is good.
    recipe = replace(RECIPE, learning_rate=10, momentum=0.99, warm_up=1, input_scale=1, epochs=12)
    reporter = RecordingReporter()
    with pytest.raises(NonFiniteLossError) as caught:
        train_trial(data, tmp_path, recipe, reporter)
    run = find_run(tmp_path, "trial")
    assert caught.value.step > 4
    assert caught.value.checkpoint == run / CHECKPOINT_FILE
    assert f"not finite at step {caught.value.step}. Start a new run with a lower rate (--set learning_rate=1)" in str(
        caught.value
    )
    assert f"--from {run.name}" in str(caught.value)
    assert all(torch.isfinite(value).all() for value in load_run(run).network.state_dict().values())
    assert not load_run(run).finished


def test_an_epoch_with_a_non_finite_validation_loss_writes_no_checkpoint(data: Path, tmp_path: Path) -> None:
    # The loss is finite in three steps. After the third one, the outputs of the net are NaN.
    recipe = replace(RECIPE, batch_size=6, learning_rate=1, bias_rate_factor=100, schedule="constant", input_scale=1)
    with pytest.raises(NonFiniteLossError) as caught:
        train_trial(data, tmp_path, recipe)
    assert (caught.value.step, caught.value.checkpoint) == (3, None)
    assert "(--set learning_rate=0.1). There is no checkpoint yet" in str(caught.value)


def test_color_noise_is_off_while_the_rate_is_low(data: Path, tmp_path: Path) -> None:
    # The highest rate of the cycle is between two steps, so all steps are below it.
    noisy = replace(RECIPE, colour_noise=5, epochs=1, warm_up=0.3)
    none = train_trial(data, tmp_path / "none", replace(noisy, colour_noise=0)).run
    assert same_weights(train_trial(data, tmp_path / "off", replace(noisy, noise_off_below=1)).run, none)
    assert not same_weights(train_trial(data, tmp_path / "on", replace(noisy, noise_off_below=0.01)).run, none)


def test_skipped_files_and_duplicates_are_reported(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    (data / "train" / "red" / "0.png").write_bytes(b"no image")
    (data / "val" / "red" / "0.png").write_bytes((data / "train" / "red" / "1.png").read_bytes())
    (data / "train" / "red" / "blue.png").write_bytes((data / "train" / "blue" / "2.png").read_bytes())
    reporter = RecordingReporter()
    run = train_trial(data, tmp_path, replace(RECIPE, epochs=1), reporter).run
    skipped = json.loads((run / SKIPPED_FILE).read_text())
    assert [entry["path"] for entry in skipped] == [str(data / "train" / "red" / "0.png")]
    assert "1 files are not used" in reporter.warnings[0]
    assert "0.png" in reporter.warnings[0]
    assert "1 validation images are also in train, byte for byte" in reporter.warnings[1]
    both = f"{data}/train/blue/2.png and {data}/train/red/blue.png. Keep each in one class"
    assert f"1 pictures are in two classes, byte for byte: {both}" in reporter.warnings[2]


def test_resuming_with_changed_images_requires_force(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    run = train_trial(data, tmp_path, reporter=RecordingReporter(2)).run
    (data / "train" / "red" / "0.png").write_bytes((data / "train" / "red" / "1.png").read_bytes())
    with pytest.raises(CheckpointError, match="--force"):
        resume(run)
    assert resume(run, force=True).finished


def test_a_run_resumes_after_its_images_were_moved(tmp_path: Path, finished_run: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    run = train_trial(data, tmp_path, reporter=RecordingReporter(2)).run
    moved = data.rename(tmp_path / "elsewhere")
    assert resume(run, data=moved).finished
    assert same_weights(run, finished_run)


def test_resuming_with_another_recipe_is_rejected(data: Path, tmp_path: Path) -> None:
    run = train_trial(data, tmp_path, reporter=RecordingReporter(2)).run
    with pytest.raises(CheckpointError, match="batch_size 5 -> 4"):
        resume(run, changes=Changes(replace(RECIPE, batch_size=4)))
    assert resume(run, changes=Changes(RECIPE)).finished


def test_resuming_a_finished_run_does_not_change_it(finished_run: Path) -> None:
    before = (finished_run / MODEL_FILE).stat().st_mtime_ns
    reporter = RecordingReporter()
    result = resume(finished_run, reporter=reporter)
    assert result.finished
    assert result.figures is not None
    assert 1 - result.figures.top1_accuracy == pytest.approx(epoch_lines(finished_run)[-1]["val_error"])
    assert (finished_run / MODEL_FILE).stat().st_mtime_ns == before
    assert "nothing to resume" in reporter.notes[-1]


@pytest.mark.parametrize(("smoothing", "alpha"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.5), (0.2, 0.5)])
def test_the_loss_uses_smoothed_and_blended_labels(tmp_path: Path, smoothing: float, alpha: float) -> None:
    data = write_class_folders(tmp_path / "data")
    recipe = Recipe(
        width=1 / 64,
        input_scale=1 / 64,
        dropout="none",
        initialisation="he",
        epochs=1,
        batch_size=18,
        learning_rate=0,
        update="torch",
        schedule="constant",
        precision="float32",
        label_smoothing=smoothing,
        mixup=alpha,
    )
    run = load_run(train(data, recipe, home=tmp_path, name="trial", seed=6, reporter=Reporter()).run)
    with ThreadPoolExecutor(1) as workers, Decoder() as decoder:
        images = open_dataset(find_source(data), memory_budget=1 << 30, workers=workers, decoder=decoder).train
    order = epoch_order(18, 6, 0)
    x = Augmenter(recipe, run.statistics).training_batch(images.pixels(order), 6, 0, 0)
    targets = np.eye(3)[images.labels[order]]
    if alpha:
        share = draw_share((0, 18), 18, alpha, (6, 0, 0))
        x, blended = mix(x, torch.from_numpy(images.labels[order]), 3, share)
        targets = blended.double().numpy()
    targets = (1 - smoothing) * targets + smoothing / 3
    with torch.no_grad():
        logits = run.network(x).double().numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    line = run.metrics[-1]
    assert line["train_loss"] == pytest.approx(float(-(targets * log_probabilities).sum(1).mean()), rel=1e-5)
    wrong = (logits.argmax(1) != targets.argmax(1)).mean()
    assert line["train_error"] == pytest.approx(wrong)
