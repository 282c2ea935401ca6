"""Options and arguments shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from model_store.artifact import Artifact
from model_store.store import ModelStore
from service.cli.completion import complete_model, complete_run_or_model


def _one_or_ten(views: int) -> int:
    if views not in (1, 10):
        raise typer.BadParameter(f"{views} is not supported: give 1 or 10.")
    return views


def _share(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:  # also for NaN, which typer's own range accepts
        raise typer.BadParameter(f"{value} is not supported: give a number from 0 to 1.")
    return value


def _distance(value: float | None) -> float | None:
    if value is not None and not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{value} is not supported: give a number of at least 0.")
    return value


def model_argument(
    metavar: str = "MODEL",
    text: str = "NAME:VERSION, or NAME for its newest version.",
    *,
    show_default: bool | str = True,
) -> Any:
    """Return an argument that names a version. show_default: what is used if it is not given."""
    return typer.Argument(metavar=metavar, help=text, show_default=show_default, autocompletion=complete_model)


Home = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of all state.", show_default="FC7_HOME")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Model = Annotated[str, model_argument()]
ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="NAME:VERSION, or NAME for its newest version.",
        show_default="the active version",
        autocompletion=complete_model,
    ),
]
RunOrModel = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run (solar) or a version (solar:1).", autocompletion=complete_run_or_model),
]
Views = Annotated[
    int,
    typer.Option(
        "--views",
        metavar="1|10",
        callback=_one_or_ten,
        help="Views averaged per image: 1 (center crop) or 10 (as in the paper).",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        callback=_share,
        help="Share of the model's own validation images to accept, 0 to 1; images that are farther from the training "
        "images than these are unknown.",
        show_default="FC7_NOVELTY_THRESHOLD",
    ),
]
MaxDistance = Annotated[
    float | None,
    typer.Option(
        callback=_distance,
        help="Leave out images that are farther away: Euclidean distance, with --mode codes the number of different "
        "bits.",
        show_default="no limit",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Address of the server.", show_default="http://FC7_HOST:FC7_PORT"),
]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="API key.", show_default="the strongest of FC7_API_KEYS, if no --url is given"),
]
Device = Annotated[str | None, typer.Option(help="Device: auto, cpu, cuda or cuda:N.", show_default="FC7_DEVICE")]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA", help="Class folders, a table or shards.", show_default="the data the run was trained on"
    ),
]
Split = Annotated[str, typer.Option(help="Split of the data to evaluate: train, val, test or all.")]
ValShare = Annotated[
    float,
    typer.Option(metavar="SHARE", help="Share of the images that is kept for validation if the data has no split."),
]
Activate = Annotated[
    bool | None,
    typer.Option(
        "--activate/--no-activate", help="Make it the active version.", show_default="only if no version is active"
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Activate it even if it is no better than always predicting the same class.")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe. Can be repeated.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights, order, crops and dropout.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Decoding threads.", show_default="one per core")]
MemoryBudget = Annotated[
    int,
    typer.Option(
        min=0, metavar="MIB", help="Memory for prepared images, 192 KiB each. Images beyond it are decoded again."
    ),
]

Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION", help="Only images that match, such as label:cat or year>=2020. Repeat to require all."
    ),
]
LabelField = Annotated[str, typer.Option("--field", metavar="NAME", help="Metadata field of the labels.")]


def find_version(store: ModelStore, model: str | None) -> Artifact:
    """Return the version that `--model` names, or the active one. Raises ModelNotFoundError, NoActiveModelError."""
    return store.active_artifact() if model is None else store.resolve(model)
