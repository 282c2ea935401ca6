"""The limit: decoding and ONNX Runtime in one process, with nothing between them. No server can be faster than this.

Decoding runs in a pool, the version's graph for batches in batches, in both of the ways that share the cores: one after
the other (all cores decode a batch, then all run it), or overlapping (the next batch is decoded while one runs). The
faster is the limit. Beside it: each core decodes and runs batches of its own, with a second session of one thread a
run. That is the limit of whoever pays the memory of a second copy of the weights for it. And one image alone.
Does not: HTTP, queues, answers beyond the arrays.
"""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from model_store.cores import usable_cores
from model_store.image import CROP, prepare, views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

BATCH = 16


class Limit:
    """The machine's limit on the active version of `home`, in a process of its own, measured when asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure(self, way: str, seconds: float) -> float:
        """Return images a second in batches of 16, or for "one" the median of one image alone in ms."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(way, seconds, file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith(f"{way}: "):
            if not line:
                raise SystemExit(f"the limit's process ended with code {self._process.wait()}")
        return float(line.partition(": ")[2])


@contextmanager
def limit_of(home: Path, images: list[bytes], scratch: Path) -> Iterator[Limit]:
    """Start the process with these photographs; it is gone when the block is left."""
    given = scratch / "limit.pickle"
    given.write_bytes(pickle.dumps((home, images)))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.limit", str(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    with process:
        try:
            yield Limit(process)
        finally:
            process.terminate()


class _Ways:
    def __init__(self, home: Path, images: list[bytes]) -> None:
        self.cores = usable_cores()
        artifact = ModelStore(home).active_artifact()
        self.single = Runner(artifact, RunnerOptions(device="cpu"))
        self.runner = Runner(artifact, RunnerOptions(device="cpu", streams=self.cores, batches=True))
        self.single.warm_up()
        self.runner.warm_up((BATCH,))
        self.runner.run(np.zeros((BATCH, CROP, CROP, 3), np.uint8))
        self.source = itertools.cycle(images)
        self.turn = threading.Lock()
        self.pool = ThreadPoolExecutor(self.cores)

    def batch(self) -> list[bytes]:
        return list(itertools.islice(self.source, BATCH))

    def one(self, until: float) -> float:
        times = []
        while time.perf_counter() < until:
            data, started = next(self.source), time.perf_counter()
            self.single.run(views(prepare(data)))
            times.append(time.perf_counter() - started)
        return float(np.median(times)) * 1000

    def in_turn(self, until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            self.runner.run(views(np.stack(list(self.pool.map(prepare, self.batch())))))
            done += BATCH
        return done

    def overlapping(self, until: float) -> int:
        done = 0
        decoding = [self.pool.submit(prepare, data) for data in self.batch()]
        while time.perf_counter() < until:
            pixels = np.stack([future.result() for future in decoding])
            decoding = [self.pool.submit(prepare, data) for data in self.batch()]
            self.runner.run(views(pixels))
            done += BATCH
        return done

    def side_by_side(self, until: float) -> int:
        return sum(self.pool.map(self.own_batches, [until] * self.cores))

    def own_batches(self, until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            with self.turn:
                data = self.batch()
            self.runner.run_beside(views(np.stack([prepare(each) for each in data])))
            done += BATCH
        return done


def _main() -> None:
    ways = _Ways(*pickle.loads(Path(sys.argv[1]).read_bytes()))
    for line in sys.stdin:
        way, seconds = line.split()
        started = time.perf_counter()
        found = getattr(ways, way)(started + float(seconds))
        value = found if way == "one" else found / (time.perf_counter() - started)
        print(f"{way}: {value}", flush=True)


if __name__ == "__main__":
    _main()
