"""`fc7 train`: train a net on class folders or shards, or resume an interrupted run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from service.cli.completion import complete_recipe, complete_run, complete_run_or_model
from service.cli.options import Changes, Device, Home, MemoryBudget, Workers
from service.cli.training.imports import IMAGENET, imagenet_version
from service.settings import load_settings

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


def train(
    *,
    name: Annotated[
        str, typer.Option(help="Name of the run, and of the model when it is exported.", autocompletion=complete_run)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Class folders DIR/{train,val}/<class>/*, or shards of fc7 data prepare.",
            show_default=False,
        ),
    ] = None,
    recipe: Recipe = None,
    changes: Changes = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of weights, order, crops and dropout.", show_default="0, or that of the run"),
    ] = None,
    parent: Parent = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            help="Time for training: chooses the number of epochs. Reading the images is not included.",
            show_default="about 24,000 images seen",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the newest run of this name.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Resume even if the images changed.")] = False,
    memory_budget: MemoryBudget = 2048,
    workers: Workers = None,
    device: Device = None,
    towers: Annotated[
        bool, typer.Option("--towers", help="Train with two torchrun processes, one tower each, as in the paper.")
    ] = False,
    home: Home = None,
) -> None:
    """Train a net; Ctrl-C stops it with a checkpoint, and --resume continues with bit-identical results."""
    from model_store.training.train import Request, run_command  # noqa: PLC0415 - torch

    settings = load_settings(home=home, device=device)
    request = Request(
        home=settings.home,
        name=name,
        data=data,
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
    )
    raise typer.Exit(run_command(request, os.environ))
