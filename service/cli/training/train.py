"""`fc7 train`: train a net on class folders or shards, or resume an interrupted run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from model_store.errors import DatasetError
from model_store.store import model_name_of
from service.cli import console
from service.cli.completion import complete_recipe, complete_run, complete_run_or_model
from service.cli.data.unpack import data_folder
from service.cli.options import Changes, Device, Home, MemoryBudget, ValShare, Workers
from service.cli.training.imports import IMAGENET, imagenet_version
from service.factory import decode_limits
from service.settings import Settings, load_settings

Recipe = Annotated[
    str | None,
    typer.Option(help="small, paper, original, or a .toml file.", show_default="small", autocompletion=complete_recipe),
]
Parent = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="Fine-tune: start from the weights of a version (solar:1), a run (solar), or imagenet (downloaded once).",
        show_default=False,
        autocompletion=complete_run_or_model,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of weights, order, crops and dropout.", show_default="0, or that of the run"),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        min=0.05,
        help="Time for training: chooses the number of epochs. Reading the images is not included.",
        show_default="about 24,000 images seen",
    ),
]


SourceArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="SOURCE",
        help="Class folders, a table (CSV, JSON Lines, Parquet), an archive of one, or shards.",
        show_default=False,
    ),
]


def train(
    source: SourceArgument = None,
    *,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the run, and of the model when it is exported.",
            show_default="the name of SOURCE",
            autocompletion=complete_run,
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="SOURCE", help="The same as SOURCE.", show_default=False)] = None,
    val_share: ValShare = 0.2,
    recipe: Recipe = None,
    changes: Changes = None,
    seed: Seed = None,
    parent: Parent = None,
    minutes: Minutes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the newest run of this name.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Resume even if the images changed.")] = False,
    memory_budget: MemoryBudget = 2048,
    workers: Workers = None,
    device: Device = None,
    towers: Annotated[
        bool, typer.Option("--towers", help="Train with two torchrun processes, one tower each, as in the paper.")
    ] = False,
    experiment: Annotated[
        bool, typer.Option("--experiment", help="Train a net that cannot be served, such as one with fewer neurons.")
    ] = False,
    home: Home = None,
) -> None:
    """Train a net; Ctrl-C stops it with a checkpoint, and --resume continues with bit-identical results."""
    from model_store.training.data.split import SplitRule  # noqa: PLC0415 - torch
    from model_store.training.train import Request, run_command  # noqa: PLC0415

    settings = load_settings(home=home, device=device)
    _check_first(settings, resume=resume)
    source = source or data
    request = Request(
        home=settings.home,
        name=name or _default_name(source, resume=resume),
        data=None if source is None else data_folder(source, settings.home),
        recipe=recipe,
        settings=changes or (),
        seed=seed,
        parent=imagenet_version(settings) if parent == IMAGENET else parent,
        minutes=minutes,
        resume=resume,
        force=force,
        memory_budget=memory_budget << 20,
        workers=workers,
        device=settings.device,
        towers=towers,
        experiment=experiment,
        rule=SplitRule(val_share),
        limits=decode_limits(settings),
    )
    raise typer.Exit(run_command(request, os.environ))


def _check_first(settings: Settings, *, resume: bool) -> None:
    """Raise DeviceUnavailableError or an error of the home before an archive is unpacked or weights are downloaded."""
    from model_store.training.device import training_device  # noqa: PLC0415
    from model_store.training.runs.resuming import require_space  # noqa: PLC0415

    training_device(settings.device)
    if not resume and _is_first_process():
        require_space(settings.home / "runs", 0)


def _default_name(source: Path | None, *, resume: bool) -> str:
    """Return the name of a folder, or of an archive or table without its endings, and print it."""
    if source is None:
        if resume:
            raise typer.BadParameter("give the name of the run to resume, or its SOURCE.", param_hint="--name")
        from model_store.training.train import NO_DATA  # noqa: PLC0415 - torch

        raise DatasetError(NO_DATA)
    path = source.expanduser().resolve()
    name = model_name_of(path.name if path.is_dir() else path.name.partition(".")[0]) or "model"
    if _is_first_process():
        console.say(f"The run and its model are named {name}. Another name can be given with --name.")
    return name


def _is_first_process() -> bool:
    """Return whether this is the first process of torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"
