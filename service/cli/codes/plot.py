"""Plot of `fc7 codes evaluate`: recall, class precision and mAP by bits, with one line per code.

Guarantees: the PNG file is written atomically; a code has the same color in every panel; results without bits (exact
fc7, raw pixels) are dashed horizontal lines.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from index.search.code_quality import CodeQuality
from model_store.durable import write_atomic

_DPI: Final = 90
_PANELS: Final = (
    ("recall", "recall@10 of the exact neighbors"),
    ("recall_wide", "exact 10 found in the first 100"),
    ("precision", "class precision@6"),
    ("mean_average_precision", "class mAP"),
)
_MOST_BYTES: Final = 64  # per code; larger entries are vectors or pixels


def draw_codes(results: Sequence[CodeQuality], path: Path) -> None:
    """Draw results of one collection, at one or several sizes. Raises OSError."""
    names = list(dict.fromkeys(each.name for each in results))
    panels = [panel for panel in _PANELS if any(getattr(each, panel[0]) is not None for each in results)]
    figure = Figure(
        figsize=(5.2 * min(2, len(panels)), 3.9 * -(-len(panels) // 2) + 0.8), dpi=_DPI, layout="constrained"
    )
    grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).flat
    for axes, (field, title) in zip(grid, panels, strict=False):
        for number, name in enumerate(names):
            points = sorted((8 * each.bytes, getattr(each, field)) for each in results if each.name == name)
            color = f"C{number % 10}"
            if points[0][0] > 8 * _MOST_BYTES:
                axes.axhline(points[0][1], color=color, linestyle="--", linewidth=1.2, label=name)
            else:
                axes.plot(*zip(*points, strict=True), color=color, marker="os^Dv"[number // 10 % 5], label=name)
        sizes = sorted({8 * each.bytes for each in results if each.bytes <= _MOST_BYTES})
        if sizes:
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [f"{size}" for size in sizes])
        axes.set_xlabel("bits per vector")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.legend(*next(iter(figure.axes)).get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_atomic(path, drawn.getvalue())
