"""The command that trains, for `fc7 train` and `python -m model_store.training.train` alike.

Promises: the first Ctrl-C (or SIGTERM) ends the run after the step at hand with a checkpoint, the second at once; the
exit code is 0 when the run is finished, 130 when it was stopped; it says what to do next.
Does not: parse typed options for `fc7` (service/cli/training/train.py does).
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console
from rich.markup import escape

from model_store.artifact import check_name
from model_store.errors import CheckpointError, DatasetError, Fc7Error
from model_store.training import device as machine
from model_store.training.distributed.group import Group, joined
from model_store.training.loop import DEFAULT_MEMORY_BUDGET, Resources, Result, resume, train
from model_store.training.parents import find_parent
from model_store.training.recipe import load_recipe
from model_store.training.reporting import Reporter, TerminalReporter
from model_store.training.runs.run import find_run
from model_store.training.signals import stop_on_signals

STOPPED: Final = 130
DEFAULT_RECIPE: Final = "small"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for. recipe None is `small`, or on a resume the run's own; data None is the resumed run's."""

    home: Path
    name: str
    data: Path | None = None
    recipe: str | None = None
    settings: Sequence[str] = ()  # key=value
    seed: int = 0
    parent: str | None = None  # a version or run whose weights it begins with
    resume: bool = False
    force: bool = False
    memory_budget: int = DEFAULT_MEMORY_BUDGET
    workers: int | None = None
    device: str = "auto"
    towers: bool = False


def run_command(request: Request, environment: Mapping[str, str] | None = None) -> int:
    """Train or resume with bars on the terminal; return the exit code. Raises the errors of `train` and `resume`.

    environment: the process's, where torchrun tells who the others are; the first of them shows the bars. None: alone.
    """
    with joined(environment or {}, request.device) as group:
        result = with_terminal(lambda reporter, stop: _run(request, group, reporter, stop), quiet=not group.first)
        reporter = TerminalReporter() if group.first else Reporter()
    if not result.finished:
        reporter.note(f"stopped; the checkpoint is in {result.run}. Go on: fc7 train --resume --name {request.name}")
        return STOPPED
    reporter.note(f"finished: {result.run}")
    if result.val_error is not None:
        reporter.note(f"top-1 error on the validation images: {result.val_error:.1%}")
    reporter.note(f"Next: fc7 evaluate {request.name}, then fc7 export {request.name}")
    return 0


def _run(request: Request, group: Group, reporter: Reporter, stop: threading.Event) -> Result:
    resources = Resources(request.memory_budget, request.workers, group, request.towers)
    recipe = None
    if request.recipe is not None or request.settings or not request.resume:
        recipe = load_recipe(request.recipe or DEFAULT_RECIPE).with_settings(request.settings)
    if request.resume:
        if request.parent is not None:
            raise CheckpointError("a resumed run goes on from its own checkpoint: give --resume or --from, not both")
        run: Path = group.from_first(find_run(request.home, request.name) if group.first else None)
        return resume(
            run,
            data=request.data,
            recipe=recipe,
            force=request.force,
            resources=resources,
            reporter=reporter,
            stop=stop,
        )
    if request.data is None or recipe is None:
        raise DatasetError("which images? fc7 train --data DIR, with DIR/train/<class>/* and DIR/val/<class>/*")
    return train(
        request.data,
        recipe,
        home=request.home,
        name=check_name(request.name),
        seed=request.seed,
        parent=find_parent(request.home, request.parent) if request.parent else None,
        resources=resources,
        reporter=reporter,
        stop=stop,
    )


def with_terminal(work: Callable[[Reporter, threading.Event], T], *, quiet: bool = False) -> T:
    """Do `work` with bars on the terminal, and a stop that the first Ctrl-C or SIGTERM sets; return its result.

    quiet: nothing is shown, as another process shows it.
    """
    machine.keep_memory()
    with ExitStack() as stack:
        reporter = Reporter() if quiet else stack.enter_context(TerminalReporter())
        stop = stack.enter_context(
            stop_on_signals(
                lambda: reporter.note("stopping after this step; once more to stop at once, without a checkpoint")
            )
        )
        return work(reporter, stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments of `python -m model_store.training.train` and run; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_store.training.train", description="Train a net.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="class folders DIR/{train,val}/<class>/*, or shards")
    parser.add_argument("--recipe", help="a recipe's name or .toml file")
    parser.add_argument("--name", required=True, help="the run's name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="parent", metavar="MODEL", help="begin with the weights of a version or run")
    parser.add_argument("--resume", action="store_true", help="go on with the newest run of this name")
    parser.add_argument("--force", action="store_true", help="resume although the images changed")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("FC7_HOME", "var")), help="FC7_HOME")
    parser.add_argument("--memory-budget", type=int, default=DEFAULT_MEMORY_BUDGET >> 20, metavar="MIB")
    parser.add_argument("--workers", type=int, help="threads that decode")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--towers", action="store_true", help="two processes with a tower each, as in the paper")
    given = parser.parse_args(arguments)
    request = Request(
        home=given.home,
        name=given.name,
        data=given.data,
        recipe=given.recipe,
        settings=given.set,
        seed=given.seed,
        parent=given.parent,
        resume=given.resume,
        force=given.force,
        memory_budget=given.memory_budget << 20,
        workers=given.workers,
        device=given.device,
        towers=given.towers,
    )
    try:
        return run_command(request, os.environ)
    except Fc7Error as error:
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", escape(str(error)), highlight=False)
        return 1
    except KeyboardInterrupt:
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
