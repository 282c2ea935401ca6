"""Measure fc7, LitServe and the limit of the machine in rounds.

All servers are started once, and those that are not being measured are suspended. A round measures each number of
clients on all servers, one directly after the other, together with the limit: the speed of a machine drifts, so only
figures of the same minute give a meaningful ratio.
Out of scope: the output and the goals (see `__main__`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.photographs import enlarge, read_photographs
from benchmarks.serving.limit import Limit, limit_of
from benchmarks.serving.load import LoadResult, Plan, request, run_load
from benchmarks.serving.plain_graph import write_plain_graph
from benchmarks.serving.servers import Server, empty_server, fc7_server, litserve_server

BUSY, MAX_CLIENTS = 32, 128
OVERLOAD = 3
FC7, EMPTY = "fc7", "an empty endpoint"
_LITSERVES = LITSERVE, OPENVINO, POOL, PLAIN = (
    "LitServe",
    "LitServe, OpenVINO",
    "LitServe, decoding in a pool",
    "LitServe, plain export",
)
# By number of clients: the servers to measure, and the limits to measure with them.
MEASURED = {
    1: (FC7, LITSERVE, PLAIN),
    8: (FC7, LITSERVE),
    BUSY: (FC7, LITSERVE, OPENVINO, POOL, PLAIN, EMPTY),
    MAX_CLIENTS: (FC7, LITSERVE),
}
FASTEST = ("alternating", "overlapping", "by_core")
LIMITS = {1: ("one",), BUSY: FASTEST}
_BOUNDARY = "4d1f0f5e"


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a run: rounds, seconds per measurement, photographs, and large photographs."""

    rounds: int
    seconds: float
    photographs: int
    large: int


FULL, QUICK = Size(7, 3.0, 200, 8), Size(1, 4.0, 100, 3)


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement, or the medians of several. Times in ms, memory in MB; generator: share of all cores."""

    rate: float
    p50: float
    p99: float
    errors: float
    memory: float
    processor: float
    generator: float

    @classmethod
    def of(cls, result: LoadResult, memory: int, processor_s: float) -> Point:
        """Summarize one measurement; processor: CPU time of the server per response."""
        return cls(
            rate=result.rate,
            p50=result.percentile(50),
            p99=result.percentile(99),
            errors=result.errors,
            memory=memory / 1e6,
            processor=processor_s * 1000 / max(result.answered, 1),
            generator=result.processor_s / result.seconds / (os.cpu_count() or 1),
        )

    @classmethod
    def median(cls, points: list[Point]) -> Point:
        """Return the medians; errors are summed."""
        values = {name: median(getattr(point, name) for point in points) for name in cls.__dataclass_fields__}
        return cls(**values | {"errors": sum(point.errors for point in points)})


class ServingBenchmark:
    """One run of the benchmark. The results are in `points` and `limits`, by name and round."""

    def __init__(self, home: Path, source: Path, size: Size, settings: Mapping[str, str]) -> None:
        self.home, self.size, self.settings = home, size, dict(settings)
        self.photographs = read_photographs(source, size.photographs)
        self.limits: dict[str, list[float]] = {}
        self.points: dict[str, list[Point]] = {}
        self.start_s: list[float] = []
        self.overload: dict[str, Any] = {}

    def all(self, scratch: Path, *, litserve: bool) -> None:
        """Measure everything. scratch: a folder for logs and for the temporary index."""
        home = _temporary_home(self.home, scratch / "home")
        log = scratch / "fc7.log"
        with ExitStack() as stack:
            limit = stack.enter_context(limit_of(self.home, self.photographs, scratch))
            servers = {
                FC7: stack.enter_context(fc7_server(home, log, self.settings)),
                EMPTY: stack.enter_context(empty_server(scratch / "empty.log")),
            }
            for server in servers.values():
                server.suspend()
            if litserve:
                self.start_litserve(stack, servers, scratch)
            for number in range(self.size.rounds):
                self.log(f"round {number + 1} of {self.size.rounds}")
                self.round(limit, servers)
        for measure in (self.alone, self.overloaded):
            with fc7_server(home, log, self.settings) as server:
                self.start_s.append(server.start_s)
                measure(server)

    def start_litserve(self, stack: ExitStack, servers: dict[str, Server], scratch: Path) -> None:
        """Start LitServe in each of its variants, and suspend it."""
        log = scratch / "litserve.log"
        self.log("exporting the net with torch.onnx")
        plain = write_plain_graph(self.home, scratch)
        for name, threads, engine, graph in (
            (LITSERVE, 1, "onnxruntime", None),
            (OPENVINO, 1, "openvino", None),
            (POOL, os.cpu_count() or 1, "onnxruntime", None),
            (PLAIN, 1, "onnxruntime", plain),
        ):
            servers[name] = stack.enter_context(
                litserve_server(self.home, log, threads=threads, engine=engine, graph=graph)
            )
            servers[name].suspend()

    def round(self, limit: Limit, servers: Mapping[str, Server]) -> None:
        """Measure every server and limit once."""
        for clients, names in MEASURED.items():
            for name in LIMITS.get(clients, ()):
                self.limits.setdefault(name, []).append(limit.measure(name, self.size.seconds))
            for name in names:
                if name in servers:
                    path = servers[name].path
                    requests = self.uploads(path) if name in _LITSERVES else self.images(path)
                    with servers[name].resumed():
                        self.measure(f"{name}, {clients}", servers[name], requests, clients)

    def alone(self, server: Server) -> None:
        """Measure fc7 alone: search mixed with classify, ten views, and large photographs."""
        self.log("filling an index")
        step = 20
        for first in range(0, len(self.photographs), step):
            part = self.photographs[first : first + step]
            names = [f"{first + number}.jpg" for number in range(len(part))]
            _post(server.port, _upload("/v1/images", part, names))
        search = [request("/v1/search?k=10", data) for data in self.photographs]
        mix = [entry for pair in zip(self.images("/v1/classify"), search, strict=True) for entry in pair]
        self.measure("fc7, classify and search, 32", server, mix, BUSY)
        ten = [request("/v1/classify?views=10", data) for data in self.photographs]
        self.measure("fc7, ten views, 8", server, ten, 8)
        self.log("enlarging photographs")
        large = [request("/v1/classify", enlarge(data)) for data in self.photographs[: self.size.large]]
        self.measure("fc7, 12 megapixels, 1", server, large, 1)
        self.measure("fc7, 12 megapixels, 32", server, large, BUSY)

    def overloaded(self, server: Server) -> None:
        """Send three times the peak load, and measure how many requests are still answered, and how fast.

        The peak load is the mean of what the same server handles before and after.
        """
        name = f"fc7 by itself, {MAX_CLIENTS}"
        self.measure(name, server, self.images("/v1/classify"), MAX_CLIENTS)
        before = self.points[name][0].rate
        self.log(f"{OVERLOAD * before:.0f} requests a second")
        result = run_load(
            Plan(
                server.port,
                self.images("/v1/classify"),
                clients=2000,
                seconds=3 * self.size.seconds,
                warm_up_s=3.0,
                rate=OVERLOAD * before,
            )
        )
        memory = server.memory()
        after = run_load(Plan(server.port, self.images("/v1/classify"), 1, 2.0))
        self.measure(name, server, self.images("/v1/classify"), MAX_CLIENTS)
        peak = (before + self.points[name][1].rate) / 2
        times = {str(status): len(latencies) for status, latencies in sorted(result.latencies.items())}
        self.overload = {
            "offered": OVERLOAD * before,
            "goodput": result.rate,
            "of_peak": result.rate / peak,
            "p50_ms": result.percentile(50),
            "p99_ms": result.percentile(99),
            "answers": times,
            "broken": result.broken,
            "unsent": result.unsent,
            "retry_after_s": result.retry_after,
            "memory_mb": memory / 1e6,
            "generator": result.processor_s / result.seconds / (os.cpu_count() or 1),
            "afterwards_p50_ms": after.percentile(50),
            "afterwards_errors": after.errors,
        }

    def images(self, path: str) -> list[bytes]:
        """Return a request with each photograph as its body."""
        return [request(path, data) for data in self.photographs]

    def uploads(self, path: str) -> list[bytes]:
        """Return a multipart request for each photograph."""
        return [_upload(path, [data]) for data in self.photographs]

    def measure(self, name: str, server: Server, requests: list[bytes], clients: int) -> None:
        """Measure one server, after a warm-up of one second."""
        self.log(name)
        before = server.processor_s()
        result = run_load(Plan(server.port, requests, clients, self.size.seconds, warm_up_s=1.0))
        spent = (server.processor_s() - before) * self.size.seconds / (self.size.seconds + 1)
        self.points.setdefault(name, []).append(Point.of(result, server.memory(), spent))

    def log(self, text: str) -> None:
        """Write to standard error what is being measured, with the load of the machine."""
        print(f"{time.strftime('%H:%M:%S')} load {os.getloadavg()[0]:.1f}  {text}", file=sys.stderr, flush=True)

    def medians(self) -> dict[str, Point]:
        """Return the medians of all measurements, by name."""
        return {name: Point.median(points) for name, points in self.points.items()}

    def rates(self, name: str) -> list[float]:
        """Return the images per second in each round. "limit": the fastest way to share the cores."""
        if name == "limit":
            return [max(round_) for round_ in zip(*(self.limits[way] for way in FASTEST), strict=True)]
        return self.limits[name] if name in self.limits else [point.rate for point in self.points[name]]

    def limits_with_http(self) -> list[float]:
        """Return the limit in each round if an image also takes the CPU time of an empty endpoint and of its client."""
        cores = os.cpu_count() or 1
        http = (
            point.processor / 1000 + point.generator * cores / point.rate for point in self.points[f"{EMPTY}, {BUSY}"]
        )
        return [cores / (cores / limit + spent) for limit, spent in zip(self.rates("limit"), http, strict=True)]


def _temporary_home(home: Path, target: Path) -> Path:
    """Make a home with the versions of `home` and an empty index."""
    target.mkdir()
    (target / "models").symlink_to((home / "models").resolve())
    (target / "active.json").write_bytes((home / "active.json").read_bytes())
    return target


def _upload(path: str, images: list[bytes], names: list[str] | None = None) -> bytes:
    """Return a multipart request with the images as parts named `file`."""
    parts = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in zip(names or ["a.jpg"] * len(images), images, strict=True)
    )
    body = parts + f"--{_BOUNDARY}--\r\n".encode()
    return request(path, body, f"multipart/form-data; boundary={_BOUNDARY}")


def _post(port: int, whole: bytes) -> None:
    """Send one request and wait for its response. Raises SystemExit if it is an error."""
    import http.client  # noqa: PLC0415
    import socket  # noqa: PLC0415

    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(whole)
        response = http.client.HTTPResponse(connection)
        response.begin()
        if response.status >= 400:
            raise SystemExit(f"Adding images failed: {response.read().decode()}")
