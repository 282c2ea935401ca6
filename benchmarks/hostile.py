"""Measure how much images that are expensive to decode delay an ordinary client, and how much memory they take.

    python -m benchmarks.hostile [--clients 100] [--seconds 20] [--json FILE]

A server with a small random model runs in a process of its own. An ordinary client sends small JPEGs, first alone,
then while `--clients` others send the worst files that are still accepted or refused: JPEGs with many scans, run-length
encoded BMPs, floating-point TIFFs, huge tiles, and large AVIF, WebP, PNG and GIF pictures.
Out of scope: the speed of the model (see `benchmarks.serving`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx

from tests.support import costly_images as costly
from tests.support.pictures import bomb, jpeg
from tests.support.server import ProcessServer, process_server
from tests.support.tiny_model import publish_tiny_model

FILES: dict[str, Callable[[], bytes]] = {
    "JPEG, 50 MP, 60 scans": lambda: costly.jpeg_with_scans(7000, 7000, 60),
    "JPEG, 50 MP, 900 scans": lambda: costly.jpeg_with_scans(7000, 7000, 900),
    "JPEG, 12 MB of junk": lambda: costly.jpeg_with_junk(12_000_000),
    "JPEG, noise, 12 MP": lambda: costly.noisy("JPEG", 4000, 3000, quality=95),
    "BMP, run-length, 50 MP": lambda: costly.rle_bmp(50_000_000, 1),
    "BMP, run-length, 6 MP": lambda: costly.rle_bmp(6_000_000, 1),
    "TIFF, float, 44 MP": lambda: costly.tiff(6600, 6600, samples=1, bits=32, floats=True),
    "TIFF, RGB, 25 MP": lambda: costly.tiff(5000, 5000),
    "TIFF, huge tile": lambda: costly.tiff(100, 100, tile=(16384, 24576)),
    "PNG, RGB, 46 MP": lambda: costly.png(7000, 6600),
    "PNG, 16-bit RGB, 46 MP": lambda: costly.png(7000, 6600, depth=16),
    "PNG, 900 MP": bomb,
    "PNG, 1 million chunks": lambda: costly.png(32, 32, chunks=1_000_000),
    "GIF, 50 MP": lambda: costly.flat("GIF", 7000, 7000),
    "GIF, 3 million comments": lambda: costly.gif_with_extensions(3_000_000),
    "WebP, 12 MP": lambda: costly.flat("WEBP", 4000, 3000),
    "AVIF, 16 MP": lambda: costly.flat("AVIF", 4000, 4000),
}


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each phase")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, files = Path(folder) / "home", Path(folder) / "files"
        publish_tiny_model(home)
        files.mkdir()
        for name, make in FILES.items():
            (files / name).write_bytes(make())
        with process_server(home) as server:
            result = measure(server, files, given.clients, given.seconds)
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


def measure(server: ProcessServer, files: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Return the latencies of an ordinary client alone and among hostile ones, and the peak memory."""
    ordinary(server.url, 2.0)
    alone = ordinary(server.url, seconds)
    memory_before = resident(server.process.pid)
    stop, peak = threading.Event(), [0]
    watcher = threading.Thread(target=watch_memory, args=(server.process.pid, peak, stop), daemon=True)
    watcher.start()
    # In a process of its own, so that the ordinary client does not wait for the interpreter lock of the others.
    spawn = multiprocessing.get_context("spawn")
    started, answers = spawn.Event(), spawn.SimpleQueue()
    hostile = spawn.Process(target=attack, args=(server.url, files, clients, seconds + 2, (started, answers)))
    hostile.start()
    started.wait()
    time.sleep(2.0)
    attacked = ordinary(server.url, seconds)
    counted = answers.get()
    hostile.join()
    stop.set()
    watcher.join()
    after = ordinary(server.url, 2.0)
    return {
        "alone": alone,
        "attacked": attacked,
        "afterwards": after,
        "hostile_answers": dict(sorted(counted.items())),
        "memory_before_mb": round(memory_before / 1e6),
        "memory_peak_mb": round(peak[0] / 1e6),
    }


def ordinary(url: str, seconds: float) -> dict[str, Any]:
    """Send small JPEGs one after the other, and return the latencies in milliseconds."""
    data = jpeg(0, 500, 375)
    times: list[float] = []
    failures: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=30) as client:
        while time.monotonic() < end:
            started = time.perf_counter()
            status = send(client, data)
            times.append((time.perf_counter() - started) * 1000)
            if status != "200":
                failures[status] += 1
    ranked = statistics.quantiles(times, n=100) if len(times) > 1 else times * 99
    return {
        "requests": len(times),
        "failed": dict(failures),
        "p50_ms": round(ranked[49], 1),
        "p99_ms": round(ranked[98], 1),
        "max_ms": round(max(times), 1),
    }


def attack(
    url: str, folder: Path, clients: int, seconds: float, channel: tuple[Event, SimpleQueue[Counter[str]]]
) -> None:
    """Send the files of `folder` from this many threads. channel: an event for the start, a queue for the counts."""
    started, result = channel
    os.nice(5)  # the clients share the cores with the server
    files = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    answers: Counter[str] = Counter()

    def run(client: httpx.Client, number: int) -> None:
        while time.monotonic() < end:
            name, data = files[number % len(files)]
            answers[f"{name}: {send(client, data)}"] += 1
            number += 1

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    with httpx.Client(base_url=url, timeout=30, limits=limits) as client:
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=run, args=(client, number)) for number in range(clients)]
        started.set()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    result.put(answers)


def send(client: httpx.Client, data: bytes) -> str:
    """Classify an image, and return the status."""
    try:
        return str(
            client.post("/v1/classify", content=data, headers={"Content-Type": "application/octet-stream"}).status_code
        )
    except httpx.HTTPError as error:
        return type(error).__name__


def watch_memory(pid: int, peak: list[int], stop: threading.Event) -> None:
    """Keep the largest memory of the server and its worker processes in `peak`."""
    while not stop.is_set():
        peak[0] = max(peak[0], resident(pid))
        time.sleep(0.02)


def resident(pid: int) -> int:
    """Return the resident memory of a process and its children, in bytes."""
    total = 0
    children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    for each in [str(pid), *(child for listed in children for child in listed)]:
        try:
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    return total


if __name__ == "__main__":
    main()
