"""`fc7 ablate`: train variants of the net with several seeds, and print how their errors differ.

Guarantees: an interrupted command resumes when it is run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.cli import console
from service.cli.completion import complete_recipe
from service.cli.options import Changes, MemoryBudget

if TYPE_CHECKING:
    from model_store.training.paper.ablation import Ablation, Spread


def ablate(
    *,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Class folders: DIR/train/<class>/*, DIR/val/<class>/*.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the runs, ablation.json and ablation.csv.")],
    variants: Annotated[
        str,
        typer.Option(help="Nets separated by commas, such as full,no-lrn,pool-2x2. Others are compared to the first."),
    ] = "full",
    seeds: Annotated[str, typer.Option(help="Seeds separated by commas.")] = "0,1,2",
    recipes: Annotated[
        str,
        typer.Option("--recipe", help="Recipes or .toml files separated by commas.", autocompletion=complete_recipe),
    ] = "small",
    changes: Changes = None,
    memory_budget: MemoryBudget = 2048,
) -> None:
    """Train each variant with each seed; print mean errors and differences with their standard deviation."""
    from model_store.training import train as command  # noqa: PLC0415 - torch
    from model_store.training.loop import Resources  # noqa: PLC0415
    from model_store.training.paper.ablation import CSV_FILE, JSON_FILE, net_name, run_ablation  # noqa: PLC0415
    from model_store.training.recipe import load_recipe  # noqa: PLC0415

    arms = [
        load_recipe(recipe).with_settings([*(changes or ()), f"variant={variant}"])
        for recipe in _words(recipes, "--recipe")
        for variant in _words(variants, "--variants")
    ]
    if len({net_name(arm) for arm in arms}) < len(arms):
        raise typer.BadParameter("two recipes have the same name.", param_hint="--recipe")
    numbers = _seeds(seeds)
    with command.terminal() as (reporter, stop):
        result = run_ablation(
            data, arms, numbers, out, resources=Resources(memory_budget << 20), reporter=reporter, stop=stop
        )
    if result is None:
        console.exit_interrupted("Stopped. Run the same command again to resume.")
    _print(result)
    console.say(f"Results are in {out / JSON_FILE} and {out / CSV_FILE}.")
    console.next_step("the same command with more --seeds or --variants; finished runs are kept")


def _words(text: str, option: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise typer.BadParameter(f"{text!r} contains no name.", param_hint=option)
    return words


def _seeds(text: str) -> list[int]:
    words = _words(text, "--seeds")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers separated by commas.", param_hint="--seeds")
    return [int(word) for word in words]


def _print(result: Ablation) -> None:
    from model_store.training.paper.ablation import paper_difference  # noqa: PLC0415 - torch

    console.show(
        f"{result.train_images} training images and {result.val_images} validation images of {result.data}. "
        "Errors in percent of the validation images: mean ± standard deviation over the seeds (number of seeds)."
    )
    table = Table("net", "top-1 error", "top-5 error", f"top-1 minus {result.nets[0]}'s", "top-5", "in the paper")
    # Two columns contain names of nets: a terminal of 80 columns would cut them off.
    table.columns[0].no_wrap = True
    table.columns[3].overflow = "fold"
    for net in result.nets:
        errors = [_text(spread, "") for spread in result.errors(net)]
        differences = ["", ""] if net == result.nets[0] else [_text(spread, "+") for spread in result.differences(net)]
        table.add_row(net, *errors, *differences, paper_difference(net))
    console.show(table)


def _text(spread: Spread, sign: str) -> str:
    deviation = "" if spread.sd is None else f" ± {100 * spread.sd:.1f}"
    return f"{100 * spread.mean:{sign}.1f}{deviation} ({spread.n})"
