"""Activation when a step fails, or when something changes meanwhile: a failed one changes nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from index.catalog.lock import FolderLock
from index.search.searcher import Searcher
from model_store.artifact import Artifact
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Outputs, Runner
from model_store.store import ModelStore
from service.indexing import reembedder
from tests.support import pictures
from tests.support.server import ThreadServer, process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}
KIND = "urn:fc7:problem:"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reembedder, "QUIET_S", 0.0)
    monkeypatch.setattr(reembedder, "RETRY_S", 0.2)
    monkeypatch.setattr(StoppedRunner, "stopped", False)


def activate(server: ThreadServer, version: int, name: str = "tiny") -> httpx.Response:
    return server.client.post(f"/v1/models/{name}/{version}/activate")


def add(server: ThreadServer, key: str, seed: int) -> None:
    answer = server.client.put(f"/v1/images/{key}", content=pictures.jpeg(seed), headers=JPEG)
    assert answer.status_code in (200, 201), answer.text


def search(server: ThreadServer, seed: int = 0, **query: str) -> tuple[str, list[str]]:
    """Return the version whose vectors were searched, and the keys found, sorted."""
    answer = server.client.post("/v1/search", params={"k": "50", **query}, content=pictures.jpeg(seed), headers=JPEG)
    assert answer.status_code == 200, answer.text
    model = answer.json()["model"]
    return f"{model['name']}:{model['version']}", sorted(n["key"] for n in answer.json()["results"][0]["neighbours"])


def serves(server: ThreadServer) -> tuple[str, str, list[str], list[dict[str, Any]], list[str]]:
    """Return everything that a failed activation must not change."""
    ready = server.client.get("/readyz").json()
    spaces = server.client.get("/v1/index").json()["spaces"]
    active = (server.state.settings.home / "active.json").read_text()
    return f"tiny:{ready['model']['version']}", active, sorted(server.state.models.ids()), spaces, ready["notes"]


def is_migrated(server: ThreadServer, version: int) -> bool:
    index = server.state.index()
    return index.searched.model == f"tiny:{version}" and index.spaces.target is None


@contextmanager
def two_versions(home: Path, **settings: Any) -> Iterator[ThreadServer]:
    """Serve tiny:1 with three images; tiny:2 and tiny:3 can be activated."""
    for seed in (1, 2):
        publish_tiny_model(home, seed=seed, activate=False)
    with thread_server(home, **settings) as server:
        for number in range(3):
            add(server, str(number), number)
        yield server


def test_the_first_activation_fails_without_effect_while_the_index_is_locked(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, activate=False)
    with thread_server(tmp_path) as server:
        with closing(FolderLock(tmp_path / "index")):
            answer = activate(server, 1)
            assert (answer.status_code, answer.json()["type"]) == (503, f"{KIND}index-locked"), answer.text
            assert "is open in" in answer.json()["detail"]
            assert server.client.get("/readyz").status_code == 503
            assert server.state.models.ids() == []
            assert not (tmp_path / "active.json").exists()
        assert activate(server, 1).status_code == 200
        assert server.client.get("/readyz").json()["notes"] == []
        add(server, "a", 1)
        assert search(server) == ("tiny:1", ["a"])


def test_a_failed_write_of_active_json_undoes_the_activation(home: Path) -> None:
    with two_versions(home) as server:
        before = serves(server)
        file = home / "active.json"
        content = file.read_bytes()
        file.unlink()
        file.mkdir()  # no file can take its place
        answer = activate(server, 2)
        file.rmdir()
        file.write_bytes(content)
        assert (answer.status_code, answer.json()["type"]) == (503, f"{KIND}activation-not-saved")
        assert "active.json failed" in answer.json()["detail"]
        now = serves(server)
        assert now[:3] == before[:3]
        assert [space for space in now[3] if space["model"] == "tiny:1"] == before[3]
        assert server.state.index().spaces.target is None
        add(server, "new", 7)
        assert search(server) == ("tiny:1", ["0", "1", "2", "new"])
        assert activate(server, 2).status_code == 200
        wait_until(lambda: is_migrated(server, 2))
        assert search(server) == ("tiny:2", ["0", "1", "2", "new"])


def test_a_failed_activation_resumes_the_migration_that_it_interrupted(home: Path) -> None:
    with two_versions(home) as server:
        activate(server, 2)
        wait_until(lambda: is_migrated(server, 2))
    with sqlite3.connect(home / "index/catalog.db") as connection:
        connection.execute("UPDATE vectors SET crc = crc + 1 WHERE space_id = 1")
    broken = publish_tiny_model(home, seed=5, activate=False)
    (broken.path / "model.onnx").write_bytes(b"no graph")
    StoppedRunner.stopped = True
    with thread_server(home, make_runner=StoppedRunner) as server:
        assert activate(server, 3).json()["index_status"] == "migrating"
        before = serves(server)[:4]
        for version in (1, broken.version):  # one has damaged vectors, and the other cannot be loaded
            assert activate(server, version).status_code == 500
            assert serves(server)[:4] == before
        StoppedRunner.stopped = False
        wait_until(lambda: is_migrated(server, 3))
        assert search(server) == ("tiny:3", ["0", "1", "2"])


def test_memory_that_runs_out_while_vectors_are_loaded_undoes_the_activation(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_versions(home) as server:
        before = serves(server)
        monkeypatch.setattr(Searcher, "__init__", _out_of_memory)
        answer = activate(server, 2)
        assert (answer.status_code, answer.json()["type"]) == (503, f"{KIND}memory-short"), answer.text
        monkeypatch.undo()
        assert serves(server)[:3] == before[:3]
        assert search(server) == ("tiny:1", ["0", "1", "2"])


def _out_of_memory(*_: object, **__: object) -> None:
    raise MemoryError


class StoppedRunner(Runner):
    """A real runner that fails in the migration's thread while `stopped`, with an unexpected error."""

    stopped = False

    def run(self, pixels: NDArray[np.uint8], *, all_cores: bool = True) -> Outputs:
        if self.stopped and threading.current_thread().name == "fc7-migrate":
            raise SystemExit("injected")
        return super().run(pixels, all_cores=all_cores)


def test_a_migration_that_fails_in_an_unexpected_way_is_noted_and_tried_again(home: Path) -> None:
    with two_versions(home, make_runner=StoppedRunner) as server:
        StoppedRunner.stopped = True
        assert activate(server, 2).json()["index_status"] == "migrating"
        wait_until(lambda: server.client.get("/readyz").json()["notes"] != [])
        [note] = server.client.get("/readyz").json()["notes"]
        assert "tiny:2 was interrupted" in note
        assert "SystemExit: injected" in note
        assert server.client.get("/v1/index").json()["migration"]["state"] == "waiting"
        assert search(server) == ("tiny:1", ["0", "1", "2"])
        StoppedRunner.stopped = False
        wait_until(lambda: is_migrated(server, 2))
        assert server.client.get("/readyz").json()["notes"] == []
        assert search(server) == ("tiny:2", ["0", "1", "2"])


def test_kept_vectors_that_are_damaged_on_disk_fail_a_rollback_without_effect(home: Path) -> None:
    with two_versions(home) as server:
        activate(server, 2)
        wait_until(lambda: is_migrated(server, 2))
    with sqlite3.connect(home / "index/catalog.db") as connection:
        connection.execute("UPDATE vectors SET crc = crc + 1 WHERE space_id = 1")
    with thread_server(home) as server:
        before = serves(server)
        answer = server.client.post("/v1/models/rollback")
        assert answer.status_code == 500
        assert "differs from its checksum" in answer.json()["detail"]
        assert serves(server) == before
        assert search(server) == ("tiny:2", ["0", "1", "2"])
        assert activate(server, 3).status_code == 200
        wait_until(lambda: is_migrated(server, 3))


@pytest.mark.parametrize("max_loaded", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_a_version_being_activated_is_not_evicted_by_requests_that_name_others(home: Path, max_loaded: int) -> None:
    for seed in (1, 2, 3):
        publish_tiny_model(home, seed=seed, activate=False)
    with thread_server(home, max_loaded=max_loaded, deadline_s=60) as server:
        add(server, "a", 1)
        done = threading.Event()

        def send(path: str) -> set[tuple[int, str]]:
            answers = set()
            with httpx.Client(base_url=server.url, timeout=60) as client:
                while not done.is_set():
                    answer = client.post(path, content=pictures.jpeg(), headers=JPEG)
                    answers.add((answer.status_code, answer.json().get("type", "")))
            return answers

        with ThreadPoolExecutor(6) as clients:
            unnamed = [clients.submit(send, path) for path in ("/v1/classify", "/v1/search")]
            named = [clients.submit(send, f"/v1/classify?model=tiny:{version}") for version in (1, 2, 3, 4)]
            for version in (2, 3, 4, 1, 2, 3):
                assert activate(server, version).status_code == 200
            done.set()
            answers = set().union(*(future.result() for future in named))
            assert [future.result() for future in unnamed] == [{(200, "")}] * 2
        assert answers <= {(200, ""), (503, f"{KIND}models-in-use"), (409, f"{KIND}too-many-models")}
        assert (200, "") in answers
        wait_until(lambda: is_migrated(server, 3))
        wait_until(lambda: len(server.state.models.ids()) <= max_loaded)
        assert search(server) == ("tiny:3", ["a"])
        assert str(server.state.store.active().active) == "tiny:3"  # type: ignore[union-attr]


def test_the_sequence_2_3_1_2_always_finds_all_images(home: Path) -> None:
    with two_versions(home) as server:
        for version in (2, 3, 1, 2, 2, 1, 3, 1):
            activate(server, version)
            if version != 1:  # the next activation interrupts the migration to tiny:1
                wait_until(lambda wanted=version: is_migrated(server, wanted))  # type: ignore[misc]
                assert search(server) == (f"tiny:{version}", ["0", "1", "2"])
        wait_until(lambda: is_migrated(server, 1))
        assert search(server) == ("tiny:1", ["0", "1", "2"])
        spaces = server.state.index().spaces
        assert spaces.required == [spaces.searched]
        assert {space.model for space in spaces.describe()} >= {"tiny:1", "tiny:3"}


def test_a_version_replaced_under_the_same_number_is_loaded_again(home: Path) -> None:
    with two_versions(home) as server:
        activate(server, 2)
        wait_until(lambda: is_migrated(server, 2))
        before = server.client.post("/v1/classify?k=6", content=pictures.jpeg()).json()
        shutil.rmtree(home / "models/tiny/2")
        publish_tiny_model(home.parent / "other", seed=9)
        other = publish_tiny_model(home.parent / "other", seed=9)
        shutil.copytree(other.path, home / "models/tiny/2")
        assert server.client.post("/v1/classify?k=6", content=pictures.jpeg()).json() == before
        assert activate(server, 2).status_code == 200
        wait_until(lambda: server.state.index().searched.fingerprint == other.fingerprint)
        assert server.client.post("/v1/classify?k=6", content=pictures.jpeg()).json() != before
        assert search(server) == ("tiny:2", ["0", "1", "2"])
        wait_until(lambda: server.state.models.ids() == ["tiny:2"])


def test_two_versions_with_the_same_weights_share_their_vectors(home: Path) -> None:
    with two_versions(home) as server:
        twin = publish_tiny_model(home, seed=0, activate=False)
        answer = activate(server, twin.version)
        assert answer.json()["index_status"] == "ready"
        assert server.client.get("/v1/index").json()["migration"] is None
        assert search(server) == (twin.id, ["0", "1", "2"])
        assert [space["model"] for space in server.client.get("/v1/index").json()["spaces"]] == [twin.id]
        wait_until(lambda: server.state.models.ids() == [twin.id])


def test_an_activation_by_the_command_line_is_noted_until_the_versions_agree(home: Path) -> None:
    with two_versions(home) as server:
        ModelStore(home).activate("tiny", 2)
        [note] = server.client.get("/readyz").json()["notes"]
        assert "tiny:1 answers requests, but active.json names tiny:2" in note
        assert activate(server, 2).status_code == 200
        assert server.client.get("/readyz").json()["notes"] == []


def test_the_active_and_the_searched_version_work_after_their_folders_were_deleted(home: Path) -> None:
    with two_versions(home) as server:
        shutil.rmtree(home / "models/tiny/1")
        assert search(server) == ("tiny:1", ["0", "1", "2"])
        answer = server.client.post("/v1/models/rollback")
        assert answer.status_code == 409
        assert activate(server, 1).status_code == 404
        assert activate(server, 2).status_code == 200
        wait_until(lambda: is_migrated(server, 2))
        assert server.client.post("/v1/models/rollback").status_code == 404
        assert search(server) == ("tiny:2", ["0", "1", "2"])


def test_the_version_of_the_searched_vectors_is_loaded_again_if_it_stopped_working(home: Path) -> None:
    with two_versions(home, make_runner=StoppedRunner) as server:
        StoppedRunner.stopped = True
        activate(server, 2)
        key = server.state.models.find(server.state.index().searched.fingerprint)
        assert key is not None
        server.state.models.retire(key)  # as after its device failed
        assert search(server) == ("tiny:1", ["0", "1", "2"])
        add(server, "new", 8)
        StoppedRunner.stopped = False
        wait_until(lambda: is_migrated(server, 2))
        assert search(server) == ("tiny:2", ["0", "1", "2", "new"])


class SlowRunner(Runner):
    """A real runner that waits while loading any version but the first."""

    may_load = threading.Event()
    loading = threading.Event()

    def __init__(self, artifact: Artifact, options: RunnerOptions) -> None:
        if artifact.version > 1:
            self.loading.set()
            assert self.may_load.wait(20)
        super().__init__(artifact, options)


def test_an_activation_that_is_loading_when_the_service_stops_changes_nothing(home: Path) -> None:
    SlowRunner.may_load.clear()
    SlowRunner.loading.clear()
    with two_versions(home, make_runner=SlowRunner, shutdown_timeout_s=0.1) as server, ThreadPoolExecutor(1) as other:
        state = server.state
        running = other.submit(state.versions.activate, "tiny", 2)
        assert SlowRunner.loading.wait(10)
        closing_thread = threading.Thread(target=state.versions.close)
        closing_thread.start()
        wait_until(lambda: state.versions._closing)
        SlowRunner.may_load.set()
        with pytest.raises(Exception, match="shutting down"):
            running.result()
        closing_thread.join(10)
    assert json.loads((home / "active.json").read_text())["active"]["version"] == 1
    with thread_server(home) as server:
        assert search(server) == ("tiny:1", ["0", "1", "2"])


@pytest.mark.parametrize("kills", [1, pytest.param(15, marks=pytest.mark.slow)])
def test_activations_and_adds_survive_kill_9(home: Path, kills: int) -> None:
    random = np.random.default_rng()
    for seed in (1, 2):
        publish_tiny_model(home, seed=seed, activate=False)
    acknowledged: set[str] = set()
    before = "from service.indexing import reembedder; reembedder.QUIET_S = 0.0"

    def send(url: str, thread: int, activated: list[int]) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            try:
                for number in range(1000):
                    if thread == 0:
                        activated.append(int(random.integers(1, 4)))
                        assert client.post(f"/v1/models/tiny/{activated[-1]}/activate").status_code == 200
                    else:
                        key = f"{thread}-{len(acknowledged)}-{number}"
                        body = pictures.jpeg(thread * 1000 + number, 48, 48)
                        answer = client.put(f"/v1/images/{key}", content=body, headers=JPEG)
                        assert answer.status_code in (201, 503, 504), answer.text  # a busy machine exceeds the deadline
                        if answer.status_code == 201:
                            acknowledged.add(key)
            except httpx.TransportError:
                return

    for _ in range(kills):
        activated = [json.loads((home / "active.json").read_text())["active"]["version"]]
        with process_server(home, before=before) as server, ThreadPoolExecutor(3) as clients:
            sent = [clients.submit(send, server.url, thread, activated) for thread in range(3)]
            threading.Event().wait(float(random.uniform(0.2, 1.0)))
            server.process.kill()
            for future in sent:
                future.result()
        assert json.loads((home / "active.json").read_text())["active"]["version"] in activated[-2:]
    with thread_server(home) as again:
        version = json.loads((home / "active.json").read_text())["active"]["version"]
        # A kept space is searched immediately, while images that were added meanwhile still get their vectors in it.
        wait_until(lambda: is_migrated(again, version) and again.client.get("/v1/index").json()["missing_vectors"] == 0)
        listed = [image["key"] for image in again.client.get("/v1/images?limit=1000").json()["images"]]
        assert len(listed) == len(set(listed))
        assert acknowledged <= set(listed)
        answer = again.client.post("/v1/search?k=1000", content=pictures.jpeg(), headers=JPEG).json()
        assert sorted(n["key"] for n in answer["results"][0]["neighbours"]) == sorted(listed)
