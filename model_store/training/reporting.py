"""What a training run tells: to a terminal (Rich), to `metrics.jsonl` and to TensorBoard.

Promises: every line of `metrics.jsonl` is whole once written; after a resume the log has each step once.
Does not: decide what is worth a warning (the trainer does).

Lines of `metrics.jsonl`: {"kind": "step", "step", "epoch", "loss", "error", "rate"} and {"kind": "epoch", "epoch",
"step", "train_loss", "train_error", "val_loss", "val_error", "val_top5_error", "rate", "seconds", "images_per_second",
"wait_share"}, with "images" and "sent_<layer>" (bytes) where two towers train. Errors are shares from 0 to 1; epochs
count from 1; the val_ keys are missing where it was not validated.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from model_store.training.runs.metrics_log import SENT


class Reporter:
    """Takes what a run tells and keeps silent; `TerminalReporter` shows it."""

    def note(self, text: str) -> None:
        """Take a fact worth a line."""

    def warn(self, text: str) -> None:
        """Take a warning."""

    def reading(self, done: int, total: int) -> None:
        """Take the number of images read so far."""

    def step(self, done: int, total: int, loss: float, error: float, images_per_second: float) -> None:
        """Take the state after a step: images done and in all, this epoch's loss and error."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Take an epoch's line of `metrics.jsonl`."""


class TerminalReporter(Reporter):
    """Bars while it works, a line for each epoch. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        """Print the fact above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print the warning above the bars."""
        self.console.print("[bold yellow]warning:[/]", end=" ")
        self.note(text)

    def reading(self, done: int, total: int) -> None:
        """Move the bar of reading."""
        self._move("reading images", done, total, "")

    def step(self, done: int, total: int, loss: float, error: float, images_per_second: float) -> None:
        """Move the bar of training."""
        state = f"loss {loss:.3f}  error {error:.1%}  {images_per_second:.0f} images/s"
        self._move("training", done, total, state)

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the epoch's figures."""
        text = f"epoch {record['epoch']}: train loss {record['train_loss']:.3f}, error {record['train_error']:.1%}"
        if "val_error" in record:
            text += f"; val loss {record['val_loss']:.3f}, error {record['val_error']:.1%}"
        self.note(f"{text}; {record['images_per_second']:.0f} images/s, {record['wait_share']:.0%} waiting for data")
        sent = {key.removeprefix(SENT): value for key, value in record.items() if key.startswith(SENT)}
        if sent:
            each = ", ".join(f"{layer} {value / record['images']:,.0f}" for layer, value in sent.items())
            self.note(f"bytes that a tower sent for an image: {each}; {sum(sent.values()):,} in this epoch")

    def _move(self, name: str, done: int, total: int, state: str) -> None:
        if name not in self._tasks:
            self._bars.start()
            self._tasks[name] = self._bars.add_task(name, total=total, state=state, completed=done)
        self._bars.update(self._tasks[name], completed=done, state=state)
