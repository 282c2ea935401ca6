"""The paper's figure 4: what a net answers to eight pictures, and which training pictures it finds near five others.

Promises: files only in the folder given; nothing global is touched (no pyplot); the correct class's bar is red, and no
other is; nearness is the Euclidean distance of fc7, smallest first, as in serving.
Does not: choose or read pictures (results.py does). Figure 3 is report.py's picture of conv1.
Source: the paper, figure 4, and section 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_store.runtime.runner import top_k

FIGURE4_LEFT_FILE: Final = "figure4-left.png"
FIGURE4_RIGHT_FILE: Final = "figure4-right.png"
CORRECT: Final = "#d6272f"
OTHER: Final = "#8fb0d6"
_BARS: Final = 5
_COLUMNS: Final = 4
_DPI: Final = 110
_LONGEST: Final = 24  # characters of a label


@dataclass(frozen=True, slots=True)
class Picture:
    """A prepared picture, uint8 [256, 256, 3], and the name of its class."""

    pixels: NDArray[np.uint8]
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One of a picture's most probable classes."""

    label: str
    probability: float
    correct: bool


@dataclass(frozen=True, slots=True)
class Near:
    """A training picture and its distance from the query."""

    picture: Picture
    distance: float


def bars(probabilities: NDArray[np.float32], labels: Sequence[str], truth: str) -> list[Bar]:
    """Return the five most probable classes (all, of fewer) of one picture, float32 [classes], most probable first."""
    indices, values = top_k(probabilities[None], min(_BARS, len(labels)))
    return [
        Bar(labels[index], float(value), labels[index] == truth)
        for index, value in zip(indices[0], values[0], strict=True)
    ]


def nearest(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `count` rows of `gallery` nearest to each of `queries`, and their Euclidean distances, nearest first.

    Both are fc7 vectors, float32 [n, neurons]. Equal distances keep the gallery's order.
    """
    # In float64, and by differences for those that are shown: the expansion alone loses digits for near pictures.
    wide, others = queries.astype(np.float64), gallery.astype(np.float64)
    squares = (wide**2).sum(1)[:, None] - 2 * wide @ others.T + (others**2).sum(1)[None]
    indices = np.argsort(squares, axis=1, kind="stable")[:, :count]
    distances = np.linalg.norm(wide[:, None] - others[indices], axis=2)
    return indices, distances.astype(np.float32)


def draw_figure4_left(folder: Path, pictures: Sequence[Picture], answers: Sequence[Sequence[Bar]], title: str) -> None:
    """Draw figure4-left.png: each picture, its class, and its most probable classes as bars; the correct one is red."""
    rows = -(-len(pictures) // _COLUMNS)
    figure = Figure(figsize=(2.6 * _COLUMNS, 4.3 * rows + 0.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 * rows, _COLUMNS, height_ratios=[1.5, 1] * rows)
    for place, (picture, answer) in enumerate(zip(pictures, answers, strict=True)):
        row, column = divmod(place, _COLUMNS)
        _show(figure.add_subplot(grid[2 * row, column]), picture, picture.label)
        axes = figure.add_subplot(grid[2 * row + 1, column])
        colours = [CORRECT if bar.correct else OTHER for bar in answer]
        axes.barh(range(len(answer)), [bar.probability for bar in answer], color=colours, height=0.8)
        for line, bar in enumerate(answer):
            axes.text(0.02, line, f"{_short(bar.label)}  {bar.probability:.0%}", va="center", fontsize=7.5)
        axes.set_xlim(0, 1)
        axes.set_ylim(_BARS - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title, fontsize=10)
    figure.savefig(folder / FIGURE4_LEFT_FILE)


def draw_figure4_right(
    folder: Path, queries: Sequence[Picture], neighbours: Sequence[Sequence[Near]], title: str
) -> None:
    """Draw figure4-right.png: a query a row, then its nearest training pictures with their classes and distances."""
    columns = 1 + max(len(row) for row in neighbours)
    figure = Figure(figsize=(1.6 * columns, 1.95 * len(queries) + 0.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(queries), columns)
    for row, (query, near) in enumerate(zip(queries, neighbours, strict=True)):
        axes = figure.add_subplot(grid[row, 0])
        _show(axes, query, query.label, "the query")
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_linewidth(2.5)
        for column, entry in enumerate(near, start=1):
            _show(figure.add_subplot(grid[row, column]), entry.picture, entry.picture.label, f"{entry.distance:.3g}")
    figure.suptitle(title, fontsize=10)
    figure.savefig(folder / FIGURE4_RIGHT_FILE)


def _show(axes: Axes, picture: Picture, text: str, below: str = "") -> None:
    axes.imshow(picture.pixels)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(_short(text), fontsize=7.5, pad=3)
    axes.set_xlabel(below, fontsize=7.5, labelpad=2)


def _short(label: str) -> str:
    text = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
    return text.replace("$", r"\$")  # matplotlib takes a pair of them for mathematics
