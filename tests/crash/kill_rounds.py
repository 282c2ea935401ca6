"""Kill a server with SIGKILL at random moments under concurrent writes, and hold what it has to what it acknowledged.

    python -m tests.crash.kill_rounds --rounds 200

Each round starts the real server on the same home, compares everything in it with what was acknowledged, and then adds,
replaces, changes and deletes over HTTP from several threads until the server is killed in the middle of it.

Finds: an acknowledged change that is gone, one half of a change, a change that nobody asked for, an index whose parts
do not agree. Does not find: what a power cut does to a disk that says "written" too early; a kill loses no page that
the operating system has.
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
from typing import Any
from urllib.parse import quote

import httpx

from index.local.verify import verify
from tests.support import pictures
from tests.support.tiny_model import publish_tiny_model

THREADS = 6
KEYS = 6  # of each thread
PICTURES = 24
MOST_CHANGES = 60
LATER_S = 0.02
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Content:
    """What a key holds: the hash of its picture, and the number in its metadata."""

    sha256: str
    number: int | None


State = dict[str, Content | None]


@dataclass
class Client:
    """One thread's keys: what was acknowledged of them, and the change that was under way when the server died.

    whole: the change under way takes effect on all of its keys or on none.
    """

    name: str
    chance: random.Random
    state: State = field(default_factory=dict)
    under_way: State = field(default_factory=dict)
    whole: bool = True
    acknowledged: int = 0


class CrashError(AssertionError):
    """The server has not what it acknowledged."""


class KillRounds:
    """Rounds of start, compare, write and kill on one home."""

    def __init__(self, home: Path, seed: int) -> None:
        publish_tiny_model(home)
        self.home = home
        self.chance = random.Random(seed)
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
        """How many changes were acknowledged in all rounds."""
        return sum(client.acknowledged for client in self.clients)

    def run(self, rounds: int) -> None:
        """Play `rounds` rounds and compare once more. Raises CrashError."""
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
        """Write from all threads, kill the server at a random moment, and wait until all have noticed."""
        failures: list[BaseException] = []

        def write(client: Client) -> None:
            with httpx.Client(base_url=url, timeout=PATIENCE_S) as http:
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
        # So many acknowledged changes, however busy the machine is, and then somewhere inside the following ones.
        until = self.acknowledged + self.chance.randint(0, MOST_CHANGES)
        deadline = time.monotonic() + PATIENCE_S / 2
        while self.acknowledged < until and not failures and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(self.chance.uniform(0, LATER_S))
        os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join(PATIENCE_S)
        if failures:
            raise failures[0]

    def change(self, client: Client, http: httpx.Client) -> None:
        """Ask for one random change and note what was asked and what was acknowledged."""
        with self.lock:
            self.number += 1
            number = self.number
        key = client.chance.choice(list(client.state))
        path = f"/v1/images/{quote(key, safe='')}"
        sha256 = client.chance.choice(list(self.pictures))
        before = client.state[key]
        kind = client.chance.random()
        client.whole = True
        if kind < 0.35:
            client.under_way = {key: Content(sha256, number)}
            file = {"file": ("x.jpg", self.pictures[sha256], "image/jpeg")}
            answer = http.put(path, files=file, data={"metadata": json.dumps(self.metadata(client, number))})
        elif kind < 0.5:
            client.under_way = {key: Content(sha256, before.number if before else None)}
            answer = http.put(path, content=self.pictures[sha256], headers={"Content-Type": "image/jpeg"})
        elif kind < 0.65:
            client.under_way = {key: Content(before.sha256, number)} if before else {}
            answer = http.patch(path, json={"metadata": self.metadata(client, number)})
        elif kind < 0.8:
            client.under_way = {key: None}
            answer = http.delete(path)
        elif kind < 0.95:
            chosen = client.chance.sample(list(client.state), 3)
            client.under_way = {one: Content(sha256, number) for one in chosen}
            files = [("file", (one, self.pictures[sha256], "image/jpeg")) for one in chosen]
            metadata = {one: self.metadata(client, number) for one in chosen}
            answer = http.post("/v1/images", files=files, data={"metadata": json.dumps(metadata)})
        elif kind < 0.99:
            client.whole = False  # some hundred in a commit
            client.under_way = {one: None for one, content in client.state.items() if content and content.number}
            answer = http.delete("/v1/images", params={"where": f"owner:{client.name}"})
            if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:  # before the first image that has an owner
                client.under_way = {}
        else:
            client.under_way = {}
            answer = http.post("/v1/index/snapshot")
            self.snapshots += 1
        missing = (
            before is None and answer.request.method in ("PATCH", "DELETE") and answer.request.url.path != "/v1/images"
        )
        if answer.status_code >= 400 and not (missing or client.under_way == {}):
            raise CrashError(f"{answer.request.method} {key}: {answer.status_code} {answer.text}")
        client.state |= client.under_way
        client.under_way = {}
        client.acknowledged += 1

    def metadata(self, client: Client, number: int) -> dict[str, Any]:
        """Return the metadata that a change gives its image."""
        return {"owner": client.name, "number": number}

    def compare(self, url: str) -> None:
        """Hold everything in the server to what was acknowledged, and take what is there as the truth from now on."""
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as http:
            found = self.listed(http, {})
            for client in self.clients:
                for key, content in client.state.items():
                    if found.get(key) not in (content, client.under_way.get(key, content)):
                        raise CrashError(
                            f"{key} has {found.get(key)}; acknowledged was {content}, "
                            f"under way was {client.under_way.get(key, 'nothing')}"
                        )
                done = {key for key, content in client.under_way.items() if found.get(key) == content}
                undone = {key for key in client.under_way if found.get(key) == client.state[key]}
                if client.whole and client.under_way.keys() not in (done, undone):
                    raise CrashError(f"{client.name}: only {done} of the change {client.under_way}")
                client.state = {key: found.pop(key, None) for key in client.state}
                client.under_way = {}
            if found:
                raise CrashError(f"nobody ever added {found}")
            self.agree(http)

    def agree(self, http: httpx.Client) -> None:
        """Ask the other parts of the index for the same images."""
        held = {key: content for client in self.clients for key, content in client.state.items() if content}
        stats = http.get("/v1/index").json()
        if not stats["images"] == stats["vectors"] == len(held):
            raise CrashError(f"{len(held)} images are listed, but {stats}")
        numbered = {key for key, content in held.items() if content.number is not None}
        if numbered and self.listed(http, {"where": "number>=0"}).keys() != numbered:
            raise CrashError("the filter finds others than have a number")
        for key in self.chance.sample(sorted(held), min(3, len(held))):
            sha256 = held[key].sha256
            same = {other for other, content in held.items() if content.sha256 == sha256}
            answer = http.post(
                "/v1/search?k=100", content=self.pictures[sha256], headers={"Content-Type": "image/jpeg"}
            ).json()
            near = {n["key"] for n in answer["results"][0]["neighbours"] if n["distance"] < 1e-3}
            if near != same:
                raise CrashError(f"the search for the picture of {key} finds {near}, not {same}")
            if http.get(f"/v1/images/{quote(key, safe='')}/thumbnail").status_code != httpx.codes.OK:
                raise CrashError(f"{key} has no thumbnail")

    def listed(self, http: httpx.Client, parameters: dict[str, str]) -> State:
        """Return all that the listing has, page by page."""
        found: State = {}
        cursor: dict[str, str] = {}
        while True:
            answer = http.get("/v1/images", params={"limit": "10", **parameters, **cursor})
            if answer.status_code != httpx.codes.OK:
                raise CrashError(f"the listing answers {answer.status_code} {answer.text}")
            for image in answer.json()["images"]:
                if image["key"] in found:
                    raise CrashError(f"{image['key']} is listed twice")
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
    """Start a server; leaving kills it, if it lives, and waits until it is gone."""
    assert fork_server.stdin is not None
    assert fork_server.stdout is not None
    print(home, file=fork_server.stdin, flush=True)
    pid, url = 0, ""
    while not (pid and url):
        line = fork_server.stdout.readline()
        if line.startswith("failed") or not line:
            raise CrashError(f"the server does not start again: {line}")
        if line.startswith("pid "):
            pid = int(line.removeprefix("pid "))
        elif '"listening"' in line:
            url = json.loads(line)["url"]
    # Its log goes on; nobody reads it, and a full pipe must not stop the server.
    drain = threading.Thread(target=_until_gone, args=(fork_server.stdout,))
    drain.start()
    try:
        yield url, pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.002)
        print("", file=fork_server.stdin, flush=True)
        drain.join(PATIENCE_S)


def _until_gone(lines: Any) -> None:
    for line in lines:
        if line.endswith("gone\n"):  # behind half a line, perhaps
            return


def main() -> None:
    """Read the command line, play, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="of the changes and of the moments; random by default")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fc7-crash-") as folder:
        rounds = KillRounds(Path(folder) / "home", seed)
        rounds.run(arguments.rounds)
    minutes = (time.monotonic() - started) / 60
    print(
        f"{arguments.rounds} kills, {rounds.acknowledged} acknowledged changes, none lost, none half; "
        f"{arguments.rounds / minutes:.0f} rounds a minute, seed {seed}"
    )


if __name__ == "__main__":
    main()
