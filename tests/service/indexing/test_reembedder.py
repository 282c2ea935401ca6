"""Migration of the index: search uses the previous vectors until the new ones are complete, even after a restart."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from index.local.index import LocalImageIndex
from index.records import IndexOptions, NewImage
from model_store.artifact import Artifact
from model_store.image import encode_jpeg, prepare, views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Outputs, Runner
from model_store.store import ModelStore
from service.indexing import reembedder
from tests.support import pictures
from tests.support.server import ThreadServer, process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}


class GatedRunner(Runner):
    """A real runner. In the migration thread, each run waits until the test has released a permit."""

    permits = threading.Semaphore(0)

    def run(self, pixels: NDArray[np.uint8], *, all_cores: bool = True) -> Outputs:
        if threading.current_thread().name == "fc7-migrate":
            assert self.permits.acquire(timeout=30)
        return super().run(pixels, all_cores=all_cores)


@contextmanager
def gated_server(home: Path, **settings: Any) -> Iterator[ThreadServer]:
    GatedRunner.permits = threading.Semaphore(0)
    with thread_server(home, make_runner=GatedRunner, **settings) as server:
        try:
            yield server
        finally:
            GatedRunner.permits.release(1000)


@pytest.fixture(autouse=True)
def no_wait_for_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reembedder, "QUIET_S", 0.0)


def add(server: ThreadServer, key: str, seed: int) -> httpx.Response:
    return server.client.put(f"/v1/images/{key}", content=pictures.jpeg(seed), headers=JPEG)


def nearest(server: ThreadServer, seed: int, **query: str) -> tuple[int, list[tuple[str, float]]]:
    """Return which version answered, and the keys and distances found."""
    answer = server.client.post("/v1/search", params={"k": "50", **query}, content=pictures.jpeg(seed), headers=JPEG)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["model"]["version"], [(each["key"], each["distance"]) for each in body["results"][0]["neighbours"]]


def index_info(server: ThreadServer) -> dict[str, Any]:
    info: dict[str, Any] = server.client.get("/v1/index").json()
    return info


def migrated(server: ThreadServer, version: int) -> bool:
    info = index_info(server)
    return bool(info["model"] == f"tiny:{version}" and (info["migration"] or {"state": "done"})["state"] == "done")


def activate(server: ThreadServer, version: int) -> Any:
    answer = server.client.post(f"/v1/models/tiny/{version}/activate")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_search_switches_when_all_is_embedded_and_changes_are_written_to_both(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    with gated_server(home) as server:
        for number in range(6):
            add(server, f"{number}", number)
        before = nearest(server, 0)
        assert activate(server, 2)["index_status"] == "migrating"
        assert server.client.post("/v1/classify", content=pictures.jpeg()).json()["model"]["version"] == 2
        assert nearest(server, 0) == before
        assert before[0] == 1
        assert sorted(server.state.models.ids()) == ["tiny:1", "tiny:2"]
        assert add(server, "new", 10).status_code == 201
        assert add(server, "3", 11).json()["outcome"] == "replaced"
        server.client.delete("/v1/images/4")
        version, found = nearest(server, 10)
        assert (version, found[0][0], found[0][1] < 1e-3) == (1, "new", True)
        GatedRunner.permits.release(2)
        migration = index_info(server)["migration"]
        assert (migration["model"], migration["state"], migration["total"]) == ("tiny:2", "running", 6)
        assert [(s["model"], s["searched"]) for s in index_info(server)["spaces"]] == [
            ("tiny:1", True),
            ("tiny:2", False),
        ]
        GatedRunner.permits.release(1000)
        wait_until(lambda: migrated(server, 2))
        wait_until(lambda: server.state.models.ids() == ["tiny:2"])
        version, found = nearest(server, 10)
        assert (version, {key for key, _ in found}) == (2, {"0", "1", "2", "3", "5", "new"})
        assert (found[0][0], found[0][1] < 1e-3) == ("new", True)
        key, distance = nearest(server, 11)[1][0]
        assert (key, distance < 1e-3) == ("3", True)
        info = index_info(server)
        assert (info["missing_vectors"], info["vectors"], [space["kept"] for space in info["spaces"]]) == (
            0,
            6,
            [True, False],
        )


def test_a_rollback_is_immediate_if_the_previous_vectors_are_kept(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    with gated_server(home) as server:
        add(server, "a", 1)
        before = nearest(server, 1)
        GatedRunner.permits.release(1)
        activate(server, 2)
        wait_until(lambda: migrated(server, 2))
        add(server, "between", 2)
        named = nearest(server, 1, model="tiny:2")
        assert (named[0], len(named[1])) == (2, 2)
        back = server.client.post("/v1/models/rollback").json()
        assert (back["model"]["version"], back["index_status"]) == (1, "ready")
        assert nearest(server, 1) == before
        assert index_info(server)["missing_vectors"] == 1
        assert "fc7_index_missing_vectors 1.0" in server.client.get("/metrics").text
        GatedRunner.permits.release(1)
        wait_until(lambda: index_info(server)["missing_vectors"] == 0)
        assert "fc7_index_missing_vectors 0.0" in server.client.get("/metrics").text
        assert {key for key, _ in nearest(server, 2)[1]} == {"a", "between"}
        assert activate(server, 2)["index_status"] == "ready"
        assert {key for key, _ in nearest(server, 2)[1]} == {"a", "between"}


def test_dropped_vectors_are_deleted_and_a_rollback_computes_them_again(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    with thread_server(home, previous_vectors="drop") as server:
        for number in range(3):
            add(server, f"{number}", number)
        activate(server, 2)
        wait_until(lambda: migrated(server, 2))
        wait_until(lambda: [space["model"] for space in index_info(server)["spaces"]] == ["tiny:2"])
        refused = server.client.post("/v1/search?model=tiny:1", content=pictures.jpeg(), headers=JPEG)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:fc7:problem:index-of-another-model")
        server.client.post("/v1/models/rollback")
        wait_until(lambda: migrated(server, 1))
        assert nearest(server, 1)[0] == 1
    rows = sqlite3.connect(home / "index/catalog.db").execute("SELECT count(*) FROM vectors").fetchone()
    assert rows == (3,)


def test_a_rollback_cancels_a_running_migration(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    with gated_server(home) as server:
        for number in range(6):
            add(server, f"{number}", number)
        before = nearest(server, 0)
        activate(server, 2)
        GatedRunner.permits.release(3)
        threading.Timer(0.3, GatedRunner.permits.release).start()  # for the run that is waiting
        assert server.client.post("/v1/models/rollback").json()["index_status"] == "ready"
        assert nearest(server, 0) == before
        assert index_info(server)["migration"] is None
        wait_until(lambda: server.state.models.ids() == ["tiny:1"])


def fill(home: Path, artifact: Artifact, count: int) -> None:
    """Put `count` images with pictures into the index, without a server."""
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    with LocalImageIndex.open(home, IndexOptions(artifact.fingerprint, artifact.id)) as index:
        images = []
        for number in range(count):
            pixels = prepare(pictures.jpeg(number % 10)).copy()
            pixels[0, 0] = (number % 256, number // 256, 0)
            vector = runner.run(views(pixels)).fc7[0]
            images.append(NewImage(f"{number}", f"{number:064}", 1, 9, 9, {}, encode_jpeg(pixels), vector))
        index.add_many(images)


def test_a_killed_migration_resumes_after_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, second = publish_tiny_model(home, seed=0), publish_tiny_model(home, seed=1, activate=False)
    fill(home, first, 300)

    def vectors() -> list[int]:
        query = "SELECT count(*) FROM vectors GROUP BY space_id ORDER BY space_id"
        with sqlite3.connect(home / "index/catalog.db") as connection:
            return [row[0] for row in connection.execute(query)]

    ModelStore(home).activate("tiny", 2)
    made = 0
    with process_server(home) as server:
        wait_until(lambda: len(vectors()) == 2 and vectors()[1] >= 32)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
        made = vectors()[1]
    assert vectors() == [300, made]
    assert 32 <= made < 300, "the migration was not interrupted"
    with thread_server(home) as again:
        wait_until(lambda: migrated(again, 2))
        assert index_info(again)["migration"]["total"] == 300 - made
        version, found = nearest(again, 3)
        assert (version, len(found)) == (2, 50)
        assert index_info(again)["missing_vectors"] == 0
        assert second.fingerprint == index_info(again)["fingerprint"]


def test_images_without_a_picture_are_counted_named_and_embedded_when_sent_again(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    with thread_server(home, keep_pictures=False) as server:
        for number in range(3):
            add(server, f"{number}", number)
        activate(server, 2)
        wait_until(lambda: index_info(server)["migration"]["state"] == "stuck")
        progress = index_info(server)["migration"]
        assert (progress["skipped"], sorted(progress["skipped_keys"])) == (3, ["0", "1", "2"])
        assert "picture is not stored" in progress["skipped_keys"]["0"]
        [note] = server.client.get("/readyz").json()["notes"]
        assert "3 images" in note
        assert "Search stays with the previous model" in note
        assert nearest(server, 1)[0] == 1
        for number in range(2):
            assert add(server, f"{number}", number).status_code == 200
        wait_until(lambda: migrated(server, 2))
        version, found = nearest(server, 1)
        assert (version, {key for key, _ in found}) == (2, {"0", "1"})
        assert index_info(server)["missing_vectors"] == 1
        [note] = server.client.get("/readyz").json()["notes"]
        assert "Search does not find them" in note


def test_search_finds_embedded_images_if_the_previous_model_was_removed(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    with thread_server(home) as server:
        add(server, "a", 1)
    store = ModelStore(home)
    store.activate("tiny", 2)
    store.remove("tiny", 1)
    with thread_server(home) as server:
        wait_until(lambda: migrated(server, 2))
        assert nearest(server, 1)[0] == 2
        assert "no longer published" in server.client.get("/readyz").json()["notes"][0]


def test_no_search_and_no_add_fails_during_repeated_migrations(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    with thread_server(home, previous_vectors="drop", deadline_s=60) as server:
        for number in range(4):
            add(server, f"{number}", number)
        done = threading.Event()
        answers: list[tuple[int, str]] = []

        def send_requests(thread: int) -> None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                for number in range(10_000):
                    if done.is_set():
                        return
                    if thread == 0:
                        answer = client.put(f"/v1/images/new{number}", content=pictures.jpeg(20 + number), headers=JPEG)
                    else:
                        answer = client.post("/v1/search?k=1", content=pictures.jpeg(thread), headers=JPEG)
                        found = answer.json().get("results", [{"neighbours": []}])[0]["neighbours"]
                        if answer.status_code == 200 and (found[0]["key"], found[0]["distance"] < 0.5) != (
                            f"{thread}",
                            True,
                        ):
                            answers.append((0, f"models mixed: {answer.text}"))
                    answers.append((answer.status_code, answer.text))

        threads = [threading.Thread(target=send_requests, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for step in range(4):
            version = 2 - step % 2
            activate(server, version)
            wait_until(partial(migrated, server, version))
        done.set()
        for thread in threads:
            thread.join()
        assert {status for status, _ in answers} <= {200, 201}, [
            text for status, text in answers if status not in (200, 201)
        ][:3]
        assert len(answers) > 20
        assert index_info(server)["missing_vectors"] == 0
