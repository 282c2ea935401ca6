"""Tables 1 and 2 of the paper: its own rows, the rows it cites, and errors measured here.

Guarantees: each row names its source. A measured row states its images and views, and it appears in a table of the
paper only if it was measured on that table's images.
Out of scope: evaluating; verifying that a folder contains ILSVRC (the caller says which images it has).
References: the paper, section 6, tables 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from model_store.errors import DatasetError
from model_store.training.export.publish import views_text

Benchmark = Literal["ilsvrc-2010", "ilsvrc-2012", "other"]
Source = Literal["cited", "paper", "fc7"]

SOURCES: Final[Mapping[Source, str]] = {
    "cited": "cited by the paper",
    "paper": "the paper's net",
    "fc7": "measured by fc7",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row. Errors are percentages, None if missing. `top5_test`: on the hidden labels of the challenge.

    images: the images of a row that was measured here.
    """

    model: str
    source: Source
    top1: float | None
    top5: float | None
    top5_test: float | None = None
    images: str = ""


TABLE_1: Final = (
    Row("Sparse coding [2]", "cited", 47.1, 28.2),
    Row("SIFT + FVs [24]", "cited", 45.7, 25.7),
    Row("CNN", "paper", 37.5, 17.0),
)
# An asterisk marks nets that were pre-trained on the entire ImageNet 2011 Fall release, with a sixth convolution.
TABLE_2: Final = (
    Row("SIFT + FVs [7]", "cited", None, None, 26.2),
    Row("1 CNN", "paper", 40.7, 18.2),
    Row("5 CNNs", "paper", 38.1, 16.4, 16.4),
    Row("1 CNN*", "paper", 39.0, 16.6),
    Row("7 CNNs*", "paper", 36.7, 15.4, 15.3),
)


def measured_row(evaluation: Mapping[str, Any]) -> Row:
    """Return the row of an evaluation (`Evaluation.to_dict`). Raises DatasetError if it is not one."""
    try:
        images = f"{evaluation['images_seen']:,} images of {evaluation['data']}"
        name = f"{' + '.join(evaluation['models'])} ({views_text(evaluation['views'])})"
        return Row(name, "fc7", 100 * evaluation["top1_error"], 100 * evaluation["top5_error"], images=images)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"This is not an evaluation: {error!r} in {str(evaluation)[:80]}. Create one: fc7 evaluate --json > FILE"
        ) from error


def paper_tables(evaluations: Iterable[Mapping[str, Any]], benchmark: Benchmark) -> dict[str, tuple[Row, ...]]:
    """Return the tables by title. Measured rows join the table of their benchmark, or form a table of their own."""
    measured = tuple(measured_row(evaluation) for evaluation in evaluations)
    tables = {
        "Table 1: error on the test set of ILSVRC-2010": (*TABLE_1, *(measured if benchmark == "ilsvrc-2010" else ())),
        "Table 2: error on the validation (and test) set of ILSVRC-2012": (
            *TABLE_2,
            *(measured if benchmark == "ilsvrc-2012" else ()),
        ),
    }
    if benchmark == "other" and measured:
        tables["fc7 on other images: not comparable with the tables above"] = measured
    return tables


def markdown(tables: Mapping[str, Sequence[Row]]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for title, rows in tables.items():
        tested = any(row.top5_test is not None for row in rows)
        header = ["model", "source", "top-1", "top-5", *(["top-5, test"] if tested else []), "images"]
        lines = [
            f"### {title}",
            "",
            "| " + " | ".join(header) + " |",
            "|---|---|" + "---:|" * (3 if tested else 2) + "---|",
        ]
        for row in rows:
            errors = [row.top1, row.top5, *([row.top5_test] if tested else [])]
            cells = [_escape(row.model), SOURCES[row.source], *map(_percent, errors), _escape(row.images)]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    notes = r"[n]: the paper's references. \*: pre-trained on all of ImageNet 2011 Fall, with a sixth convolution."
    return "\n\n".join([*parts, notes]) + "\n"


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:.1f} %"


def _escape(text: str) -> str:
    """Escape characters that would end the cell or start emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*")
