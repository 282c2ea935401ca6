"""The training command: `python -m model_store.training.train`, and the implementation of `fc7 train`.

Guarantees: the first Ctrl-C, SIGTERM or SIGHUP (a closed terminal) stops the run with a checkpoint after the current
step, the second one immediately without a checkpoint. The exit code is 0 if the run is finished, 130 if it was stopped.
torch uses no more threads than the process has cores, and memory that cannot be allocated is an error in words.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from model_store.classes.figures import Figures
from model_store.decoder.limits import DecodeLimits
from model_store.errors import CheckpointError, DatasetError, Fc7Error, RecipeError
from model_store.manifest import FEATURES, check_name
from model_store.training.data.split import SplitRule
from model_store.training.device import keep_freed_memory, limit_threads, out_of_memory_in_words
from model_store.training.distributed.group import Group, join_group
from model_store.training.loop import DEFAULT_MEMORY_BUDGET, Resources, resume, train
from model_store.training.nets.alexnet import Architecture
from model_store.training.parents import find_parent
from model_store.training.recipe import load_recipe
from model_store.training.reporting import Reporter, TerminalReporter
from model_store.training.runs.fine_tuning import child_architecture
from model_store.training.runs.resuming import Changes
from model_store.training.runs.run import find_run
from model_store.training.signals import stop_on_signals
from model_store.training.trainer import Result

STOPPED: Final = 130
_MOST_CLASSES: Final = 20  # listed in the summary, those with the lowest recall first
DEFAULT_RECIPE: Final = "small"
NO_DATA: Final = (
    "A data set is required: fc7 train DIR, with one folder per class (DIR/<class>/*), or fc7 train FILE.csv"
)


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the training command."""

    home: Path
    name: str
    data: Path | None = None  # None: the data of the resumed run
    recipe: str | None = None  # None: `small`, or the recipe of the resumed run
    settings: Sequence[str] = ()  # key=value changes to the recipe
    seed: int | None = None  # None: 0, or the seed of the resumed run
    parent: str | None = None  # version or run to start from
    minutes: float | None = None  # time for training; None: the recipe's epochs
    resume: bool = False
    force: bool = False
    memory_budget: int = DEFAULT_MEMORY_BUDGET  # bytes
    workers: int | None = None
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    towers: bool = False
    experiment: bool = False  # the net may be one that cannot be served
    rule: SplitRule | None = None  # how images are chosen for validation, if there are none
    limits: DecodeLimits | None = None  # of decoding


def run_command(request: Request, environment: Mapping[str, str] | None = None) -> int:
    """Train or resume with progress on the terminal, and return the exit code. Raises as `train` and `resume` do.

    environment: variables of the process, in which torchrun describes the other processes. None: a single process.
    """
    limit_threads()
    with (
        join_group(environment or {}, request.device) as group,
        terminal(quiet=not group.first) as (reporter, stop),
        out_of_memory_in_words(),
    ):
        result = _run(request, group, reporter, stop)
    if not result.finished:
        reporter.note(
            f"Stopped. The checkpoint is in {result.run}. To continue, run: fc7 train --resume --name {request.name}"
        )
        return STOPPED
    reporter.note(f"Finished: {result.run}")
    if result.figures is not None:
        _report(result.figures, reporter)
    else:
        reporter.note(
            "The figures of this run were not recorded, because an older version of fc7 trained it. fc7 evaluate "
            "measures them."
        )
    reporter.note(f"Next: fc7 evaluate {request.name}, then fc7 export {request.name}")
    return 0


def _report(figures: Figures, reporter: Reporter) -> None:
    """Show the figures of the final weights, also for each class, and what to try if they are too weak."""
    reporter.note(f"Validation: {figures.summary()}.")
    classes = [entry for entry in figures.per_class() if entry.images]
    classes.sort(key=lambda entry: entry.recall or 0.0)
    shown = [
        f"{entry.label} {entry.recall or 0.0:.0%} of {entry.images} "
        f"({'-' if entry.precision is None else f'{entry.precision:.0%}'})"
        for entry in classes[:_MOST_CLASSES]
    ]
    if len(classes) > _MOST_CLASSES:
        shown.append(f"and {len(classes) - _MOST_CLASSES} more")
    reporter.note(f"Recall (and precision) by class: {'; '.join(shown)}")
    if not figures.better_than_baseline:
        reporter.warn(
            "The net is no better than always predicting the same class. Train with more images, train longer "
            "(--minutes), or start from weights that were trained on ImageNet (--from imagenet)."
        )


def _run(request: Request, group: Group, reporter: Reporter, stop: threading.Event) -> Result:
    resources = Resources(request.memory_budget, request.workers, group, request.towers, request.limits)
    if request.resume:
        if request.minutes is not None:
            raise CheckpointError("--minutes applies to a new run only. A resumed run has the epochs of its start.")
        if request.parent is not None:
            raise CheckpointError("A resumed run continues from its own checkpoint. Use either --resume or --from.")
        run: Path = group.broadcast(find_run(request.home, request.name) if group.first else None)
        recipe = load_recipe(request.recipe) if request.recipe is not None else None
        return resume(
            run,
            data=request.data,
            rule=request.rule,
            changes=Changes(recipe, request.settings, request.seed),
            force=request.force,
            find_parent=partial(find_parent, request.home),
            resources=resources,
            reporter=reporter,
            stop=stop,
        )
    recipe = load_recipe(request.recipe or DEFAULT_RECIPE).with_settings(request.settings)
    if request.data is None:
        raise DatasetError(NO_DATA)
    parent = None
    if request.parent:
        # Other machines do not need FC7_HOME, and only one process may download public weights.
        parent = group.broadcast(find_parent(request.home, request.parent, reporter.note) if group.first else None)
    if not request.experiment:
        _require_servable(child_architecture(parent, recipe, 1) if parent else recipe.architecture(1))
    return train(
        request.data.expanduser(),
        recipe,
        home=request.home,
        name=check_name(request.name),
        seed=request.seed or 0,
        rule=request.rule,
        parent=parent,
        minutes=request.minutes,
        resources=resources,
        reporter=reporter,
        stop=stop,
    )


def _require_servable(architecture: Architecture) -> None:
    """Raise RecipeError if a version of this net could not be published."""
    if architecture.features != FEATURES:
        raise RecipeError(
            f"The net would have {architecture.features} neurons in fc7, but a version that can be served requires "
            f"{FEATURES}. Train with width=1, or add --experiment if the net does not have to be exported."
        )


@contextmanager
def terminal(*, quiet: bool = False) -> Iterator[tuple[Reporter, threading.Event]]:
    """Yield a reporter with progress bars, and a stop event, which the first Ctrl-C or SIGTERM sets.

    quiet: show nothing, because another process shows the progress.
    """
    keep_freed_memory()
    message = "Stopping after this step. Press Ctrl-C again to stop immediately, without a checkpoint."
    with (
        nullcontext(Reporter()) if quiet else TerminalReporter() as reporter,
        stop_on_signals(lambda: reporter.note(message)) as stop,
    ):
        yield reporter, stop


def mebibytes(text: str) -> int:
    """Parse a number of MiB into bytes."""
    return int(text) << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `python -m model_store.training.train`, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m model_store.training.train", description="Train a net.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="class folders, a table, or shards")
    parser.add_argument("--recipe", help="name or .toml file of a recipe (default: small)")
    parser.add_argument("--name", required=True, help="name of the run")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe"
    )
    parser.add_argument("--seed", type=int, help="seed of all random numbers (default: 0)")
    parser.add_argument("--from", dest="parent", metavar="MODEL", help="start from the weights of a version or run")
    parser.add_argument("--minutes", type=float, help="time for training, which chooses the number of epochs")
    parser.add_argument("--resume", action="store_true", help="resume the newest run with this name")
    parser.add_argument("--force", action="store_true", help="resume even if the images changed")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("FC7_HOME") or "var"), help="[FC7_HOME]")
    parser.add_argument(
        "--memory-budget",
        type=mebibytes,
        default=DEFAULT_MEMORY_BUDGET,
        metavar="MIB",
        help=f"memory for prepared images (default: {DEFAULT_MEMORY_BUDGET >> 20})",
    )
    parser.add_argument("--workers", type=int, help="number of decoding threads (default: one per core)")
    parser.add_argument(
        "--device",
        default=os.environ.get("FC7_DEVICE") or "auto",
        help="auto (CUDA if available), cpu, cuda or cuda:N [FC7_DEVICE]",
    )
    parser.add_argument("--towers", action="store_true", help="train one tower in each of two processes")
    parser.add_argument("--experiment", action="store_true", help="train a net that cannot be served")
    request = Request(**vars(parser.parse_args(arguments)))
    try:
        return run_command(request, os.environ)
    except Fc7Error as error:
        Console(stderr=True, soft_wrap=True).print("[bold red]error:[/]", escape(str(error)), highlight=False)
        return 1
    except KeyboardInterrupt:
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
