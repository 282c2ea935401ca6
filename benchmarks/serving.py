"""Measure fc7 as its users meet it, beside LitServe on the same graph and beside the limit of the machine.

    python -m benchmarks.serving PHOTOGRAPHS [--home HOME] [--quick] [--json FILE]

PHOTOGRAPHS is a folder or a tar of pictures, HOME has a published, active version (what is served is its graph and
weights; the index that the run fills is a temporary one). LitServe needs the extra `bench`. On two cores a run takes
about ten minutes, with `--quick` about two.

In rounds, point by point and one right after the other: the limit (decoding and ONNX Runtime in one process, no HTTP),
fc7 and LitServe at 1, 8, 32 and 128 clients, LitServe with other graphs. Then fc7 alone: classify and search mixed, ten
views, photographs of 12 megapixels, and three times the load that it can carry. Printed are medians over the rounds,
the goals and whether they are met, and what share of the cores the load generator took, since it runs on the same
machine.
Does not: decide anything. It fails (exit code 1) only when a server answers with errors where it must not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving_runs import BATCHES, BUSY, FULL, LITSERVE, MOST, PLAIN, QUICK, Point, Run

DEADLINE_S = 10.0


def report(run: Run) -> str:
    """Return the table, the overload and the goals as text."""
    limit = median(run.rates("limit"))
    ways = {way: median(values) for way, values in run.limits.items()}
    lines = [
        f"limit: {limit:.1f} images/s (in turn {ways['in_turn']:.1f}, overlapping {ways['overlapping']:.1f}); "
        f"with two sessions, side by side, {ways['side_by_side']:.1f}; one image {ways['one']:.1f} ms",
        "",
        "| server, clients | requests/s | of limit | p50 ms | p99 ms | p99/p50 | CPU ms each | MB | errors | load |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {point.rate:.1f} | {point.rate / limit:.2f} | {point.p50:.1f} | {point.p99:.1f} "
        f"| {point.p99 / point.p50:.2f} | {point.processor:.1f} | {point.memory:.0f} | {point.errors:.0f} "
        f"| {point.generator:.1%} |"
        for name, point in run.middle().items()
    ]
    lines += ["", "load: the generator's share of all cores. MB: without what libraries share with servers asleep.", ""]
    lines += [f"overload, {name}: {value}" for name, value in _rounded(run.overload).items()]
    lines += ["", *(_goal_line(*goal) for goal in goals(run))]
    return "\n".join(lines)


def goals(run: Run) -> list[tuple[str, float, str, float | None]]:
    """Return what, the value, its direction and the goal, if there is one. A ratio is the median over the rounds."""
    busy = f"fc7, {BUSY}"
    lone = [point.p50 for point in run.points["fc7, 1"]]
    found: list[tuple[str, float, str, float | None]] = [
        ("fc7 at 32 clients, of the limit", _ratio(run.rates(busy), run.rates("limit")), ">=", 0.95),
        ("fc7 at 32 clients, of two sessions", _ratio(run.rates(busy), run.rates("side_by_side")), ">=", None),
        ("fc7 p50 at one client, of decoding and running alone", _ratio(lone, run.limits["one"]), "<=", 1.1),
        ("fc7 p99 at 32 clients, of its p50", median(point.p99 / point.p50 for point in run.points[busy]), "<=", 1.3),
        ("fc7 goodput at 3 times the peak, of the peak", run.overload["of_peak"], ">=", 0.9),
        ("p99 of what was accepted at 3 times the peak, s", run.overload["p99_ms"] / 1000, "<=", DEADLINE_S),
        ("fc7's memory at 128 clients, MB", run.middle()[f"fc7 by itself, {MOST}"].memory, "<=", 900),
        ("fc7 from process start to ready, s", median(run.start_s), "<=", 3.0),
    ]
    if f"{LITSERVE}, {BUSY}" in run.points:
        found[2:2] = [
            (f"{one} at 32 clients, of {words}", _ratio(run.rates(of), run.rates(f"{other}, {BUSY}")), ">=", goal)
            for one, of, words, other, goal in (
                ("fc7", busy, "LitServe on the same graph", LITSERVE, 1.35),
                ("fc7", busy, "LitServe on the graph for batches", BATCHES, None),
                ("fc7", busy, "LitServe on a plain export of the net", PLAIN, None),
                ("the limit", "limit", "LitServe on the graph for batches", BATCHES, None),
            )
        ]
    return found


def _ratio(ones: list[float], others: list[float]) -> float:
    return median(one / other for one, other in zip(ones, others, strict=True))


def _goal_line(what: str, value: float, direction: str, bound: float | None) -> str:
    if bound is None:
        return f"        {what}: {value:.2f}"
    met = value >= bound if direction == ">=" else value <= bound
    return f"{'met   ' if met else 'MISSED'}  {what}: {value:.2f} (goal {direction} {bound:g})"


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("FC7_"):
        raise argparse.ArgumentTypeError(f"{text} is not FC7_NAME=VALUE")
    return name, value


def main(arguments: list[str] | None = None, out: Callable[[str], None] = print) -> int:
    """Run the benchmark as the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("FC7_HOME", "var")))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-litserve", action="store_true")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="FC7_NAME=VALUE")
    parser.add_argument("--json", type=Path, help="write every figure to this file too")
    given = parser.parse_args(arguments)
    if not (given.home / "active.json").is_file():
        raise SystemExit(f"{given.home} has no active version: fc7 demo, or fc7 export and fc7 models activate")
    run = Run(given.home, given.photographs, QUICK if given.quick else FULL, dict(given.set))
    with tempfile.TemporaryDirectory(prefix="fc7-bench-") as scratch:
        run.all(Path(scratch), litserve=not given.no_litserve)
    out(report(run))
    if given.json:
        figures = {
            name: {key: getattr(point, key) for key in Point.__dataclass_fields__}
            for name, point in run.middle().items()
        }
        found = {
            "limits": run.limits,
            "start_s": run.start_s,
            "points": figures,
            "overload": run.overload,
            "goals": [list(goal) for goal in goals(run)],
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(point.errors for point in run.middle().values()))


if __name__ == "__main__":
    sys.exit(main())
