"""The worst errors of an evaluation as pictures: worst_errors.png and worst_errors.csv in a version's report.

The images with the lowest probability of their own class are often labeled wrongly, or show something unexpected.

Guarantees: only the pictures of the worst errors are kept in memory.
Out of scope: correcting labels (`fc7 data check` finds more of them).
"""

from __future__ import annotations

import heapq
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_store.training.export.report import save_figure, write_csv

SHOWN: Final = 24
_COLUMNS: Final = 6
_DPI: Final = 100
_WIDTH: Final = 26  # characters of a line under a picture


@dataclass(frozen=True, slots=True, order=True)
class _Error:
    own_probability: float  # negative, so that the heap drops the least bad error first
    position: int
    truth: int = field(compare=False)
    predicted: int = field(compare=False)
    probability: float = field(compare=False)
    pixels: NDArray[np.uint8] = field(compare=False)


class WorstErrors:
    """Collects the wrongly classified images whose own class has the lowest probability."""

    def __init__(self, count: int = SHOWN) -> None:
        self._count, self._heap, self._seen = count, list[_Error](), 0

    def add(self, pixels: NDArray[np.uint8], truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> None:
        """Add a batch: uint8 [n, 256, 256, 3], indices of the true classes [n], and float32 [n, classes]."""
        predicted = probabilities.argmax(axis=1)
        for row in np.flatnonzero(predicted != truth).tolist():
            error = _Error(
                -float(probabilities[row, truth[row]]),
                -(self._seen + row),  # of equal errors, the first images stay
                int(truth[row]),
                int(predicted[row]),
                float(probabilities[row, predicted[row]]),
                pixels[row],
            )
            if len(self._heap) == self._count and error <= self._heap[0]:
                continue
            heapq.heappush(self._heap, replace(error, pixels=error.pixels.copy()))  # the batch can be freed
            if len(self._heap) > self._count:
                heapq.heappop(self._heap)
        self._seen += len(truth)

    def write(self, folder: Path, labels: Sequence[str], names: Sequence[str], title: str) -> None:
        """Write both files, worst errors first, unless there are none. names: of all images, in the order of `add`."""
        errors = sorted(self._heap, reverse=True)
        if not errors:
            return
        rows = [
            (names[-error.position], labels[error.truth], f"{-error.own_probability:.6f}", labels[error.predicted],
             f"{error.probability:.6f}")
            for error in errors
        ]  # fmt: skip
        header = ("image", "class", "its probability", "predicted class", "its probability")
        write_csv(folder / "worst_errors.csv", header, rows)
        height = -(-len(errors) // _COLUMNS)
        figure = Figure(figsize=(2.3 * _COLUMNS, 3.1 * height + 0.6), dpi=_DPI, layout="constrained")
        for number, (error, row) in enumerate(zip(errors, rows, strict=True), start=1):
            axes = figure.add_subplot(height, _COLUMNS, number)
            axes.imshow(error.pixels)
            axes.set_axis_off()
            lines = (
                f"{row[1]} ({-error.own_probability:.1%})",
                f"predicted: {row[3]} ({error.probability:.1%})",
                row[0],
            )
            text = "\n".join(textwrap.shorten(line, _WIDTH, placeholder="…") for line in lines[:2])
            text += "\n" + (lines[2] if len(lines[2]) <= _WIDTH else "…" + lines[2][1 - _WIDTH :])
            axes.set_title(text.replace("$", r"\$"), fontsize=8, loc="left")
        figure.suptitle(title, fontsize=11)
        save_figure(figure, folder / "worst_errors.png")
