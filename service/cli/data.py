"""`fc7 data ...`: data sets to train on.

Does not: import torch, or download anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Data sets to train on.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Data sets to train on."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put train/ and val/; made if missing.")],
) -> None:
    """Arrange the photographs of the package elpv-dataset: solar cells, eight classes, a fixed fifth held out."""
    from model_store.training.demo_data import SOURCE_FILE, arrange_demo  # noqa: PLC0415

    arranged = arrange_demo(folder)
    console = Console(soft_wrap=True, highlight=False)
    table = Table("class", "train", "val")
    for label, images in arranged.train.items():
        table.add_row(label, str(images), str(arranged.val[label]))
    table.add_section()
    table.add_row("all", str(sum(arranged.train.values())), str(sum(arranged.val.values())))
    console.print(table)
    console.print(f"{arranged.copied} photographs copied to {arranged.folder}, the others were there.", markup=False)
    console.print(
        "Source: ELPV dataset, PyPI elpv-dataset, https://github.com/zae-bayern/elpv-dataset\n"
        "Licence: CC-BY-NC-SA 4.0, not for commercial use. "
        f"{arranged.folder / SOURCE_FILE} has the papers to cite.",
        markup=False,
    )
    console.print(f"Next: fc7 train --data {arranged.folder} --recipe small --name solar", markup=False)
