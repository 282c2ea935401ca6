"""The table and the goals of the search benchmark, as text."""

from __future__ import annotations

from typing import Any

from benchmarks.search.measure import Point
from benchmarks.search.vectors import Vectors

GOAL_SIZE = 100_000


def goals(points: list[Point], adding: dict[str, float] | None) -> list[tuple[str, str, bool | None]]:
    """Return each goal, the measured value, and whether the goal is met, or None if it was not measured.

    The goals are for 100,000 vectors on two cores. adding: the result of `measure_adding`.
    """
    measured = {point.name: point for point in points if point.size == GOAL_SIZE}
    exact = measured.get("fc7 exact")
    fast = next(
        (point for name, point in measured.items() if name.startswith("fc7 fast") and "as served" in name), None
    )
    found: list[tuple[str, str, bool | None]] = []

    def goal(text: str, value: float | None, form: str, *, least: float = 0, most: float = float("inf")) -> None:
        met = None if value is None else least <= value <= most
        found.append((text, "not measured" if value is None else form.format(value), met))

    goal("exact: p50 at most 60 ms", None if exact is None else exact.p50, "{:.1f} ms", most=60)
    goal("fast: recall@10 at least .95", None if fast is None else fast.recall, "{:.4f}", least=0.95)
    goal("fast: p50 at most 10 ms", None if fast is None else fast.p50, "{:.1f} ms", most=10)
    goal("fast: at most 160 bytes per vector", None if fast is None else fast.bytes, "{:.0f}", most=160)
    share = None if adding is None else adding["added_per_s"] / adding["embedded_per_s"]
    goal("adding: at least 90 % of the embedding rate", share, "{:.1%}", least=0.9)
    return found


def table(points: list[Point]) -> str:
    """Return the measurements as text, one per line."""
    head = f"{'vectors':>9}  {'search':<42} {'recall@10':>9} {'in 100':>7} {'p50 ms':>8} {'p99 ms':>8} "
    lines = [head + f"{'batch/s':>9} {'bytes':>7} {'start s':>8} {'MB':>8}"]
    lines += [
        f"{point.size:>9,}  {point.name:<42} {point.recall:>9.4f} "
        f"{'' if point.wide is None else format(point.wide, '.4f'):>7} {point.p50:>8.2f} {point.p99:>8.2f} "
        f"{point.rate:>9,.0f} {point.bytes:>7,.0f} {point.start_s:>8.2f} {point.resident:>8,.0f}"
        for point in points
    ]
    return "\n".join(lines)


def print_report(results: dict[str, Any], points: list[Point], vectors: Vectors) -> None:
    """Print all results."""
    print(
        f"{results['cores']} cores, load {results['load_before']:.1f} before and {results['load_after']:.1f} after; ",
        end="",
    )
    print(f"{len(vectors.rows):,} real vectors, {len(vectors.queries):,} queries. Larger sizes are simulated.\n")
    print(table(points))
    print()
    for size, rates in results["writes"].items():
        print(f"{size:>9,}  {rates['adds_per_s']:,.0f} adds/s (32 per commit), {rates['deletes_per_s']:,.0f} deletes/s")
    if (adding := results["adding"]) is not None:
        rates = f"{adding['embedded_per_s']:.1f} embedded, {adding['added_per_s']:.1f} embedded and added"
        print(f"photographs per second: {rates}")
    print("\ngoals for 100,000 vectors on two cores")
    for text, value, met in goals(points, results["adding"]):
        print(f"  {text:<44} {value:>12}  {'' if met is None else 'met' if met else 'MISSED'}")
