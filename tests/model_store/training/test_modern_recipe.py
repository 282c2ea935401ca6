"""The Bag of Tricks' options against their formulas: in the loss of a real run, in the rate, in the recipe."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from model_store.errors import RecipeError
from model_store.training.data.augment import Augmenter, epoch_order
from model_store.training.data.class_folders import open_dataset
from model_store.training.data.mixup import mix
from model_store.training.loop import train
from model_store.training.optim import build_optimizer, build_schedule
from model_store.training.plateau_warning import PlateauDetector
from model_store.training.recipe import Recipe, load_recipe
from model_store.training.reporting import Reporter
from model_store.training.runs.run import load_run
from tests.support.class_folders import write_class_folders

KEY = (3, 1, 4)


def test_mixup_blends_pictures_and_labels_by_one_share_and_leaves_its_inputs() -> None:
    x = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2).contiguous()
    labels = torch.tensor([0, 1, 2, 3, 4])
    mixed, targets = mix(x, labels, 6, 1.0, KEY)
    assert torch.equal(x[:, 0, 0, 0], torch.arange(5.0))
    assert targets.shape == (5, 6)
    assert targets.sum(1).tolist() == pytest.approx([1] * 5)
    # A picture's value is its label here, so a blended picture must be the mean of its blended label.
    assert torch.allclose(mixed[:, 1, 1, 1], targets @ torch.arange(6.0), atol=1e-5)
    shares = {round(float(row[row > 0].max()), 5) for row in targets if (row > 0).sum() == 2}
    assert len(shares) == 1


def test_mixups_share_follows_beta_and_the_key_alone() -> None:
    x, labels = torch.zeros(2, 3, 1, 1), torch.tensor([0, 1])
    firsts = []
    for step in range(4000):
        _, targets = mix(x, labels, 2, 0.4, (0, 0, step))
        firsts.append(float(targets[0, 0]))
    blended = [share for share in firsts if share < 1]  # half of the permutations of two are no blend
    assert 0.4 < len(blended) / len(firsts) < 0.6
    expected = np.random.default_rng(0).beta(0.4, 0.4, 200_000)
    assert np.std(blended) == pytest.approx(np.std(expected), abs=0.02)
    assert np.mean(blended) == pytest.approx(0.5, abs=0.03)
    x, labels = torch.zeros(9, 3, 1, 1), torch.arange(9)
    assert torch.equal(mix(x, labels, 9, 0.4, KEY)[1], mix(x, labels, 9, 0.4, KEY)[1])
    for other in ((4, 1, 4), (3, 2, 4), (3, 1, 5)):
        assert not torch.equal(mix(x, labels, 9, 0.4, KEY)[1], mix(x, labels, 9, 0.4, other)[1])


@pytest.mark.parametrize(("smoothing", "alpha"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.5), (0.2, 0.5)])
def test_the_loss_of_a_run_is_that_of_the_smoothed_and_blended_labels(
    tmp_path: Path, smoothing: float, alpha: float
) -> None:
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
    with ThreadPoolExecutor(1) as workers:
        images = open_dataset(data, memory_budget=1 << 30, workers=workers).train
    order = epoch_order(18, 6, 0)
    x = Augmenter(recipe, run.statistics).training_batch(images.pixels(order), 6, 0, 0)
    targets = np.eye(3)[images.labels[order]]
    if alpha:
        x, blended = mix(x, torch.from_numpy(images.labels[order]), 3, alpha, (6, 0, 0))
        targets = blended.double().numpy()
    targets = (1 - smoothing) * targets + smoothing / 3
    with torch.no_grad():
        logits = run.network(x).double().numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    line = run.metrics[-1]
    assert line["train_loss"] == pytest.approx(float(-(targets * log_probabilities).sum(1).mean()), rel=1e-5)
    wrong = (logits.argmax(1) != targets.argmax(1)).mean()
    assert line["train_error"] == pytest.approx(wrong)


def test_cosine_climbs_in_a_straight_line_and_falls_along_a_cosine_to_zero() -> None:
    schedule = build_schedule(Recipe(schedule="cosine", learning_rate=0.5, warm_up=0.2), steps=100)
    rates = [schedule.rate(step) for step in range(100)]
    climb = np.diff(rates[:21])
    assert climb == pytest.approx(np.full(20, climb[0]))
    assert 0 < rates[0] < 0.05
    assert rates[20] == max(rates) == pytest.approx(0.5)
    assert rates[60] == pytest.approx(0.25)
    assert rates[40] == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))
    assert 0 <= rates[-1] < 0.001
    assert build_schedule(Recipe(schedule="cosine", warm_up=0), steps=10).rate(0) == pytest.approx(0.01)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "plateau", "constant"])
def test_the_rate_is_in_proportion_to_the_batch_where_a_reference_is_given(schedule: str) -> None:
    plain = Recipe(schedule=schedule, batch_size=64)  # type: ignore[arg-type]
    scaled = Recipe(schedule=schedule, batch_size=64, reference_batch=256)  # type: ignore[arg-type]
    assert plain.highest_rate == 0.01
    assert scaled.highest_rate == pytest.approx(0.0025)
    step = 30
    assert build_schedule(scaled, 100).rate(step) == pytest.approx(build_schedule(plain, 100).rate(step) / 4)
    optimizer = build_optimizer(torch.nn.Linear(1, 1), scaled)
    assert optimizer.defaults["lr"] == pytest.approx(0.0025)


def test_the_modern_recipe_has_the_tricks_and_differs_from_small_in_nothing_else() -> None:
    modern, small = load_recipe("modern"), load_recipe("small")
    assert (modern.schedule, modern.decay_biases, modern.precision) == ("cosine", False, "auto")
    assert min(modern.label_smoothing, modern.mixup, modern.warm_up, modern.reference_batch) > 0
    tricks = {
        "name",
        "learning_rate",
        "reference_batch",
        "schedule",
        "warm_up",
        "decay_biases",
        "label_smoothing",
        "mixup",
    }
    mine, theirs = modern.to_dict(), small.to_dict()
    assert {key for key in mine if mine[key] != theirs[key]} <= tricks


def test_smoothing_moves_the_loss_of_a_guess_and_the_watch_knows() -> None:
    recipe = Recipe(label_smoothing=0.5, flat_loss_steps=2, initialisation="he")
    counts = np.array([98, 1, 1])
    smoothed = 0.5 * counts / 100 + 0.5 / 3
    guess = float(-(smoothed * np.log(smoothed)).sum())
    learning = PlateauDetector(counts, recipe)
    assert [learning.after_step(0.9 * guess) for _ in range(2)] == [None, None]
    flat = PlateauDetector(counts, recipe)
    assert flat.after_step(guess) is None
    assert flat.after_step(guess) is not None


@pytest.mark.parametrize("setting", ["label_smoothing=1", "mixup=-0.1", "reference_batch=-1", "schedule=linear"])
def test_options_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match=setting.partition("=")[0]):
        Recipe().with_settings([setting])
