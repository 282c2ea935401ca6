"""Turn a trained run into a published version: the served graph, its proof, its report.

Promises: the graph's answers on real photographs are compared with the trained net's in torch, and the errors in the
manifest are those of the graph, run as it will be served; when anything fails, nothing is published or left behind.
Does not: train, choose which version is served.
Source: the paper, section 4.1 (one and ten views).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import (
    FEATURES,
    REPORT_FOLDER,
    Artifact,
    Manifest,
    ManifestDraft,
    class_labels,
)
from model_store.errors import CheckpointError, ParityError
from model_store.image import views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore, entries_of
from model_store.training.evaluate import Evaluation, RunnerPredictor, SplitImages, TorchPredictor, evaluate
from model_store.training.export import report
from model_store.training.export.graph import OPSET, PRODUCER
from model_store.training.export.served_graph import write_served_graph
from model_store.training.nets.alexnet import Conv
from model_store.training.runs.run import TrainedRun

PROBABILITIES_LIMIT: Final = 1e-5  # the largest absolute difference that is allowed
FC7_LIMIT: Final = 1e-4  # the same for fc7, as a share of its largest value: fc7 has no fixed scale
PARITY_BATCHES: Final = (1, 3, 8, 20)  # photographs in each run of the comparison

Progress = Callable[[str, int, int], None]  # (step, done, in all)


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the graph's answers are from the trained net's, over `images` photographs.

    probabilities: largest absolute difference. fc7: the same as a share of the largest fc7 value.
    """

    images: int
    probabilities: float
    fc7: float


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export_run` made, and what it measured on the way: one evaluation for each number of views."""

    artifact: Artifact
    parity: Parity
    evaluations: tuple[Evaluation, ...]


def export_run(
    run: TrainedRun,
    store: ModelStore,
    *,
    name: str | None = None,
    data: Path | None = None,
    split: str = "val",
    view_counts: Sequence[int] = (1,),
    progress: Progress = lambda _step, _done, _total: None,
) -> Exported:
    """Publish `run` as the next version of `name` (the run's own name unless given).

    data: the folder whose `split` has the photographs for parity and errors; the run's own unless given.
    view_counts: 1, 10 or both; the manifest's `top1_error` and `top5_error` are those of the last.
    Raises ParityError, DatasetError, CheckpointError for a net that cannot be served, PublishError, ModelNameError.
    """
    neurons = run.network.fc8.in_features
    if neurons != FEATURES:
        raise CheckpointError(
            f"{run.path} has {neurons} neurons in fc7, and a served version has {FEATURES}: "
            "train with --set width=1 to serve it"
        )
    images = SplitImages(Path(run.info.data) if data is None else data, split)
    draft = ManifestDraft(
        name=name or run.info.name,
        architecture=run.info.architecture.name,
        classes=class_labels(run.classes),
        recipe=run.recipe.to_dict() | {"architecture": run.info.architecture.to_dict(), "parent": run.info.parent},
        opset=OPSET,
        producer=f"{PRODUCER} {version('fc7')}",
        parent_run=run.path.resolve().name,
    )
    with store.staging(draft.name) as staged:
        progress("writing the graph", 0, 1)
        write_served_graph(run.network, run.mean, staged)
        runner = Runner(provisional_version(staged, draft), RunnerOptions(device="cpu", streams=2))
        try:
            progress("comparing with torch", 0, 1)
            parity = check_parity(runner, _torch(run), images.sample(sum(PARITY_BATCHES)))
            evaluations = tuple(_evaluate(runner, images, count, progress) for count in view_counts)
        finally:
            runner.close()
        draft = draft.model_copy(update={"metrics": _metrics(run, split, parity, evaluations)})
        progress("publishing", 0, 1)
        write_report(staged / REPORT_FOLDER, run, draft, evaluations[-1])
        return Exported(store.publish(staged, draft), parity, evaluations)


def check_parity(runner: Runner, trained: TorchPredictor, photographs: NDArray[np.uint8]) -> Parity:
    """Compare the graph with the trained net on `photographs`, uint8 [n, 256, 256, 3], in batches of several sizes.

    With the graph for batches too, where the runner has streams to run it on: returned is the larger difference.
    Raises ParityError when probabilities or fc7 differ by more than the limits, or are not finite, twice.
    """
    try:
        return _compare(runner, trained, photographs)
    except ParityError:
        # A wrong graph is wrong every time. On an overloaded machine one comparison in five was off, by 3e-5, once.
        return _compare(runner, trained, photographs)


def _compare(runner: Runner, trained: TorchPredictor, photographs: NDArray[np.uint8]) -> Parity:
    rows, start, batches = views(photographs), 0, itertools.cycle(PARITY_BATCHES)
    differences: list[tuple[float, float]] = []
    while start < len(rows):
        batch = rows[start : start + next(batches)]
        probabilities, fc7 = trained.both(batch)
        largest = max(float(np.abs(fc7).max()), float(np.finfo(np.float32).tiny))
        for run in (runner.run, runner.run_beside) if runner.streams > 1 else (runner.run,):
            found = run(batch)
            apart = float(np.abs(found.probabilities - probabilities).max())
            differences.append((apart, float(np.abs(found.fc7 - fc7).max()) / largest))
        start += len(batch)
    # numpy's maximum, unlike Python's, keeps NaN; and NaN is not "within the limit".
    by_probabilities, by_fc7 = (float(value) for value in np.max(differences, axis=0))
    if not by_probabilities <= PROBABILITIES_LIMIT:
        raise ParityError(by_probabilities, PROBABILITIES_LIMIT)
    if not by_fc7 <= FC7_LIMIT:
        raise ParityError(by_fc7, FC7_LIMIT, "fc7, as a share of its largest value")
    return Parity(len(rows), by_probabilities, by_fc7)


def write_report(folder: Path, run: TrainedRun, draft: ManifestDraft, evaluation: Evaluation) -> None:
    """Write the version's `report/`: metrics.json, confusion.csv and the pictures. Raises OSError."""
    folder.mkdir()
    errors = f"top-1 error {evaluation.top1_error:.1%} ({_views(evaluation.views)})"
    report.write_metrics(folder, {**draft.metrics, **evaluation.to_dict()})
    report.write_confusion_table(folder, evaluation.labels, evaluation.confusion)
    report.draw_confusion(
        folder, evaluation.labels, evaluation.confusion, f"{draft.name}: {evaluation.seen:,} images, {errors}"
    )
    curves = report.curves_of(run.metrics)
    report.draw_curves(folder, curves, f"{draft.name}: recipe {run.recipe.name}, {run.info.train_images:,} images")
    first = next((layer for layer in run.info.architecture.layers if isinstance(layer, Conv)), None)
    if first is not None:
        kernels = run.network.get_parameter(f"{first.name}.weight").detach().numpy()
        towers = max(layer.towers for layer in run.info.architecture.layers if isinstance(layer, Conv))
        title = f"{draft.name}: the {first.kernels} kernels of {first.name}, {first.size}x{first.size}x3"
        report.draw_conv1(folder, kernels, title, towers=towers)


def _torch(run: TrainedRun) -> TorchPredictor:
    return TorchPredictor(run.path.name, run.classes, run.network, run.mean)


def provisional_version(staged: Path, draft: ManifestDraft) -> Artifact:
    """Return the staged folder as a version, so that it is run by the very Runner that will serve it."""
    manifest = Manifest.complete(draft, version=1, created=datetime.now(UTC), files=entries_of(staged))
    return Artifact(staged, manifest, verified=True)


def _evaluate(runner: Runner, images: SplitImages, view_count: int, progress: Progress) -> Evaluation:
    step, done = f"evaluating ({_views(view_count)})", 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(step, done, len(images))

    return evaluate([RunnerPredictor(runner)], images, view_count=view_count, progress=count)


def _views(count: int) -> str:
    return f"{count} view{'s' if count > 1 else ''}"


def _metrics(run: TrainedRun, split: str, parity: Parity, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the manifest's metrics; errors are shares from 0 to 1."""
    main = evaluations[-1]
    return {
        "top1_error": main.top1_error,
        "top5_error": main.top5_error,
        "views": main.views,
        "by_views": {
            str(result.views): {"top1_error": result.top1_error, "top5_error": result.top5_error}
            for result in evaluations
        },
        "majority_class_error": main.majority_error,
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
