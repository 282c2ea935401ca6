"""`fc7 evaluate` and `fc7 export`: how often a net is wrong, and a run made into a version that can be served.

Does not: import torch unless one of its commands runs; the serving installation has no torch, and says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model_store.errors import CheckpointError, DatasetError
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from service.cli.extras import training_extra
from service.factory import runner_options
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model_store.training.evaluate import Evaluation
    from model_store.training.paper.report import Net

_MOST_LISTED = 20
_WIDEST_CONFUSION = 12  # classes; a larger table does not fit a terminal

Home = Annotated[Path | None, typer.Option(help="Folder of all state [FC7_HOME].", show_default=False)]
Split = Annotated[str, typer.Option(help="Which split: DIR/SPLIT/<class>/*.")]
Data = Annotated[Path | None, typer.Option(metavar="DIR", help="Class folders; by default those of the run.")]


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="A run (solar) or version (solar:1); several are averaged.")
    ],
    *,
    data: Data = None,
    split: Split = "val",
    views: Annotated[int, typer.Option(help="1 (the centre) or 10 (the paper's, averaged).")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here.")] = None,
    home: Home = None,
) -> None:
    """Print top-1 and top-5 error, errors per class, and which class is taken for which."""
    begin(views)
    with training_extra():
        from model_store.training.evaluate import SplitImages  # noqa: PLC0415 - torch
        from model_store.training.evaluate import evaluate as evaluate_images  # noqa: PLC0415
    settings = load_settings(home=home)
    predictors, data_of_run = predictors_of(models, settings)
    folder = data or data_of_run
    if folder is None:
        raise DatasetError(f"which images? A published version does not hold any: fc7 evaluate {models[0]} --data DIR")
    images = SplitImages(folder, split)
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=len(images))
        result = evaluate_images(
            predictors, images, view_count=views, progress=lambda more: bar.update(task, advance=more)
        )
        bar.update(task, completed=len(images))
    _print(result)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name (its newest), folder's name, or path.")],
    *,
    name: Annotated[str | None, typer.Option(help="The model's name; the run's by default.")] = None,
    data: Data = None,
    split: Split = "val",
    views: Annotated[int, typer.Option(help="Views of the errors in the manifest: 1, or 10 beside it.")] = 1,
    activate: Annotated[
        bool | None,
        typer.Option(
            "--activate/--no-activate", help="Serve it from now on; by default if none is.", show_default=False
        ),
    ] = None,
    home: Home = None,
) -> None:
    """Publish a trained run: the served graph, compared with torch on photographs, its errors and its report."""
    begin(views)
    with training_extra():
        from model_store.training.export.publish import export_run  # noqa: PLC0415 - torch
        from model_store.training.runs.run import find_run, load_run  # noqa: PLC0415
    settings = load_settings(home=home)
    console = Console(soft_wrap=True, highlight=False)
    store = ModelStore(settings.home)
    trained = load_run(find_run(settings.home, run))
    if not trained.finished:
        console.print(
            f"[yellow]{escape(str(trained.path))} is not finished[/]: these are the weights of its last checkpoint."
        )
    with progress_bar() as bar:
        task = bar.add_task("", total=None)
        exported = export_run(
            trained,
            store,
            name=name,
            data=data,
            split=split,
            view_counts=(1,) if views == 1 else (1, views),
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )
    artifact = exported.artifact
    _print_skipped(exported.evaluations[-1])
    for result in exported.evaluations:
        console.print(_errors(result))
    console.print(
        f"Compared with torch on {exported.parity.images} photographs: probabilities differ by at most "
        f"{exported.parity.probabilities:.1e}, fc7 by {exported.parity.fc7:.1e} of its largest value."
    )
    console.print(
        f"[green]Published {artifact.id}[/] in {escape(str(artifact.path))}; report/ has curves, confusion and kernels."
    )
    if activate or (activate is None and store.active() is None):
        store.activate(artifact.name, artifact.version)
        console.print(f"{artifact.id} is the active version. Next: fc7 index build DIR, then fc7 serve")
    else:
        console.print(f"It is not the active version. Next: fc7 models activate {artifact.id}")


def predictors_of(models: Sequence[str], settings: Settings) -> tuple[list[Net], Path | None]:
    """Return what to evaluate, and the data folder of the first run among it."""
    from model_store.training.evaluate import RunnerPredictor, TorchPredictor  # noqa: PLC0415 - torch
    from model_store.training.runs.run import find_run, load_run  # noqa: PLC0415

    store = ModelStore(settings.home)
    options = runner_options(settings, batches=True)
    predictors: list[Net] = []
    data = None
    for model in models:
        run = None if ":" in model else _run_or_none(model, settings.home, store, find_run)
        if run is None:
            predictors.append(RunnerPredictor(Runner(store.resolve(model), options)))
            continue
        trained = load_run(run)
        predictors.append(TorchPredictor(run.name, trained.classes, trained.network, trained.mean))
        data = data or Path(trained.info.data)
    return predictors, data


def _run_or_none(model: str, home: Path, store: ModelStore, find: Callable[[Path, str], Path]) -> Path | None:
    """Return the run's folder, or None when there is no such run but a version of that name. Raises CheckpointError."""
    try:
        return find(home, model)
    except CheckpointError:
        if any(artifact.name == model for artifact in store.list()):
            return None
        raise


def begin(views: int) -> None:
    """Keep standard output for answers, and refuse a number of views that the paper does not know."""
    # Standard output is for answers: what the runner logs when it loads stays away from it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if views not in (1, 10):
        raise typer.BadParameter(f"views must be 1 or 10, but is {views}", param_hint="--views")


def progress_bar() -> Progress:
    """Return a bar on standard error that goes away when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _errors(result: Evaluation) -> str:
    """Return the errors in one line."""
    return (
        f"top-1 error [bold]{result.top1_error:.1%}[/], top-5 error [bold]{result.top5_error:.1%}[/] "
        f"({result.views} view{'s' if result.views > 1 else ''}; {result.seen} images of {escape(result.data)}, "
        f"{len(result.skipped)} skipped; always the most frequent class: {result.majority_error:.1%})"
    )


def _print_skipped(result: Evaluation) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for skipped in result.skipped[:_MOST_LISTED]:
        console.print(f"skipped {skipped.path}: {skipped.reason}", markup=False)
    if len(result.skipped) > _MOST_LISTED:
        console.print(f"... and {len(result.skipped) - _MOST_LISTED} more")


def _print(result: Evaluation) -> None:
    console = Console(highlight=False, soft_wrap=True)
    _print_skipped(result)
    console.print(f"{' + '.join(result.models)}: {_errors(result)}")
    table = Table("class", title="errors by class", title_justify="left")
    for heading in ("images", "top-1 error", "top-5 error"):
        table.add_column(heading, justify="right")
    for entry in result.per_class():
        errors = ["-" if error is None else f"{error:.1%}" for error in (entry.top1_error, entry.top5_error)]
        table.add_row(escape(entry.label), str(entry.images), *errors)
    console.print(table)
    if len(result.labels) <= _WIDEST_CONFUSION:
        console.print(_confusion(result))
    else:
        console.print(f"The confusion table of {len(result.labels)} classes is too wide to print: --json FILE has it.")


def _confusion(result: Evaluation) -> Table:
    """Return the confusion table: a row a true class, a column a predicted one, headed by its row's number."""
    table = Table(
        "true class", title="images by predicted class (columns are numbered as the rows)", title_justify="left"
    )
    for number in range(1, len(result.labels) + 1):
        table.add_column(str(number), justify="right")
    for index, label in enumerate(result.labels):
        counts = [str(count) if count else "·" for count in result.confusion[index]]
        counts[index] = f"[bold]{counts[index]}[/]"
        table.add_row(f"{index + 1} {escape(label)}", *counts)
    return table
