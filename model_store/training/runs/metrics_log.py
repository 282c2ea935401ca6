"""The metrics of a run, `metrics.jsonl`: a JSON object per line.

    {"kind": "step", "step", "epoch", "loss", "error", "rate"}
    {"kind": "epoch", "epoch", "step", "train_loss", "train_error", "val_loss", "val_error", "val_top5_error",
     "val_balanced_error", "rate", "seconds", "images_per_second", "wait_share"}

Errors are shares from 0 to 1. Epochs count from 1. The val_ keys are missing in epochs without validation. With two
towers, an epoch also has "images" and, for each layer, "sent_<layer>": the bytes that this process sent.

Guarantees: after a resume, the log has each step once. Lines after the checkpoint are removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from torch.utils.tensorboard import SummaryWriter

from model_store.durable import write_atomic
from model_store.training.runs.run import METRICS_FILE, read_metrics, unwritable

LOG_EVERY: Final = 10  # steps
SENT_PREFIX: Final = "sent_"


class MetricsLog:
    """Appends to `metrics.jsonl` and TensorBoard, starting after `step`."""

    def __init__(self, run: Path, step: int) -> None:
        self._run = run
        kept = [record for record in read_metrics(run) if record["step"] <= step]
        write_atomic(run / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file = (run / METRICS_FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors_in_words():
            self._file.close()
            self._board.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a line, and its numbers to TensorBoard. Raises CheckpointError if the disk is full."""
        with self._errors_in_words():
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            for key, value in record.items():
                if key not in ("kind", "step", "epoch"):
                    self._board.add_scalar(f"{record['kind']}/{key}", value, record["step"])

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # TensorBoard raises what its thread got
            raise unwritable(self._run, error) from error
