"""The errors of an evaluation: errors.csv, and the worst ones as worst_errors.png and worst_errors.csv, in a report.

The images with the lowest probability of their own class are often labeled wrongly, or show something unexpected.

Guarantees: only the pictures of the worst errors are kept in memory. errors.csv has every wrongly classified image, or
the 20,000 worst.
Out of scope: correcting labels (`fc7 data check` finds more of them).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_store.training.export.report import save_figure, write_csv

SHOWN: Final = 24
LISTED: Final = 20_000  # rows of errors.csv, about 1.5 MB
_COLUMNS: Final = 6
_DPI: Final = 100
_WIDTH: Final = 32  # characters of a line under a picture


@dataclass(frozen=True, slots=True, order=True)
class _Error:
    own_probability: float  # negative, so that the heap drops the least bad error first
    position: int
    truth: int = field(compare=False)
    predicted: int = field(compare=False)
    probability: float = field(compare=False)

    def row(self, labels: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
        """Return the cells of a table."""
        own, other = f"{-self.own_probability:.6f}", f"{self.probability:.6f}"
        return names[-self.position], labels[self.truth], own, labels[self.predicted], other


@dataclass(frozen=True, slots=True, order=True)
class _Pictured:
    error: _Error
    pixels: NDArray[np.uint8] = field(compare=False)


class Errors:
    """Collects the wrongly classified images, and the pictures of those whose own class has the lowest probability."""

    def __init__(self, count: int = SHOWN, listed: int = LISTED) -> None:
        self._count, self._heap, self._seen = count, list[_Pictured](), 0
        self._listed, self._all = listed, list[_Error]()

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
            )
            self._all.append(error)
            if len(self._heap) == self._count and error <= self._heap[0].error:
                continue
            heapq.heappush(self._heap, _Pictured(error, pixels[row].copy()))  # the batch can be freed
            if len(self._heap) > self._count:
                heapq.heappop(self._heap)
        self._seen += len(truth)

    def write(self, folder: Path, labels: Sequence[str], names: Sequence[str], title: str) -> None:
        """Write the files, worst errors first, unless there are none. names: of all images, in the order of `add`."""
        errors = sorted(self._heap, reverse=True)
        if not errors:
            return
        rows = [each.error.row(labels, names) for each in errors]
        header = ("image", "class", "its probability", "predicted class", "its probability")
        write_csv(folder / "worst_errors.csv", header, rows)
        listed = heapq.nlargest(self._listed, self._all)
        write_csv(folder / "errors.csv", header, (error.row(labels, names) for error in listed))
        height = -(-len(errors) // _COLUMNS)
        figure = Figure(figsize=(2.3 * _COLUMNS, 3.1 * height + 0.6), dpi=_DPI, layout="constrained")
        for number, (each, row) in enumerate(zip(errors, rows, strict=True), start=1):
            axes = figure.add_subplot(height, _COLUMNS, number)
            axes.imshow(each.pixels)
            axes.set_axis_off()
            lines = (
                _caption("", row[1], -each.error.own_probability),
                _caption("predicted: ", row[3], each.error.probability),
                row[0] if len(row[0]) <= _WIDTH else "…" + row[0][1 - _WIDTH :],
            )
            axes.set_title("\n".join(lines).replace("$", r"\$"), fontsize=8, loc="left")
        figure.suptitle(title, fontsize=11)
        save_figure(figure, folder / "worst_errors.png")


def _caption(prefix: str, label: str, probability: float) -> str:
    """Return a line under a picture. A label that is too long is cut, so that the probability is always shown."""
    end = f" ({probability:.1%})"
    room = _WIDTH - len(prefix) - len(end)
    return prefix + (label if len(label) <= room else f"{label[: room - 1]}…") + end
