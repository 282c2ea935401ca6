"""The loop on small pictures and a narrow net: resuming to the same bits, what it warns of, what it refuses."""

from __future__ import annotations

import json
import resource
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.errors import CheckpointError, NonFiniteLossError
from model_store.image import prepare
from model_store.training.loop import Resources, Result, resume, train
from model_store.training.plateau_warning import PlateauDetector
from model_store.training.recipe import Recipe
from model_store.training.reporting import Reporter
from model_store.training.runs.checkpoint import Position, finish, write_checkpoint
from model_store.training.runs.run import (
    CHECKPOINT_FILE,
    METRICS_FILE,
    MODEL_FILE,
    RUN_FILE,
    SKIPPED_FILE,
    WEIGHTS_PREFIX,
    find_run,
    load_run,
    read_metrics,
    read_tensors,
)
from tests.support.class_folders import TRIAL_RECIPE, write_class_folders

RECIPE = replace(TRIAL_RECIPE, epochs=3, batch_size=5)  # 18 images: 4 steps an epoch, the last with 3 images


class RecordingReporter(Reporter):
    """Keeps what it is told, and sets `stop` after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.epochs: list[dict[str, Any]] = []
        self.steps = 0
        self.stop = threading.Event()
        self._stop_after = stop_after

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def epoch(self, record: dict[str, Any]) -> None:
        self.epochs.append(record)

    def step(self, *_: float) -> None:
        self.steps += 1
        if self.steps == self._stop_after:
            self.stop.set()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"))


def start(
    data: Path, home: Path, recipe: Recipe = RECIPE, told: RecordingReporter | None = None, **options: Any
) -> Result:
    told = told or RecordingReporter()
    return train(data, recipe, home=home, name="trial", reporter=told, stop=told.stop, **options)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / MODEL_FILE, WEIGHTS_PREFIX)


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def epoch_lines(run: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "images_per_second", "wait_share")
    lines = [line for line in read_metrics(run) if line["kind"] == "epoch"]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return start(data, tmp_path_factory.mktemp("whole")).run


def test_a_finished_run_holds_all_that_rebuilds_it(whole: Path, data: Path) -> None:
    run = load_run(whole)
    assert run.finished
    assert run.recipe == RECIPE
    assert run.classes == ("blue", "green", "red")
    assert run.mean.shape == (256, 256, 3)
    assert (run.info.train_images, run.info.val_images, run.info.seed) == (18, 6, 0)
    assert run.info.data == str(data)
    assert run.info.versions["torch"] == torch.__version__
    assert [line["step"] for line in run.metrics if line["kind"] == "epoch"] == [4, 8, 12]
    assert [line["step"] for line in run.metrics if line["kind"] == "step"] == [10]
    assert not run.network.training
    assert not (whole / CHECKPOINT_FILE).exists()
    assert any((whole / "tensorboard").iterdir())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(whole: Path, data: Path, tmp_path: Path) -> None:
    assert same(start(data, tmp_path).run, whole)
    assert not same(start(data, tmp_path, seed=1).run, whole)


def test_images_over_the_memory_budget_give_the_same_weights(whole: Path, data: Path, tmp_path: Path) -> None:
    told = RecordingReporter()
    assert same(start(data, tmp_path, told=told, resources=Resources(memory_budget=0)).run, whole)
    assert any("decoded as they are needed" in note for note in told.notes)


@pytest.mark.parametrize("stop_after", [[1], [4], [6], [2, 3, 4]])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    whole: Path, data: Path, tmp_path: Path, stop_after: list[int]
) -> None:
    check_resumed(whole, data, tmp_path, RECIPE, stop_after)


def test_a_run_of_the_papers_rule_in_bfloat16_goes_on_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, update="paper", dropout="paper", precision="bfloat16", colour_noise=0.1, epochs=2)
    check_resumed(start(data, tmp_path / "whole", recipe).run, data, tmp_path, recipe, [3])


def check_resumed(whole: Path, data: Path, tmp_path: Path, recipe: Recipe, stop_after: list[int]) -> None:
    first = RecordingReporter(stop_after[0])
    result = start(data, tmp_path, recipe, first)
    for steps in [*stop_after[1:], None]:
        assert not result.finished
        assert not (result.run / MODEL_FILE).exists()
        torch.manual_seed(123)  # what else happens in the process does not matter
        told = RecordingReporter(steps)
        result = resume(result.run, reporter=told, stop=told.stop)
    assert result.finished
    assert same(result.run, whole)
    assert epoch_lines(result.run) == epoch_lines(whole)


def test_metrics_after_the_checkpoint_are_logged_once_when_a_run_was_killed(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    stopped = start(data, tmp_path, told=RecordingReporter(6)).run
    with (stopped / METRICS_FILE).open("a") as log:  # as if it had gone on and was killed within a line
        log.write('{"kind": "epoch", "epoch": 2, "step": 8, "train_loss": 9.0}\n{"kind": "ep')
    resume(stopped)
    assert epoch_lines(stopped) == epoch_lines(whole)


def test_plateau_ends_the_run_early_and_survives_a_stop(data: Path, tmp_path: Path) -> None:
    # Nothing can be learned at a rate of zero, so that the error never improves after the first epoch.
    recipe = replace(RECIPE, schedule="plateau", patience=1, drops=2, learning_rate=0, epochs=50)
    run = start(data, tmp_path, recipe, RecordingReporter(9)).run
    result = resume(run)
    assert result.finished
    assert len(epoch_lines(run)) == 4


def test_validation_counts_every_image_once_and_every_few_epochs(data: Path, tmp_path: Path) -> None:
    result = start(data, tmp_path, replace(RECIPE, validate_every=2))
    errors = [line.get("val_error") for line in epoch_lines(result.run)]
    assert errors[0] is None
    assert errors[1] is not None
    assert errors[2] == result.val_error
    run = load_run(result.run)
    wrong = 0
    for label, name in enumerate(run.classes):
        for path in sorted((data / "val" / name).iterdir()):
            pixels = prepare(path.read_bytes())[16:240, 16:240] - run.mean[16:240, 16:240]
            wrong += int(run.network(torch.from_numpy(pixels).permute(2, 0, 1)[None]).argmax()) != label
    assert result.val_error == wrong / 6


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_checkpoint(data: Path, tmp_path: Path) -> None:
    # The rate climbs within the second epoch; the first epoch's checkpoint is good.
    recipe = replace(RECIPE, learning_rate=10, momentum=0.99, warm_up=1, input_scale=1, epochs=12)
    told = RecordingReporter()
    with pytest.raises(NonFiniteLossError) as caught:
        start(data, tmp_path, recipe, told)
    run = find_run(tmp_path, "trial")
    assert caught.value.step > 4
    assert caught.value.checkpoint == run / CHECKPOINT_FILE
    assert str(caught.value.step) in str(caught.value)
    assert all(torch.isfinite(value).all() for value in load_run(run).network.state_dict().values())
    assert not load_run(run).finished


def test_an_epoch_whose_validation_overflows_is_no_good_checkpoint(data: Path, tmp_path: Path) -> None:
    # Three steps of finite loss, and after the third the net answers NaN.
    recipe = replace(RECIPE, batch_size=6, learning_rate=1, bias_rate_factor=100, schedule="constant", input_scale=1)
    with pytest.raises(NonFiniteLossError) as caught:
        start(data, tmp_path, recipe)
    assert (caught.value.step, caught.value.checkpoint) == (3, None)
    assert "There is no checkpoint yet" in str(caught.value)


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters())
    place = Position(4, 1, 0, 0.0, 0, 0.0, {})
    write_checkpoint(tmp_path, net, optimizer, place)
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with torch.no_grad():
        net.weight[1, 1] = float("nan")
    with pytest.raises(NonFiniteLossError) as caught:
        write_checkpoint(tmp_path, net, optimizer, replace(place, step=5))
    assert (caught.value.step, caught.value.checkpoint) == (5, tmp_path / CHECKPOINT_FILE)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before
    with pytest.raises(NonFiniteLossError):
        finish(tmp_path, net, 5)
    assert not (tmp_path / MODEL_FILE).exists()


def test_colour_noise_is_off_while_the_rate_is_below_its_share(data: Path, tmp_path: Path) -> None:
    # The cycle's highest rate falls between two steps here, so that all of them are below it.
    noisy = replace(RECIPE, colour_noise=5, epochs=1, warm_up=0.3)
    none = start(data, tmp_path / "none", replace(noisy, colour_noise=0)).run
    assert same(start(data, tmp_path / "off", replace(noisy, noise_off_below=1)).run, none)
    assert not same(start(data, tmp_path / "on", replace(noisy, noise_off_below=0.01)).run, none)


def test_a_loss_that_stays_flat_draws_one_warning_with_a_cause(data: Path, tmp_path: Path) -> None:
    told = RecordingReporter()
    start(data, tmp_path, replace(RECIPE, initialisation="paper", dropout="paper", flat_loss_steps=6), told)
    (warning,) = told.warnings
    assert "after 6 steps" in warning
    assert "ln(3) = 1.099" in warning
    assert "--recipe small" in warning


def test_a_loss_that_falls_draws_no_warning() -> None:
    counts = np.array([90, 5, 5])
    recipe = replace(RECIPE, flat_loss_steps=4)
    guess = 0.394  # entropy of .9, .05, .05: what guessing by frequency gives, far below ln(3)
    flat, falling = PlateauDetector(counts, recipe), PlateauDetector(counts, recipe)
    assert [flat.after_step(guess) is not None for _ in range(6)] == [False, False, False, True, False, False]
    assert [falling.after_step(loss) for loss in (1.1, 0.4, 0.3, 0.2, 0.2)] == [None] * 5


@pytest.mark.parametrize(
    ("recipe", "mend"),
    [
        (replace(RECIPE, learning_rate=1e-5), "learning_rate=0.0001"),
        (replace(RECIPE, learning_rate=0.5), "learning_rate=0.05"),
    ],
)
def test_the_warning_of_a_flat_loss_suggests_another_rate(recipe: Recipe, mend: str) -> None:
    watch = PlateauDetector(np.array([1, 1]), replace(recipe, flat_loss_steps=1))
    assert mend in str(watch.after_step(0.7))


def test_skipped_files_and_duplicates_are_told_and_kept_with_the_run(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    (data / "train" / "red" / "0.png").write_bytes(b"no image")
    (data / "val" / "red" / "0.png").write_bytes((data / "train" / "red" / "1.png").read_bytes())
    told = RecordingReporter()
    run = start(data, tmp_path, replace(RECIPE, epochs=1), told).run
    skipped = json.loads((run / SKIPPED_FILE).read_text())
    assert [entry["path"] for entry in skipped] == [str(data / "train" / "red" / "0.png")]
    assert "1 files were skipped" in told.warnings[0]
    assert "0.png" in told.warnings[0]
    assert "1 images are in val and, byte for byte, in train" in told.warnings[1]


def test_a_resume_with_other_images_is_refused_unless_forced(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    run = start(data, tmp_path, told=RecordingReporter(2)).run
    (data / "train" / "red" / "0.png").write_bytes((data / "train" / "red" / "1.png").read_bytes())
    with pytest.raises(CheckpointError, match="--force"):
        resume(run)
    assert resume(run, force=True).finished


def test_a_resume_finds_images_that_were_moved(tmp_path: Path, whole: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    run = start(data, tmp_path, told=RecordingReporter(2)).run
    moved = data.rename(tmp_path / "elsewhere")
    assert resume(run, data=moved).finished
    assert same(run, whole)


def test_a_resume_with_another_recipe_is_refused_naming_the_change(data: Path, tmp_path: Path) -> None:
    run = start(data, tmp_path, told=RecordingReporter(2)).run
    with pytest.raises(CheckpointError, match="epochs 3 -> 4"):
        resume(run, recipe=replace(RECIPE, epochs=4))
    assert resume(run, recipe=RECIPE).finished


def test_a_finished_run_is_left_as_it_is(whole: Path) -> None:
    before = (whole / MODEL_FILE).stat().st_mtime_ns
    told = RecordingReporter()
    result = resume(whole, reporter=told)
    assert result.finished
    assert result.val_error == epoch_lines(whole)[-1]["val_error"]
    assert (whole / MODEL_FILE).stat().st_mtime_ns == before
    assert "nothing to resume" in told.notes[-1]


def test_a_broken_or_missing_checkpoint_is_named(data: Path, tmp_path: Path) -> None:
    run = start(data, tmp_path, told=RecordingReporter(2)).run
    file = run / CHECKPOINT_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(file)):
        resume(run)
    file.unlink()
    with pytest.raises(CheckpointError, match="before its first checkpoint"):
        resume(run)
    with pytest.raises(CheckpointError, match="missing or broken"):
        load_run(run)


def test_a_disk_that_fills_during_a_checkpoint_keeps_the_former_one(data: Path, tmp_path: Path, whole: Path) -> None:
    run = start(data, tmp_path, told=RecordingReporter(2)).run
    file = run / CHECKPOINT_FILE
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written.*the former one is kept.*--resume"):
            resume(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert resume(run).finished
    assert same(run, whole)


def test_runs_are_found_by_name_newest_first(data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    first, second = start(data, tmp_path, recipe).run, start(data, tmp_path, recipe).run
    assert first != second
    assert find_run(tmp_path, "trial") == second
    assert find_run(tmp_path, first.name) == first
    assert find_run(tmp_path, str(first)) == first
    with pytest.raises(CheckpointError, match=f"'tria'.*{second.name}"):
        find_run(tmp_path, "tria")


def test_a_run_that_is_no_run_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.json"):
        load_run(tmp_path)
    values = json.loads((whole / RUN_FILE).read_text())
    (tmp_path / RUN_FILE).write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(CheckpointError, match="another release"):
        load_run(tmp_path)
