"""What every command prints: results on standard output, everything else on standard error.

Standard output carries only the result (a table, or one JSON document with `--json`), so that it can be piped. Progress
bars, skipped files, warnings, errors and the next step go to standard error. Text that is not printed on a terminal is
never wrapped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from model_store.image_files import Skipped, summarize

_MOST_LISTED: Final = 20
_UNWRAPPED: Final = 100_000  # columns
LINE_EVERY_S: Final = 15.0  # between two lines of progress, without a terminal


def open_console(*, stderr: bool) -> Console:
    """Return the console of standard error or standard output. A console that is not a terminal never wraps lines."""
    console = Console(stderr=stderr, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = _UNWRAPPED
    return console


def printable(text: str) -> str:
    r"""Return the text with bytes of file names that are not UTF-8 as `\xNN`, which every terminal can print."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def show(result: object, *, markup: bool = True) -> None:
    """Print a table, or a line of text, on standard output. markup: the text contains rich's markup."""
    open_console(stderr=False).print(printable(result) if isinstance(result, str) else result, markup=markup)


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(printable(json.dumps(value, ensure_ascii=False, indent=2)))


def say(text: object) -> None:
    """Print plain text on standard error."""
    open_console(stderr=True).print(printable(str(text)), markup=False)


def warn(text: object) -> None:
    """Print a warning on standard error."""
    open_console(stderr=True).print("[bold yellow]warning:[/]", escape(printable(str(text))))


def error(text: object) -> None:
    """Print an error on standard error."""
    open_console(stderr=True).print("[bold red]error:[/]", escape(printable(str(text))))


def next_step(text: str) -> None:
    """Print the next command to run on standard error."""
    say(f"Next: {text}")


def say_first(lines: Sequence[str]) -> None:
    """Print the first lines, and how many more there are, on standard error."""
    for line in lines[:_MOST_LISTED]:
        say(line)
    if len(lines) > _MOST_LISTED:
        say(f"... and {len(lines) - _MOST_LISTED} more")


def say_skipped(skipped: Iterable[Skipped]) -> None:
    """Print a line on standard error for each kind of reason why files were skipped, with the first of them."""
    for line in summarize(skipped):
        say(line)


def exit_interrupted(text: str) -> NoReturn:
    """Print how to resume on standard error, and exit with the code of Ctrl-C."""
    say(text)
    raise typer.Exit(130)


class ProgressBar:
    """A bar on standard error with count, rate and time left, removed at the end. Use as a context manager.

    If standard error is not a terminal, a line is printed every 15 seconds instead.
    unit: what is counted, such as "images"; "bytes" are shown as kB, MB or GB.
    """

    def __init__(self, title: str = "", unit: str = "", *, total: float | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), _Count(), _Rate(), TextColumn("{task.fields[state]}"))
        console = open_console(stderr=True)
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task(title, total=total, unit=unit, state="")
        self._title = title
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, done: float, total: float | None, state: str = "") -> None:
        """Show how much is done, and a text after the rate."""
        self._progress.update(self._task, completed=done, total=total or None, state=state)
        self._say()

    def step(self, title: str, done: float, total: float) -> None:
        """Show how much of a named step is done; a new step starts the bar again."""
        if title != self._title:
            self._title = title
            self._progress.reset(self._task, description=title)
        self.update(done, total)

    def advance(self, more: float) -> None:
        """Add to what is done."""
        self._progress.update(self._task, advance=more)
        self._say()

    def _say(self) -> None:
        """Print a line if there is no terminal, at most every `LINE_EVERY_S` seconds."""
        if not self._progress.disable or time.monotonic() - self._said < LINE_EVERY_S:
            return
        self._said = time.monotonic()
        [task] = self._progress.tasks
        unit = task.fields["unit"]
        of = f" of {_amount(task.total, unit)} ({task.completed / task.total:.0%})" if task.total else f" {unit}"
        say(f"{task.description}: {_amount(task.completed, unit)}{of}  {task.fields['state']}".rstrip())


def _amount(number: float, unit: str) -> str:
    return decimal(int(number)) if unit == "bytes" else f"{int(number):,}"


class _Count(ProgressColumn):
    """Done and total."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        total = "?" if task.total is None else _amount(task.total, unit)
        return Text(f"{_amount(task.completed, unit)}/{total}", style="progress.download")


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields["unit"]
        if speed is None:
            return Text()
        text = f"{decimal(int(speed))}/s" if unit == "bytes" else f"{speed:,.1f} {unit}/s".replace(" /", "/")
        return Text(text, style="progress.data.speed")
