"""Figure 4 of the paper: the most probable classes of test images, and the training images nearest to some of them.

Guarantees: files are written only into the given folder. pyplot is not used. Exactly the bar of the correct class is
red. Distances are Euclidean distances of fc7, smallest first, as in serving.
Out of scope: choosing and reading images (report.py does that); figure 3 (`draw_conv1` of export/report.py).
References: the paper, figure 4 and section 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_store.runtime.runner import top_k
from model_store.training.export.report import save_figure

CORRECT: Final = "#d6272f"
OTHER: Final = "#8fb0d6"
_BARS: Final = 5
_COLUMNS: Final = 4
_DPI: Final = 110
_MAX_LABEL_LENGTH: Final = 24


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """A prepared image, uint8 [256, 256, 3], and the name of its class."""

    pixels: NDArray[np.uint8]
    label: str


Neighbor = tuple[LabeledImage, float]  # a training image and its distance from the query


@dataclass(frozen=True, slots=True)
class Bar:
    """One of the most probable classes of an image."""

    label: str
    probability: float
    correct: bool


def bars(probabilities: NDArray[np.float32], labels: Sequence[str], correct: str) -> list[Bar]:
    """Return the five most probable classes of one image, most probable first (all if there are fewer).

    probabilities: float32 [classes]. correct: the name of the correct class.
    """
    indices, values = top_k(probabilities[None], min(_BARS, len(labels)))
    return [
        Bar(labels[index], float(value), labels[index] == correct)
        for index, value in zip(indices[0], values[0], strict=True)
    ]


def nearest(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `count` rows of `gallery` nearest to each query and their Euclidean distances, nearest first.

    Both are fc7 vectors, float32 [n, neurons]. Equal distances keep the order of the gallery.
    """
    # The expanded square loses digits for near vectors, so it is computed in float64, and the returned distances are
    # computed from differences.
    wide, others = queries.astype(np.float64), gallery.astype(np.float64)
    squares = (wide**2).sum(1)[:, None] - 2 * wide @ others.T + (others**2).sum(1)[None]
    indices = np.argsort(squares, axis=1, kind="stable")[:, :count]
    distances = np.linalg.norm(wide[:, None] - others[indices], axis=2)
    return indices, distances.astype(np.float32)


def draw_figure4_left(
    folder: Path, images: Sequence[LabeledImage], answers: Sequence[Sequence[Bar]], title: str
) -> None:
    """Draw figure4-left.png: each image with its class, and its most probable classes as bars."""
    rows = -(-len(images) // _COLUMNS)
    figure = Figure(figsize=(2.6 * _COLUMNS, 4.3 * rows + 0.5), dpi=_DPI, layout="constrained")
    grid = figure.add_gridspec(2 * rows, _COLUMNS, height_ratios=[1.5, 1] * rows)
    for index, (image, answer) in enumerate(zip(images, answers, strict=True)):
        row, column = divmod(index, _COLUMNS)
        _show(figure.add_subplot(grid[2 * row, column]), image)
        axes = figure.add_subplot(grid[2 * row + 1, column])
        colors = [CORRECT if bar.correct else OTHER for bar in answer]
        axes.barh(range(len(answer)), [bar.probability for bar in answer], color=colors, height=0.8)
        for line, bar in enumerate(answer):
            text = f"{_short(bar.label)}  {bar.probability:.0%}"
            axes.text(0.02, line, text, va="center", fontsize=7.5, parse_math=False)
        axes.set_xlim(0, 1)
        axes.set_ylim(_BARS - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title, fontsize=10)
    save_figure(figure, folder / "figure4-left.png")


def draw_figure4_right(
    folder: Path, queries: Sequence[LabeledImage], neighbors: Sequence[Sequence[Neighbor]], title: str
) -> None:
    """Draw figure4-right.png: one query per row, then its nearest training images with classes and distances."""
    columns = 1 + max(len(row) for row in neighbors)
    figure = Figure(figsize=(1.6 * columns, 1.95 * len(queries) + 0.6), dpi=_DPI, layout="constrained")
    grid = figure.add_gridspec(len(queries), columns)
    for row, (query, near) in enumerate(zip(queries, neighbors, strict=True)):
        axes = figure.add_subplot(grid[row, 0])
        _show(axes, query, "the query")
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_linewidth(2.5)
        for column, (image, distance) in enumerate(near, start=1):
            _show(figure.add_subplot(grid[row, column]), image, f"{distance:.3g}")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, folder / "figure4-right.png")


def _show(axes: Axes, image: LabeledImage, caption: str = "") -> None:
    axes.imshow(image.pixels)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(_short(image.label), fontsize=7.5, pad=3, parse_math=False)
    axes.set_xlabel(caption, fontsize=7.5, labelpad=2)


def _short(label: str) -> str:
    text = label if len(label) <= _MAX_LABEL_LENGTH else f"{label[: _MAX_LABEL_LENGTH - 1]}…"
    return text.replace("$", r"\$")  # matplotlib interprets text between two dollar signs as math
