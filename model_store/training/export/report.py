"""Draw and write the report of a version: metrics.json, confusion.csv, and the pictures of curves, confusion and conv1.

Promises: files only in the folder given; nothing global is touched (no pyplot), so it may run in any thread; every
picture has a title, and its axes names and units.
Does not: measure; the numbers come from a run's metrics and an Evaluation.
Source: the paper, figure 3, for the kernels: a tower's beside the other's.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

METRICS_FILE: Final = "metrics.json"
CURVES_FILE: Final = "curves.png"
CONFUSION_FILE: Final = "confusion.png"
CONFUSION_TABLE_FILE: Final = "confusion.csv"
CONV1_FILE: Final = "conv1.png"
_WRITTEN_OUT: Final = 20  # classes up to which each cell of the confusion picture carries its number
_NAMED: Final = 60  # classes up to which the axes carry the labels
_DPI: Final = 120
_COLOURS: Final[Mapping[str, str]] = {"train": "#8a8f98", "val": "#c2410c"}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of curves.png: (epochs passed, value) in order; errors are shares from 0 to 1."""

    kind: Literal["loss", "error"]
    split: Literal["train", "val"]
    label: str
    points: tuple[tuple[float, float], ...]


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write `metrics`, JSON types, as metrics.json."""
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_confusion_table(folder: Path, labels: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """Write confusion.csv: a row a true class, a column a predicted one, counts of images."""
    with (folder / CONFUSION_TABLE_FILE).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["true class", *labels])
        writer.writerows([label, *row.tolist()] for label, row in zip(labels, confusion, strict=True))


def draw_confusion(folder: Path, labels: Sequence[str], confusion: NDArray[np.int64], title: str) -> None:
    """Draw confusion.png: shades are shares of the true class's images, numbers are images."""
    count = len(labels)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(18.0, 3.2 + 0.55 * count)
    figure = Figure(figsize=(side + 1.6, side), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1))
    bar.set_label("share of the true class's images")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, fontsize=11)
    if count <= _NAMED:
        axes.set_xticks(range(count), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), labels)
    if count <= _WRITTEN_OUT:
        for (row, column), images in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.55 else "#1f2937"
            axes.text(column, row, f"{images}", ha="center", va="center", color=colour, fontsize=9)
    figure.savefig(folder / CONFUSION_FILE)


def chromatic_shares(kernels: NDArray[np.float32], towers: int = 2) -> list[float]:
    """Return how colour-specific each tower is, from 0 to 1: the mean over its kernels of the chromatic energy's share.

    kernels: float32 [kernels, 3, height, width]. A kernel's energy is the sum of its squared weights; its chromatic
    part is what is left when each place's mean over R, G and B is taken away: 0 for kernels that see grey values alone,
    2/3 on average for weights drawn independently. Kernels of zeros count as 0.
    """
    chroma = ((kernels - kernels.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2, 3))
    energy = (kernels**2).sum(axis=(1, 2, 3))
    shares = np.divide(chroma, energy, out=np.zeros_like(chroma), where=energy > 0)
    return [float(block.mean()) for block in np.array_split(shares, towers)]


def draw_conv1(
    folder: Path, kernels: NDArray[np.float32], title: str, *, towers: int = 2, file: str = CONV1_FILE
) -> None:
    """Draw the first layer's kernels as pictures, a tower's block beside the other's (the paper's figure 3), in `file`.

    kernels: float32 [kernels, 3, height, width]. Each is scaled by its own largest absolute weight; grey is zero.
    """
    shares = chromatic_shares(kernels, towers)
    blocks = np.array_split(kernels, towers)
    figure = Figure(figsize=(4.6 * towers, 4.3), dpi=_DPI, layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    first = 1
    for index, block in enumerate(blocks):
        axes = figure.add_subplot(1, towers, index + 1)
        axes.imshow(kernel_tiles(block), interpolation="nearest")
        axes.set_axis_off()
        place = f"tower {index + 1}: kernels {first} to {first + len(block) - 1}"
        axes.set_title(f"{place}; {shares[index]:.0%} of the energy is colour", fontsize=9)
        first += len(block)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("each kernel is scaled by its own largest weight; grey is zero", fontsize=8)
    figure.savefig(folder / file)


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return the curves by epoch in the lines of a run's `metrics.jsonl` (progress.py lists their keys)."""
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
    if any(error for _, error in top5):  # of five classes and fewer it is zero by definition
        curves.append(Curve("error", "val", "validation, top-5", top5))
    return curves


def draw_curves(folder: Path, curves: Sequence[Curve], title: str) -> None:
    """Draw curves.png: loss and error by epoch, side by side. A curve without points is left out."""
    figure = Figure(figsize=(9.6, 3.9), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (kind, unit) in enumerate((("loss", "cross-entropy, nats"), ("error", "wrong, % of images")), start=1):
        axes = figure.add_subplot(1, 2, place)
        for curve in curves:
            if curve.kind != kind or not curve.points:
                continue
            epochs, values = zip(*curve.points, strict=True)
            colour, dashes = _COLOURS[curve.split], "--" if "top-5" in curve.label else "-"
            axes.plot(epochs, values, dashes, color=colour, label=curve.label, marker="o", markersize=3)
        axes.set_title(kind, fontsize=10)
        axes.set_xlabel("epochs")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if kind == "error":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(folder / CURVES_FILE)


def kernel_tiles(kernels: NDArray[np.float32], columns: int = 8) -> NDArray[np.float32]:
    """Return kernels [n, 3, h, w] as one picture [height, width, 3] of values 0 to 1, with white lines between them."""
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    pictures = (0.5 + 0.5 * kernels / np.where(largest > 0, largest, 1)).transpose(0, 2, 3, 1)
    height, width = pictures.shape[1:3]
    rows = -(-len(pictures) // columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), np.float32)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    return sheet
