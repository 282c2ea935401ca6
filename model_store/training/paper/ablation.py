"""Train a list of nets over a list of seeds on one data set, and say how far they differ, with the spread.

    OUT/runs/<recipe>-<variant>-s<seed>-<time>/   each run, as fc7 train makes it
    OUT/ablation.json, OUT/ablation.csv           errors by run, by net, and the differences

Promises: called again it goes on: finished runs are counted as they are, a stopped one is resumed; runs of another
recipe or other images are never compared; a difference is between runs of the same seed, and its spread is the
standard deviation over the seeds (n - 1 in the denominator), which one seed does not have.
Does not: test significance, or choose among epochs: errors are those of the last validation, over the central crop.
Source: the paper, sections 3 and 7, which gives such differences without their spread.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from model_store.durable import write_atomic
from model_store.errors import CheckpointError
from model_store.training.loop import Resources, resume, train
from model_store.training.nets.variants import PUBLISHED
from model_store.training.recipe import Recipe
from model_store.training.reporting import Reporter
from model_store.training.runs import run as runs

JSON_FILE: Final = "ablation.json"
CSV_FILE: Final = "ablation.csv"


@dataclass(frozen=True, slots=True)
class Measured:
    """One finished run. Errors are shares from 0 to 1."""

    net: str
    seed: int
    top1_error: float
    top5_error: float
    run: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of `n` values; one value has no deviation."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True, slots=True)
class Ablation:
    """What came out: `runs` in the order of nets and seeds; the first net is the one that others are held against."""

    data: str
    data_sha256: str
    train_images: int
    val_images: int
    runs: tuple[Measured, ...]

    @property
    def nets(self) -> tuple[str, ...]:
        """The nets, in order."""
        return tuple(dict.fromkeys(entry.net for entry in self.runs))

    def errors(self, net: str) -> tuple[Spread, Spread]:
        """Return the spread of the net's top-1 and top-5 errors over its seeds."""
        mine = [entry for entry in self.runs if entry.net == net]
        return Spread.of([entry.top1_error for entry in mine]), Spread.of([entry.top5_error for entry in mine])

    def differences(self, net: str) -> tuple[Spread, Spread]:
        """Return the spread of the net's errors minus the first net's, of runs of the same seed: top-1 and top-5."""
        base = {entry.seed: entry for entry in self.runs if entry.net == self.nets[0]}
        pairs = [(entry, base[entry.seed]) for entry in self.runs if entry.net == net]
        return (
            Spread.of([mine.top1_error - first.top1_error for mine, first in pairs]),
            Spread.of([mine.top5_error - first.top5_error for mine, first in pairs]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON types; errors and differences are shares from 0 to 1."""
        nets = []
        for net in self.nets:
            errors, against = self.errors(net), self.differences(net)
            entry: dict[str, Any] = {"net": net, "top1_error": asdict(errors[0]), "top5_error": asdict(errors[1])}
            if net != self.nets[0]:
                entry["minus"] = self.nets[0]
                entry["top1_difference"], entry["top5_difference"] = asdict(against[0]), asdict(against[1])
            nets.append(entry)
        rest = {key: getattr(self, key) for key in ("data", "data_sha256", "train_images", "val_images")}
        return {**rest, "nets": nets, "runs": [asdict(entry) for entry in self.runs]}


def net_name(recipe: Recipe) -> str:
    """Return what a recipe's net is called here: "small-no-lrn"."""
    return f"{recipe.name}-{recipe.variant}"


def run_ablation(
    data: Path,
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    out: Path,
    *,
    resources: Resources | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> Ablation | None:
    """Train every recipe (at least one, each of another `net_name`) with every seed; write and return what came out.

    Returns None when `stop` was set before all runs were finished: the same call goes on. Raises what `train` raises,
    and CheckpointError when `out` has a run of the same name with another recipe, or of other images.
    """
    reporter, stop = reporter or Reporter(), stop or threading.Event()
    measured: list[Measured] = []
    first: runs.RunInfo | None = None
    cells = [(recipe, seed) for seed in seeds for recipe in recipes]  # a first seed of all nets is soonest of use
    for number, (recipe, seed) in enumerate(cells, start=1):
        reporter.note(f"run {number} of {len(cells)}: {net_name(recipe)}, seed {seed}")
        run = _finished_run(data, recipe, seed, out, resources=resources, reporter=reporter, stop=stop)
        if run is None:
            return None
        info = runs.read_info(run)
        first = first or info
        if info.data_hash != first.data_hash:
            raise CheckpointError(f"{run} was trained on other images than {first.name}: give another --out")
        last = [line for line in runs.read_metrics(run) if "val_error" in line][-1]
        errors = last["val_error"], last["val_top5_error"]
        measured.append(Measured(net_name(recipe), seed, *errors, run.name))
        result = _sorted(first, measured, recipes)
        _write(out, result)
    return result


def _sorted(info: runs.RunInfo, measured: Sequence[Measured], recipes: Sequence[Recipe]) -> Ablation:
    order = [net_name(recipe) for recipe in recipes]
    ordered = sorted(measured, key=lambda entry: order.index(entry.net))  # stable: the seeds stay in their order
    return Ablation(info.data, info.data_hash, info.train_images, info.val_images, tuple(ordered))


def _finished_run(
    data: Path,
    recipe: Recipe,
    seed: int,
    out: Path,
    *,
    resources: Resources | None,
    reporter: Reporter,
    stop: threading.Event,
) -> Path | None:
    """Return the folder of this recipe's and seed's run, trained to its end; None when it was stopped."""
    name = f"{net_name(recipe)}-s{seed}"
    folders = runs.runs_named(out, name)
    if folders:
        info = runs.read_info(folders[-1])
        if (info.recipe, info.seed) != (recipe, seed):
            raise CheckpointError(
                f"{folders[-1]} was trained with another recipe or seed: give another --out, or remove it"
            )
        if (folders[-1] / runs.MODEL_FILE).exists():
            return folders[-1]
        if (folders[-1] / runs.CHECKPOINT_FILE).exists():
            result = resume(folders[-1], data=data, resources=resources, reporter=reporter, stop=stop)
            return result.run if result.finished else None
    result = train(data, recipe, home=out, name=name, seed=seed, resources=resources, reporter=reporter, stop=stop)
    return result.run if result.finished else None


def paper_difference(net: str) -> str:
    """Return what the paper says of the variant in the net's name, in words, or nothing."""
    for variant, published in PUBLISHED.items():
        if net.endswith(f"-{variant}"):
            top5 = "" if published.top5 is None else f" / {published.top5:+g}"
            return f"{published.top1:+g}{top5} ({published.where})"
    return ""


def _write(out: Path, result: Ablation) -> None:
    write_atomic(out / JSON_FILE, (json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["net", "seed", "top1_error", "top5_error", "run"])
    writer.writerows([entry.net, entry.seed, entry.top1_error, entry.top5_error, entry.run] for entry in result.runs)
    write_atomic(out / CSV_FILE, rows.getvalue().encode())
