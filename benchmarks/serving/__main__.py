"""Measure the serving speed of fc7, compared with LitServe on the same graph and with the limit of the machine.

    python -m benchmarks.serving PHOTOGRAPHS [--home HOME] [--quick] [--json FILE]

PHOTOGRAPHS is a folder or a tar file of images. HOME has a published, active version, whose graph and weights are
served; the index that the run fills is temporary. LitServe needs the extra `bench`. On two cores a run takes about ten
minutes, with `--quick` about two.

Each round measures, one directly after the other: the limit (decoding and the engine in one process, without HTTP), fc7
and LitServe with 1, 8, 32 and 128 clients, LitServe with OpenVINO and with other graphs, and an endpoint that only
reads images, which shows the cost of HTTP. Then fc7 alone is
measured: classify and search mixed, ten views, photographs of 12 megapixels, and three times the load that it can
serve. The output has the medians over the rounds, the goals and whether they are met, and the share of the cores that
the load generator used, because it runs on the same machine.
The exit code is 1 only if a server returned unexpected errors. Missed goals do not change it.
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

from benchmarks.serving.benchmark import (
    BUSY,
    FULL,
    LITSERVE,
    MAX_CLIENTS,
    OPENVINO,
    PLAIN,
    QUICK,
    Point,
    ServingBenchmark,
)

DEADLINE_S = 10.0


def report(run: ServingBenchmark) -> str:
    """Return the table, the figures under overload and the goals as text."""
    limit = median(run.rates("limit"))
    limits = {name: median(values) for name, values in run.limits.items()}
    lines = [
        f"limit: {limit:.1f} images/s (alternating {limits['alternating']:.1f}, "
        f"overlapping {limits['overlapping']:.1f}, by core {limits['by_core']:.1f}); one image {limits['one']:.1f} ms",
        "",
        "| server, clients | requests/s | of limit | p50 ms | p99 ms | p99/p50 | CPU ms | MB | errors | load |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {point.rate:.1f} | {point.rate / limit:.2f} | {point.p50:.1f} | {point.p99:.1f} "
        f"| {point.p99 / point.p50:.2f} | {point.processor:.1f} | {point.memory:.0f} | {point.errors:.0f} "
        f"| {point.generator:.1%} |"
        for name, point in run.medians().items()
    ]
    lines += [
        "",
        "load: the load generator's share of all cores. MB: pages shared with suspended servers are counted in part.",
        "",
    ]
    lines += [f"overload, {name}: {value}" for name, value in _rounded(run.overload).items()]
    lines += ["", *(_goal_line(*goal) for goal in goals(run))]
    return "\n".join(lines)


def goals(run: ServingBenchmark) -> list[tuple[str, float, str, float | None]]:
    """Return (name, value, ">=" or "<=", goal or None) of each figure. A ratio is the median over the rounds."""
    busy = f"fc7, {BUSY}"
    single = [point.p50 for point in run.points["fc7, 1"]]
    found: list[tuple[str, float, str, float | None]] = [
        ("fc7 with 32 clients / the limit", _ratio(run.rates(busy), run.rates("limit")), ">=", 0.95),
        ("fc7 with 32 clients / the limit with HTTP", _ratio(run.rates(busy), run.limits_with_http()), ">=", None),
        ("p50 of fc7 with one client / decoding and running alone", _ratio(single, run.limits["one"]), "<=", 1.1),
        (
            "p99 of fc7 with 32 clients / its p50",
            median(point.p99 / point.p50 for point in run.points[busy]),
            "<=",
            1.3,
        ),
        ("goodput of fc7 at 3 times the peak load / the peak", run.overload["of_peak"], ">=", 0.9),
        ("p99 of accepted requests at 3 times the peak load, s", run.overload["p99_ms"] / 1000, "<=", DEADLINE_S),
        ("memory of fc7 with 128 clients, MB", run.medians()[f"fc7 by itself, {MAX_CLIENTS}"].memory, "<=", 600),
        ("fc7 from process start to ready, s", median(run.start_s), "<=", 2.0),
    ]
    if f"{LITSERVE}, {BUSY}" in run.points:
        found[3:3] = [
            (f"{one} with 32 clients / {words}", _ratio(run.rates(name), run.rates(f"{other}, {BUSY}")), ">=", goal)
            for one, name, words, other, goal in (
                ("fc7", busy, "LitServe on the same graph", LITSERVE, 2.2),
                ("fc7", busy, "LitServe with OpenVINO", OPENVINO, None),
                ("fc7", busy, "LitServe on a plain export of the net", PLAIN, None),
                ("the limit", "limit", "LitServe with OpenVINO", OPENVINO, None),
            )
        ]
    return found


def _ratio(ones: list[float], others: list[float]) -> float:
    return median(one / other for one, other in zip(ones, others, strict=True))


def _goal_line(name: str, value: float, direction: str, bound: float | None) -> str:
    if bound is None:
        return f"        {name}: {value:.2f}"
    met = value >= bound if direction == ">=" else value <= bound
    return f"{'met   ' if met else 'MISSED'}  {name}: {value:.2f} (goal {direction} {bound:g})"


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("FC7_"):
        raise argparse.ArgumentTypeError(f"{text} is not of the form FC7_NAME=VALUE.")
    return name, value


def main(arguments: list[str] | None = None, out: Callable[[str], None] = print) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder or tar file of images")
    parser.add_argument(
        "--home", type=Path, default=Path(os.environ.get("FC7_HOME", "var")), help="by default FC7_HOME"
    )
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--no-litserve", action="store_true", help="measure fc7 only")
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="FC7_NAME=VALUE", help="a setting of fc7"
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    given = parser.parse_args(arguments)
    if not (given.home / "active.json").is_file():
        raise SystemExit(f"{given.home} has no active version. Run fc7 demo, or fc7 export and fc7 models activate.")
    run = ServingBenchmark(given.home, given.photographs, QUICK if given.quick else FULL, dict(given.set))
    with tempfile.TemporaryDirectory(prefix="fc7-bench-") as scratch:
        run.all(Path(scratch), litserve=not given.no_litserve)
    out(report(run))
    if given.json:
        figures = {
            name: {key: getattr(point, key) for key in Point.__dataclass_fields__}
            for name, point in run.medians().items()
        }
        found = {
            "limits": run.limits,
            "start_s": run.start_s,
            "points": figures,
            "overload": run.overload,
            "goals": [list(goal) for goal in goals(run)],
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(point.errors for point in run.medians().values()))


if __name__ == "__main__":
    sys.exit(main())
