"""`fc7 ablate`: train variants of the net over several seeds, and print how far they differ.

Promises: a command that was stopped goes on where it was when it is called again.
Does not: import torch unless the command runs; the serving installation has no torch, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.cli.extras import training_extra

if TYPE_CHECKING:
    from model_store.training.paper.ablation import Ablation, Spread


def ablate(
    *,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Class folders: DIR/train/<class>/*, DIR/val/<class>/*.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the runs, ablation.json and ablation.csv go.")],
    variants: Annotated[
        str, typer.Option(help="Nets, with commas; the others are held against the first: full,no-lrn,pool-2x2,...")
    ] = "full",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    recipes: Annotated[str, typer.Option("--recipe", help="Recipes or .toml files, with commas.")] = "small",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of each recipe; repeatable.")
    ] = None,
    memory_budget: Annotated[
        int, typer.Option(min=0, metavar="MIB", help="Memory for prepared images, 192 KiB each; else decoded again.")
    ] = 2048,
) -> None:
    """Train each variant with each seed; print the errors, and the differences with their spread. It can be resumed."""
    with training_extra():
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
        raise typer.BadParameter("two recipes have the same name", param_hint="--recipe")
    numbers = _seeds(seeds)
    result = command.with_terminal(
        lambda reporter, stop: run_ablation(
            data, arms, numbers, out, resources=Resources(memory_budget << 20), reporter=reporter, stop=stop
        )
    )
    if result is None:
        Console(stderr=True).print("stopped; the same command goes on")
        raise typer.Exit(command.STOPPED)
    _print(result)
    Console(soft_wrap=True, highlight=False).print(f"Written: {out / JSON_FILE}, {out / CSV_FILE}", markup=False)


def _words(text: str, option: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise typer.BadParameter(f"{text!r} names nothing", param_hint=option)
    return words


def _seeds(text: str) -> list[int]:
    words = _words(text, "--seeds")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise typer.BadParameter(f"{text!r} are not whole numbers with commas between them", param_hint="--seeds")
    return [int(word) for word in words]


def _print(result: Ablation) -> None:
    from model_store.training.paper.ablation import paper_difference  # noqa: PLC0415 - torch

    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{result.train_images} training, {result.val_images} validation images of {result.data}; per cent of the "
        "validation images, mean ± standard deviation over the seeds, n in brackets"
    )
    table = Table("net", "top-1 error", "top-5 error", f"top-1 minus {result.nets[0]}'s", "top-5", "the paper's")
    # Nets' names stand in both: else a log of 80 columns cuts them off.
    table.columns[0].no_wrap = True
    table.columns[3].overflow = "fold"
    for net in result.nets:
        errors = [_text(spread, "") for spread in result.errors(net)]
        against = ["", ""] if net == result.nets[0] else [_text(spread, "+") for spread in result.differences(net)]
        table.add_row(net, *errors, *against, paper_difference(net))
    console.print(table)


def _text(spread: Spread, sign: str) -> str:
    deviation = "" if spread.sd is None else f" ± {100 * spread.sd:.1f}"
    return f"{100 * spread.mean:{sign}.1f}{deviation} ({spread.n})"
