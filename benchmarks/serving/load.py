"""A load generator that sends requests over plain sockets, and measures the latency of each response.

`run_load` starts it in its own process (`python -m benchmarks.serving.load`) and returns the result with the CPU time
of the generator, because the server usually runs on the same machine.

Closed load: each of `clients` connections sends its next request when its response has arrived. Open load: requests are
due at a fixed rate, whether or not earlier ones were answered, so a slow server does not reduce its load.
Guarantees: all requests are encoded before the clock starts; there is one thread, one `epoll` and no HTTP library; a
latency is the time from the moment a request is due to the last byte of its response.
Out of scope: chunked responses, redirects, TLS.
"""

from __future__ import annotations

import json
import pickle
import random
import select
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_CHUNK = 1 << 16
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The load: `requests`, encoded, in shuffled order and again and again. rate: per second; None: closed load.

    Responses in the first `warm_up_s` seconds are not counted. clients: the connections (for open load, at most).
    """

    port: int
    requests: Sequence[bytes]
    clients: int
    seconds: float
    warm_up_s: float = 0.0
    rate: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result: latencies in seconds by status, broken connections, and the seconds of the measurement.

    unsent: requests of an open load without a free connection. processor_s: CPU time of the generator. retry_after: how
    often each value of this header occurred.
    """

    latencies: dict[int, list[float]]
    broken: int
    unsent: int
    seconds: float
    processor_s: float
    retry_after: dict[str, int]

    @property
    def answered(self) -> int:
        """The number of responses with status 200."""
        return len(self.latencies.get(200, []))

    @property
    def rate(self) -> float:
        """The responses with status 200 per second."""
        return self.answered / self.seconds

    @property
    def errors(self) -> int:
        """The number of other responses and of broken connections."""
        return sum(len(times) for status, times in self.latencies.items() if status != 200) + self.broken

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies of responses with status 200, in ms; NaN if there are none."""
        latencies = self.latencies.get(200)
        return float(np.percentile(latencies, percent)) * 1000 if latencies else float("nan")


def request(path: str, body: bytes, content_type: str = "image/jpeg", *, method: str = "POST") -> bytes:
    """Return an encoded HTTP/1.1 request."""
    headers = f"Host: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body


def run_load(plan: Plan) -> LoadResult:
    """Run the plan in its own process. Raises RuntimeError with the error output if that process fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.load"],
        input=pickle.dumps(plan),
        capture_output=True,
        cwd=Path(__file__).parents[2],
        timeout=plan.seconds + plan.warm_up_s + 2 * _TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"The load generator failed:\n{done.stderr.decode()}")
    values = json.loads(done.stdout)
    values["latencies"] = {int(status): times for status, times in values["latencies"].items()}
    return LoadResult(**values)


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    due: float = 0.0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    response: bytearray = field(default_factory=bytearray)
    length: int = -1  # of the whole response, once its headers have arrived


class _Load:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        order = list(range(len(plan.requests)))
        random.Random(plan.seed).shuffle(order)
        self.order = order
        self.next = 0
        self.poll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        self.idle: deque[_Connection] = deque()
        self.latencies: dict[int, list[float]] = {}
        self.retry_after: Counter[str] = Counter()
        self.broken = self.unsent = 0
        self.counted_from = 0.0
        self.until = 0.0

    def run(self) -> LoadResult:
        started = time.perf_counter()
        self.counted_from = started + self.plan.warm_up_s
        self.until = self.counted_from + self.plan.seconds
        cpu_start = 0.0
        due, interval = started, 1 / self.plan.rate if self.plan.rate else 0.0
        if not interval:
            for _ in range(self.plan.clients):
                self.send(self.connect(), started)
        while (now := time.perf_counter()) < self.until:
            if not cpu_start and now >= self.counted_from:
                cpu_start = time.process_time()
            while interval and due <= now:
                self.send_when_free(due)
                due += interval
            wait = min(self.until, due if interval else self.until) - now
            for number, events in self.poll.poll(max(wait, 0.0)):
                self.handle(self.connections[number], events)
        return LoadResult(
            latencies=self.latencies,
            broken=self.broken,
            unsent=self.unsent,
            seconds=self.plan.seconds,
            processor_s=time.process_time() - cpu_start,
            retry_after=dict(self.retry_after),
        )

    def connect(self) -> _Connection:
        link = socket.create_connection(("127.0.0.1", self.plan.port), timeout=_TIMEOUT_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setblocking(False)
        connection = _Connection(link)
        self.connections[link.fileno()] = connection
        self.poll.register(link, select.EPOLLIN)
        return connection

    def send_when_free(self, due: float) -> None:
        if self.idle:
            self.send(self.idle.popleft(), due)
        elif len(self.connections) < self.plan.clients:
            try:
                self.send(self.connect(), due)
            except OSError:
                self.broken += due >= self.counted_from
        elif due >= self.counted_from:
            self.unsent += 1

    def send(self, connection: _Connection, due: float) -> None:
        body = self.plan.requests[self.order[self.next % len(self.order)]]
        self.next += 1
        connection.due, connection.response, connection.length = due, bytearray(), -1
        connection.unsent = memoryview(body)
        self.push(connection)

    def push(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            self.poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            pass  # reading gives the response or the end of the connection
        else:
            self.poll.modify(connection.socket, select.EPOLLIN)

    def handle(self, connection: _Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self.push(connection)
        if not events & ~select.EPOLLOUT:
            return
        try:
            chunk = connection.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close(connection)
            return
        connection.response += chunk
        if connection.length < 0 and (end := connection.response.find(b"\r\n\r\n")) >= 0:
            connection.length = end + 4 + int(_header(connection.response[:end], b"content-length") or 0)
        if 0 <= connection.length <= len(connection.response):
            self.finish(connection)

    def finish(self, connection: _Connection) -> None:
        now = time.perf_counter()
        head = bytes(connection.response).partition(b"\r\n\r\n")[0]
        if self.counted_from <= now <= self.until:
            self.latencies.setdefault(int(head[9:12]), []).append(now - connection.due)
            if (wait := _header(head, b"retry-after")) is not None:
                self.retry_after[wait.decode()] += 1
        if connection.unsent or (_header(head, b"connection") or b"").lower() == b"close":
            self.drop(connection)
            connection = self.connect()
        if self.plan.rate:
            self.idle.append(connection)
        else:
            self.send(connection, now)

    def close(self, connection: _Connection) -> None:
        """Handle the end of a connection: an idle one may end, otherwise the response is missing."""
        self.drop(connection)
        if connection in self.idle:
            self.idle.remove(connection)
            return
        self.broken += time.perf_counter() >= self.counted_from
        if not self.plan.rate:
            self.send(self.connect(), time.perf_counter())

    def drop(self, connection: _Connection) -> None:
        self.poll.unregister(connection.socket)
        del self.connections[connection.socket.fileno()]
        connection.socket.close()


def _header(head: bytes | bytearray, name: bytes) -> bytes | None:
    for line in bytes(head).split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return None


def _main() -> None:
    plan = pickle.load(sys.stdin.buffer)
    result = _Load(plan).run()
    json.dump({name: getattr(result, name) for name in LoadResult.__dataclass_fields__}, sys.stdout)


if __name__ == "__main__":
    _main()
