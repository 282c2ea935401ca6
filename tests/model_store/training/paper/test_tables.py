"""The paper's tables: its own rows, and measured rows only where they belong."""

from __future__ import annotations

from typing import Any

import pytest

from model_store.errors import DatasetError
from model_store.training.paper.tables import markdown, measured_row, paper_tables

EVALUATION: dict[str, Any] = {
    "models": ["a:1", "b:2"],
    "views": 10,
    "images_seen": 50_000,
    "data": "/data/val",
    "top1_error": 0.381,
    "top5_error": 0.164,
}


def test_measured_rows_appear_only_in_the_table_of_their_benchmark() -> None:
    for benchmark, position in (("ilsvrc-2010", 0), ("ilsvrc-2012", 1), ("other", 2)):
        tables = list(paper_tables([EVALUATION], benchmark).values())  # type: ignore[arg-type]
        measured = [[row for row in rows if row.source == "fc7"] for rows in tables]
        assert [len(rows) for rows in measured] == [int(index == position) for index in range(len(tables))]
        (row,) = measured[position]
        assert (row.model, row.images) == ("a:1 + b:2 (10 views)", "50,000 images of /data/val")
        assert [row.top1, row.top5] == pytest.approx([38.1, 16.4])
    text = markdown(paper_tables([EVALUATION], "ilsvrc-2012"))
    assert "| Sparse coding [2] | cited by the paper | 47.1 % | 28.2 % |" in text
    assert "| CNN | the paper's net | 37.5 % | 17.0 % |" in text
    assert "| SIFT + FVs [7] | cited by the paper |  |  | 26.2 % |" in text
    assert r"| 7 CNNs\* | the paper's net | 36.7 % | 15.4 % | 15.3 % |" in text
    assert "| a:1 + b:2 (10 views) | measured by fc7 | 38.1 % | 16.4 % |  | 50,000 images of /data/val |" in text
    with pytest.raises(DatasetError, match="fc7 evaluate --json"):
        measured_row({"models": ["a"]})
