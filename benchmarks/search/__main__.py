"""Measure search: recall, speed and memory of each mode, as the index grows.

    python -m benchmarks.search VECTORS [--sizes 10000,100000,1000000] [--work FOLDER] [--json FILE]
    python -m benchmarks.search PHOTOGRAPHS --home HOME --count 20000
    python -m benchmarks.search VECTORS --home HOME --photographs PHOTOGRAPHS

VECTORS is a folder of .npz or .npy files with fc7 vectors; `benchmarks.search.vectors` describes their layout.
PHOTOGRAPHS is a folder or a tar file of images, which the active version of HOME embeds; the speed of adding images is
then measured too. If there are fewer vectors than a size needs, mixtures of real vectors are added, and the output says
so. hnswlib and usearch need the extra `bench`. They are compared up to `--others-up-to` vectors: their graphs need 16
and 8 KB per vector, and take long to build.

All data is prepared first, in FOLDER (a temporary folder by default), and then measured. To separate the two, run with
`--prepare-only` and then again with the same `--work`. A million vectors need 17 GB of disk and 9 GB of memory.
The exit code is 1 if a search cannot be measured. Missed goals do not change it.
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

from benchmarks.search import libraries
from benchmarks.search.adding import measure_adding
from benchmarks.search.measure import Point, measure, measure_writes, prepare
from benchmarks.search.report import GOAL_SIZE, print_report
from benchmarks.search.vectors import Vectors, embed_photographs, read_vectors

MODES = ("exact", "fast", "codes")


def main(arguments: list[str] | None = None) -> None:
    """Prepare the data, measure each search in its own process, and print the results."""
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
        others = tuple(name for name in libraries.NAMES if name in given.others.split(","))
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
            _log(f"preparing {size:,}")
            prepare(vectors, size, work / str(size), bits=given.bits, epochs=given.epochs, others=compared)
            if given.prepare_only:
                continue
            for task in [*(mode for mode in MODES if mode != "codes" or given.bits), *compared]:
                _log(f"{size:,}: {task}")
                points += _in_own_process(work / str(size), size, task)
            _log(f"{size:,}: writes")
            results["writes"][size] = measure_writes(work / str(size), vectors)
        if given.prepare_only:
            return
        if given.home is not None and given.photographs is not None:
            _log("adding photographs")
            largest = max((size for size in sizes if size <= GOAL_SIZE), default=sizes[0])
            results["adding"] = measure_adding(work / str(largest) / "home", given.home, given.photographs)
    results |= {"points": [asdict(point) for point in points], "load_after": os.getloadavg()[0]}
    print_report(results, points, vectors)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Recall, latency and memory of search.")
    parser.add_argument(
        "vectors", type=Path, nargs="?", help="folder of .npz or .npy vectors, or photographs with --home"
    )
    parser.add_argument("--home", type=Path, help="folder with an active model version (FC7_HOME)")
    parser.add_argument("--photographs", type=Path, help="folder or tar file: also measure adding photographs")
    parser.add_argument("--count", type=int, help="embed this many vectors from the photographs")
    parser.add_argument("--sizes", default="10000,100000", help="index sizes in vectors, separated by commas")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--bits", type=int, default=256, choices=(0, 64, 128, 256), help="code length of mode=codes; 0 leaves it out"
    )
    parser.add_argument("--epochs", type=int, default=5, help="training epochs of the auto-encoder")
    parser.add_argument("--others", default=",".join(libraries.NAMES), help="libraries to compare with; '' for none")
    parser.add_argument(
        "--others-up-to", type=int, default=100_000, metavar="N", help="largest size for other libraries"
    )
    parser.add_argument("--work", type=Path, help="folder for the prepared data, which is kept and reused")
    parser.add_argument("--prepare-only", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.task is None and given.vectors is None:
        parser.error("VECTORS is required.")
    if given.count is not None and given.home is None:
        parser.error("--count requires --home, whose active version embeds the photographs.")
    return given


def _vectors(given: argparse.Namespace) -> Vectors:
    if given.count is None:
        return read_vectors(given.vectors, given.queries)
    given.photographs = given.photographs or given.vectors
    return embed_photographs(given.vectors, given.home, given.count, given.queries)


def _check(path: Path, vectors: Vectors, given: argparse.Namespace) -> None:
    """Reject a folder that was prepared from other vectors."""
    described = {"vectors": vectors.digest, "bits": given.bits, "epochs": given.epochs}
    if path.exists() and json.loads(path.read_text()) != described:
        raise SystemExit(f"{path.parent} was prepared with other vectors or codes. Use another --work folder.")
    path.write_text(json.dumps(described))


def _in_own_process(folder: Path, size: int, task: str) -> list[Point]:
    command = [sys.executable, "-m", "benchmarks.search", "--task", str(folder), str(size), task]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{task} cannot be measured:\n{done.stderr}")
    return [Point(**values) for values in json.loads(done.stdout.splitlines()[-1])]


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
