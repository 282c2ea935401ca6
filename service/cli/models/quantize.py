"""`fc7 models quantize`: add int8 or fp16 graphs to a new version and measure how they differ from fp32.

Out of scope: changing a published version; choosing the precision that is served (FC7_PRECISION).
"""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from model_store.artifact import graph_files
from model_store.store import ModelStore
from service.cli import console
from service.cli.extras import training_extra
from service.cli.options import Home, Model
from service.settings import load_settings


class AddedPrecision(StrEnum):
    """A precision that can be added to a version."""

    INT8 = "int8"
    FP16 = "fp16"


def quantize(
    model: Model,
    *,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Class folders with the splits train and --split: DIR/SPLIT/<class>/*.")
    ],
    precision: Annotated[list[AddedPrecision], typer.Option(help="Precision to add. Can be repeated.")],
    split: Annotated[str, typer.Option(help="Split on which it is compared with fp32.")] = "val",
    calibrate: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of training images that calibrate int8's value ranges.")
    ] = 64,
    home: Home = None,
) -> None:
    """Publish a new version with int8 or fp16 graphs added, and compare them with fp32 on images."""
    with training_extra():
        from model_store.training.export.quantize import add_precisions  # noqa: PLC0415 - torch
    logging.disable(logging.WARNING)  # ONNX Runtime recommends a preprocessing that this graph does not need
    store = ModelStore(load_settings(home=home).home)
    source = store.resolve(model)
    with console.ProgressBar() as bar:
        artifact = add_precisions(source, store, precision, data, split=split, calibrate=calibrate, progress=bar.step)
    table = Table("", "weights", "same top-1", "fp32's top-1 in top k", "fc7 cosine", "top-1 error", box=None)
    table.add_row("fp32", _size(artifact.manifest.files[graph_files("fp32")[1]].size))
    for name in precision:
        found = artifact.manifest.precisions[name].metrics
        error = "-" if found["top1_error"] is None else f"{found['top1_error']:.1%} ({found['top1_error_change']:+.1%})"
        table.add_row(
            name,
            _size(artifact.manifest.files[graph_files(name)[1]].size),
            f"{found['top1_agreement']:.2%}",
            f"{found['top5_agreement']:.2%} of {found['k']}",
            f"{found['fc7_cosine']:.5f}",
            error,
        )
    output = console.results()
    output.print(table)
    output.print(f"[green]Published {artifact.id}[/] in {escape(str(artifact.path))}.")
    console.next_step(f"fc7 models activate {artifact.id}, then FC7_PRECISION={precision[0]} fc7 serve")


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
