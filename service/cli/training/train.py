"""`fc7 train`: train a net on class folders, or go on with a run that was stopped.

Does not: import torch unless the command runs; the serving installation has no torch, and says so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from service.cli.extras import training_extra
from service.settings import load_settings


def train(
    *,
    name: Annotated[str, typer.Option(help="The run's name, and the model's when it is exported.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Class folders DIR/{train,val}/<class>/*, or shards.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="small, modern, paper, original, or a .toml file [default: small]", show_default=False),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides weights, order, crops and dropout.")] = 0,
    parent: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Fine-tune: begin with the weights of a version (solar:1) or run (solar).",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest run of this name.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Resume although the images changed.")] = False,
    memory_budget: Annotated[
        int, typer.Option(min=0, metavar="MIB", help="Memory for prepared images, 192 KiB each; else decoded again.")
    ] = 2048,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode [default: one a core]", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto (CUDA where it works), cpu, cuda or cuda:1.")] = "auto",
    towers: Annotated[
        bool, typer.Option("--towers", help="Two processes of torchrun have a tower each, as in the paper.")
    ] = False,
    home: Annotated[Path | None, typer.Option(help="Folder of all state [FC7_HOME].", show_default=False)] = None,
) -> None:
    """Train a net. Ctrl-C stops it with a checkpoint, and --resume goes on exactly there."""
    with training_extra():
        from model_store.training.train import Request, run_command  # noqa: PLC0415 - torch
    request = Request(
        home=load_settings(home=home).home,
        name=name,
        data=data,
        recipe=recipe,
        settings=changes or (),
        seed=seed,
        parent=parent,
        resume=resume,
        force=force,
        memory_budget=memory_budget << 20,
        workers=workers,
        device=device,
        towers=towers,
    )
    raise typer.Exit(run_command(request, os.environ))
