"""The paper's tables 1 and 2: its own rows, those that it compares itself with, and what was evaluated here.

Promises: each row says whose it is; what was measured here carries its images and views, and stands in a table of the
paper only when it was measured on that table's images.
Does not: evaluate, or check that a folder called ILSVRC is that (the caller says which images they are).
Source: the paper, section 6, tables 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from model_store.errors import DatasetError

Benchmark = Literal["ilsvrc-2010", "ilsvrc-2012", "other"]
Whose = Literal["compared", "paper", "fc7"]

WHOSE: Final[Mapping[Whose, str]] = {
    "compared": "published before, as the paper cites it",
    "paper": "the paper's net",
    "fc7": "fc7, measured here",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line. Errors are per cent, None where there is none; `top5_test` is that of the challenge's hidden labels.

    images: what it was measured on, where it was measured here.
    """

    model: str
    whose: Whose
    top1: float | None
    top5: float | None
    top5_test: float | None = None
    images: str = ""


TABLE_1: Final = (
    Row("Sparse coding [2]", "compared", 47.1, 28.2),
    Row("SIFT + FVs [24]", "compared", 45.7, 25.7),
    Row("CNN", "paper", 37.5, 17.0),
)
# An asterisk: pre-trained on the whole ImageNet 2011 Fall release, with the sixth convolution.
TABLE_2: Final = (
    Row("SIFT + FVs [7]", "compared", None, None, 26.2),
    Row("1 CNN", "paper", 40.7, 18.2),
    Row("5 CNNs", "paper", 38.1, 16.4, 16.4),
    Row("1 CNN*", "paper", 39.0, 16.6),
    Row("7 CNNs*", "paper", 36.7, 15.4, 15.3),
)


def measured_row(evaluation: Mapping[str, Any]) -> Row:
    """Return the row of an evaluation in its plain form (`Evaluation.to_dict`). Raises DatasetError for another one."""
    try:
        views, models = evaluation["views"], evaluation["models"]
        images = f"{evaluation['images_seen']:,} images of {evaluation['data']}"
        name = " + ".join(models) + f" ({views} view{'s' if views > 1 else ''})"
        return Row(name, "fc7", 100 * evaluation["top1_error"], 100 * evaluation["top5_error"], images=images)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"this is no evaluation: {error!r} in {str(evaluation)[:80]}; fc7 evaluate --json makes one"
        ) from error


def paper_tables(evaluations: Iterable[Mapping[str, Any]], benchmark: Benchmark) -> dict[str, tuple[Row, ...]]:
    """Return the tables by title. Ours join the one of their images; of other images they have a table of their own."""
    ours = tuple(measured_row(evaluation) for evaluation in evaluations)
    tables = {
        "Table 1: error on the test set of ILSVRC-2010": (*TABLE_1, *(ours if benchmark == "ilsvrc-2010" else ())),
        "Table 2: error on the validation (and test) set of ILSVRC-2012": (
            *TABLE_2,
            *(ours if benchmark == "ilsvrc-2012" else ()),
        ),
    }
    if benchmark == "other" and ours:
        tables["fc7 on other images: not to be compared with the tables above"] = ours
    return tables


def markdown(tables: Mapping[str, Sequence[Row]]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for title, rows in tables.items():
        tested = any(row.top5_test is not None for row in rows)
        heads = ["model", "whose", "top-1", "top-5", *(["top-5, test"] if tested else []), "images"]
        lines = [
            f"### {title}",
            "",
            "| " + " | ".join(heads) + " |",
            "|---|---|" + "---:|" * (3 if tested else 2) + "---|",
        ]
        for row in rows:
            errors = [row.top1, row.top5, *([row.top5_test] if tested else [])]
            cells = [_cell(row.model), WHOSE[row.whose], *map(_per_cent, errors), _cell(row.images)]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    notes = r"[n]: the paper's references. \*: pre-trained on all of ImageNet 2011 Fall, with the sixth convolution."
    return "\n\n".join([*parts, notes]) + "\n"


def _per_cent(error: float | None) -> str:
    return "" if error is None else f"{error:.1f} %"


def _cell(text: str) -> str:
    """Keep a name's own characters from ending the cell or being taken for emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*")
