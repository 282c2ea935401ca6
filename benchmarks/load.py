"""The load generator: a process of its own that sends photographs over plain sockets and measures each answer.

`run_load` starts it (`python -m benchmarks.load`) with a plan and returns what it saw, its own processor time included:
on a machine that also runs the server, that is what the measuring took away.
Promises: requests are made of bytes once, before the clock starts; one thread, one `epoll`, no HTTP library; a latency
is the time from when a request was due to the last byte of its answer. Closed load: each of `clients` connections
sends its next request when its answer is there. Open load: requests are due at a fixed rate whether or not the earlier
ones were answered, so a slow server cannot slow its load down.
Does not: understand chunked answers, follow redirects, use TLS.
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
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send: `requests` (whole, as bytes) in a shuffled round; closed load unless `rate` (a second) is given.

    What is answered in the first `warm_up_s` seconds is not counted. Open load of `clients` connections at most.
    """

    port: int
    requests: Sequence[bytes]
    clients: int
    seconds: float
    warm_up_s: float = 0.0
    rate: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What came back: latencies in seconds of the answers of each status, connections that broke, seconds measured.

    `unsent`: requests of an open load that found no free connection. `processor_s`: user and system time of the
    generator. `retry_after`: the header's values, of the answers that had one.
    """

    latencies: dict[int, list[float]]
    broken: int
    unsent: int
    seconds: float
    processor_s: float
    retry_after: dict[str, int]

    @property
    def answered(self) -> int:
        """Answers with status 200."""
        return len(self.latencies.get(200, []))

    @property
    def rate(self) -> float:
        """Answers with status 200 in a second."""
        return self.answered / self.seconds

    @property
    def errors(self) -> int:
        """Answers with another status, and connections that broke."""
        return sum(len(times) for status, times in self.latencies.items() if status != 200) + self.broken

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies of status 200, in ms; NaN without any."""
        good = self.latencies.get(200)
        return float(np.percentile(good, percent)) * 1000 if good else float("nan")


def request(path: str, body: bytes, content_type: str = "image/jpeg", *, method: str = "POST") -> bytes:
    """Return a whole HTTP/1.1 request."""
    headers = f"Host: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body


def run_load(plan: Plan) -> Seen:
    """Run the plan in a process of its own. Raises RuntimeError with what that process said, if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=pickle.dumps(plan),
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        timeout=plan.seconds + plan.warm_up_s + 2 * _PATIENCE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr.decode()}")
    values = json.loads(done.stdout)
    values["latencies"] = {int(status): times for status, times in values["latencies"].items()}
    return Seen(**values)


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    due: float = 0.0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    answer: bytearray = field(default_factory=bytearray)
    length: int = -1  # of the whole answer, once its head is there


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

    def run(self) -> Seen:
        begun = time.perf_counter()
        self.counted_from = begun + self.plan.warm_up_s
        self.until = self.counted_from + self.plan.seconds
        busy_at = 0.0
        due, step = begun, 1 / self.plan.rate if self.plan.rate else 0.0
        if not step:
            for _ in range(self.plan.clients):
                self.send(self.connect(), begun)
        while (now := time.perf_counter()) < self.until:
            if not busy_at and now >= self.counted_from:
                busy_at = time.process_time()
            while step and due <= now:
                self.send_when_free(due)
                due += step
            wait = min(self.until, due if step else self.until) - now
            for number, events in self.poll.poll(max(wait, 0.0)):
                self.turn(self.connections[number], events)
        return Seen(
            latencies=self.latencies,
            broken=self.broken,
            unsent=self.unsent,
            seconds=self.plan.seconds,
            processor_s=time.process_time() - busy_at,
            retry_after=dict(self.retry_after),
        )

    def connect(self) -> _Connection:
        link = socket.create_connection(("127.0.0.1", self.plan.port), timeout=_PATIENCE_S)
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
        connection.due, connection.answer, connection.length = due, bytearray(), -1
        connection.unsent = memoryview(body)
        self.push(connection)

    def push(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            self.poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            pass  # the answer, or the end, is read
        else:
            self.poll.modify(connection.socket, select.EPOLLIN)

    def turn(self, connection: _Connection, events: int) -> None:
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
        connection.answer += chunk
        if connection.length < 0 and (end := connection.answer.find(b"\r\n\r\n")) >= 0:
            connection.length = end + 4 + int(_header(connection.answer[:end], b"content-length") or 0)
        if 0 <= connection.length <= len(connection.answer):
            self.finish(connection)

    def finish(self, connection: _Connection) -> None:
        now = time.perf_counter()
        head = bytes(connection.answer).partition(b"\r\n\r\n")[0]
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
        """Take note of an end: expected on an idle connection, else an answer that never came."""
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
    seen = _Load(plan).run()
    json.dump({name: getattr(seen, name) for name in Seen.__dataclass_fields__}, sys.stdout)


if __name__ == "__main__":
    _main()
