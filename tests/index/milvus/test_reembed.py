"""Migration of an index on Milvus to another model, while replicas change images and the migration is killed."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.catalog.spaces import SwitchResult
from index.errors import (
    FolderError,
    IndexModelError,
    IndexPausedError,
    IndexSwitchedError,
    IndexUnavailableError,
    KeyNotFoundError,
)
from index.filters import parse_where
from index.milvus import reader as milvus_reader
from index.milvus import reembed, registry, spaces
from index.milvus.aliases import Aliases
from index.milvus.client import Milvus
from index.milvus.index import MilvusImageIndex
from index.milvus.registry import Registry
from index.milvus.schema import collection_of
from index.records import AddOutcome, IndexOptions, MilvusAddress, NewImage
from model_store.image import encode_jpeg
from model_store.runtime.runner import Outputs, Runner
from tests.index.helpers import Opener, image, open_on_milvus, sha256, vector
from tests.support.milvus import milvus_server
from tests.support.tiny_model import publish_tiny_model

JPEG = encode_jpeg(np.random.default_rng(5).integers(0, 255, (256, 256, 3), np.uint8))


@pytest.fixture
def open_index() -> Iterator[Opener]:
    yield from open_on_milvus()


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BEAT_S", 0.02)
    monkeypatch.setattr(spaces, "_REFRESH_S", 0.0)
    monkeypatch.setattr(spaces, "_DEAD_AFTER_S", 0.5)


@pytest.fixture
def runners(tmp_path: Path) -> Iterator[tuple[Runner, Runner]]:
    with ExitStack() as stack:
        artifacts = [publish_tiny_model(tmp_path / "models", seed=seed) for seed in (3, 7)]
        first, second = (Runner(artifact) for artifact in artifacts)
        stack.callback(first.close)
        stack.callback(second.close)
        yield first, second


def options_of(runner: Runner) -> dict[str, Any]:
    return {"fingerprint": runner.artifact.fingerprint, "model": runner.artifact.embedder}


def new_image(key: str, number: int, runners: tuple[Runner, Runner]) -> NewImage:
    """Return an image with vectors of both models, as a replica adds it during a migration."""
    vectors = {runner.artifact.fingerprint: vector(number + n) for n, runner in enumerate(runners)}
    return NewImage(key, sha256(number), 3000, 640, 480, {"n": number}, JPEG, vector(number), vectors)


def test_an_index_migrates_to_another_model_once_its_vectors_are_complete(
    open_index: Opener, tmp_path: Path, runners: tuple[Runner, Runner]
) -> None:
    first, second = (options_of(runner) for runner in runners)
    address = MilvusAddress(str(tmp_path / "milvus.db"))
    with open_index(tmp_path, **first) as index, open_index(tmp_path, **first) as stranger:
        index.add_many([new_image(str(n), n, runners) for n in range(9)])
        index.add_many([image("broken", 20)])
        with pytest.raises(IndexModelError, match=r"tiny:1, and 10 of its images.*fc7 index reembed"):
            open_index(tmp_path, **second)
        with open_index(tmp_path, **second, migrate=True) as replica:
            target = replica.spaces.target
            assert target is not None
            assert (replica.searched.model, target.model) == ("tiny:1", "tiny:2")
            assert replica.add_many([new_image("new", 30, runners)]) == [AddOutcome.ADDED]
            assert replica.spaces.finish(target) is SwitchResult.INCOMPLETE
            assert replica.search(vector(30)[np.newaxis], 1)[0][0].distance == 0
            report = reembed.reembed_on_milvus(address, runners[1], batch_size=4)
            assert (report.embedded, [key for key, _ in report.skipped]) == (10, ["broken"])
            assert replica.spaces.finish(target) is SwitchResult.DONE
            assert replica.spaces.target is None
            assert replica.lookup(["0", "new"]) == {"0": sha256(0), "new": sha256(30)}
            described = [(space.model, space.active, space.vectors) for space in replica.spaces.describe()]
            assert described == [("tiny:2", True, 10), ("tiny:1", False, 11)]
        assert stranger.get("3").metadata == {"n": 3}, "it follows the switch without having the model"
        assert stranger.searched.model == "tiny:2"
        with pytest.raises(IndexModelError):
            stranger.search(vector(1)[np.newaxis], 1, fingerprint=first["fingerprint"])
        with pytest.raises(IndexSwitchedError, match="another model"):
            stranger.add_many([image("late", 40)])
        assert not stranger.contains("late")
    with open_index(tmp_path, **second) as index:
        assert index.picture("3") == JPEG
        assert [record.key for record in index.list(where=parse_where(["n>7"])).images] == ["8", "new"]
        index.delete("3")
        index.change_metadata("4", lambda _: {"n": -4})
    report = reembed.reembed_on_milvus(address, runners[0])
    assert (report.embedded, report.skipped) == (1, []), "the previous vectors are used again"
    with open_index(tmp_path, **first) as index:
        assert index.get("4").metadata == {"n": -4}
        assert not index.contains("3")


def test_batches_are_embedded_at_the_same_time(
    open_index: Opener, tmp_path: Path, runners: tuple[Runner, Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, both, calls = Runner.run, threading.Barrier(2, timeout=30), itertools.count()

    def waiting(self: Runner, pixels: NDArray[np.uint8], *, all_cores: bool) -> Outputs:
        assert not all_cores
        if next(calls) < 2:
            both.wait()  # raises, unless another thread is here too
        return run(self, pixels, all_cores=all_cores)

    with open_index(tmp_path, **options_of(runners[0])) as index:
        index.add_many([replace(image(str(n), n), picture=JPEG) for n in range(8)])
    monkeypatch.setattr(Runner, "run", waiting)
    report = reembed.reembed_on_milvus(MilvusAddress(str(tmp_path / "milvus.db")), runners[1], batch_size=2)
    assert (report.total, report.embedded, report.skipped) == (8, 8, [])


def test_an_index_without_usable_pictures_keeps_its_vectors(
    open_index: Opener, tmp_path: Path, runners: tuple[Runner, Runner]
) -> None:
    with open_index(tmp_path, **options_of(runners[0])) as index:
        index.add_many([image(str(n), n) for n in range(3)] + [new_image("good", 5, runners)])
        with pytest.raises(FolderError, match="3 of its 4 images"):
            reembed.reembed_on_milvus(MilvusAddress(str(tmp_path / "milvus.db")), runners[1])
        assert index.add_many([image("more", 9)]) == [AddOutcome.ADDED]
        assert index.searched.model == "tiny:1"


def test_an_empty_index_switches_immediately(
    open_index: Opener, tmp_path: Path, runners: tuple[Runner, Runner]
) -> None:
    first, second = (options_of(runner) for runner in runners)
    with open_index(tmp_path, **first) as index, open_index(tmp_path, **first) as other:
        model = IndexOptions(**second).vector_model
        index.spaces.start_migration(model)
        assert index.searched.model == "tiny:1"
        assert index.spaces.finish(model) is SwitchResult.DONE
        assert (index.searched, index.spaces.target) == (model, None)
        assert other.add_many([new_image("a", 1, runners)]) == [AddOutcome.ADDED]
        assert index.contains("a")
        with open_index(tmp_path, **first, switch=True) as rebuilt:
            assert rebuilt.list().images == []
        with open_index(tmp_path, **second) as again:
            assert again.list().images == [], "the image was not in the index any more"
        with pytest.raises(IndexSwitchedError):
            index.spaces.finish(IndexOptions("e" * 64, "other:1").vector_model)


def test_an_index_without_aliases_keeps_its_model(
    open_index: Opener, tmp_path: Path, runners: tuple[Runner, Runner]
) -> None:
    first, second = (options_of(runner) for runner in runners)
    with open_index(tmp_path, **first) as index:
        index.add_many([new_image("a", 1, runners)])
    milvus = Milvus(MilvusAddress(str(tmp_path / "milvus.db")))
    for alias in ("fc7_images", "fc7_writable"):
        milvus.change_alias("drop_alias", alias)
    milvus.write("fc7_meta", [{"id": "active", "value": first["fingerprint"], "vector": [0.0, 0.0]}])
    milvus.close()
    with open_index(tmp_path, **second, migrate=True) as index:
        assert index.searched.model == "tiny:1"
        assert index.contains("a")


def test_changes_pause_during_a_switch_and_resume_when_it_is_dead(
    open_index: Opener, tmp_path: Path, runners: tuple[Runner, Runner]
) -> None:
    first, second = (options_of(runner) for runner in runners)
    address = MilvusAddress(str(tmp_path / "milvus.db"), timeout_s=0.3)
    open_index(tmp_path, **first).close()
    milvus = Milvus(address)
    aliases = Aliases(milvus)
    source, target = (collection_of("fc7", each["fingerprint"]) for each in (first, second))
    MilvusImageIndex.open(address, IndexOptions(**second)).close()
    with MilvusImageIndex.open(address, IndexOptions(**first)) as index, Registry(milvus).sole_reembedder():
        index.add_many([new_image("a", 1, runners)])
        aliases.pause(source)
        for change in (partial(index.add_many, [new_image("b", 2, runners)]), partial(index.delete, "a")):
            for _ in range(3):
                with pytest.raises(IndexPausedError, match="safe to send it again"):
                    change()
        assert index.contains("a")
        with pytest.raises(IndexUnavailableError, match="another fc7 index reembed is running"):
            reembed.reembed_on_milvus(address, runners[1])
    with MilvusImageIndex.open(address, IndexOptions(**first)) as index:
        deadline = time.monotonic() + 10
        while aliases.read().writable is False and time.monotonic() < deadline:  # type: ignore[union-attr]
            try:
                index.delete("a")
            except IndexPausedError:
                continue
        assert not index.contains("a")
        assert not aliases.resume(target), "a switch that seemed dead cannot finish"
        assert index.add_many([new_image("c", 3, runners)]) == [AddOutcome.ADDED]
    milvus.close()


class Killed(BaseException):
    """Ends the migration like SIGKILL: nothing after it has an effect."""


class DyingMilvus(Milvus):
    """A connection that makes `calls` calls. The next one takes effect or not, and raises like all later ones."""

    calls = 10**9

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            if self.calls == -1 and name != "query" and random.random() < 0.5:
                super()._call(name, *arguments, **options)
            raise Killed
        return super()._call(name, *arguments, **options)


class SlowMilvus(Milvus):
    """A connection whose writes are delayed at times, so that a switch overtakes them."""

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if name in ("upsert", "delete") and random.random() < 0.3:
            time.sleep(random.random() / 2)
        return super()._call(name, *arguments, **options)


class HeldMilvus(Milvus):
    """A connection whose first write waits until it is released."""

    held, released = threading.Event(), threading.Event()

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if name in ("upsert", "delete") and "_images_" in arguments[0]:
            self.held.set()
            assert self.released.wait(20)
        return super()._call(name, *arguments, **options)


def renumbered(number: int, _: dict[str, Any]) -> dict[str, Any]:
    return {"n": number}


@pytest.mark.parametrize("change", ["add", "replace", "change", "delete"])
def test_a_change_that_a_switch_overtakes_is_made_again(
    open_index: Opener, tmp_path: Path, runners: tuple[Runner, Runner], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first, second = (options_of(runner) for runner in runners)
    with open_index(tmp_path, **first) as index:
        index.add_many([new_image("a", 1, runners), new_image("b", 2, runners)])
    monkeypatch.setattr(milvus_reader, "Milvus", HeldMilvus)
    monkeypatch.setattr(HeldMilvus, "held", threading.Event())
    monkeypatch.setattr(HeldMilvus, "released", threading.Event())
    with open_index(tmp_path, **first) as index, ThreadPoolExecutor(1) as executor:
        changes: dict[str, Callable[[], object]] = {
            "add": partial(index.add_many, [new_image("c", 3, runners)]),
            "replace": partial(index.add_many, [new_image("a", 4, runners)]),
            "change": partial(index.change_metadata, "a", partial(renumbered, 5)),
            "delete": partial(index.delete, "a"),
        }
        running = executor.submit(changes[change])
        assert HeldMilvus.held.wait(20)
        reembed.reembed_on_milvus(MilvusAddress(str(tmp_path / "milvus.db")), runners[1])
        HeldMilvus.released.set()
        running.result(20)
    expected = {"a": 1, "b": 2} | {"add": {"c": 3}, "replace": {"a": 4}, "change": {"a": 5}, "delete": {}}[change]
    if change == "delete":
        del expected["a"]
    with open_index(tmp_path, **second) as index:
        assert {record.key: record.metadata["n"] for record in index.list().images} == expected


@dataclass
class Client:
    """A replica that adds, replaces, changes and deletes images until `stop`. expected: {key: number} of its images."""

    name: str
    index: MilvusImageIndex
    runners: tuple[Runner, Runner]
    stop: threading.Event
    expected: dict[str, int] = field(default_factory=dict)
    changes: int = 0

    def run(self) -> None:
        chance = random.Random(self.name)
        while not self.stop.is_set():
            self.changes += 1
            key = f"{self.name}{chance.randrange(8)}"
            number = chance.randrange(1000)
            if key not in self.expected or chance.random() < 0.4:
                self._until_done(partial(self.index.add_many, [new_image(key, number, self.runners)]))
                self.expected[key] = number
            elif chance.random() < 0.5:
                self._until_done(partial(self.index.change_metadata, key, partial(renumbered, number)))
                self.expected[key] = number
            else:
                self._until_done(partial(self.index.delete, key))
                del self.expected[key]

    def _until_done(self, change: Any) -> None:
        attempts = 0
        while True:
            try:
                change()
            except IndexUnavailableError:
                attempts += 1
                time.sleep(0.01)
            except KeyNotFoundError:
                assert attempts, "the image was acknowledged"
                return
            else:
                return


def wait_for_changes(clients: Sequence[Client], running: Sequence[Future[None]]) -> None:
    """Wait until each client has started two more changes, so that fast machines have some between the kills."""
    wanted = [client.changes + 2 for client in clients]
    while any(client.changes < count for client, count in zip(clients, wanted, strict=True)):
        assert not any(each.done() for each in running), "a client has failed"
        time.sleep(0.005)


@pytest.mark.slow
def test_no_acknowledged_change_is_lost_when_migrations_are_killed(
    tmp_path: Path, runners: tuple[Runner, Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembed, "Milvus", DyingMilvus)
    monkeypatch.setattr(milvus_reader, "Milvus", SlowMilvus)
    monkeypatch.setattr(reembed, "_LAST_PASS", 4)
    chance, stop = random.Random(1), threading.Event()
    with milvus_server(tmp_path / "data") as server, ExitStack() as stack:
        address = MilvusAddress(server.uri, timeout_s=4.0)
        options = IndexOptions(**options_of(runners[0]))
        clients = [
            Client(name, stack.enter_context(MilvusImageIndex.open(address, options)), runners, stop) for name in "ab"
        ]
        killed = switched = 0
        with ThreadPoolExecutor() as executor:
            running = [executor.submit(client.run) for client in clients]
            try:
                for runner in (runners[1], runners[0]):
                    for calls in (*[chance.randrange(8, 60) for _ in range(6)], 10**9):
                        monkeypatch.setattr(DyingMilvus, "calls", calls)
                        try:
                            reembed.reembed_on_milvus(address, runner, batch_size=4)
                        except Killed:
                            killed += 1
                            wait_for_changes(clients, running)
                        else:
                            switched += 1
                            break
            finally:
                stop.set()
            for each in running:
                each.result()
        assert killed >= 3
        assert switched == 2
        index = clients[0].index
        assert index.spaces.model(None).fingerprint == runners[0].artifact.fingerprint
        expected = {key: {"n": number} for client in clients for key, number in client.expected.items()}
        listed = index.list(1000).images
        assert len(listed) == len(expected)
        assert {record.key: record.metadata for record in listed} == expected
        assert index.stats().images == len(expected)
        assert all(client.changes > 5 for client in clients)
