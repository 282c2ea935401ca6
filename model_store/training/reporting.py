"""Progress of a training run on the terminal (Rich)."""

from __future__ import annotations

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from model_store.training.runs.metrics_log import SENT_PREFIX


class Reporter:
    """Receives the progress of a run and shows nothing. `TerminalReporter` shows it."""

    def note(self, text: str) -> None:
        """Report a fact."""

    def warn(self, text: str) -> None:
        """Report a warning."""

    def reading(self, done: int, total: int) -> None:
        """Report the number of images read so far."""

    def step(self, done: int, total: int, loss: float, error: float, images_per_second: float) -> None:
        """Report a step: images done, total images of the run, and the mean loss and error of the epoch so far."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Report an epoch by its line of `metrics.jsonl`."""


class TerminalReporter(Reporter):
    """Shows progress bars, and a line for each epoch. Use it as a context manager.

    If standard error is not a terminal, a line is printed every `line_every_s` seconds instead of bars.
    """

    def __init__(self, line_every_s: float = 15.0) -> None:
        self.console = Console(stderr=True)
        self._line_every_s = line_every_s
        self._next_line = time.monotonic() + line_every_s
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

    def __exit__(self, *_: object) -> None:
        if self._tasks:  # bars that were never started would end with an empty line
            self._bars.stop()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning above the bars."""
        self.console.print("[bold yellow]warning:[/]", end=" ")
        self.note(text)

    def reading(self, done: int, total: int) -> None:
        """Update the bar for reading."""
        self._update("reading images", done, total, "")

    def step(self, done: int, total: int, loss: float, error: float, images_per_second: float) -> None:
        """Update the bar for training."""
        state = f"loss {loss:.3f}  error {error:.1%}  {images_per_second:.0f} images/s"
        self._update("training", done, total, state)

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the results of an epoch."""
        text = f"epoch {record['epoch']}: train loss {record['train_loss']:.3f}, error {record['train_error']:.1%}"
        if "val_error" in record:
            text += f"; val loss {record['val_loss']:.3f}, error {record['val_error']:.1%}"
            text += f", balanced error {record['val_balanced_error']:.1%}"
        self.note(f"{text}; {record['images_per_second']:.0f} images/s, {record['wait_share']:.0%} waiting for data")
        sent = {key.removeprefix(SENT_PREFIX): value for key, value in record.items() if key.startswith(SENT_PREFIX)}
        if sent:
            layers = ", ".join(f"{layer} {value / record['images']:,.0f}" for layer, value in sent.items())
            self.note(f"bytes sent by a tower per image: {layers}; {sum(sent.values()):,} in this epoch")

    def _update(self, name: str, done: int, total: int, state: str) -> None:
        if not self.console.is_terminal:
            if time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + self._line_every_s
                self.note(f"{name}: {done:,} of {total:,} ({done / max(total, 1):.0%})  {state}".rstrip())
            return
        if name not in self._tasks:
            self._bars.start()
            self._tasks[name] = self._bars.add_task(name, total=total, state=state, completed=done)
        self._bars.update(self._tasks[name], completed=done, state=state)
