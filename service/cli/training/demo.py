"""`fc7 demo`: from nothing to a service's worth of state, in the steps that a user takes with images of their own.

Promises: each step that is done is not done again, so a stopped demo goes on where it was; a home that has a model
already is left as it is.
Does not: serve (fc7 serve does), or do anything that the commands that it prints do not.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from model_store.durable import write_atomic
from model_store.store import ModelStore
from service.cli.extras import training_extra
from service.cli.index import commands as index
from service.cli.training import data, evaluate
from service.settings import load_settings

NAME: Final = "solar"
RECIPE: Final = "small"
COMPLETE: Final = "complete"  # the file that says that every step was done


def demo(
    home: Annotated[Path | None, typer.Option(help="Folder of all state [FC7_HOME].", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides weights, order, crops and dropout.")] = 0,
) -> None:
    """Train on photographs of solar cells, export, and index them: once. Then: fc7 serve"""
    console = Console(soft_wrap=True, highlight=False)
    home = load_settings(home=home).home
    folder = home / "demo"
    store = ModelStore(home)
    active = store.active()
    if (folder / COMPLETE).exists() or (active is not None and active.active.name != NAME):
        console.print(f"{home} has a model and is left as it is. Next: fc7 serve", markup=False)
        return

    began = time.monotonic()
    _step(console, f"fc7 data demo {folder}")
    data.demo(folder)
    if not any(artifact.name == NAME for artifact in store.list()):
        _train(console, home, folder, seed)
        _step(console, f"fc7 export {NAME}")
        evaluate.export(NAME, home=home)
    if store.active() is None:
        store.activate(NAME)
    _step(console, f"fc7 index build {folder / 'train'}")
    index.build(str(folder / "train"), home=home)
    write_atomic(folder / COMPLETE, b"")
    console.print(f"Ready after {time.monotonic() - began:.0f} s. Next: fc7 serve")


def _train(console: Console, home: Path, folder: Path, seed: int) -> None:
    """Train, or go on with the run that was stopped."""
    with training_extra():
        from model_store.training.runs.run import can_resume  # noqa: PLC0415
        from model_store.training.train import Request, run_command  # noqa: PLC0415 - torch
    if can_resume(home, NAME):
        _step(console, f"fc7 train --resume --name {NAME}")
        request = Request(home, NAME, resume=True)
    else:
        _step(console, f"fc7 train --data {folder} --recipe {RECIPE} --name {NAME} --seed {seed}")
        request = Request(home, NAME, data=folder, recipe=RECIPE, seed=seed)
    code = run_command(request)
    if code:
        console.print("The same command goes on from here.")
        raise typer.Exit(code)


def _step(console: Console, command: str) -> None:
    console.print(f"\n[bold]$ {command}[/]")
