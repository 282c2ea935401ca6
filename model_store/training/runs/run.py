"""The folder of a training run: its files, and how to write, find and read them.

    run.json                 recipe, architecture, classes, data folder and hash, seed, parent, versions
    statistics.safetensors   mean image, RGB eigenvalues and eigenvectors of the training set
    metrics.jsonl            one line per logged step and per epoch (see metrics_log.py)
    skipped.json             files that could not be read, each with the reason
    checkpoint.safetensors   weights, optimizer, random states, position in the run; removed when the run is finished
    best.safetensors         the weights of the best validation so far, if the recipe keeps them; removed likewise
    model.safetensors        the final weights of a finished run; both files also have the figures of their validation
    tensorboard/             the metrics for TensorBoard
    .lock                    held by the process that trains the run

Guarantees: no pickle is ever loaded. A missing or broken file raises a CheckpointError that names it. Files are written
atomically (temporary file, fsync, rename).
Out of scope: choosing the best epoch (trainer.py).
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as arrays_to_bytes
from torch import Tensor

from model_store.durable import locked, write_atomic
from model_store.errors import CheckpointError
from model_store.training.errors import UnusableRunError
from model_store.training.nets.alexnet import AlexNet, Architecture
from model_store.training.recipe import Recipe
from model_store.training.statistics import Statistics

FORMAT: Final = 1
RUN_FILE: Final = "run.json"
STATISTICS_FILE: Final = "statistics.safetensors"
METRICS_FILE: Final = "metrics.jsonl"
SKIPPED_FILE: Final = "skipped.json"
CHECKPOINT_FILE: Final = "checkpoint.safetensors"
MODEL_FILE: Final = "model.safetensors"
BEST_FILE: Final = "best.safetensors"
LOCK_FILE: Final = ".lock"
WEIGHTS_PREFIX: Final = "model."


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The contents of `run.json`: everything that is fixed before the first step."""

    name: str
    recipe: Recipe
    architecture: Architecture
    classes: tuple[str, ...]  # labels, in the order of the net's outputs
    data: str  # the folder of the training data
    data_hash: str  # SHA-256 over the paths and contents of train and val
    train_images: int
    val_images: int
    seed: int
    parent: str | None  # version ("solar:1") or run that the initial weights come from
    created: str  # UTC, ISO 8601
    versions: Mapping[str, str]  # of fc7, Python and torch, with processor and device

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        values = {key: getattr(self, key) for key in self.__slots__}
        values |= {"recipe": self.recipe.to_dict(), "architecture": self.architecture.to_dict()}
        return {"format": FORMAT, **values, "classes": list(self.classes), "versions": dict(self.versions)}


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run loaded from its folder, with the net in evaluation mode."""

    path: Path
    info: RunInfo
    statistics: Statistics
    network: AlexNet
    metrics: tuple[dict[str, Any], ...]  # the lines of metrics.jsonl, oldest first
    finished: bool


def load_run(path: Path) -> TrainedRun:
    """Load a run from its folder. An unfinished run has the weights of its last checkpoint. Raises CheckpointError."""
    info = read_info(path)
    finished = (path / MODEL_FILE).exists()
    network = AlexNet(info.architecture)
    weights = read_tensors(path / (MODEL_FILE if finished else CHECKPOINT_FILE), WEIGHTS_PREFIX)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not fit its architecture: {error}.") from error
    return TrainedRun(path, info, read_statistics(path), network.eval(), read_metrics(path), finished)


def find_run(home: Path, name: str) -> Path:
    """Return the newest folder of the run `name` in `home`/runs. `name` can also be the path of a run's folder.

    Raises CheckpointError, which lists the existing runs, if there is none.
    """
    direct = Path(name)
    if (direct / RUN_FILE).is_file():
        return direct
    root, folders = home / "runs", _run_folders(home)
    if (root / name) in folders:
        return root / name
    matches = runs_named(home, name)
    if not matches:
        known = ", ".join(folder.name for folder in folders[-8:]) or "none"
        raise CheckpointError(
            f"There is no run {name!r} in {root}. Existing runs: {known}. To start one, run: fc7 train --name {name}"
        )
    return matches[-1]


def find_trained_run(home: Path, name: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the newest folder of the run `name` that has weights, as `find_run` does.

    say: told in words if a newer run of that name has none. Raises CheckpointError if no run has weights.
    """
    newest = find_run(home, name)
    if any(has_weights(newest)):
        return newest
    for older in reversed([] if newest.name == name else runs_named(home, name)):
        if any(has_weights(older)):
            say(f"{newest.name} has no weights, as it ended before its first checkpoint. {older.name} is used instead.")
            return older
    raise CheckpointError(
        f"{newest} has no weights, as it ended before its first checkpoint. To continue it, run: "
        f"fc7 train --resume --name {name}"
    )


def can_resume(home: Path, name: str) -> bool:
    """Return whether there is a run `name` in `home`/runs."""
    return bool(runs_named(home, name))


def has_weights(run: Path) -> tuple[bool, bool]:
    """Return whether the run is finished, and whether it has a checkpoint."""
    return (run / MODEL_FILE).exists(), (run / CHECKPOINT_FILE).exists()


@contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Keep other processes from training the run. Raises CheckpointError if one is training it."""
    with ExitStack() as stack:
        try:
            held = stack.enter_context(locked(run / LOCK_FILE, wait=False))
        except OSError as error:
            raise unwritable(run, error) from error
        if not held:
            raise CheckpointError(
                f"{run} is being trained by another process. Stop that one first, or start another run with another "
                "--name."
            )
        yield


def unwritable(run: Path, error: OSError) -> CheckpointError:
    """Return the error for a file of the run that cannot be written."""
    name = Path(error.filename) if isinstance(error.filename, str) else run
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    fix = "Free some disk space, and try again." if full else "Make the folder writable, or choose another with --home."
    return CheckpointError(f"{name} cannot be written: {error.strerror or error}. {fix}")


def runs_named(home: Path, name: str) -> list[Path]:
    """Return the folders of the run `name` in `home`/runs, oldest first."""
    return [folder for folder in _run_folders(home) if folder.name.rpartition("-")[0].rpartition("-")[0] == name]


def _run_folders(home: Path) -> list[Path]:
    return sorted(entry for entry in (home / "runs").glob("*") if (entry / RUN_FILE).is_file())


def new_run_folder(home: Path, name: str) -> Path:
    """Create and return `home`/runs/<name>-<YYYYmmdd-HHMMSS>. If it exists, use the next free second."""
    root = home / "runs"
    root.mkdir(parents=True, exist_ok=True)
    seconds = int(datetime.now(UTC).timestamp())
    while True:
        folder = root / f"{name}-{datetime.fromtimestamp(seconds, UTC):%Y%m%d-%H%M%S}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            seconds += 1


def read_info(path: Path) -> RunInfo:
    """Read `run.json` in `path`. Raises CheckpointError."""
    file = path / RUN_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise UnusableRunError(f"{file} was written by another version of fc7. This version reads format {FORMAT}.")
        values["recipe"] = Recipe.from_dict(values["recipe"], source=str(file))
        values["architecture"] = Architecture.from_dict(values["architecture"])
        values["classes"] = tuple(values["classes"])
        return RunInfo(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableRunError(f"{file} is not a valid description of a run: {error!r}.") from error


def write_info(path: Path, info: RunInfo) -> None:
    """Write `run.json` into `path`."""
    write_atomic(path / RUN_FILE, json.dumps(info.to_dict(), indent=2, ensure_ascii=False).encode())


def read_statistics(path: Path) -> Statistics:
    """Read the statistics of the training set in `path`. Raises CheckpointError."""
    file = path / STATISTICS_FILE
    try:
        arrays = load_arrays(file)
        return Statistics(arrays["mean"], arrays["eigenvalues"], arrays["eigenvectors"])
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{file} does not contain valid statistics of a training set: {error!r}.") from error


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write the statistics of the training set into `path`."""
    arrays = {key: np.ascontiguousarray(getattr(statistics, key)) for key in Statistics.__slots__}
    write_atomic(path / STATISTICS_FILE, arrays_to_bytes(arrays))


def read_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    """Return the lines of `metrics.jsonl` in `path`. An incomplete last line, left by a killed process, is ignored."""
    file = path / METRICS_FILE
    if not file.exists():
        return ()
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # text after the last newline is incomplete
    return tuple(json.loads(line) for line in lines)


def epoch_records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of finished epochs in `metrics.jsonl`."""
    return [record for record in read_metrics(path) if record["kind"] == "epoch"]


def finished_epochs(path: Path) -> int:
    """Return how many epochs of the run are finished."""
    return max((record["epoch"] for record in epoch_records(path)), default=0)


def read_tensors(file: Path, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without the prefix. Raises CheckpointError."""
    try:
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a mapping)
            return {name.removeprefix(prefix): tensors.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UnusableRunError(f"{file} is missing or broken: {error}. Train the net again with: fc7 train") from error
