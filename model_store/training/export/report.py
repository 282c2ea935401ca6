"""Write the report of a version: metrics.json, confusion.csv, and charts of curves, confusion, calibration and kernels.

Guarantees: files are written atomically and only into the given folder. pyplot is not used, so charts can be drawn in
any thread. Every chart has a title, and its axes have names and units.
Out of scope: measuring. The numbers come from a run's metrics and an `Evaluation`.
References: the paper, figure 3 (kernels of the two towers side by side).
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from model_store.classes.figures import Figures
from model_store.durable import write_atomic

_MAX_CLASSES_WITH_COUNTS: Final = 20  # above, the cells of the confusion matrix have no numbers
_MAX_CLASSES_WITH_LABELS: Final = 60  # above, the axes of the confusion matrix have no class names
_DPI: Final = 120
_COLORS: Final[Mapping[str, str]] = {"train": "#8a8f98", "val": "#c2410c"}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of curves.png. `points`: (epochs, value) in order; errors are shares from 0 to 1."""

    kind: Literal["loss", "error"]
    split: Literal["train", "val"]
    label: str
    points: tuple[tuple[float, float], ...]


def save_figure(figure: Figure, file: Path) -> None:
    """Write a chart. Characters that the font does not have, such as Chinese ones, become boxes; tables have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as indented JSON. Raises OSError."""
    write_atomic(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file in UTF-8. Raises OSError."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(path, stream.getvalue().encode())


def write_confusion_table(folder: Path, labels: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """Write confusion.csv: one row per true class, one column per predicted class, counts of images."""
    rows = ([label, *row.tolist()] for label, row in zip(labels, confusion, strict=True))
    write_csv(folder / "confusion.csv", ["true class", *labels], rows)


def draw_confusion(folder: Path, labels: Sequence[str], confusion: NDArray[np.int64], title: str) -> None:
    """Draw confusion.png: shades are shares of the true class's images, numbers are counts of images."""
    count = len(labels)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(18.0, 3.2 + 0.55 * count)
    figure = Figure(figsize=(side + 1.6, side), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1))
    bar.set_label("share of the true class's images")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, fontsize=11)
    if count <= _MAX_CLASSES_WITH_LABELS:
        # A name with two dollar signs is not a formula.
        axes.set_xticks(range(count), labels, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(count), labels, parse_math=False)
    if count <= _MAX_CLASSES_WITH_COUNTS:
        for (row, column), images in np.ndenumerate(confusion):
            color = "white" if shares[row, column] > 0.55 else "#1f2937"
            axes.text(column, row, f"{images}", ha="center", va="center", color=color, fontsize=9)
    save_figure(figure, folder / "confusion.png")


def draw_reliability(folder: Path, figures: Figures, title: str) -> None:
    """Draw reliability.png: the share of correct predictions by their probability. The diagonal is calibrated."""
    figure = Figure(figsize=(5.2, 4.8), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    bins = figures.reliability()
    axes.bar(
        [(entry.low + entry.high) / 2 for entry in bins], [entry.accuracy for entry in bins], 0.092, color="#9db4d0"
    )
    axes.plot([0, 1], [0, 1], "--", color="#8a8f98", linewidth=1)
    points = [(entry.confidence, entry.accuracy) for entry in bins]
    axes.plot(*zip(*points, strict=True), "o", color="#c2410c", markersize=4)
    for entry in bins:
        axes.annotate(
            f"{entry.images}", (entry.confidence, entry.accuracy), (0, 5), textcoords="offset points", ha="center"
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.08)
    axes.set_xlabel("probability of the predicted class")
    axes.set_ylabel("share of correct predictions (numbers: images)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    axes.set_title(f"{title}\nexpected calibration error {figures.expected_calibration_error:.1%}", fontsize=11)
    figure.savefig(folder / "reliability.png")


def chromatic_shares(kernels: NDArray[np.float32], towers: int = 2) -> list[float]:
    """Return how color-specific each tower is, from 0 to 1: the mean chromatic share of the energy of its kernels.

    kernels: float32 [kernels, 3, height, width]. A kernel's energy is the sum of its squared weights. Its chromatic
    part remains after subtracting the mean over R, G and B at each position. The share is 0 for kernels that only see
    gray values, and 2/3 on average for independent random weights. A kernel of zeros counts as 0.
    """
    chroma = ((kernels - kernels.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2, 3))
    energy = (kernels**2).sum(axis=(1, 2, 3))
    shares = np.divide(chroma, energy, out=np.zeros_like(chroma), where=energy > 0)
    return [float(block.mean()) for block in np.array_split(shares, towers)]


def draw_conv1(
    folder: Path, kernels: NDArray[np.float32], title: str, *, towers: int = 2, file: str = "conv1.png"
) -> None:
    """Draw the kernels of the first layer into `file`, the towers side by side (the paper's figure 3).

    kernels: float32 [kernels, 3, height, width]. Each is scaled by its largest absolute weight; gray is zero.
    """
    shares = chromatic_shares(kernels, towers)
    figure = Figure(figsize=(4.6 * towers, 4.3), dpi=_DPI, layout=ConstrainedLayoutEngine(wspace=0.06))
    first = 1
    for index, block in enumerate(np.array_split(kernels, towers)):
        axes = figure.add_subplot(1, towers, index + 1)
        axes.imshow(kernel_tiles(block), interpolation="nearest")
        axes.set_axis_off()
        caption = f"tower {index + 1}: kernels {first} to {first + len(block) - 1}"
        axes.set_title(f"{caption}; {shares[index]:.0%} of the energy is color", fontsize=9)
        first += len(block)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("each kernel is scaled by its largest weight; gray is zero", fontsize=8)
    figure.savefig(folder / file)


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return the curves by epoch from the lines of a run's `metrics.jsonl` (reporting.py lists their keys)."""
    epochs = [line for line in metrics if line["kind"] == "epoch"]

    def points(key: str) -> tuple[tuple[float, float], ...]:
        return tuple((line["epoch"], line[key]) for line in epochs if key in line)

    curves = [
        Curve("loss", "train", "training", points("train_loss")),
        Curve("loss", "val", "validation", points("val_loss")),
        Curve("error", "train", "training, top-1", points("train_error")),
        Curve("error", "val", "validation, top-1", points("val_error")),
    ]
    top5 = points("val_top5_error")
    if any(error for _, error in top5):  # always zero with at most five classes
        curves.append(Curve("error", "val", "validation, top-5", top5))
    return curves


def draw_curves(folder: Path, curves: Sequence[Curve], title: str) -> None:
    """Draw curves.png: loss and error by epoch, side by side. A curve without points is left out."""
    figure = Figure(figsize=(9.6, 3.9), dpi=_DPI, layout="constrained")
    for number, (kind, unit) in enumerate((("loss", "cross-entropy, nats"), ("error", "wrong, % of images")), start=1):
        axes = figure.add_subplot(1, 2, number)
        for curve in curves:
            if curve.kind != kind or not curve.points:
                continue
            epochs, values = zip(*curve.points, strict=True)
            color, style = _COLORS[curve.split], "--" if "top-5" in curve.label else "-"
            axes.plot(epochs, values, style, color=color, label=curve.label, marker="o", markersize=3)
        axes.set_title(kind, fontsize=10)
        format_epoch_axes(axes, unit, percent=kind == "error")
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(folder / "curves.png")


def format_epoch_axes(axes: Axes, unit: str, *, percent: bool) -> None:
    """Label the axes of a chart by epoch."""
    axes.set_xlabel("epochs")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25)


def kernel_tiles(kernels: NDArray[np.float32], columns: int = 8) -> NDArray[np.float32]:
    """Return kernels [n, 3, h, w] as one image [height, width, 3] of values 0 to 1, with white lines between them."""
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    tiles = (0.5 + 0.5 * kernels / np.where(largest > 0, largest, 1)).transpose(0, 2, 3, 1)
    height, width = tiles.shape[1:3]
    rows = -(-len(tiles) // columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), np.float32)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = tile
    return sheet
