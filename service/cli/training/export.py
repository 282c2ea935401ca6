"""`fc7 export`: publish a trained run as a version that can be served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from model_store.artifact import Artifact
from model_store.errors import NoBetterThanBaselineError
from model_store.novelty.reference import ACCEPTED
from model_store.store import ModelStore, require_better_than_baseline
from service.cli import console
from service.cli.completion import complete_run
from service.cli.data.unpack import data_folder
from service.cli.options import Activate, Data, Force, Home, Split, Views
from service.cli.training.evaluate import errors_line
from service.factory import decode_limits
from service.settings import load_settings

if TYPE_CHECKING:
    from model_store.training.export.calibration import Calibration
    from model_store.training.export.publish import ExportResult


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Name of a run (the newest one is used), name of its folder, or a path.",
            autocompletion=complete_run,
        ),
    ],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default="the run's name")] = None,
    data: Data = None,
    split: Split = "val",
    views: Views = 1,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Fit a temperature to the evaluated images, so that probabilities match the share of correct answers.",
            show_default="as the recipe says; small calibrates",
        ),
    ] = None,
    activate: Activate = None,
    force: Force = False,
    home: Home = None,
) -> None:
    """Publish a trained run as a version, after comparing its graph with torch and measuring its errors.

    With --views 10, the errors with one view and with ten are both measured.
    """
    from model_store.training.export.publish import export_run  # noqa: PLC0415 - torch
    from model_store.training.runs.run import find_trained_run, load_run  # noqa: PLC0415

    settings = load_settings(home=home)
    store = ModelStore(settings.home)
    trained = load_run(find_trained_run(settings.home, run, console.warn))
    if not trained.finished:
        console.warn(f"{trained.path} is not finished. The weights of its last checkpoint are published.")
    with console.ProgressBar() as bar:
        exported = export_run(
            trained,
            store,
            name=name,
            data=None if data is None else data_folder(data, settings.home),
            split=split,
            view_counts=(1,) if views == 1 else (1, views),
            calibrate=calibrate,
            limits=decode_limits(settings),
            progress=bar.step,
        )
    _show(exported)
    activate_or_advise(store, exported.artifact, activate=activate, force=force, run=trained.path.name)


def _show(exported: ExportResult) -> None:
    console.say_skipped(exported.evaluations[-1].skipped)
    for result in exported.evaluations:
        console.show(errors_line(result))
    console.show(
        f"Compared with torch on {exported.parity.images} images: probabilities differ by at most "
        f"{exported.parity.probabilities:.1e}, fc7 by at most {exported.parity.fc7:.1e} of its largest value."
    )
    if exported.calibration is not None:
        console.show(_calibration_line(exported.calibration))
    artifact = exported.artifact
    _show_novelty(artifact, has_novelty=exported.has_novelty)
    console.show(
        f"[green]Published {artifact.id}[/] in {escape(str(artifact.path))}. "
        "The folder report/ has curves, confusion and kernels."
    )


def _calibration_line(calibration: Calibration) -> str:
    from model_store.training.export.calibration import FEWEST_IMAGES  # noqa: PLC0415 - scipy and onnx

    before, after = calibration.before.calibration_error, calibration.after.calibration_error
    if calibration.images < FEWEST_IMAGES:
        return (
            f"The probabilities are not calibrated, because that requires {FEWEST_IMAGES} validation images, and there "
            f"are {calibration.images}."
        )
    if calibration.temperature == 1:
        return (
            f"The temperature of the probabilities is 1: from {calibration.images:,} images, no other one could be "
            "found that is also better on images that it was not fitted to."
        )
    return (
        f"Temperature {calibration.temperature:.2f}, fitted to {calibration.images:,} images: expected calibration "
        f"error with one view {after:.1%} instead of {before:.1%}, each half of the images with the temperature of "
        "the other half."
    )


def _show_novelty(artifact: Artifact, *, has_novelty: bool) -> None:
    if has_novelty:
        novelty = artifact.manifest.metrics["novelty"]
        console.show(
            f"Novelty: {ACCEPTED:.0%} of the {novelty['validation_images']:,} validation images are within "
            f"{novelty['distances'][str(ACCEPTED)]:.1f} of {novelty['neighbor']} of {novelty['training_images']:,} "
            "training images."
        )
    else:
        console.warn(
            "No training images besides the validation images can be read, so this version does not recognize unknown "
            "images. To change that, run fc7 export where the training images are, or give --data a data set with them."
        )


def activate_or_advise(
    store: ModelStore, artifact: Artifact, *, activate: bool | None, force: bool = False, run: str | None = None
) -> None:
    """Activate a new version, by default only if no version is active; print the next step.

    force: also if it is no better than always predicting the same class. run: that it was made from. Raises
    NoBetterThanBaselineError if activation was asked for.
    """
    if not force and activate is not False:
        try:
            require_better_than_baseline(artifact)
        except NoBetterThanBaselineError as error:
            if activate:
                raise
            console.warn(error)
            console.next_step(f"fc7 evaluate {run or f'{artifact.id} --data DIR'} shows the errors by class")
            return
    if activate or (activate is None and store.active() is None):
        store.activate(artifact.name, artifact.version)
        console.show(f"{artifact.id} is the active version.", markup=False)
        console.next_step("fc7 index build DIR, then fc7 serve")
    else:
        console.show(f"{artifact.id} is not the active version.", markup=False)
        console.next_step(f"fc7 models activate {artifact.id}")
