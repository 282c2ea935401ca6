"""`fc7 evaluate`: measure runs and versions on a labeled data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from model_store.artifact import Artifact
from model_store.errors import DatasetError
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from service.cli import console
from service.cli.completion import complete_run_or_model
from service.cli.data.unpack import data_folder
from service.cli.options import AsJson, Data, Home, Split, Views
from service.factory import decode_limits, runner_options
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model_store.training.evaluate import Evaluation, Predictor

_WIDEST_CONFUSION = 12  # classes; a larger table does not fit a terminal
_MOST_CLASSES = 50  # with more, only the ones with the lowest recall are listed
_WEAKEST = 20


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Runs (solar) or versions (solar:1); the predictions of several are averaged.",
            autocompletion=complete_run_or_model,
        ),
    ],
    *,
    data: Data = None,
    split: Split = "val",
    views: Views = 1,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print the errors beside the baseline, figures of each class, calibration, and the confusion matrix."""
    from model_store.training.evaluate import SplitImages  # noqa: PLC0415 - torch
    from model_store.training.evaluate import evaluate as evaluate_images  # noqa: PLC0415

    settings = load_settings(home=home)
    predictors, folder = load_predictors(models, settings, data, "evaluate")
    images = SplitImages(folder, split, decode_limits(settings))
    with console.ProgressBar("evaluating", "images", total=len(images)) as bar:
        result = evaluate_images(predictors, images, view_count=views, progress=bar.advance)
    console.say_skipped(result.skipped)
    if as_json:
        console.print_json(result.to_dict())
    else:
        _print(result)
        console.next_step(_next_step(settings.home, models[0], result))


def _next_step(home: Path, model: str, result: Evaluation) -> str:
    """Return the command to run after the evaluation of a run or version."""
    from model_store.training.parents import find_run_folder  # noqa: PLC0415 - torch

    report = f"fc7 report {model} --out DIR draws its figures"
    if not result.figures.better_than_baseline:
        return f"fc7 train with more images, longer (--minutes), or from ImageNet's weights (--from imagenet); {report}"
    if find_run_folder(home, model) is not None:
        return f"fc7 export {model} publishes the run; {report}"
    store = ModelStore(home)
    version, active = store.resolve(model), store.active()
    if active is not None and str(active.active) == version.id:
        return f"fc7 index build DIR, then fc7 serve; {report}"
    return f"fc7 models activate {version.id} makes it the active version; {report}"


def load_predictors(
    models: Sequence[str], settings: Settings, data: Path | None, command: str
) -> tuple[list[Predictor], Path]:
    """Return what to evaluate, and the data: `data`, or else that of the first run, or of the first version's run.

    Raises DatasetError if there is none; the message names `command`.
    """
    from model_store.training.data.split import run_data  # noqa: PLC0415
    from model_store.training.device import training_device  # noqa: PLC0415
    from model_store.training.evaluate import RunnerPredictor, TorchPredictor  # noqa: PLC0415 - torch
    from model_store.training.parents import find_run_folder  # noqa: PLC0415
    from model_store.training.runs.run import load_run  # noqa: PLC0415

    store = ModelStore(settings.home)
    options = runner_options(settings)
    predictors: list[Predictor] = []
    of_run: Path | None = None
    of_version: Path | None = None
    for model in models:
        run = find_run_folder(settings.home, model, console.warn)
        if run is None:
            version = store.resolve(model)
            predictors.append(RunnerPredictor(Runner(version, options)))
            of_version = of_version or _known_data(settings.home, version)
            continue
        device, trained = training_device(settings.device), load_run(run)
        network = trained.network.to(device)
        predictors.append(TorchPredictor(run.name, trained.info.classes, network, trained.statistics.mean))
        of_run = of_run or (run_data(run, trained.info) if data is None else None)
    # Unpacked only after all models were loaded.
    data = of_run or of_version if data is None else data_folder(data, settings.home)
    if data is None:
        raise DatasetError(
            f"{models[0]} contains no images, and its run is not in {settings.home / 'runs'}. Give a data set: "
            f"fc7 {command} {models[0]} --data DIR"
        )
    return predictors, data


def _known_data(home: Path, version: Artifact) -> Path | None:
    from model_store.training.parents import version_data  # noqa: PLC0415 - torch

    try:
        return version_data(home, version)
    except DatasetError:
        return None


def errors_line(result: Evaluation) -> str:
    """Return the figures as lines of markup."""
    figures = result.figures
    low, high = (1 - share for share in reversed(figures.top1_interval))
    balanced_low, balanced_high = figures.balanced_interval
    return (
        f"top-1 error [bold]{result.top1_error:.1%}[/] (95 % interval {low:.1%} to {high:.1%}; always predicting the "
        f"most frequent class: {1 - figures.majority_accuracy:.1%}), top-5 error [bold]{result.top5_error:.1%}[/]\n"
        f"balanced accuracy [bold]{figures.balanced_accuracy:.1%}[/] ({balanced_low:.1%} to {balanced_high:.1%}), "
        f"macro F1 {figures.macro_f1:.2f}, expected calibration error {figures.expected_calibration_error:.1%}\n"
        f"{result.views} view{'s' if result.views > 1 else ''}; {result.seen} images of {escape(result.data)}, "
        f"{len(result.skipped)} skipped"
    )


def _print(result: Evaluation) -> None:
    console.show(f"{escape(' + '.join(result.models))}: {errors_line(result)}")
    if not result.figures.better_than_baseline:
        console.warn("The net is no better than always predicting the same class, by these intervals.")
    console.show(_classes(result))
    if len(result.labels) <= _WIDEST_CONFUSION:
        console.show(_confusion(result))
    else:
        console.say(f"The confusion matrix of {len(result.labels)} classes is too wide to print; --json includes it.")


def _classes(result: Evaluation) -> Table:
    rows = list(zip(result.figures.per_class(), result.top5_errors(), strict=True))
    title = "figures by class"
    if len(rows) > _MOST_CLASSES:
        rows = sorted((row for row in rows if row[0].images), key=lambda row: row[0].recall or 0.0)[:_WEAKEST]
        title = f"the {len(rows)} of {len(result.labels):,} classes with the lowest recall; --json includes all"
    table = Table("class", title=title, title_justify="left")
    for heading in ("images", "precision", "recall", "F1", "top-5 error"):
        table.add_column(heading, justify="right")
    for entry, top5 in rows:
        shares = (entry.precision, entry.recall, entry.f1, top5)
        table.add_row(
            escape(entry.label), str(entry.images), *("-" if share is None else f"{share:.1%}" for share in shares)
        )
    return table


def _confusion(result: Evaluation) -> Table:
    """Return the confusion matrix: one row per true class, one column per predicted class, headed by its row number."""
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
