"""The log of a run, `metrics.jsonl`: one line of JSON a record."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from model_store.durable import write_atomic
from model_store.training.runs.run import METRICS_FILE, read_metrics

LOG_EVERY = 10  # steps


SENT = "sent_"  # and a layer: bytes that this process sent for it in the epoch


class MetricsLog:
    """Appends to `metrics.jsonl` and TensorBoard. After a resume, what came after the checkpoint's step is dropped."""

    def __init__(self, run: Path, step: int) -> None:
        kept = [record for record in read_metrics(run) if record["step"] <= step]
        write_atomic(run / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file = (run / METRICS_FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a line; its numbers go to TensorBoard under their names."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for key, value in record.items():
            if key not in ("kind", "step", "epoch"):
                name = f"{record['kind']}/{key}"
                self._board.add_scalar(name, value, record["step"], walltime=time.time())
