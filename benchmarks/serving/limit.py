"""The limit: decoding and the engine in one process with nothing in between. No server can be faster.

A thread pool decodes, and the engine that serves runs batches. There are three ways to share the cores: alternating
(all cores decode a batch, then all run it), overlapping (the next batch is decoded while one runs) and by core (each
decodes and runs batches of its own). The fastest is the limit. One more figure: `one`, a single image alone.
Out of scope: HTTP, queues, and responses beyond the arrays.
"""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from model_store.cores import usable_cores
from model_store.image import prepare, views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

BATCH = 16


class Limit:
    """A process that measures the limit of the machine with the active version of a home."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure(self, name: str, seconds: float) -> float:
        """Return the images per second in batches of 16 or, for "one", the median time of a single image in ms."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name, seconds, file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith(f"{name}: "):
            if not line:
                raise SystemExit(f"The process that measures the limit ended with exit code {self._process.wait()}.")
        return float(line.partition(": ")[2])


@contextmanager
def limit_of(home: Path, images: list[bytes], scratch: Path) -> Iterator[Limit]:
    """Start the process with these photographs, and end it after the block."""
    arguments = scratch / "limit.pickle"
    arguments.write_bytes(pickle.dumps((home, images)))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.limit", str(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        try:
            yield Limit(process)
        finally:
            process.terminate()


class _Limits:
    """Each public method measures the limit of its name until the time `until`, and returns the number of images."""

    def __init__(self, home: Path, images: list[bytes]) -> None:
        self.cores = usable_cores()
        artifact = ModelStore(home).active_artifact()
        self.runner = Runner(artifact, RunnerOptions(device="cpu"))
        self.runner.warm_up((1, BATCH * self.runner.streams))
        self.images = images
        self.source = itertools.cycle(images)
        self.pool = ThreadPoolExecutor(self.cores)

    def _batch(self) -> list[bytes]:
        return list(itertools.islice(self.source, BATCH))

    def one(self, until: float) -> float:
        times = []
        while time.perf_counter() < until:
            data, started = next(self.source), time.perf_counter()
            self.runner.run(views(prepare(data)))
            times.append(time.perf_counter() - started)
        return float(np.median(times)) * 1000

    def alternating(self, until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            self.runner.run(views(np.stack(list(self.pool.map(prepare, self._batch())))))
            done += BATCH
        return done

    def overlapping(self, until: float) -> int:
        done = 0
        decoding = [self.pool.submit(prepare, data) for data in self._batch()]
        while time.perf_counter() < until:
            pixels = np.stack([future.result() for future in decoding])
            decoding = [self.pool.submit(prepare, data) for data in self._batch()]
            self.runner.run(views(pixels))
            done += BATCH
        return done

    def by_core(self, until: float) -> int:
        return sum(self.pool.map(lambda number: self._core(number, until), range(self.runner.streams)))

    def _core(self, number: int, until: float) -> int:
        source = itertools.cycle(self.images[number :: self.runner.streams])
        done = 0
        while time.perf_counter() < until:
            pixels = np.stack([prepare(data) for data in itertools.islice(source, BATCH)])
            self.runner.run(views(pixels), all_cores=False)
            done += BATCH
        return done


def _main() -> None:
    limits = _Limits(*pickle.loads(Path(sys.argv[1]).read_bytes()))
    for line in sys.stdin:
        name, seconds = line.split()
        started = time.perf_counter()
        count = getattr(limits, name)(started + float(seconds))
        value = count if name == "one" else count / (time.perf_counter() - started)
        print(f"{name}: {value}", flush=True)


if __name__ == "__main__":
    _main()
