"""The limit: decoding and ONNX Runtime in one process, with nothing between them. No server can be faster than this.

Decoding runs in a pool, the graph in batches, in both of the ways that share the cores: one after the other (all cores
decode a batch, then all run it), or overlapping (the next batch is decoded while one runs). The faster is the limit.
Beside it: each core decodes and runs batches of its own, with a second session of one thread a run. That is the limit
of whoever pays the memory of a second copy of the weights for it. Batches have the version's graph for batches.
Does not: HTTP, queues, answers beyond the arrays.
"""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from model_store.cores import usable_cores
from model_store.image import CROP, prepare, views
from model_store.runner import Runner, RunnerOptions
from model_store.store import ModelStore

BATCH = 16


@dataclass(frozen=True, slots=True)
class Limit:
    """Images a second in batches of 16, each way, and the median of one image alone (decode and run) in ms."""

    in_turn: float
    overlapping: float
    side_by_side: float
    one_ms: float

    @property
    def rate(self) -> float:
        """The faster way of one session, images a second."""
        return max(self.in_turn, self.overlapping)


def measure_limit(home: Path, images: list[bytes], seconds: float) -> Limit:
    """Measure the active version of `home`, in a process of its own, each figure for so many seconds."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.limit"],
        input=pickle.dumps((home, images, seconds)),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        check=True,
    )
    return Limit(**json.loads(done.stdout.splitlines()[-1]))


def _measure(home: Path, images: list[bytes], seconds: float) -> Limit:
    cores = usable_cores()
    artifact = ModelStore(home).active_artifact()
    single = Runner(artifact, RunnerOptions(device="cpu"))
    runner = Runner(artifact, RunnerOptions(device="cpu", streams=cores, batches=True))
    single.warm_up()
    runner.warm_up((BATCH,))
    runner.run(np.zeros((BATCH, CROP, CROP, 3), np.uint8))
    source = itertools.cycle(images)

    def batch() -> list[bytes]:
        return list(itertools.islice(source, BATCH))

    def one() -> float:
        data, started = next(source), time.perf_counter()
        single.run(views(prepare(data)))
        return time.perf_counter() - started

    def own_batches(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            with turn:
                data = batch()
            runner.run_beside(views(np.stack([prepare(each) for each in data])))
            done += BATCH
        return done

    turn = threading.Lock()
    with ThreadPoolExecutor(cores) as pool:
        until = time.perf_counter() + seconds
        alone = []
        while time.perf_counter() < until:
            alone.append(one())

        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            runner.run(views(np.stack(list(pool.map(prepare, batch())))))
            done += BATCH
        in_turn = done / (time.perf_counter() - started)

        started, done = time.perf_counter(), 0
        decoding = [pool.submit(prepare, data) for data in batch()]
        while time.perf_counter() - started < seconds:
            pixels = np.stack([future.result() for future in decoding])
            decoding = [pool.submit(prepare, data) for data in batch()]
            runner.run(views(pixels))
            done += BATCH
        overlapping = done / (time.perf_counter() - started)

        started = time.perf_counter()
        done = sum(pool.map(own_batches, [started + seconds] * cores))
        side_by_side = done / (time.perf_counter() - started)
    return Limit(in_turn, overlapping, side_by_side, float(np.median(alone)) * 1000)


if __name__ == "__main__":
    json.dump(asdict(_measure(*pickle.load(sys.stdin.buffer))), sys.stdout)
