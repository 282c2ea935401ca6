"""The paper's two experiments on CIFAR-10: figure 1 (ReLU and tanh), and local response normalization (section 3.3).

Guarantees: each curve is saved as it grows, so a repeated call continues and trains nothing twice. In figure 1, each
nonlinearity is trained at the learning rate with the lowest training error after a short search. Its curve continues
the curve of the search. The results are written atomically as CSV, JSON and a chart.
Out of scope: printing; choosing anything by the test error.
References: the paper, figure 1 and section 3.3.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Final, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_store.durable import write_atomic
from model_store.errors import TrainingError
from model_store.training.device import environment_versions
from model_store.training.export.report import format_epoch_axes, write_csv, write_json
from model_store.training.paper.cifar.data import CifarData
from model_store.training.paper.cifar.nets import NetName, Neuron
from model_store.training.paper.cifar.train import Curve, Plan, Precision, Trainer, epochs_to

FIGURE1: Final = "figure1"
LRN: Final = "cifar-lrn"
CURVES: Final = "curves"
NEURONS: Final[tuple[Neuron, ...]] = ("relu", "tanh")
CROP: Final = 24
_TITLES: Final = {"relu": "ReLU", "tanh": "tanh"}
_COLORS: Final = {"relu": "#c2410c", "tanh": "#1d4ed8", "13pct": "#1d4ed8", "11pct": "#c2410c"}


class Reporter(Protocol):
    """Receives the progress of an experiment."""

    def start(self, label: str, images: int) -> None:
        """A curve starts that trains on at most `images` images."""

    def advance(self, images: int) -> None:
        """The net was trained on `images` more images."""

    def finish(self, line: str) -> None:
        """The curve is finished; `line` describes the result."""


@dataclass(frozen=True, slots=True)
class Figure1Options:
    """Options of figure 1. rates: learning rates of weights to try. seeds: the first one is used for the search."""

    rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004)
    search_epochs: int = 3
    max_epochs: int = 60
    seeds: tuple[int, ...] = (0,)
    threshold: float = 0.25
    precision: Precision = "float32"


@dataclass(frozen=True, slots=True)
class LrnOptions:
    """Options of the comparison of normalization. The rate is divided by 10 after 80 % and after 90 % of the epochs."""

    epochs: int = 10
    rate: float = 0.001
    nets: tuple[NetName, ...] = ("13pct", "11pct")
    seeds: tuple[int, ...] = (0,)
    precision: Precision = "float32"

    def drops(self) -> tuple[int, int]:
        """Return the epochs after which the learning rate is divided by 10."""
        return round(0.8 * self.epochs), round(0.9 * self.epochs)


def run_figure1(data: CifarData, out: Path, options: Figure1Options, reporter: Reporter) -> dict[str, Any]:
    """Search rates, train to the threshold, write figure1.{json,csv,png} into `out`; return the content of the JSON."""
    train = partial(_train_curve, data=data, folder=out / CURVES, reporter=reporter)
    rows: list[tuple[str, Curve]] = []
    search, results = [], []
    for neuron in NEURONS:
        base = Plan("18pct", 0, data.hash, neuron, seed=options.seeds[0], precision=options.precision)
        searched = [train(replace(base, rate=rate), options.search_epochs, "search") for rate in options.rates]
        best = replace(base, rate=best_rate(searched))
        for curve in searched:
            rows.append(("search", curve))
            errors = [epoch.error for epoch in curve.epochs]
            search.append({"neuron": neuron, "rate": curve.plan.rate, "errors": errors, "diverged": curve.diverged})
        for seed in options.seeds:
            curve = train(replace(best, seed=seed), options.max_epochs, "train", options.threshold)
            rows.append(("train", curve))
            results.append(_figure1_result(curve, options.threshold, len(data.classes)))
    ratio = _tanh_over_relu(results)
    document: dict[str, Any] = {
        "experiment": FIGURE1,
        "options": asdict(options),
        "data": data.hash,
        "training_images": len(data.train),
        "search": search,
        "curves": results,
        "tanh_over_relu": ratio,
        "versions": environment_versions(),
    }
    trained = [curve for kind, curve in rows if kind == "train"]
    _write(out, FIGURE1, document, rows, _draw_figure1(trained, options.threshold, ratio))
    return document


def run_lrn(data: CifarData, out: Path, options: LrnOptions, reporter: Reporter) -> dict[str, Any]:
    """Train each net with and without norms, write cifar-lrn.{json,csv,png} into `out`; return the JSON's content.

    Raises TrainingError if a loss becomes NaN or infinite.
    """
    train = partial(_train_curve, data=data, folder=out / CURVES, reporter=reporter)
    base = Plan(options.nets[0], options.rate, data.hash, decay=True, size=CROP, drops=options.drops(), measure="test")
    curves: list[Curve] = []
    results: list[dict[str, Any]] = []
    for seed, net, norms in product(options.seeds, options.nets, (False, True)):
        plan = replace(base, net=net, norms=norms, seed=seed, precision=options.precision)
        curve = train(plan, options.epochs, "train")
        if curve.diverged:
            raise TrainingError(f"{_label(plan)}: The loss is not finite. Try a lower --rate.")
        curves.append(curve)
        results.append(
            {
                "net": plan.net,
                "norms": plan.norms,
                "seed": plan.seed,
                "training_error": curve.epochs[-1].running_error,
                "test_error": curve.epochs[-1].error,
                "test_error_ten_views": Trainer(plan, data, out / CURVES).error(data.test, "ten"),
            }
        )
    document = {
        "experiment": LRN,
        "options": asdict(options),
        "data": data.hash,
        "training_images": len(data.train),
        "test_images": len(data.test),
        "nets": results,
        "norms_change": norms_change(results),
        "versions": environment_versions(),
    }
    _write(out, LRN, document, [("train", curve) for curve in curves], _draw_lrn(curves, options.epochs))
    return document


def best_rate(curves: Sequence[Curve]) -> float:
    """Return the rate with the lowest last error; the lower rate if equal. Raises TrainingError if all diverged."""
    finite = [curve for curve in curves if curve.epochs and not curve.diverged]
    if not finite:
        rates = ", ".join(f"{curve.plan.rate:g}" for curve in curves)
        raise TrainingError(f"{_label(curves[0].plan)}: The loss is not finite at any of {rates}. Try lower --rates.")
    return min(finite, key=lambda curve: (curve.epochs[-1].error, curve.plan.rate)).plan.rate


def _train_curve(
    plan: Plan,
    epochs: int,
    kind: str,
    threshold: float | None = None,
    *,
    data: CifarData,
    folder: Path,
    reporter: Reporter,
) -> Curve:
    """Return a curve of `epochs` epochs, or fewer if it reached the threshold or diverged. It resumes from `folder`."""
    trainer = Trainer(plan, data, folder)
    missing = max(0, epochs - len(trainer.curve.epochs))
    reporter.start(f"{kind} {_label(plan)}", missing * len(data.train))
    curve = trainer.train_to(epochs, threshold=threshold, progress=reporter.advance)
    if len(curve.epochs) > epochs:  # a search whose curve was continued by an earlier call
        curve = replace(curve, epochs=curve.epochs[:epochs], diverged=False)
    state = "diverged" if curve.diverged else f"{curve.epochs[-1].error:.1%} error"
    reporter.finish(f"{kind} {_label(plan)}: {state} after {len(curve.epochs)} epochs")
    return curve


def _label(plan: Plan) -> str:
    net = _TITLES[plan.neuron] if plan.net == "18pct" else f"{plan.net} {_lrn_text(plan)}"
    return f"{net}, rate {plan.rate:g}, seed {plan.seed}"


def _lrn_text(plan: Plan) -> str:
    return "with LRN" if plan.norms else "without LRN"


def _figure1_result(curve: Curve, threshold: float, classes: int) -> dict[str, Any]:
    # Initial weights are so small that the net predicts one class for all images.
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


def _tanh_over_relu(results: Sequence[dict[str, Any]]) -> float | None:
    """Return the ratio of epochs (means over seeds), or None if a curve did not reach the threshold."""
    epochs = {neuron: [one["epochs_interpolated"] for one in results if one["neuron"] == neuron] for neuron in NEURONS}
    if any(None in values for values in epochs.values()):
        return None
    ratio: float = mean(epochs["tanh"]) / mean(epochs["relu"])
    return round(ratio, 2)


def norms_change(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how normalization changes the test errors of each net (means over seeds); negative is better."""
    changes = []
    for net in dict.fromkeys(one["net"] for one in results):
        change: dict[str, Any] = {"net": net}
        for key in ("test_error", "test_error_ten_views"):
            without, with_norms = (
                mean(one[key] for one in results if one["net"] == net and one["norms"] is norms)
                for norms in (False, True)
            )
            change[key] = round(with_norms - without, 5)
        changes.append(change)
    return changes


def _write(out: Path, name: str, document: dict[str, Any], rows: Iterable[tuple[str, Curve]], chart: Figure) -> None:
    out.mkdir(parents=True, exist_ok=True)
    header = ["kind", "net", "norms", "neuron", "rate", "seed", "epoch", "loss", "running_error", "error", "seconds"]
    table = [
        [
            *(kind, curve.plan.net, int(curve.plan.norms), curve.plan.neuron, curve.plan.rate, curve.plan.seed),
            *(epoch.number, *(f"{value:.5f}" for value in (epoch.loss, epoch.running_error, epoch.error))),
            f"{epoch.seconds:.1f}",
        ]
        for kind, curve in rows
        for epoch in curve.epochs
    ]
    chart.axes[0].legend(frameon=False, fontsize=9)
    image = io.BytesIO()
    chart.savefig(image, format="png")
    write_csv(out / f"{name}.csv", header, table)
    write_atomic(out / f"{name}.png", image.getvalue())
    write_json(out / f"{name}.json", document)


def _draw_figure1(curves: Sequence[Curve], threshold: float, ratio: float | None) -> Figure:
    """Return figure 1 of the paper for these curves: training error by epoch, ReLU solid, tanh dashed."""
    figure, axes = _chart("training error (share of images)")
    for curve in curves:
        neuron = curve.plan.neuron
        _plot(axes, curve, f"{_TITLES[neuron]}, rate {curve.plan.rate:g}", _COLORS[neuron], solid=neuron == "relu")
    axes.axhline(threshold, color="#1f2937", linewidth=0.8)
    result = "" if ratio is None else f": tanh takes {ratio:.1f} times the epochs"
    axes.set_title(f"CIFAR-10, four layers, to {threshold:.0%} training error{result}", fontsize=10)
    axes.set_xlim(left=0)
    return figure


def _draw_lrn(curves: Sequence[Curve], epochs: int) -> Figure:
    """Return a chart of the test error of each net by epoch: solid with normalization, dashed without it."""
    figure, axes = _chart("test error, center view (share of images)")
    for curve in curves:
        plan = curve.plan
        _plot(axes, curve, f"{plan.net} net, {_lrn_text(plan)}", _COLORS[plan.net], solid=plan.norms)
    axes.set_title(f"CIFAR-10, {epochs} epochs of 24x24 crops and mirrors", fontsize=10)
    return figure


def _chart(unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    format_epoch_axes(axes, unit, percent=True)
    return figure, axes


def _plot(axes: Axes, curve: Curve, label: str, color: str, *, solid: bool) -> None:
    """Plot one curve. Curves that differ only in the seed share one entry in the legend."""
    repeated = label in axes.get_legend_handles_labels()[1]
    axes.plot(
        [epoch.number for epoch in curve.epochs],
        [epoch.error for epoch in curve.epochs],
        "-" if solid else "--",
        color=color,
        label=None if repeated else label,
        linewidth=1.5,
    )
