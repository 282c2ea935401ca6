"""Publish a trained run as a version: write the served graph, compare it with torch, evaluate it, write its report.

Guarantees: the graph's outputs on real images are compared with the trained net in torch. The errors in the manifest
are those of the graph, run exactly as it will be served; only the temperature of the probabilities is, for each half of
the images, that of the other half. If any step fails, nothing is published and no file remains.
Out of scope: training; choosing which version is served.
References: the paper, section 4.1 (one and ten views).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.decoder.limits import DecodeLimits
from model_store.durable import sha256_of
from model_store.errors import CheckpointError
from model_store.image import views
from model_store.manifest import FEATURES, FULL, MODEL_FILE, REPORT_FOLDER, Manifest, ManifestDraft, class_labels
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore, entries_of
from model_store.training.data.split import run_data
from model_store.training.errors import ParityError
from model_store.training.evaluate import (
    Evaluation,
    Observer,
    Predictor,
    RunnerPredictor,
    SplitImages,
    TorchPredictor,
    evaluate,
)
from model_store.training.export import report
from model_store.training.export.agreement import measure_bf16
from model_store.training.export.calibration import Calibration, CrossFitted, add_temperature, fit_calibration
from model_store.training.export.evaluation_errors import Errors
from model_store.training.export.graph import OPSET, producer
from model_store.training.export.novelty import NoveltyBuilder, training_images
from model_store.training.export.served_graph import write_served_graph
from model_store.training.nets.alexnet import Conv
from model_store.training.runs.run import TrainedRun

PROBABILITIES_LIMIT: Final = 1e-5  # largest allowed absolute difference
FC7_LIMIT: Final = 1e-4  # largest allowed difference as a share of the largest value, as fc7 has no fixed scale
PARITY_BATCHES: Final = (1, 3, 8, 20)  # batch sizes of the comparison

Progress = Callable[[str, int, int], None]  # (step, done, total)


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences between the graph's outputs and the trained net's over `images` images.

    probabilities: absolute difference. fc7: difference as a share of the largest fc7 value.
    """

    images: int
    probabilities: float
    fc7: float


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A published version with its parity and one evaluation for each number of views.

    has_novelty: whether the version has a reference for novelty. It has none without readable training images.
    calibration: None if none was asked for.
    """

    artifact: Artifact
    parity: Parity
    evaluations: tuple[Evaluation, ...]
    has_novelty: bool
    calibration: Calibration | None = None


def export_run(
    run: TrainedRun,
    store: ModelStore,
    *,
    name: str | None = None,
    data: Path | None = None,
    split: str = "val",
    view_counts: Sequence[int] = (1,),
    calibrate: bool | None = None,
    limits: DecodeLimits | None = None,
    progress: Progress = lambda *_: None,
) -> ExportResult:
    """Publish `run` as the next version of the model `name` (default: the name of the run).

    data: the data set whose `split` has the images for the parity check and the evaluation (default: the run's data).
    The training images of the run, or else those of `data`, are the reference for novelty. limits: of decoding.
    view_counts: 1, 10 or both. The manifest's `top1_error` and `top5_error` are those of the last one.
    calibrate: whether to fit a temperature to the images of the evaluation (default: as the run's recipe says).
    Raises ParityError, DatasetError, CheckpointError if the net cannot be served, PublishError and ModelNameError.
    """
    draft = _draft(run, name)
    own_data = run_data(run.path, run.info)
    images = SplitImages(own_data if data is None else data, split, limits)
    training = training_images([own_data, *([] if data is None else [data])], images, limits)
    with store.staging(draft.name) as staged:
        progress("writing the graph", 0, 1)
        write_served_graph(run.network, run.statistics.mean, staged)
        calibration = None
        if run.info.recipe.calibrate if calibrate is None else calibrate:
            draft, calibration = _calibrated(staged, draft, images, progress)
        temperature = calibration.temperature if calibration else 1.0
        trained = TorchPredictor(run.path.name, run.info.classes, run.network, run.statistics.mean, temperature)
        with staged_runner(staged, draft) as runner:
            progress("comparing with torch", 0, 1)
            parity = check_parity(runner, trained, images.sample(sum(PARITY_BATCHES)))
            step = partial(progress, "computing the reference for novelty")
            novelty = NoveltyBuilder(runner, training, step, views=min(view_counts))
            errors = {count: Errors() for count in view_counts}
            evaluations = tuple(
                evaluate_with_progress(
                    CrossFitted.wrap(novelty.predictor(count), calibration, count), images, count, progress, found.add
                )
                for count, found in errors.items()
            )
            names = tuple(images.names)
            measured = novelty.write(staged)
        bf16 = measure_bf16(staged_version(staged, draft), images, partial(progress, "comparing bf16 with f32"))
        optional = {"calibration": calibration and calibration.to_dict(), "bf16": bf16}
        metrics = _metrics(run, split, parity, evaluations) | measured | {k: v for k, v in optional.items() if v}
        draft = draft.model_copy(update={"metrics": metrics})
        progress("publishing", 0, 1)
        write_report(staged / REPORT_FOLDER, run, draft, evaluations[-1])
        title = f"{draft.name}: the worst errors on {evaluations[-1].seen:,} images"
        errors[view_counts[-1]].write(staged / REPORT_FOLDER, run.info.classes, names, title)
        published = store.publish(staged, draft)
        return ExportResult(published, parity, evaluations, has_novelty=bool(measured), calibration=calibration)


def _draft(run: TrainedRun, name: str | None) -> ManifestDraft:
    """Return what is known of the manifest before anything is measured. Raises CheckpointError for another fc7."""
    neurons = run.network.fc8.in_features
    if neurons != FEATURES:
        raise CheckpointError(
            f"{run.path} has {neurons} neurons in fc7, but a served version requires {FEATURES}. "
            "Train with --set width=1 to serve the net."
        )
    return ManifestDraft(
        name=name or run.info.name,
        architecture=run.info.architecture.name,
        classes=class_labels(run.info.classes),
        recipe=run.info.recipe.to_dict() | {"architecture": run.info.architecture.to_dict(), "parent": run.info.parent},
        opset=OPSET,
        producer=producer(),
        parent_run=run.path.resolve().name,
    )


def _calibrated(
    staged: Path, draft: ManifestDraft, images: SplitImages, progress: Progress
) -> tuple[ManifestDraft, Calibration]:
    """Fit a temperature to `images`, and add it to the staged graphs. fc7 keeps its fingerprint."""
    seen: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []

    def keep(_pixels: NDArray[np.uint8], truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> None:
        seen.append((probabilities, truth))

    def calibrating(_step: str, done: int, total: int) -> None:
        progress("calibrating", done, total)

    with staged_runner(staged, draft) as runner:
        evaluate_with_progress(RunnerPredictor(runner), images, 1, calibrating, keep)
    probabilities, truth = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    calibration = fit_calibration(probabilities, truth)
    if calibration.temperature == 1:
        return draft, calibration
    base = sha256_of(staged / MODEL_FILE)
    add_temperature(staged, calibration.temperature)
    return draft.model_copy(update={"base_graphs": {FULL: base}}), calibration


def staged_version(staged: Path, draft: ManifestDraft) -> Artifact:
    """Return the staged folder as a version, so that the Runner that will serve it can run it before publication."""
    manifest = Manifest.complete(draft, version=1, created=datetime.now(UTC), files=entries_of(staged))
    return Artifact(staged, manifest, verified=True)


def staged_runner(staged: Path, draft: ManifestDraft) -> closing[Runner]:
    """Load the staged version on the CPU, in f32. Use the result as a context manager."""
    return closing(Runner(staged_version(staged, draft), RunnerOptions(device="cpu", arithmetic="f32")))


def check_parity(runner: Runner, trained: TorchPredictor, images: NDArray[np.uint8]) -> Parity:
    """Compare the graph with the trained net on `images`, uint8 [n, 256, 256, 3], in batches of several sizes.

    Raises ParityError if probabilities or fc7 exceed their limit or are not finite, in two attempts.
    """
    try:
        return _compare(runner, trained, images)
    except ParityError:
        # A wrong graph fails every time. On an overloaded machine, one comparison in five was once off by 3e-5.
        return _compare(runner, trained, images)


def _compare(runner: Runner, trained: TorchPredictor, images: NDArray[np.uint8]) -> Parity:
    rows, start, batches = views(images), 0, itertools.cycle(PARITY_BATCHES)
    differences: list[tuple[float, float]] = []
    while start < len(rows):
        batch = rows[start : start + next(batches)]
        probabilities, fc7 = trained.both(batch)
        largest = max(float(np.abs(fc7).max()), float(np.finfo(np.float32).tiny))
        outputs = runner.run(batch)
        difference = float(np.abs(outputs.probabilities - probabilities).max())
        differences.append((difference, float(np.abs(outputs.fc7 - fc7).max()) / largest))
        start += len(batch)
    # NumPy's maximum keeps NaN, unlike Python's, and `not x <= limit` is true for NaN.
    by_probabilities, by_fc7 = (float(value) for value in np.max(differences, axis=0))
    if not by_probabilities <= PROBABILITIES_LIMIT:
        raise ParityError(by_probabilities, PROBABILITIES_LIMIT)
    if not by_fc7 <= FC7_LIMIT:
        raise ParityError(by_fc7, FC7_LIMIT, "fc7, as a share of its largest value")
    return Parity(len(rows), by_probabilities, by_fc7)


def evaluate_with_progress(
    predictor: Predictor,
    images: SplitImages,
    view_count: int,
    progress: Progress,
    observe: Observer = lambda *_: None,
) -> Evaluation:
    """Evaluate one net and report the number of images done so far. observe, errors: as of `evaluate`."""
    step, done = f"evaluating ({views_text(view_count)})", 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(step, done, len(images))

    return evaluate([predictor], images, view_count=view_count, progress=count, observe=observe)


def write_report(folder: Path, run: TrainedRun, draft: ManifestDraft, evaluation: Evaluation) -> None:
    """Write the version's `report/`: metrics.json, confusion.csv and the charts. Raises OSError."""
    folder.mkdir()
    errors = f"top-1 error {evaluation.top1_error:.1%} ({views_text(evaluation.views)})"
    report.write_json(folder / "metrics.json", {**draft.metrics, **evaluation.to_dict()})
    report.write_confusion_table(folder, evaluation.labels, evaluation.confusion)
    report.draw_confusion(
        folder, evaluation.labels, evaluation.confusion, f"{draft.name}: {evaluation.seen:,} images, {errors}"
    )
    report.draw_reliability(folder, evaluation.figures, f"{draft.name}: calibration on {evaluation.seen:,} images")
    curves = report.curves_of(run.metrics)
    report.draw_curves(folder, curves, f"{draft.name}: recipe {run.info.recipe.name}, {run.info.train_images:,} images")
    convolutions = [layer for layer in run.info.architecture.layers if isinstance(layer, Conv)]
    if convolutions:
        first = convolutions[0]
        kernels = run.network.get_parameter(f"{first.name}.weight").detach().numpy()
        title = f"{draft.name}: the {first.kernels} kernels of {first.name}, {first.size}x{first.size}x3"
        report.draw_conv1(folder, kernels, title, towers=max(layer.towers for layer in convolutions))


def views_text(count: int) -> str:
    """Return "1 view" or "10 views"."""
    return f"{count} view{'s' if count > 1 else ''}"


def _metrics(run: TrainedRun, split: str, parity: Parity, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the manifest's metrics; errors are shares from 0 to 1."""
    main = evaluations[-1]
    return {
        "top5_error": main.top5_error,
        **main.figures.to_dict(),
        "views": main.views,
        "by_views": {
            str(result.views): {"top1_error": result.top1_error, "top5_error": result.top5_error}
            for result in evaluations
        },
        "images": main.seen,
        "images_skipped": len(main.skipped),
        "data": main.data,
        "split": split,
        "data_sha256": main.data_sha256,
        "training_data_sha256": run.info.data_hash,
        "training_images": run.info.train_images,
        "run_finished": run.finished,
        "parity": asdict(parity),
    }
