"""Update rules and schedules, compared with plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from model_store.training.optim import Plateau, build_optimizer, build_schedule, set_rate
from model_store.training.recipe import Recipe

RATES = (0.1, 0.1, 0.01, 0.01, 0.05)


def run(recipe: Recipe) -> tuple[list[float], list[float]]:
    """Minimize (w^2 + b^2) / 2 with RATES, and return w and b after each step."""
    layer = nn.Linear(1, 1)
    net = nn.Sequential(layer)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = build_optimizer(net, recipe)
    weights, biases = [], []
    for rate in RATES:
        set_rate(optimizer, rate)
        optimizer.zero_grad()
        loss = (layer.weight.square().sum() + layer.bias.square().sum()) / 2
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        weights.append(layer.weight.item())
        biases.append(layer.bias.item())
    return weights, biases


def expected_weights(factor: float, decay: float, *, paper: bool) -> list[float]:
    w, v, out = 1.0, 0.0, []
    for base in RATES:
        rate, gradient = base * factor, w
        if paper:  # section 5
            v = 0.9 * v - decay * rate * w - rate * gradient
            w += v
        else:
            v = 0.9 * v + gradient + decay * w
            w -= rate * v
        out.append(w)
    return out


@pytest.mark.parametrize("paper", [True, False])
def test_the_update_follows_the_selected_rule_when_the_rate_changes(paper: bool) -> None:
    recipe = Recipe(update="paper" if paper else "torch", weight_decay=0.1)
    weights, biases = run(recipe)
    assert weights == pytest.approx(expected_weights(1, 0.1, paper=paper), rel=1e-5)
    assert biases == pytest.approx(weights, rel=1e-6)
    assert weights != pytest.approx(
        expected_weights(1, 0.1, paper=not paper), rel=1e-3
    )  # the rules differ after a change of the rate


@pytest.mark.parametrize("update", ["paper", "torch"])
def test_biases_can_have_twice_the_rate_and_no_decay(update: str) -> None:
    recipe = Recipe(update=update, weight_decay=0.1, decay_biases=False, bias_rate_factor=2)  # type: ignore[arg-type]
    weights, biases = run(recipe)
    assert weights == pytest.approx(expected_weights(1, 0.1, paper=update == "paper"), rel=1e-5)
    assert biases == pytest.approx(expected_weights(2, 0.0, paper=update == "paper"), rel=1e-5)


def test_one_cycle_rises_to_the_highest_rate_and_ends_near_zero() -> None:
    schedule = build_schedule(Recipe(schedule="one-cycle", learning_rate=0.5, warm_up=0.3), steps=101)
    rates = [schedule.rate(step) for step in range(101)]
    top = rates.index(max(rates))
    assert rates[0] == pytest.approx(0.5 / 25)
    assert max(rates) == pytest.approx(0.5, rel=1e-3)
    assert top in (30, 31)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.5e-4)


def test_one_cycle_with_a_single_step_has_a_rate() -> None:
    assert 0 < build_schedule(Recipe(schedule="one-cycle"), steps=1).rate(0) <= 0.01


def test_plateau_divides_the_rate_by_ten_three_times_then_stops() -> None:
    schedule = Plateau(Recipe(learning_rate=0.01, patience=2, drops=3), steps=0)
    rates, training = [], True
    for error in [0.9, 0.8, *[0.8] * 20]:
        if not training:
            break
        rates.append(schedule.rate(0))
        training = schedule.after_epoch(error)
    assert rates == pytest.approx([0.01] * 4 + [1e-3] * 2 + [1e-4] * 2 + [1e-5] * 2)
    assert not training


def test_plateau_resumes_from_its_state() -> None:
    recipe = Recipe(patience=3)
    schedule, other = Plateau(recipe, 0), Plateau(recipe, 0)
    for error in (0.5, 0.6, 0.6):
        schedule.after_epoch(error)
    other.restore(schedule.state())
    schedule.after_epoch(0.6)
    other.after_epoch(0.6)
    assert other.rate(0) == schedule.rate(0) == pytest.approx(0.001)


def test_a_constant_rate_does_not_change() -> None:
    schedule = build_schedule(Recipe(schedule="constant", learning_rate=0.2), steps=10)
    assert {schedule.rate(step) for step in range(10)} == {0.2}


def test_cosine_warms_up_linearly_and_falls_along_a_cosine_to_zero() -> None:
    schedule = build_schedule(Recipe(schedule="cosine", learning_rate=0.5, warm_up=0.2), steps=100)
    rates = [schedule.rate(step) for step in range(100)]
    warm_up = np.diff(rates[:21])
    assert warm_up == pytest.approx(np.full(20, warm_up[0]))
    assert 0 < rates[0] < 0.05
    assert rates[20] == max(rates) == pytest.approx(0.5)
    assert rates[60] == pytest.approx(0.25)
    assert rates[40] == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))
    assert 0 <= rates[-1] < 0.001
    assert build_schedule(Recipe(schedule="cosine", warm_up=0), steps=10).rate(0) == pytest.approx(0.01)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "plateau", "constant"])
def test_the_rate_scales_with_the_batch_if_a_reference_is_given(schedule: str) -> None:
    plain = Recipe(schedule=schedule, batch_size=64)  # type: ignore[arg-type]
    scaled = Recipe(schedule=schedule, batch_size=64, reference_batch=256)  # type: ignore[arg-type]
    assert plain.highest_rate == 0.01
    assert scaled.highest_rate == pytest.approx(0.0025)
    step = 30
    assert build_schedule(scaled, 100).rate(step) == pytest.approx(build_schedule(plain, 100).rate(step) / 4)
    optimizer = build_optimizer(torch.nn.Linear(1, 1), scaled)
    assert optimizer.defaults["lr"] == pytest.approx(0.0025)
