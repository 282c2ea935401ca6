"""`fc7 paper`: the paper's experiments on CIFAR-10, one command each, with tables and a figure.

Guarantees: an interrupted command resumes when it is run again.
Out of scope: downloading data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from service.cli import console

if TYPE_CHECKING:
    from model_store.training.paper.cifar.data import CifarData

Options = TypeVar("Options")
app = typer.Typer(name="paper", help="Run the paper's experiments on CIFAR-10.", no_args_is_help=True)

Data = Annotated[
    Path, typer.Option(metavar="DIR_OR_TAR", help="CIFAR-10: a folder or tar of {train,test}/<class>/*.jpg.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder for curves, tables and the figure.")]
Cache = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for decoded images.", show_default="OUT/cache")]
Seeds = Annotated[list[int], typer.Option(min=0, help="Seed of weights and order. Can be repeated.")]
Rates = Annotated[list[float], typer.Option("--rates", min=1e-9, help="Learning rate to try. Can be repeated.")]
Bfloat16 = Annotated[bool, typer.Option("--bfloat16", help="Multiply in bfloat16 instead of float32.")]


@app.command()
def figure1(
    *,
    data: Data,
    out: Out,
    rates: Rates = [0.0005, 0.001, 0.002, 0.004],  # noqa: B006 (typer reads it and never changes it)
    search_epochs: Annotated[int, typer.Option(min=1, help="Epochs after which the best rate is selected.")] = 3,
    max_epochs: Annotated[
        int, typer.Option(min=1, help="Epochs after which training stops even above 25 % error.")
    ] = 60,
    seeds: Seeds = [0],  # noqa: B006
    bfloat16: Bfloat16 = False,
    cache: Cache = None,
) -> None:
    """Figure 1: count the epochs to 25 % training error with ReLU and with tanh, each at its best learning rate."""
    from model_store.training.paper.cifar import experiments  # noqa: PLC0415 - torch

    options = experiments.Figure1Options(
        tuple(dict.fromkeys(rates)),
        search_epochs,
        max(max_epochs, search_epochs),
        tuple(dict.fromkeys(seeds)),
        precision="bfloat16" if bfloat16 else "float32",
    )
    document = _run(experiments.run_figure1, options, data, out, cache)
    table = Table("neuron", "rate", "seed", "epochs to 25 %", "interpolated", "last error")
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
    console.show(table)
    ratio = document["tanh_over_relu"]
    if ratio is None:
        console.show("A curve did not reach 25 %. Run the command again with a higher --max-epochs.")
    else:
        console.show(f"tanh takes {ratio:.1f} times as many epochs as ReLU (in the paper: about 6).")
    _finish(out, experiments.FIGURE1, f"fc7 paper cifar-lrn --data {data} --out DIR")


@app.command("cifar-lrn")
def cifar_lrn(
    *,
    data: Data,
    out: Out,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs per net. The original trains at least 160.")] = 10,
    rate: Annotated[
        float, typer.Option(min=1e-9, help="Learning rate of weights. Biases use twice this rate.")
    ] = 0.001,
    seeds: Seeds = [0],  # noqa: B006
    bfloat16: Bfloat16 = False,
    cache: Cache = None,
) -> None:
    """Section 3.3: measure the test error of two nets with and without local response normalization."""
    from model_store.training.paper.cifar import experiments  # noqa: PLC0415 - torch

    options = experiments.LrnOptions(
        epochs, rate, seeds=tuple(dict.fromkeys(seeds)), precision="bfloat16" if bfloat16 else "float32"
    )
    document = _run(experiments.run_lrn, options, data, out, cache)
    table = Table("net", "LRN", "seed", "training error", "test error", "ten views")
    for net in document["nets"]:
        table.add_row(
            net["net"],
            "with" if net["norms"] else "without",
            str(net["seed"]),
            *(f"{net[key]:.2%}" for key in ("training_error", "test_error", "test_error_ten_views")),
        )
    console.show(table)
    for change in document["norms_change"]:
        console.show(
            f"{change['net']}: normalization changes the test error by {100 * change['test_error']:+.2f} percentage "
            f"points, with ten views by {100 * change['test_error_ten_views']:+.2f}."
        )
    _finish(out, experiments.LRN, "the same command with more --seeds or --epochs; finished nets are kept")


def _run(
    experiment: Callable[[CifarData, Path, Options, _CurveBar], dict[str, Any]],
    options: Options,
    data: Path,
    out: Path,
    cache: Path | None,
) -> dict[str, Any]:
    """Run an experiment on CIFAR-10 and return its document."""
    from model_store.training.device import keep_freed_memory  # noqa: PLC0415 - torch
    from model_store.training.paper.cifar.data import load_cifar  # noqa: PLC0415

    keep_freed_memory()
    images = load_cifar(data, cache or out / "cache")
    console.say(
        f"{len(images.train):,} training and {len(images.test):,} test images, {len(images.classes)} classes. "
        "Ctrl-C stops; run the same command again to resume."
    )
    with _CurveBar(unit="images") as bar:
        return experiment(images, out, options, bar)


def _finish(out: Path, name: str, following: str) -> None:
    console.say(f"Results are in {', '.join(str(out / f'{name}.{end}') for end in ('json', 'csv', 'png'))}.")
    console.next_step(following)


class _CurveBar(console.ProgressBar):
    """Progress of the current curve, with one line for each finished curve."""

    def start(self, label: str, images: int) -> None:
        """Show a new curve, which takes at most this many images."""
        self.step(label, 0, images)

    def finish(self, line: str) -> None:
        """Print the result of the curve."""
        console.say(line)
