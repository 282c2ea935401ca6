"""Kill a server with SIGKILL at random moments under concurrent writes, and verify that acknowledged writes survive.

    python -m tests.crash.kill_rounds --rounds 200

Each round starts the real server on the same home, compares its content with the acknowledged changes, and then adds,
replaces, changes and deletes images over HTTP from several threads until the server is killed.

Detects: a lost acknowledged change, a partial change, a change that was never requested, and parts of the index that
contradict each other.
Does not detect: what a power failure does to a disk that reports writes too early. After a kill, the operating system
still writes all its pages.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import httpx

from index.local.verify import verify
from tests.support import pictures
from tests.support.tiny_model import publish_tiny_model

THREADS = 6
KEYS = 6  # per thread
PICTURES = 24
MAX_CHANGES = 60
MAX_DELAY_S = 0.02
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Content:
    """The content of a key: the hash of its image, and the number in its metadata."""

    sha256: str
    number: int | None


Contents = dict[str, Content | None]


@dataclass
class Client:
    """The keys of one thread. state: acknowledged content; pending: the change that was requested last.

    atomic: the pending change takes effect on all of its keys or on none.
    """

    name: str
    random: Random
    state: Contents = field(default_factory=dict)
    pending: Contents = field(default_factory=dict)
    atomic: bool = True
    acknowledged: int = 0


class CrashError(AssertionError):
    """The content of the server differs from the acknowledged changes."""


class KillRounds:
    """Rounds of starting, comparing, writing and killing on one home."""

    def __init__(self, home: Path, seed: int) -> None:
        publish_tiny_model(home)
        self.home = home
        self.random = random.Random(seed)
        images = [pictures.jpeg(number, 64, 64) for number in range(PICTURES)]
        self.pictures = {hashlib.sha256(data).hexdigest(): data for data in images}
        self.clients = [Client(f"client{n}", random.Random(seed * 1000 + n)) for n in range(THREADS)]
        for client in self.clients:
            client.state = {f"{client.name}/{n}": None for n in range(KEYS)}
        self.number = 0
        self.lock = threading.Lock()
        self.snapshots = 0

    @property
    def acknowledged(self) -> int:
        """The number of acknowledged changes in all rounds."""
        return sum(client.acknowledged for client in self.clients)

    def run(self, rounds: int) -> None:
        """Run the rounds, and compare once more. Raises CrashError."""
        with _fork_server() as fork_server:
            for number in range(1, rounds + 1):
                with _server(fork_server, self.home) as (url, pid):
                    self.compare(url)
                    self.write_until_killed(url, pid)
                if number % 20 == 0 or number == rounds:
                    findings = verify(self.home).findings
                    if findings:
                        raise CrashError(f"round {number}: {findings}")
                if number % 10 == 0:
                    print(f"{number} rounds, {self.acknowledged} changes acknowledged", flush=True)
            with _server(fork_server, self.home) as (url, _):
                self.compare(url)

    def write_until_killed(self, url: str, pid: int) -> None:
        """Write from all threads, kill the server at a random moment, and wait for the threads to end."""
        failures: list[BaseException] = []

        def write(client: Client) -> None:
            with httpx.Client(base_url=url, timeout=TIMEOUT_S) as http:
                try:
                    while True:
                        self.change(client, http)
                except httpx.TransportError:
                    return
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=write, args=(client,)) for client in self.clients]
        for thread in threads:
            thread.start()
        # Wait for a number of changes, not a time, because the machine may be busy; then kill during a later change.
        goal = self.acknowledged + self.random.randint(0, MAX_CHANGES)
        deadline = time.monotonic() + TIMEOUT_S / 2
        while self.acknowledged < goal and not failures and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(self.random.uniform(0, MAX_DELAY_S))
        os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join(TIMEOUT_S)
        if failures:
            raise failures[0]

    def change(self, client: Client, http: httpx.Client) -> None:
        """Request one random change; record it first as pending, and then as acknowledged."""
        with self.lock:
            self.number += 1
            number = self.number
        key = client.random.choice(list(client.state))
        path = f"/v1/images/{quote(key, safe='')}"
        sha256 = client.random.choice(list(self.pictures))
        current = client.state[key]
        kind = client.random.random()
        client.atomic = True
        if kind < 0.35:
            client.pending = {key: Content(sha256, number)}
            file = {"file": ("x.jpg", self.pictures[sha256], "image/jpeg")}
            answer = http.put(path, files=file, data={"metadata": json.dumps(self.metadata(client, number))})
        elif kind < 0.5:
            client.pending = {key: Content(sha256, current.number if current else None)}
            answer = http.put(path, content=self.pictures[sha256], headers={"Content-Type": "image/jpeg"})
        elif kind < 0.65:
            client.pending = {key: Content(current.sha256, number)} if current else {}
            answer = http.patch(path, json={"metadata": self.metadata(client, number)})
        elif kind < 0.8:
            client.pending = {key: None}
            answer = http.delete(path)
        elif kind < 0.95:
            chosen = client.random.sample(list(client.state), 3)
            client.pending = {one: Content(sha256, number) for one in chosen}
            files = [("file", (one, self.pictures[sha256], "image/jpeg")) for one in chosen]
            metadata = {one: self.metadata(client, number) for one in chosen}
            answer = http.post("/v1/images", files=files, data={"metadata": json.dumps(metadata)})
        elif kind < 0.99:
            client.atomic = False  # this takes several commits
            client.pending = {one: None for one, content in client.state.items() if content and content.number}
            answer = http.delete("/v1/images", params={"where": f"owner:{client.name}"})
            if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:  # no image has the field `owner` yet
                client.pending = {}
        else:
            client.pending = {}
            answer = http.post("/v1/index/snapshots")
            self.snapshots += 1
        missing = (
            current is None and answer.request.method in ("PATCH", "DELETE") and answer.request.url.path != "/v1/images"
        )
        if answer.status_code >= 400 and not (missing or client.pending == {}):
            raise CrashError(f"{answer.request.method} {key}: {answer.status_code} {answer.text}")
        client.state |= client.pending
        client.pending = {}
        client.acknowledged += 1

    def metadata(self, client: Client, number: int) -> dict[str, Any]:
        """Return the metadata of a changed image."""
        return {"owner": client.name, "number": number}

    def compare(self, url: str) -> None:
        """Compare the content of the server with the acknowledged changes, and adopt the outcome of pending changes."""
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as http:
            found = self.listed(http, {})
            for client in self.clients:
                for key, content in client.state.items():
                    if found.get(key) not in (content, client.pending.get(key, content)):
                        raise CrashError(
                            f"{key} has {found.get(key)}. Acknowledged: {content}, "
                            f"pending: {client.pending.get(key, 'nothing')}"
                        )
                done = {key for key, content in client.pending.items() if found.get(key) == content}
                undone = {key for key in client.pending if found.get(key) == client.state[key]}
                if client.atomic and client.pending.keys() not in (done, undone):
                    raise CrashError(f"{client.name}: only {done} of the change {client.pending} took effect")
                client.state = {key: found.pop(key, None) for key in client.state}
                client.pending = {}
            if found:
                raise CrashError(f"These images were never added: {found}")
            self.check_parts(http)

    def check_parts(self, http: httpx.Client) -> None:
        """Check that counts, filters, search and thumbnails agree with the list of images."""
        expected = {key: content for client in self.clients for key, content in client.state.items() if content}
        stats = http.get("/v1/index").json()
        if not stats["images"] == stats["vectors"] == len(expected):
            raise CrashError(f"{len(expected)} images are listed, but the index reports {stats}")
        numbered = {key for key, content in expected.items() if content.number is not None}
        if numbered and self.listed(http, {"where": "number>=0"}).keys() != numbered:
            raise CrashError("The filter does not find exactly the images with a number.")
        for key in self.random.sample(sorted(expected), min(3, len(expected))):
            sha256 = expected[key].sha256
            same = {other for other, content in expected.items() if content.sha256 == sha256}
            answer = http.post(
                "/v1/search?k=100", content=self.pictures[sha256], headers={"Content-Type": "image/jpeg"}
            ).json()
            near = {n["key"] for n in answer["results"][0]["neighbours"] if n["distance"] < 1e-3}
            if near != same:
                raise CrashError(f"The search for the image of {key} finds {near}, not {same}.")
            if http.get(f"/v1/images/{quote(key, safe='')}/thumbnail").status_code != httpx.codes.OK:
                raise CrashError(f"{key} has no thumbnail.")

    def listed(self, http: httpx.Client, parameters: dict[str, str]) -> Contents:
        """Return all listed images, page by page."""
        found: Contents = {}
        cursor: dict[str, str] = {}
        while True:
            answer = http.get("/v1/images", params={"limit": "10", **parameters, **cursor})
            if answer.status_code != httpx.codes.OK:
                raise CrashError(f"The list of images failed: {answer.status_code} {answer.text}")
            for image in answer.json()["images"]:
                if image["key"] in found:
                    raise CrashError(f"{image['key']} is listed twice.")
                found[image["key"]] = Content(image["sha256"], image["metadata"].get("number"))
            if answer.json()["next_cursor"] is None:
                return found
            cursor = {"cursor": answer.json()["next_cursor"]}


@contextlib.contextmanager
def _fork_server() -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FC7_")}
    environment["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-m", "tests.crash.fork_server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def _server(fork_server: subprocess.Popen[str], home: Path) -> Iterator[tuple[str, int]]:
    """Start a server, and yield its URL and process id. At the end it is killed and has exited."""
    assert fork_server.stdin is not None
    assert fork_server.stdout is not None
    print(home, file=fork_server.stdin, flush=True)
    pid, url = 0, ""
    while not (pid and url):
        line = fork_server.stdout.readline()
        if line.startswith("failed") or not line:
            raise CrashError(f"The server did not start: {line}")
        if line.startswith("pid "):
            pid = int(line.removeprefix("pid "))
        elif '"listening"' in line:
            url = json.loads(line)["url"]
    # Read the rest of its log: a full pipe would block the server.
    drain = threading.Thread(target=_read_until_gone, args=(fork_server.stdout,))
    drain.start()
    try:
        yield url, pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.002)
        print("", file=fork_server.stdin, flush=True)
        drain.join(TIMEOUT_S)


def _read_until_gone(lines: Any) -> None:
    for line in lines:
        if line.endswith("gone\n"):  # possibly after a partial line
            return


def main() -> None:
    """Run the rounds as the command line says, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="number of kills")
    parser.add_argument("--seed", type=int, default=None, help="seed of the changes and kill times; random by default")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fc7-crash-") as folder:
        rounds = KillRounds(Path(folder) / "home", seed)
        rounds.run(arguments.rounds)
    minutes = (time.monotonic() - started) / 60
    print(
        f"{arguments.rounds} kills, {rounds.acknowledged} acknowledged changes, none lost, none partial; "
        f"{arguments.rounds / minutes:.0f} rounds a minute, seed {seed}"
    )


if __name__ == "__main__":
    main()
