"""Measure fc7 as its users meet it, beside LitServe on the same graph and beside the limit of the machine.

    python -m benchmarks.serving PHOTOGRAPHS [--home HOME] [--quick] [--json FILE]

PHOTOGRAPHS is a folder or a tar of pictures, HOME has a published, active version (what is served is its graph and
weights; the index that the run fills is a temporary one). LitServe needs the extra `bench`. On two cores a run takes
about ten minutes, with `--quick` about two.

In turn and several times over: the limit (decoding and ONNX Runtime in one process, no HTTP), fc7 and LitServe at 1, 8,
32 and 128 clients. Then LitServe with the net as torch exports it, and fc7 alone: classify and search mixed, ten
views, photographs of 12 megapixels, and three times the load that it can carry. Printed are medians over the
repetitions, the goals and whether they are met, and what share of the cores the load generator took, since it runs on
the same machine.
Does not: decide anything. It fails (exit code 1) only when a server answers with errors where it must not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.limit import Limit, measure_limit
from benchmarks.load import Plan, Seen, request, run_load
from benchmarks.photographs import enlarge, read_photographs
from benchmarks.plain_graph import write_plain_graph
from benchmarks.servers import Server, fc7_server, litserve_server

CLIENTS = (1, 8, 32, 128)
BUSY = 32
OVERLOAD = 3
DEADLINE_S = 10.0
_BOUNDARY = "4d1f0f5e"


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run measures: repetitions, seconds a point, photographs, and large ones."""

    repetitions: int
    seconds: float
    photographs: int
    large: int


FULL, QUICK = Length(3, 8.0, 200, 8), Length(1, 4.0, 100, 3)


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
    """One run of the benchmark: what was measured, by name, in `points`."""

    def __init__(self, home: Path, source: Path, length: Length, settings: Mapping[str, str]) -> None:
        self.home, self.length, self.settings = home, length, dict(settings)
        self.photographs = read_photographs(source, length.photographs)
        self.limits: list[Limit] = []
        self.points: dict[str, list[Point]] = {}
        self.start_s: dict[str, list[float]] = {}
        self.overload: dict[str, Any] = {}

    def all(self, scratch: Path, *, litserve: bool) -> None:
        """Measure everything; `scratch` is a folder for logs and for the temporary index."""
        home = _borrowed_home(self.home, scratch / "home")
        for _ in range(self.length.repetitions):
            self.say("the limit")
            self.limits.append(measure_limit(self.home, self.photographs, self.length.seconds))
            with fc7_server(home, scratch / "fc7.log", self.settings) as server:
                self.clients(server, self.classify(self.photographs))
            if litserve:
                with litserve_server(self.home, scratch / "litserve.log", threads=1) as server:
                    self.clients(server, [_upload(server.path, [data]) for data in self.photographs])
        if litserve:
            with litserve_server(self.home, scratch / "litserve.log", threads=os.cpu_count() or 1) as server:
                plan = [_upload(server.path, [data]) for data in self.photographs]
                self.measure("LitServe, decoding in a pool, 32", server, plan, BUSY)
            with litserve_server(self.home, scratch / "litserve.log", threads=1, batches=True) as server:
                plan = [_upload(server.path, [data]) for data in self.photographs]
                self.measure(f"LitServe, graph for batches, {BUSY}", server, plan, BUSY)
            self.say("exporting the net plainly")
            graph = write_plain_graph(self.home, scratch)
            with litserve_server(self.home, scratch / "litserve.log", threads=1, graph=graph) as server:
                for clients in (1, BUSY):
                    self.measure(f"LitServe, plain export, {clients}", server, plan, clients)
        with fc7_server(home, scratch / "fc7.log", self.settings) as server:
            self.alone(server)
        self.overloaded(home, scratch / "fc7.log")

    def clients(self, server: Server, requests: list[bytes]) -> None:
        """Measure a server at each number of clients."""
        self.start_s.setdefault(server.name, []).append(server.start_s)
        for clients in CLIENTS:
            self.measure(f"{server.name}, {clients}", server, requests, clients)

    def alone(self, server: Server) -> None:
        """Measure what only fc7 does: search beside classify, ten views, and large photographs."""
        self.say("filling an index")
        step = 20
        for first in range(0, len(self.photographs), step):
            part = self.photographs[first : first + step]
            names = [f"{first + number}.jpg" for number in range(len(part))]
            _post(server.port, _upload("/v1/images", part, names))
        classify = self.classify(self.photographs)
        search = [request("/v1/search?k=10", data) for data in self.photographs]
        mix = [entry for pair in zip(classify, search, strict=True) for entry in pair]
        self.measure("fc7, classify and search, 32", server, mix, BUSY)
        ten = [request("/v1/classify?views=10", data) for data in self.photographs]
        self.measure("fc7, ten views, 8", server, ten, 8)
        self.say("enlarging photographs")
        large = [enlarge(data) for data in self.photographs[: self.length.large]]
        self.measure("fc7, 12 megapixels, 1", server, self.classify(large), 1)
        self.measure("fc7, 12 megapixels, 32", server, self.classify(large), BUSY)

    def overloaded(self, home: Path, log: Path) -> None:
        """Offer three times the peak, whether or not it is answered, and see what is still answered, and when."""
        peak = max(Point.middle(self.points[f"fc7, {clients}"]).rate for clients in CLIENTS)
        with fc7_server(home, log, self.settings) as server:
            self.say(f"{OVERLOAD * peak:.0f} requests a second")
            seen = run_load(
                Plan(
                    server.port,
                    self.classify(self.photographs),
                    clients=2000,
                    seconds=2 * self.length.seconds,
                    warm_up_s=3.0,
                    rate=OVERLOAD * peak,
                )
            )
            after = run_load(Plan(server.port, self.classify(self.photographs), 1, 2.0))
            memory = server.memory()
        times = {str(status): len(latencies) for status, latencies in sorted(seen.latencies.items())}
        self.overload = {
            "offered": OVERLOAD * peak,
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

    def classify(self, photographs: list[bytes]) -> list[bytes]:
        """Return a request to classify each photograph."""
        return [request("/v1/classify", data) for data in photographs]

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

    def limit(self) -> Limit:
        """Return the medians of the limit."""
        names = Limit.__dataclass_fields__
        return Limit(**{name: median(getattr(limit, name) for limit in self.limits) for name in names})


def report(run: Run) -> str:
    """Return the table, the overload and the goals as text."""
    points, limit = run.middle(), run.limit()
    lines = [
        f"limit: {limit.rate:.1f} images/s (in turn {limit.in_turn:.1f}, overlapping {limit.overlapping:.1f}); "
        f"with two sessions, side by side, {limit.side_by_side:.1f}; one image {limit.one_ms:.1f} ms",
        *(f"{name}: ready {median(times):.2f} s after its start" for name, times in run.start_s.items()),
        "",
        "| server, clients | requests/s | of limit | p50 ms | p99 ms | p99/p50 | CPU ms each | MB | errors | load |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {point.rate:.1f} | {point.rate / limit.rate:.2f} | {point.p50:.1f} | {point.p99:.1f} "
        f"| {point.p99 / point.p50:.2f} | {point.processor:.1f} | {point.memory:.0f} | {point.errors:.0f} "
        f"| {point.generator:.1%} |"
        for name, point in points.items()
    ]
    lines += ["", "load: the generator's share of all cores.", ""]
    lines += [f"overload, {name}: {value}" for name, value in _rounded(run.overload).items()]
    lines += ["", *(_goal_line(*goal) for goal in goals(run))]
    return "\n".join(lines)


def goals(run: Run) -> list[tuple[str, float, str, float]]:
    """Return each goal: what, the value, its direction and its bound."""
    points, limit = run.middle(), run.limit()
    busy, lone = points[f"fc7, {BUSY}"], points["fc7, 1"]
    found = [
        ("fc7 at 32 clients, of the limit", busy.rate / limit.rate, ">=", 0.95),
        ("fc7 at 32 clients, of the limit of two sessions", busy.rate / limit.side_by_side, ">=", 0.95),
        ("fc7 p50 at one client, of decoding and running alone", lone.p50 / limit.one_ms, "<=", 1.1),
        ("fc7 p99 at 32 clients, of its p50", busy.p99 / busy.p50, "<=", 1.3),
        ("fc7 goodput at 3 times the peak, of the peak", run.overload["of_peak"], ">=", 0.9),
        ("p99 of what was accepted at 3 times the peak, s", run.overload["p99_ms"] / 1000, "<=", DEADLINE_S),
        ("fc7's memory at 128 clients, MB", points["fc7, 128"].memory, "<=", 900),
        ("fc7 from process start to ready, s", median(run.start_s["fc7"]), "<=", 3.0),
    ]
    if other := points.get(f"LitServe, {BUSY}"):
        batches = points[f"LitServe, graph for batches, {BUSY}"]
        plain = points[f"LitServe, plain export, {BUSY}"]
        found[2:2] = [
            ("fc7 at 32 clients, of LitServe on the same graph", busy.rate / other.rate, ">=", 1.35),
            ("fc7 at 32 clients, of LitServe on the graph for batches", busy.rate / batches.rate, ">=", 1.35),
            ("fc7 at 32 clients, of LitServe on a plain export of the net", busy.rate / plain.rate, ">=", 1.35),
            ("the limit, of LitServe on the graph for batches", limit.rate / batches.rate, ">=", 1.35),
        ]
    return found


def _goal_line(what: str, value: float, direction: str, bound: float) -> str:
    met = value >= bound if direction == ">=" else value <= bound
    return f"{'met   ' if met else 'MISSED'}  {what}: {value:.2f} (goal {direction} {bound:g})"


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


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


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("FC7_"):
        raise argparse.ArgumentTypeError(f"{text} is not FC7_NAME=VALUE")
    return name, value


def main(arguments: list[str] | None = None, out: Callable[[str], None] = print) -> int:
    """Run the benchmark as the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("FC7_HOME", "var")))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-litserve", action="store_true")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="FC7_NAME=VALUE")
    parser.add_argument("--json", type=Path, help="write every figure to this file too")
    given = parser.parse_args(arguments)
    if not (given.home / "active.json").is_file():
        raise SystemExit(f"{given.home} has no active version: fc7 demo, or fc7 export and fc7 models activate")
    run = Run(given.home, given.photographs, QUICK if given.quick else FULL, dict(given.set))
    with tempfile.TemporaryDirectory(prefix="fc7-bench-") as scratch:
        run.all(Path(scratch), litserve=not given.no_litserve)
    out(report(run))
    if given.json:
        figures = {
            name: {key: getattr(point, key) for key in Point.__dataclass_fields__}
            for name, point in run.middle().items()
        }
        limit = run.limit()
        found = {
            "limit": asdict(limit),
            "start_s": run.start_s,
            "points": figures,
            "overload": run.overload,
            "goals": [list(goal) for goal in goals(run)],
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(point.errors for point in run.middle().values()))


if __name__ == "__main__":
    sys.exit(main())
