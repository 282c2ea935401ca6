"""`fc7 report`: the paper's figures 3 and 4 and its tables 1 and 2, made from a run or a version.

Does not: import torch unless the command runs; the serving installation has no torch, and says so.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from model_store.errors import DatasetError
from service.cli.extras import training_extra
from service.cli.training.evaluate import Home, begin, predictors_of, progress_bar
from service.settings import load_settings


class Benchmark(StrEnum):
    """Which images DIR/SPLIT are: they decide which of the paper's tables an error may stand in."""

    ILSVRC_2010 = "ilsvrc-2010"
    ILSVRC_2012 = "ilsvrc-2012"
    OTHER = "other"


def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run (solar) or version (solar:1).")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures, tables.md and report.json go.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Class folders; by default those of the run.")
    ] = None,
    train_split: Annotated[str, typer.Option(help="Which pictures are searched: DIR/TRAIN_SPLIT/<class>/*.")] = "train",
    split: Annotated[str, typer.Option(help="Which pictures are held out: DIR/SPLIT/<class>/*.")] = "val",
    views: Annotated[int, typer.Option(help="Views of the errors: 1, or 10 beside it.")] = 1,
    benchmark: Annotated[
        Benchmark, typer.Option(help="What the held-out pictures are: table 1 has 2010's test set, table 2 2012's.")
    ] = Benchmark.OTHER,
    evaluations: Annotated[
        list[Path] | None,
        typer.Option("--evaluation", metavar="FILE", help="More rows: files of fc7 evaluate --json; repeatable."),
    ] = None,
    gallery: Annotated[int, typer.Option(min=1, help="Most training pictures that are searched.")] = 5_000,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the pictures.")] = 0,
    home: Home = None,
) -> None:
    """Draw the first layer's kernels, answers and near pictures, and set our errors beside the paper's tables."""
    begin(views)
    with training_extra():
        from model_store.training.nets.alexnet import Conv  # noqa: PLC0415 - torch
        from model_store.training.paper.report import FirstLayer, ReportOptions, write_paper_report  # noqa: PLC0415
        from model_store.training.parents import find_parent  # noqa: PLC0415
    settings = load_settings(home=home)
    more = [_read(file) for file in evaluations or ()]
    (net,), data_of_run = predictors_of([model], settings)
    folder = data or data_of_run
    if folder is None:
        raise DatasetError(f"which images? A published version does not hold any: fc7 report {model} --data DIR")
    trained = find_parent(settings.home, model)
    layers = [layer for layer in trained.architecture.layers if isinstance(layer, Conv)]
    if not layers:
        raise DatasetError(f"{model} has no convolution, so there are no kernels to draw")
    kernels = trained.weights[f"{layers[0].name}.weight"].numpy()
    first = FirstLayer(layers[0].name, kernels, max(layer.towers for layer in layers))
    wanted = ReportOptions(seed, gallery, (1,) if views == 1 else (1, views), benchmark.value, more)
    with progress_bar() as bar:
        task = bar.add_task("", total=None)
        numbers = write_paper_report(
            net,
            first,
            folder,
            out,
            wanted,
            splits=(train_split, split),
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )
    console = Console(soft_wrap=True, highlight=False)
    shares = numbers["figure3"]["chromatic_share_by_tower"]
    towers = ", ".join(f"tower {number}: {share:.1%}" for number, share in enumerate(shares, start=1))
    console.print(f"Share of the kernels' energy that is colour: {towers} (drawn weights have two thirds).")
    near = numbers["figure4"]["neighbors_of_same_class"]
    console.print(f"Of the nearest pictures in figure 4, {near:.0%} are of their query's class.")
    for rows in numbers["tables"].values():
        for row in (row for row in rows if row["source"] == "fc7"):
            console.print(
                f"{row['model']}: top-1 error {row['top1']:.1f} %, top-5 error {row['top5']:.1f} %", markup=False
            )
    console.print(
        f"Written to {out}: figure3.png, figure4-left.png, figure4-right.png, tables.md, report.json", markup=False
    )


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} is no evaluation ({error}); fc7 evaluate --json makes one") from error
