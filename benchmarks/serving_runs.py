"""What benchmarks/serving.py measures: fc7, LitServe and the machine's limit, point by point and in turns.

All servers are started once, and those that are not measured are put to sleep. A round measures each number of clients
on all of them, one right after the other, and beside them what limits them: the speed of a machine drifts, and a ratio
is of two figures of the same minute.
Does not: print, set goals.
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

from benchmarks.limit import Limit, limit_of
from benchmarks.load import Plan, Seen, request, run_load
from benchmarks.photographs import enlarge, read_photographs
from benchmarks.plain_graph import write_plain_graph
from benchmarks.servers import Server, fc7_server, litserve_server

BUSY, MOST = 32, 128
OVERLOAD = 3
FC7 = "fc7"
LITSERVE, BATCHES, POOL, PLAIN = (
    "LitServe",
    "LitServe, graph for batches",
    "LitServe, decoding in a pool",
    "LitServe, plain export",
)
# Which of them is measured at which numbers of clients; what limits fc7 there is measured beside them.
MEASURED = {
    1: (FC7, LITSERVE, PLAIN),
    8: (FC7, LITSERVE),
    BUSY: (FC7, LITSERVE, BATCHES, POOL, PLAIN),
    MOST: (FC7, LITSERVE),
}
LIMITS = {1: ("one",), BUSY: ("in_turn", "overlapping", "side_by_side")}
_BOUNDARY = "4d1f0f5e"


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run measures: rounds, seconds a point, photographs, and large ones."""

    rounds: int
    seconds: float
    photographs: int
    large: int


FULL, QUICK = Length(7, 3.0, 200, 8), Length(1, 4.0, 100, 3)


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement, or the medians of several: times in ms, memory in MB, `generator` a share of all cores."""

    rate: float
    p50: float
    p99: float
    errors: float
    memory: float
    processor: float
    generator: float

    @classmethod
    def of(cls, seen: Seen, memory: int, processor_s: float) -> Point:
        """Summarise one run; `processor`: the server's processor time for one answer."""
        return cls(
            rate=seen.rate,
            p50=seen.percentile(50),
            p99=seen.percentile(99),
            errors=seen.errors,
            memory=memory / 1e6,
            processor=processor_s * 1000 / max(seen.answered, 1),
            generator=seen.processor_s / seen.seconds / (os.cpu_count() or 1),
        )

    @classmethod
    def middle(cls, points: list[Point]) -> Point:
        """Return the medians; errors are added up."""
        values = {name: median(getattr(point, name) for point in points) for name in cls.__dataclass_fields__}
        return cls(**values | {"errors": sum(point.errors for point in points)})


class Run:
    """One run of the benchmark: what was measured, by name and round, in `points` and `limits`."""

    def __init__(self, home: Path, source: Path, length: Length, settings: Mapping[str, str]) -> None:
        self.home, self.length, self.settings = home, length, dict(settings)
        self.photographs = read_photographs(source, length.photographs)
        self.limits: dict[str, list[float]] = {}
        self.points: dict[str, list[Point]] = {}
        self.start_s: list[float] = []
        self.overload: dict[str, Any] = {}

    def all(self, scratch: Path, *, litserve: bool) -> None:
        """Measure everything; `scratch` is a folder for logs and for the temporary index."""
        home = _borrowed_home(self.home, scratch / "home")
        log = scratch / "fc7.log"
        with ExitStack() as stack:
            limit = stack.enter_context(limit_of(self.home, self.photographs, scratch))
            servers = {FC7: stack.enter_context(fc7_server(home, log, self.settings))}
            servers[FC7].sleep()
            if litserve:
                self.start_litserve(stack, servers, scratch)
            for number in range(self.length.rounds):
                self.say(f"round {number + 1} of {self.length.rounds}")
                self.round(limit, servers)
        for measure in (self.alone, self.overloaded):
            with fc7_server(home, log, self.settings) as server:
                self.start_s.append(server.start_s)
                measure(server)

    def start_litserve(self, stack: ExitStack, servers: dict[str, Server], scratch: Path) -> None:
        """Start LitServe in each of its forms, and put it to sleep."""
        log = scratch / "litserve.log"
        self.say("exporting the net plainly")
        plain = write_plain_graph(self.home, scratch)
        for name, threads, batches, graph in (
            (LITSERVE, 1, False, None),
            (BATCHES, 1, True, None),
            (POOL, os.cpu_count() or 1, False, None),
            (PLAIN, 1, False, plain),
        ):
            servers[name] = stack.enter_context(
                litserve_server(self.home, log, threads=threads, batches=batches, graph=graph)
            )
            servers[name].sleep()

    def round(self, limit: Limit, servers: Mapping[str, Server]) -> None:
        """Measure every point once."""
        for clients, names in MEASURED.items():
            for way in LIMITS.get(clients, ()):
                self.limits.setdefault(way, []).append(limit.measure(way, self.length.seconds))
            for name in names:
                if name in servers:
                    requests = self.classify() if name == FC7 else self.uploads(servers[name].path)
                    with servers[name].awake():
                        self.measure(f"{name}, {clients}", servers[name], requests, clients)

    def alone(self, server: Server) -> None:
        """Measure what only fc7 does: search beside classify, ten views, and large photographs."""
        self.say("filling an index")
        step = 20
        for first in range(0, len(self.photographs), step):
            part = self.photographs[first : first + step]
            names = [f"{first + number}.jpg" for number in range(len(part))]
            _post(server.port, _upload("/v1/images", part, names))
        search = [request("/v1/search?k=10", data) for data in self.photographs]
        mix = [entry for pair in zip(self.classify(), search, strict=True) for entry in pair]
        self.measure("fc7, classify and search, 32", server, mix, BUSY)
        ten = [request("/v1/classify?views=10", data) for data in self.photographs]
        self.measure("fc7, ten views, 8", server, ten, 8)
        self.say("enlarging photographs")
        large = [request("/v1/classify", enlarge(data)) for data in self.photographs[: self.length.large]]
        self.measure("fc7, 12 megapixels, 1", server, large, 1)
        self.measure("fc7, 12 megapixels, 32", server, large, BUSY)

    def overloaded(self, server: Server) -> None:
        """Offer three times the peak, whether or not it is answered, and see what is still answered, and when.

        The peak is what the same server does before and after.
        """
        name = f"fc7 by itself, {MOST}"
        self.measure(name, server, self.classify(), MOST)
        before = self.points[name][0].rate
        self.say(f"{OVERLOAD * before:.0f} requests a second")
        seen = run_load(
            Plan(
                server.port,
                self.classify(),
                clients=2000,
                seconds=3 * self.length.seconds,
                warm_up_s=3.0,
                rate=OVERLOAD * before,
            )
        )
        memory = server.memory()
        after = run_load(Plan(server.port, self.classify(), 1, 2.0))
        self.measure(name, server, self.classify(), MOST)
        peak = (before + self.points[name][1].rate) / 2
        times = {str(status): len(latencies) for status, latencies in sorted(seen.latencies.items())}
        self.overload = {
            "offered": OVERLOAD * before,
            "goodput": seen.rate,
            "of_peak": seen.rate / peak,
            "p50_ms": seen.percentile(50),
            "p99_ms": seen.percentile(99),
            "answers": times,
            "broken": seen.broken,
            "unsent": seen.unsent,
            "retry_after_s": seen.retry_after,
            "memory_mb": memory / 1e6,
            "generator": seen.processor_s / seen.seconds / (os.cpu_count() or 1),
            "afterwards_p50_ms": after.percentile(50),
            "afterwards_errors": after.errors,
        }

    def classify(self) -> list[bytes]:
        """Return a request to classify each photograph."""
        return [request("/v1/classify", data) for data in self.photographs]

    def uploads(self, path: str) -> list[bytes]:
        """Return a multipart request for each photograph."""
        return [_upload(path, [data]) for data in self.photographs]

    def measure(self, name: str, server: Server, requests: list[bytes], clients: int) -> None:
        """Measure one point, after a second that does not count."""
        self.say(name)
        before = server.processor_s()
        seen = run_load(Plan(server.port, requests, clients, self.length.seconds, warm_up_s=1.0))
        spent = (server.processor_s() - before) * self.length.seconds / (self.length.seconds + 1)
        self.points.setdefault(name, []).append(Point.of(seen, server.memory(), spent))

    def say(self, what: str) -> None:
        """Tell on standard error what is being done, and what else the machine is doing."""
        print(f"{time.strftime('%H:%M:%S')} load {os.getloadavg()[0]:.1f}  {what}", file=sys.stderr, flush=True)

    def middle(self) -> dict[str, Point]:
        """Return the medians of every point."""
        return {name: Point.middle(points) for name, points in self.points.items()}

    def rates(self, name: str) -> list[float]:
        """Return the images a second of a point in each round, or those of the limit: its faster way's, "limit"."""
        if name == "limit":
            return [max(pair) for pair in zip(self.limits["in_turn"], self.limits["overlapping"], strict=True)]
        return self.limits[name] if name in self.limits else [point.rate for point in self.points[name]]


def _borrowed_home(home: Path, into: Path) -> Path:
    """Make a home with the versions of `home` and nothing else: its index is its own."""
    into.mkdir()
    (into / "models").symlink_to((home / "models").resolve())
    (into / "active.json").write_bytes((home / "active.json").read_bytes())
    return into


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
    """Send one request and wait for its answer. Raises SystemExit when it is an error."""
    import http.client  # noqa: PLC0415
    import socket  # noqa: PLC0415

    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(whole)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        if answer.status >= 400:
            raise SystemExit(f"adding images was refused: {answer.read().decode()}")
