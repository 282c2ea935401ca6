"""`fc7 report`: the paper's figures 3 and 4 and tables 1 and 2, for a run or a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from model_store.errors import DatasetError
from service.cli import console
from service.cli.options import Data, Home, RunOrModel, Views
from service.cli.training.evaluate import load_predictors
from service.settings import load_settings

if TYPE_CHECKING:
    from model_store.training.paper.report import FirstLayer


def report(
    model: RunOrModel,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the figures, tables.md and report.json.")],
    data: Data = None,
    train_split: Annotated[
        str, typer.Option(help="Split in which similar images are searched: DIR/TRAIN_SPLIT/<class>/*.")
    ] = "train",
    split: Annotated[str, typer.Option(help="Split of the held-out images: DIR/SPLIT/<class>/*.")] = "val",
    views: Views = 1,
    benchmark: Annotated[
        Literal["ilsvrc-2010", "ilsvrc-2012", "other"],
        typer.Option(help="Data set of the held-out images: table 1 lists ILSVRC-2010, table 2 ILSVRC-2012."),
    ] = "other",
    evaluations: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation",
            metavar="FILE",
            help="Output of fc7 evaluate --json, added as a row of the tables. Can be repeated.",
        ),
    ] = None,
    gallery: Annotated[int, typer.Option(min=1, help="Maximum number of training images to search.")] = 5_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed that selects the images.")] = 0,
    home: Home = None,
) -> None:
    """Draw the first layer's kernels, predictions and similar images, and compare the errors with the paper's."""
    from model_store.training.paper.report import ReportOptions, write_paper_report  # noqa: PLC0415 - torch

    settings = load_settings(home=home)
    more = [_read_evaluation(file) for file in evaluations or ()]
    (net,), folder = load_predictors([model], settings, data, "report")
    with console.ProgressBar() as bar:
        numbers = write_paper_report(
            net,
            _first_layer(settings.home, model),
            folder,
            out,
            ReportOptions(seed, gallery, (1,) if views == 1 else (1, views), benchmark, more),
            splits=(train_split, split),
            progress=bar.step,
        )
    _print(numbers)
    console.say(f"{out} has figure3.png, figure4-left.png, figure4-right.png, tables.md and report.json.")
    console.next_step(f"read {out / 'tables.md'}")


def _read_evaluation(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{file} is not an evaluation ({error}). Create one: fc7 evaluate --json > {file}"
        ) from error


def _first_layer(home: Path, model: str) -> FirstLayer:
    from model_store.training.nets.alexnet import Conv  # noqa: PLC0415 - torch
    from model_store.training.paper.report import FirstLayer  # noqa: PLC0415
    from model_store.training.parents import find_parent  # noqa: PLC0415

    trained = find_parent(home, model)
    layers = [layer for layer in trained.architecture.layers if isinstance(layer, Conv)]
    if not layers:
        raise DatasetError(f"{model} has no convolution, so there are no kernels to draw.")
    kernels = trained.weights[f"{layers[0].name}.weight"].numpy()
    return FirstLayer(layers[0].name, kernels, max(layer.towers for layer in layers))


def _print(numbers: dict[str, Any]) -> None:
    shares = numbers["figure3"]["chromatic_share_by_tower"]
    towers = ", ".join(f"tower {number}: {share:.1%}" for number, share in enumerate(shares, start=1))
    console.show(f"Share of color in the energy of the kernels: {towers} (random weights: two thirds).")
    near = numbers["figure4"]["neighbors_of_same_class"]
    console.show(f"{near:.0%} of the nearest images in figure 4 have the class of their query.")
    for rows in numbers["tables"].values():
        for row in (row for row in rows if row["source"] == "fc7"):
            console.show(
                f"{row['model']}: top-1 error {row['top1']:.1f} %, top-5 error {row['top5']:.1f} %", markup=False
            )
