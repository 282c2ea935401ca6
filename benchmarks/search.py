"""Measure search: how many of the true neighbours each mode finds, how fast, in how much memory, as the index grows.

    python -m benchmarks.search VECTORS [--sizes 10000,100000,1000000] [--work FOLDER] [--json FILE]
    python -m benchmarks.search PHOTOGRAPHS --home HOME --count 20000
    python -m benchmarks.search VECTORS --home HOME --photographs PHOTOGRAPHS

VECTORS is a folder of .npz or .npy files with fc7 vectors (benchmarks/vectors.py says how they are laid out).
PHOTOGRAPHS is a folder or a tar of pictures, which the active version of HOME makes into vectors; with it, the speed
of adding pictures is measured too. A size beyond what there is is filled with mixtures of real vectors, and said to be
so. hnswlib and usearch need the extra `bench`; they are compared up to `--others-up-to` vectors: beyond, their graphs
take 16 and 8 KB a vector and long to build.

Everything is made first, in the folder FOLDER (a temporary one by default), then measured, so `--prepare-only` and a
later run with the same `--work` keep the two apart. A million vectors take 17 GB of disk and 9 GB of memory.
Does not: decide anything; it fails (exit code 1) when a way to search cannot be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import rivals
from benchmarks.adding import measure_adding
from benchmarks.search_runs import Point, measure, measure_writes, prepare
from benchmarks.vectors import Vectors, embed_photographs, read_vectors

GOAL_SIZE = 100_000
MODES = ("exact", "fast", "codes")


def goals(points: list[Point], adding: dict[str, float] | None) -> list[tuple[str, str, bool | None]]:
    """Return each goal, what was measured, and whether it is met; None where it was not measured.

    They are for 100,000 vectors on two cores. adding: as `measure_adding` returns it.
    """
    here = {point.name: point for point in points if point.size == GOAL_SIZE}
    exact = here.get("fc7 exact")
    fast = next((point for name, point in here.items() if name.startswith("fc7 fast") and "as served" in name), None)
    found: list[tuple[str, str, bool | None]] = []

    def goal(text: str, value: float | None, shown: str, *, least: float = 0, most: float = float("inf")) -> None:
        met = None if value is None else least <= value <= most
        found.append((text, "not measured" if value is None else shown.format(value), met))

    goal("exact: p50 at most 60 ms", None if exact is None else exact.p50, "{:.1f} ms", most=60)
    goal("fast: recall@10 at least .95", None if fast is None else fast.recall, "{:.4f}", least=0.95)
    goal("fast: p50 at most 10 ms", None if fast is None else fast.p50, "{:.1f} ms", most=10)
    goal("fast: at most 160 bytes a vector", None if fast is None else fast.bytes, "{:.0f}", most=160)
    share = None if adding is None else adding["added_per_s"] / adding["embedded_per_s"]
    goal("adds: at least 90 % of the embedding rate", share, "{:.1%}", least=0.9)
    return found


def table(points: list[Point]) -> str:
    """Return the measurements as text, one line each."""
    head = f"{'vectors':>9}  {'search':<42} {'recall@10':>9} {'in 100':>7} {'p50 ms':>8} {'p99 ms':>8} "
    lines = [head + f"{'/s by 32':>9} {'bytes':>7} {'start s':>8} {'own MB':>8}"]
    lines += [
        f"{point.size:>9,}  {point.name:<42} {point.recall:>9.4f} "
        f"{'' if point.wide is None else format(point.wide, '.4f'):>7} {point.p50:>8.2f} {point.p99:>8.2f} "
        f"{point.rate:>9,.0f} {point.bytes:>7,.0f} {point.start_s:>8.2f} {point.resident:>8,.0f}"
        for point in points
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Prepare, measure in processes of their own, and print."""
    given = _arguments(arguments)
    if given.task:
        folder, size, task = given.task
        print(json.dumps([asdict(point) for point in measure(Path(folder), int(size), task)]))
        return
    vectors = _vectors(given)
    sizes = sorted({int(size) for size in given.sizes.split(",")})
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        _check(work / "vectors.json", vectors, given)
        others = tuple(name for name in rivals.NAMES if name in given.others.split(","))
        results: dict[str, Any] = {
            "real": len(vectors.rows),
            "queries": len(vectors.queries),
            "cores": len(os.sched_getaffinity(0)),
            "load_before": os.getloadavg()[0],
            "writes": {},
            "adding": None,
        }
        points: list[Point] = []
        for size in sizes:
            compared = others if size <= given.others_up_to else ()
            _say(f"preparing {size:,}")
            prepare(vectors, size, work / str(size), bits=given.bits, epochs=given.epochs, others=compared)
            if given.prepare_only:
                continue
            for task in [*(mode for mode in MODES if mode != "codes" or given.bits), *compared]:
                _say(f"{size:,}: {task}")
                points += _in_a_process(work / str(size), size, task)
            _say(f"{size:,}: writes")
            results["writes"][size] = measure_writes(work / str(size), vectors)
        if given.prepare_only:
            return
        if given.home is not None and given.photographs is not None:
            _say("adding photographs")
            largest = max((size for size in sizes if size <= GOAL_SIZE), default=sizes[0])
            results["adding"] = measure_adding(work / str(largest) / "home", given.home, given.photographs)
    results |= {"points": [asdict(point) for point in points], "load_after": os.getloadavg()[0]}
    _report(results, points, vectors)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _report(results: dict[str, Any], points: list[Point], vectors: Vectors) -> None:
    print(
        f"{results['cores']} cores, load {results['load_before']:.1f} before and {results['load_after']:.1f} after; ",
        end="",
    )
    print(f"{len(vectors.rows):,} real vectors, {len(vectors.queries):,} queries. A size beyond is simulated.\n")
    print(table(points))
    print()
    for size, rates in results["writes"].items():
        print(f"{size:>9,}  {rates['adds_per_s']:,.0f} adds/s (32 a commit), {rates['deletes_per_s']:,.0f} deletes/s")
    if (adding := results["adding"]) is not None:
        rates = f"{adding['embedded_per_s']:.1f} embedded, {adding['added_per_s']:.1f} embedded and added"
        print(f"photographs a second: {rates}")
    print("\ngoals, of 100,000 vectors on two cores")
    for text, value, met in goals(points, results["adding"]):
        print(f"  {text:<44} {value:>12}  {'' if met is None else 'met' if met else 'MISSED'}")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Recall, latency and memory of search.")
    parser.add_argument("vectors", type=Path, nargs="?", help="folder of .npz/.npy vectors, or photographs with --home")
    parser.add_argument("--home", type=Path, help="FC7_HOME with an active version")
    parser.add_argument("--photographs", type=Path, help="folder or tar: also measure the adding of photographs")
    parser.add_argument("--count", type=int, help="make this many vectors from photographs")
    parser.add_argument("--sizes", default="10000,100000", help="numbers of vectors, with commas")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--bits", type=int, default=256, choices=(0, 64, 128, 256), help="of mode=codes; 0: without it")
    parser.add_argument("--epochs", type=int, default=5, help="of the auto-encoder's training")
    parser.add_argument("--others", default=",".join(rivals.NAMES), help="libraries to compare with; '' for none")
    parser.add_argument("--others-up-to", type=int, default=100_000, metavar="N")
    parser.add_argument("--work", type=Path, help="keep what is prepared here, and take it from here")
    parser.add_argument("--prepare-only", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.task is None and given.vectors is None:
        parser.error("VECTORS is missing")
    if given.count is not None and given.home is None:
        parser.error("--count wants --home: its active version makes the vectors")
    return given


def _vectors(given: argparse.Namespace) -> Vectors:
    if given.count is None:
        return read_vectors(given.vectors, given.queries)
    given.photographs = given.photographs or given.vectors
    return embed_photographs(given.vectors, given.home, given.count, given.queries)


def _check(path: Path, vectors: Vectors, given: argparse.Namespace) -> None:
    """Refuse a folder with things of other vectors."""
    described = {"vectors": vectors.digest, "bits": given.bits, "epochs": given.epochs}
    if path.exists() and json.loads(path.read_text()) != described:
        raise SystemExit(f"{path.parent} was prepared with other vectors or codes: give another --work")
    path.write_text(json.dumps(described))


def _in_a_process(folder: Path, size: int, task: str) -> list[Point]:
    command = [sys.executable, "-m", "benchmarks.search", "--task", str(folder), str(size), task]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{task} could not be measured:\n{done.stderr}")
    return [Point(**values) for values in json.loads(done.stdout.splitlines()[-1])]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
