"""Train several nets with several seeds on one data set, and report their differences with the spread.

    OUT/runs/<recipe>-<variant>-s<seed>-<time>/   each run, as `fc7 train` writes it
    OUT/ablation.json, OUT/ablation.csv           errors by run and by net, and the differences

Guarantees: a repeated call reuses finished runs and resumes a stopped run. Runs with another recipe or other images are
never compared. A difference is between runs with the same seed. Its spread is the standard deviation over the seeds
(n - 1 in the denominator), which is undefined for one seed.
Out of scope: significance tests; choosing the best epoch. Errors are those of the last validation, on the center crop.
References: the paper, sections 3 and 7, which report such differences without a spread.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from model_store.errors import CheckpointError
from model_store.training.export.report import write_csv, write_json
from model_store.training.loop import Resources, resume, train
from model_store.training.nets.variants import PUBLISHED
from model_store.training.recipe import Recipe
from model_store.training.reporting import Reporter
from model_store.training.runs.run import CHECKPOINT_FILE, MODEL_FILE, RunInfo, read_info, read_metrics, runs_named

JSON_FILE: Final = "ablation.json"
CSV_FILE: Final = "ablation.csv"


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished run. Errors are shares from 0 to 1."""

    net: str
    seed: int
    top1_error: float
    top5_error: float
    run: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of `n` values. One value has no deviation."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True, slots=True)
class Ablation:
    """The results, ordered by net and seed. The other nets are compared with the first one."""

    data: str
    data_sha256: str
    train_images: int
    val_images: int
    runs: tuple[RunResult, ...]

    @property
    def nets(self) -> tuple[str, ...]:
        """The nets, in order."""
        return tuple(dict.fromkeys(result.net for result in self.runs))

    def errors(self, net: str) -> tuple[Spread, Spread]:
        """Return the spread of the net's top-1 and top-5 errors over its seeds."""
        results = [result for result in self.runs if result.net == net]
        return (
            Spread.of([result.top1_error for result in results]),
            Spread.of([result.top5_error for result in results]),
        )

    def differences(self, net: str) -> tuple[Spread, Spread]:
        """Return the spread of the net's top-1 and top-5 errors minus those of the first net with the same seed."""
        first = {result.seed: result for result in self.runs if result.net == self.nets[0]}
        pairs = [(result, first[result.seed]) for result in self.runs if result.net == net]
        return (
            Spread.of([result.top1_error - base.top1_error for result, base in pairs]),
            Spread.of([result.top5_error - base.top5_error for result, base in pairs]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON types. Errors and differences are shares from 0 to 1."""
        nets = []
        for net in self.nets:
            top1, top5 = self.errors(net)
            entry: dict[str, Any] = {"net": net, "top1_error": asdict(top1), "top5_error": asdict(top5)}
            if net != self.nets[0]:
                top1, top5 = self.differences(net)
                entry |= {"minus": self.nets[0], "top1_difference": asdict(top1), "top5_difference": asdict(top5)}
            nets.append(entry)
        values = asdict(self)
        runs = list(values.pop("runs"))
        return {**values, "nets": nets, "runs": runs}


def net_name(recipe: Recipe) -> str:
    """Return the name of a recipe's net in the results: "small-no-lrn"."""
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
    """Train every recipe with every seed, and write and return the results.

    recipes: at least one; their `net_name` must differ.
    Returns None if `stop` was set before all runs finished; the same call continues. Raises the errors of `train`, and
    CheckpointError if `out` has a run of the same name with another recipe or other images.
    """
    reporter, stop = reporter or Reporter(), stop or threading.Event()
    results: list[RunResult] = []
    first: RunInfo | None = None
    pairs = [(recipe, seed) for seed in seeds for recipe in recipes]  # one seed of all nets is useful early
    for number, (recipe, seed) in enumerate(pairs, start=1):
        reporter.note(f"run {number} of {len(pairs)}: {net_name(recipe)}, seed {seed}")
        run = _finished_run(data, recipe, seed, out, resources=resources, reporter=reporter, stop=stop)
        if run is None:
            return None
        info = read_info(run)
        first = first or info
        if info.data_hash != first.data_hash:
            raise CheckpointError(f"{run} was trained on other images than {first.name}. Choose another --out.")
        last = [line for line in read_metrics(run) if "val_error" in line][-1]
        results.append(RunResult(net_name(recipe), seed, last["val_error"], last["val_top5_error"], run.name))
        order = [net_name(recipe) for recipe in recipes]
        ordered = sorted(results, key=lambda result: order.index(result.net))  # stable, so seeds keep their order
        ablation = Ablation(first.data, first.data_hash, first.train_images, first.val_images, tuple(ordered))
        write_json(out / JSON_FILE, ablation.to_dict())
        rows = [list(asdict(result).values()) for result in ordered]
        write_csv(out / CSV_FILE, ["net", "seed", "top1_error", "top5_error", "run"], rows)
    return ablation


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
    """Return the folder of the finished run of this recipe and seed, or None if it was stopped."""
    name = f"{net_name(recipe)}-s{seed}"
    if folders := runs_named(out, name):
        run = folders[-1]
        info = read_info(run)
        if recipe.completed_by(info.recipe) != info.recipe or info.seed != seed:
            raise CheckpointError(
                f"{run} was trained with another recipe or seed. Choose another --out, or remove the run."
            )
        if (run / MODEL_FILE).exists():
            return run
        if (run / CHECKPOINT_FILE).exists():
            result = resume(run, data=data, resources=resources, reporter=reporter, stop=stop)
            return result.run if result.finished else None
    result = train(data, recipe, home=out, name=name, seed=seed, resources=resources, reporter=reporter, stop=stop)
    return result.run if result.finished else None


def paper_difference(net: str) -> str:
    """Return the paper's difference for the variant in the net's name as text, or "" if it has none."""
    for variant, published in PUBLISHED.items():
        if net.endswith(f"-{variant}"):
            top5 = "" if published.top5 is None else f" / {published.top5:+g}"
            return f"{published.top1:+g}{top5} ({published.where})"
    return ""
