"""The paper's two experiments on CIFAR-10: figure 1 (ReLU against tanh) and section 3.3's normalisation.

Promises: each curve is kept as it grows, so that the same call goes on where it was stopped and runs nothing twice; in
figure 1 the rate of each nonlinearity is the one with the lowest training error after a short search, and its curve
goes on from the search's; tables (CSV), JSON and a picture, whole or absent.
Does not: print; choose anything by the test error.
Source: the paper, figure 1 and section 3.3.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Final, Protocol

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from model_store.durable import write_atomic
from model_store.errors import TrainingError
from model_store.training.device import environment_versions
from model_store.training.paper.cifar.data import CifarData
from model_store.training.paper.cifar.nets import NetName, Neuron
from model_store.training.paper.cifar.train import Curve, Plan, Precision, Trainer, epochs_to

FIGURE1: Final = "figure1"
LRN: Final = "cifar-lrn"
CURVES: Final = "curves"
NEURONS: Final[tuple[Neuron, ...]] = ("relu", "tanh")
CROP: Final = 24
_SPELT: Final = {"relu": "ReLU", "tanh": "tanh"}
_COLOURS: Final = {"relu": "#c2410c", "tanh": "#1d4ed8", "13pct": "#1d4ed8", "11pct": "#c2410c"}


class Reporter(Protocol):
    """What an experiment tells while it runs."""

    def begin(self, label: str, images: int) -> None:
        """A curve begins that takes at most so many pictures."""

    def advance(self, images: int) -> None:
        """So many pictures were trained on."""

    def end(self, line: str) -> None:
        """The curve ended; `line` says how."""


@dataclass(frozen=True, slots=True)
class Figure1:
    """What to run. rates: tried for weights, biases learn at twice each; seeds: the first one is searched with."""

    rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004)
    search_epochs: int = 3
    max_epochs: int = 60
    seeds: tuple[int, ...] = (0,)
    threshold: float = 0.25
    precision: Precision = "float32"


@dataclass(frozen=True, slots=True)
class Lrn:
    """What to run: both nets with and without normalisation. The rate is a tenth after 80 %, a hundredth after 90 %."""

    epochs: int = 10
    rate: float = 0.001
    nets: tuple[NetName, ...] = ("13pct", "11pct")
    seeds: tuple[int, ...] = (0,)
    precision: Precision = "float32"

    def drops(self) -> tuple[int, int]:
        """Return the epochs after which the rate is divided by 10."""
        return round(0.8 * self.epochs), round(0.9 * self.epochs)


def run_figure1(data: CifarData, out: Path, wanted: Figure1, reporter: Reporter) -> dict[str, Any]:
    """Search rates, train to the threshold, write figure1.{json,csv,png} into `out`; return what the JSON holds."""
    runner = _Runner(data, out / CURVES, reporter)
    rows: list[tuple[str, Curve]] = []
    results = []
    for neuron in NEURONS:
        plans = [
            Plan("18pct", rate, data.hash, neuron, seed=wanted.seeds[0], precision=wanted.precision)
            for rate in wanted.rates
        ]
        searched = [runner.run(plan, wanted.search_epochs, "search") for plan in plans]
        rate = best_rate(searched)
        rows += [("search", curve) for curve in searched]
        for seed in wanted.seeds:
            plan = Plan("18pct", rate, data.hash, neuron, seed=seed, precision=wanted.precision)
            curve = runner.run(plan, wanted.max_epochs, "train", wanted.threshold)
            rows.append(("train", curve))
            results.append(_figure1_result(curve, wanted.threshold, len(data.classes)))
    document = {
        "experiment": FIGURE1,
        "options": asdict(wanted),
        "data": data.hash,
        "training_images": len(data.train),
        "search": [_search_result(curve, wanted.search_epochs) for kind, curve in rows if kind == "search"],
        "curves": results,
        "tanh_over_relu": _ratios(results),
        "versions": environment_versions(),
    }
    trained = [curve for kind, curve in rows if kind == "train"]
    _write(out, FIGURE1, document, rows, draw_figure1(trained, wanted.threshold, document))
    return document


def run_lrn(data: CifarData, out: Path, wanted: Lrn, reporter: Reporter) -> dict[str, Any]:
    """Train each net both ways, write cifar-lrn.{json,csv,png} into `out`; return what the JSON holds.

    Raises TrainingError if a loss became NaN or infinite.
    """
    runner = _Runner(data, out / CURVES, reporter)
    rows: list[tuple[str, Curve]] = []
    results: list[dict[str, Any]] = []
    for seed in wanted.seeds:
        for net in wanted.nets:
            for norms in (False, True):
                plan = Plan(
                    net,
                    wanted.rate,
                    data.hash,
                    norms=norms,
                    decay=True,
                    size=CROP,
                    drops=wanted.drops(),
                    measure="test",
                    seed=seed,
                    precision=wanted.precision,
                )
                curve = runner.run(plan, wanted.epochs, "train")
                if curve.diverged:
                    raise TrainingError(f"{_label(plan)}: the loss is not finite: try a lower --rate")
                rows.append(("train", curve))
                results.append(
                    {
                        "net": net,
                        "norms": norms,
                        "seed": seed,
                        "training_error": curve.epochs[-1].running_error,
                        "test_error": curve.epochs[-1].error,
                        "test_error_ten_views": Trainer(plan, data, runner.folder).error(data.test, "ten"),
                    }
                )
    document = {
        "experiment": LRN,
        "options": asdict(wanted),
        "data": data.hash,
        "training_images": len(data.train),
        "test_images": len(data.test),
        "nets": results,
        "norms_change": changes(results),
        "versions": environment_versions(),
    }
    _write(out, LRN, document, rows, draw_lrn([curve for _, curve in rows], document))
    return document


def best_rate(curves: Sequence[Curve]) -> float:
    """Return the rate whose last error is lowest; of equals the lower rate. Raises TrainingError if all diverged."""
    alive = [curve for curve in curves if curve.epochs and not curve.diverged]
    if not alive:
        rates = ", ".join(f"{curve.plan.rate:g}" for curve in curves)
        raise TrainingError(f"{_label(curves[0].plan)}: the loss is not finite at any of {rates}: lower --rates")
    return min(alive, key=lambda curve: (curve.epochs[-1].error, curve.plan.rate)).plan.rate


class _Runner:
    """Runs curves one after the other, each from where its file has it."""

    def __init__(self, data: CifarData, folder: Path, reporter: Reporter) -> None:
        self.folder = folder
        self._data, self._reporter = data, reporter

    def run(self, plan: Plan, epochs: int, kind: str, threshold: float | None = None) -> Curve:
        """Return the curve of exactly `epochs` epochs, or fewer where the threshold was reached or it diverged."""
        trainer = Trainer(plan, self._data, self.folder)
        missing = max(0, epochs - len(trainer.curve.epochs))
        self._reporter.begin(f"{kind} {_label(plan)}", missing * len(self._data.train))
        curve = trainer.train_to(epochs, threshold=threshold, progress=self._reporter.advance)
        if len(curve.epochs) > epochs:  # a search whose curve went on in an earlier call
            curve = replace(curve, epochs=curve.epochs[:epochs], diverged=False)
        state = "diverged" if curve.diverged else f"{curve.epochs[-1].error:.1%} error"
        self._reporter.end(f"{kind} {_label(plan)}: {state} after {len(curve.epochs)} epochs")
        return curve


def _label(plan: Plan) -> str:
    what = _SPELT[plan.neuron] if plan.net == "18pct" else f"{plan.net} {'with' if plan.norms else 'without'} LRN"
    return f"{what}, rate {plan.rate:g}, seed {plan.seed}"


def _figure1_result(curve: Curve, threshold: float, classes: int) -> dict[str, Any]:
    # Before the first epoch the net's weights are so small that it answers one class: all others are wrong.
    reached = epochs_to([epoch.error for epoch in curve.epochs], threshold, start=1 - 1 / classes)
    return {
        "neuron": curve.plan.neuron,
        "rate": curve.plan.rate,
        "seed": curve.plan.seed,
        "epochs_trained": len(curve.epochs),
        "last_error": curve.epochs[-1].error,
        "epochs_to_threshold": None if reached is None else reached[0],
        "epochs_interpolated": None if reached is None else round(reached[1], 2),
        "seconds": round(sum(epoch.seconds for epoch in curve.epochs), 1),
    }


def _search_result(curve: Curve, epochs: int) -> dict[str, Any]:
    errors = [epoch.error for epoch in curve.epochs[:epochs]]
    return {"neuron": curve.plan.neuron, "rate": curve.plan.rate, "errors": errors, "diverged": curve.diverged}


def _ratios(results: Sequence[dict[str, Any]]) -> float | None:
    """Return how many times the epochs of ReLU tanh takes, means over seeds; None if a curve did not get there."""
    taken = {neuron: [one["epochs_interpolated"] for one in results if one["neuron"] == neuron] for neuron in NEURONS}
    if any(None in values for values in taken.values()):
        return None
    ratio: float = mean(taken["tanh"]) / mean(taken["relu"])
    return round(ratio, 2)


def changes(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each net, what normalisation adds to the test errors: means over seeds; negative is better."""
    changes = []
    for net in dict.fromkeys(one["net"] for one in results):
        change: dict[str, Any] = {"net": net}
        for key in ("test_error", "test_error_ten_views"):
            ways = [
                [one[key] for one in results if one["net"] == net and one["norms"] is norms] for norms in (False, True)
            ]
            change[key] = round(mean(ways[1]) - mean(ways[0]), 5)
        changes.append(change)
    return changes


def _write(out: Path, name: str, document: dict[str, Any], rows: Iterable[tuple[str, Curve]], picture: Figure) -> None:
    out.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ["kind", "net", "norms", "neuron", "rate", "seed", "epoch", "loss", "running_error", "error", "seconds"]
    )
    for kind, curve in rows:
        plan = curve.plan
        for epoch in curve.epochs:
            writer.writerow(
                [
                    *(kind, plan.net, int(plan.norms), plan.neuron, plan.rate, plan.seed, epoch.number),
                    *(f"{value:.5f}" for value in (epoch.loss, epoch.running_error, epoch.error)),
                    f"{epoch.seconds:.1f}",
                ]
            )
    image = io.BytesIO()
    picture.savefig(image, format="png")
    write_atomic(out / f"{name}.csv", table.getvalue().encode())
    write_atomic(out / f"{name}.png", image.getvalue())
    write_atomic(out / f"{name}.json", (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def draw_figure1(curves: Sequence[Curve], threshold: float, document: dict[str, Any]) -> Figure:
    """Return the paper's figure 1 of these curves: training error by epoch, ReLU solid, tanh dashed."""
    figure, axes = _axes("training error (share of pictures)")
    for index, curve in enumerate(curves):
        neuron = curve.plan.neuron
        label = f"{_SPELT[neuron]}, rate {curve.plan.rate:g}"
        seen = any(earlier.plan.neuron == neuron for earlier in curves[:index])
        _plot(axes, curve, "-" if neuron == "relu" else "--", _COLOURS[neuron], None if seen else label)
    axes.axhline(threshold, color="#1f2937", linewidth=0.8)
    ratio = document["tanh_over_relu"]
    took = "" if ratio is None else f": tanh takes {ratio:.1f} times the epochs"
    axes.set_title(f"CIFAR-10, four layers, to {threshold:.0%} training error{took}", fontsize=10)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_lrn(curves: Sequence[Curve], document: dict[str, Any]) -> Figure:
    """Return the test error by epoch of each net: with normalisation solid, without it dashed."""
    figure, axes = _axes("test error, centre view (share of pictures)")
    for index, curve in enumerate(curves):
        plan = curve.plan
        label = f"{plan.net} net, {'with' if plan.norms else 'without'} LRN"
        seen = any((one.plan.net, one.plan.norms) == (plan.net, plan.norms) for one in curves[:index])
        _plot(axes, curve, "-" if plan.norms else "--", _COLOURS[plan.net], None if seen else label)
    axes.set_title(f"CIFAR-10, {document['options']['epochs']} epochs of 24x24 crops and mirrors", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _axes(label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel("epochs")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25)
    return figure, axes


def _plot(axes: Any, curve: Curve, dashes: str, colour: str, label: str | None) -> None:
    numbers = [epoch.number for epoch in curve.epochs]
    errors = [epoch.error for epoch in curve.epochs]
    axes.plot(numbers, errors, dashes, color=colour, label=label, linewidth=1.5)
