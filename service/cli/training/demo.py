"""`fc7 demo`: train, export and index the demo data with the same commands that a user runs on other images.

Guarantees: finished steps are not repeated, so an interrupted demo resumes; a home that already has a model is not
changed.
Out of scope: serving (`fc7 serve`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import typer

from model_store.durable import write_atomic
from model_store.store import ModelStore
from service.cli import console
from service.cli.data import commands as data
from service.cli.index import commands as index
from service.cli.options import Home, Seed
from service.cli.training import export
from service.settings import Settings, load_settings

COMPLETE: Final = "complete"  # file written after the last step


def demo(home: Home = None, seed: Seed = 0) -> None:
    """Train a model on images of solar cells, export it and index the images; it can be resumed."""
    settings = load_settings(home=home)
    home = settings.home
    folder = home / "demo"
    store = ModelStore(home)
    active = store.active()
    if (folder / COMPLETE).exists() or (active is not None and active.active.name != data.DEMO_NAME):
        console.say(f"{home} already has a model and was not changed.")
        console.next_step("fc7 serve")
        return

    from model_store.training.device import training_device  # noqa: PLC0415 - torch, which serving images do not have

    training_device(settings.device)  # raises before the images are written
    started = time.monotonic()
    _step(f"fc7 data demo {folder}")
    data.demo(folder)
    if not any(artifact.name == data.DEMO_NAME for artifact in store.list()):
        _train(settings, folder, seed)
        _step(f"fc7 export {data.DEMO_NAME}")
        export.export(data.DEMO_NAME, home=home)
    if store.active() is None:
        store.activate(data.DEMO_NAME)
    _step(f"fc7 index build {folder / 'train'}")
    index.build(str(folder / "train"), home=home)
    write_atomic(folder / COMPLETE, b"")
    console.say(f"The demo is ready after {time.monotonic() - started:.0f} s.")
    console.next_step("fc7 serve")


def _train(settings: Settings, folder: Path, seed: int) -> None:
    """Train, or resume an interrupted run."""
    from model_store.training.errors import UnusableRunError  # noqa: PLC0415
    from model_store.training.runs.run import can_resume  # noqa: PLC0415
    from model_store.training.train import Request, run_command  # noqa: PLC0415 - torch

    code = None
    if can_resume(settings.home, data.DEMO_NAME):
        _step(f"fc7 train --resume --name {data.DEMO_NAME}")
        try:
            code = run_command(Request(settings.home, data.DEMO_NAME, resume=True, device=settings.device))
        except UnusableRunError as error:  # for example of an earlier version, which arranged other images
            console.warn(f"The interrupted run cannot be resumed, so the training starts again. {error}")
    if code is None:
        _step(f"{data.demo_training(folder)} --seed {seed}")
        code = run_command(
            Request(
                settings.home,
                data.DEMO_NAME,
                data=folder,
                recipe=data.DEMO_RECIPE,
                settings=data.DEMO_SETTINGS,
                seed=seed,
                device=settings.device,
            )
        )
    if code:
        console.say("Run fc7 demo again to resume.")
        raise typer.Exit(code)


def _step(command: str) -> None:
    console.say(f"\n$ {command}")
