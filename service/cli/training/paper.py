"""`fc7 paper ...`: the paper's experiments, each one command, with its tables and its picture.

Promises: a command that was stopped goes on where it was when it is called again.
Does not: import torch unless one of its commands runs; download any data.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from service.cli.extras import training_extra

app = typer.Typer(name="paper", help="Run the experiments of the paper.", no_args_is_help=True)

Data = Annotated[
    Path, typer.Option(metavar="DIR_OR_TAR", help="CIFAR-10: a folder or tar of {train,test}/<class>/*.jpg.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where curves, tables and the picture go.")]
Cache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder that keeps decoded pictures [default: OUT/cache].", show_default=False),
]
Seeds = Annotated[list[int], typer.Option(min=0, help="Decides weights and order; repeatable.")]
Bfloat16 = Annotated[bool, typer.Option("--bfloat16", help="Multiply in bfloat16 instead of float32.")]


@app.callback()
def _group() -> None:
    """Run the experiments of the paper."""


@app.command()
def figure1(
    *,
    data: Data,
    out: Out,
    rates: Annotated[
        list[float], typer.Option("--rates", min=1e-9, help="A rate to try; repeatable: --rates .001 --rates .002")
    ] = [0.0005, 0.001, 0.002, 0.004],  # noqa: B006 (typer reads it and never changes it)
    search_epochs: Annotated[int, typer.Option(min=1, help="Epochs after which the best rate is chosen.")] = 3,
    max_epochs: Annotated[int, typer.Option(min=1, help="Epochs after which a curve ends below the line or not.")] = 60,
    seeds: Seeds = [0],  # noqa: B006
    bfloat16: Bfloat16 = False,
    cache: Cache = None,
) -> None:
    """Figure 1: epochs to 25 % training error on CIFAR-10 with ReLU and with tanh, each at its best rate."""
    experiments = _experiments()
    wanted = experiments.Figure1Options(
        tuple(dict.fromkeys(rates)),
        search_epochs,
        max(max_epochs, search_epochs),
        tuple(dict.fromkeys(seeds)),
        precision="bfloat16" if bfloat16 else "float32",
    )
    console = Console(soft_wrap=True, highlight=False)
    pictures = _load(console, data, cache or out / "cache")
    with _Bars(console) as bars:
        document = experiments.run_figure1(pictures, out, wanted, bars)
    table = Table("neuron", "rate", "seed", "epochs to 25 %", "between two epochs", "last error")
    for curve in document["curves"]:
        reached = curve["epochs_to_threshold"]
        between = curve["epochs_interpolated"]
        table.add_row(
            curve["neuron"],
            f"{curve['rate']:g}",
            str(curve["seed"]),
            "not reached" if reached is None else str(reached),
            "" if between is None else f"{between:.2f}",
            f"{curve['last_error']:.1%}",
        )
    console.print(table)
    ratio = document["tanh_over_relu"]
    if ratio is None:
        console.print("A curve did not reach 25 %: go on with a higher --max-epochs.")
    else:
        console.print(f"tanh takes {ratio:.1f} times the epochs of ReLU (the paper: about 6).")
    _finish(console, out, experiments.FIGURE1, "Next: fc7 paper cifar-lrn, with the same --data")


@app.command("cifar-lrn")
def cifar_lrn(
    *,
    data: Data,
    out: Out,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of each net; the original trains 160 and more.")] = 10,
    rate: Annotated[float, typer.Option(min=1e-9, help="Rate of weights; biases learn at twice this rate.")] = 0.001,
    seeds: Seeds = [0],  # noqa: B006
    bfloat16: Bfloat16 = False,
    cache: Cache = None,
) -> None:
    """Section 3.3: the test error on CIFAR-10 with and without local response normalisation, in two nets."""
    experiments = _experiments()
    wanted = experiments.LrnOptions(
        epochs, rate, seeds=tuple(dict.fromkeys(seeds)), precision="bfloat16" if bfloat16 else "float32"
    )
    console = Console(soft_wrap=True, highlight=False)
    pictures = _load(console, data, cache or out / "cache")
    with _Bars(console) as bars:
        document = experiments.run_lrn(pictures, out, wanted, bars)
    table = Table("net", "LRN", "seed", "training error", "test error", "ten views")
    for net in document["nets"]:
        table.add_row(
            net["net"],
            "with" if net["norms"] else "without",
            str(net["seed"]),
            *(f"{net[key]:.2%}" for key in ("training_error", "test_error", "test_error_ten_views")),
        )
    console.print(table)
    for change in document["norms_change"]:
        console.print(
            f"{change['net']}: normalisation changes the test error by {100 * change['test_error']:+.2f} points, "
            f"over ten views by {100 * change['test_error_ten_views']:+.2f}."
        )
    _finish(console, out, experiments.LRN, "Next: more --seeds, or more --epochs; finished nets are not run again")


def _experiments() -> ModuleType:
    with training_extra():
        from model_store.training.paper.cifar import experiments as cifar_experiments  # noqa: PLC0415 - torch
    return cifar_experiments


def _load(console: Console, data: Path, cache: Path) -> Any:
    from model_store.training.device import keep_freed_memory  # noqa: PLC0415 - torch
    from model_store.training.paper.cifar.data import load_cifar  # noqa: PLC0415

    keep_freed_memory()
    pictures = load_cifar(data, cache)
    console.print(
        f"{len(pictures.train):,} training and {len(pictures.test):,} test pictures, {len(pictures.classes)} classes. "
        "Ctrl-C stops; the same command goes on."
    )
    return pictures


def _finish(console: Console, out: Path, name: str, following: str) -> None:
    console.print(f"Written: {', '.join(str(out / f'{name}.{end}') for end in ('json', 'csv', 'png'))}", markup=False)
    console.print(following, markup=False)


class _Rate(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        """Return the rate."""
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "", style="progress.data.speed")


class _Bars:
    """A bar for the curve at hand, and a line for each that ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Rate(),
            TextColumn("at most"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, label: str, images: int) -> None:
        """Show the bar of a curve."""
        self._progress.reset(self._task, total=images, description=label, visible=images > 0)

    def advance(self, images: int) -> None:
        """Move it."""
        self._progress.update(self._task, advance=images)

    def finish(self, line: str) -> None:
        """Replace it by the result."""
        self._progress.update(self._task, visible=False)
        self._console.print(line, markup=False)
