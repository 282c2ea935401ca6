"""`fc7 models quantize`: the same net in int8 or fp16 beside fp32, in a new version, with what that changes measured.

Does not: change a published version, choose the precision that is served (FC7_PRECISION does).
"""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_store.artifact import graph_files
from model_store.store import ModelStore
from service.cli.extras import training_extra
from service.cli.training.evaluate import begin, progress_bar
from service.settings import load_settings

Home = Annotated[Path | None, typer.Option(help="Folder of all state [FC7_HOME].", show_default=False)]


class Added(StrEnum):
    """What can be added to a version."""

    INT8 = "int8"
    FP16 = "fp16"


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME:VERSION, or NAME for its newest version.")],
    *,
    data: Annotated[Path, typer.Option(help="Folder of photographs: train/<class>/* and val/<class>/*.")],
    precision: Annotated[list[Added], typer.Option(help="Give it twice for both.")],
    split: Annotated[str, typer.Option(help="The photographs on which it is compared with fp32.")] = "val",
    calibrate: Annotated[int, typer.Option(min=1, max=10_000, help="Photographs of train for int8's ranges.")] = 64,
    home: Home = None,
) -> None:
    """Publish the next version: this one, with its net in other precisions too, compared with fp32 on photographs."""
    begin(views=1)
    with training_extra():
        from model_store.training.export.quantize import add_precisions  # noqa: PLC0415 - torch
    logging.disable(logging.WARNING)  # ONNX Runtime advises a preparation that this graph does not need
    store = ModelStore(load_settings(home=home).home)
    source = store.resolve(model)
    with progress_bar() as bar:
        task = bar.add_task("", total=None)
        artifact = add_precisions(
            source,
            store,
            precision,
            data,
            split=split,
            calibrate=calibrate,
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )
    table = Table("", "weights", "same best class", "in the best", "fc7 cosine", "top-1 error", box=None)
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
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"[green]Published {artifact.id}[/] in {escape(str(artifact.path))}.")
    console.print(f"Next: fc7 models activate {artifact.id}, then FC7_PRECISION={precision[0]} fc7 serve")


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
