"""Activation over real HTTP: no request fails, no response mixes two models, and retired versions are freed."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_store.artifact import Artifact
from model_store.durable import sha256_of
from model_store.image import prepare, views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from tests.support import pictures
from tests.support.server import thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}
SEEDS = range(4)


def expected(*artifacts: Artifact) -> dict[tuple[int, int], list[float]]:
    """Return {(version, seed): probabilities}, computed by a runner without the service."""
    answers = {}
    for artifact in artifacts:
        runner = Runner(artifact, RunnerOptions(device="cpu"))
        for seed in SEEDS:
            pixels = views(prepare(pictures.jpeg(seed)))
            answers[artifact.version, seed] = runner.run(pixels).probabilities[0].tolist()
    return answers


def check(answer: httpx.Response, seed: int, known: dict[tuple[int, int], list[float]]) -> int:
    """Compare a response with the model that it names; return the version."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    version = body["model"]["version"]
    for result in body["results"]:
        found = {entry["index"]: entry["probability"] for entry in result["predictions"]}
        probabilities = known[version, seed]
        assert max(abs(found[index] - probabilities[index]) for index in found) < 1e-5
    return int(version)


def activate(client: httpx.Client, version: int, name: str = "tiny") -> httpx.Response:
    return client.post(f"/v1/models/{name}/{version}/activate")


def test_requests_during_activations_all_succeed(home: Path) -> None:
    first, second = publish_tiny_model(home, seed=0), publish_tiny_model(home, seed=1, activate=False)
    known = expected(first, second)
    assert np.abs(np.subtract(known[first.version, 0], known[second.version, 0])).max() > 1e-2  # they differ
    bodies = [pictures.jpeg(seed) for seed in SEEDS]
    with thread_server(home, deadline_s=60) as server:
        done, versions = threading.Event(), []

        def send_requests(thread: int) -> int:
            sent = 0
            with httpx.Client(base_url=server.url, timeout=30) as client:
                while not done.is_set() or sent < 25:
                    seed = (thread + sent) % 4
                    several = [("file", (f"{i}.jpg", bodies[seed], "image/jpeg")) for i in range(2)]
                    body: dict[str, Any] = {"files": several} if sent % 5 == 0 else {"content": bodies[seed]}
                    versions.append(check(client.post("/v1/classify?k=6", **body), seed, known))
                    sent += 1
            return sent

        with ThreadPoolExecutor(8) as clients:
            requests = [clients.submit(send_requests, thread) for thread in range(8)]
            for turn in range(10):
                answer = activate(server.client, version_of_turn(turn, first, second))
                assert answer.status_code == 200, answer.text
                time.sleep(0.05)
            done.set()
            assert sum(future.result() for future in requests) >= 200
        assert {first.version, second.version} == set(versions)
        wait_until(lambda: len(server.state.models.ids()) <= 2)
        assert server.client.get("/readyz").json()["model"]["version"] == first.version


def version_of_turn(turn: int, first: Artifact, second: Artifact) -> int:
    return (second, first)[turn % 2].version


def test_activation_and_rollback_are_persistent_and_require_the_admin_scope(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    keys = "read:read-0123456789abcdef,write:write-0123456789abcdef,admin:admin-0123456789abcdef"
    with thread_server(home, api_keys=keys) as server:
        for scope in ("read", "write"):
            headers = {"X-API-Key": f"{scope}-0123456789abcdef"}
            assert server.client.post("/v1/models/tiny/2/activate", headers=headers).status_code == 403
            assert server.client.post("/v1/models/rollback", headers=headers).status_code == 403
        server.client.headers["X-API-Key"] = "admin-0123456789abcdef"
        assert server.client.post("/v1/models/rollback").json()["type"] == "urn:fc7:problem:no-previous-model"
        done = activate(server.client, 2).json()
        assert (done["model"], done["previous"]) == ({"name": "tiny", "version": 2}, {"name": "tiny", "version": 1})
        assert done["index_status"] == "ready"  # the index is empty
        assert activate(server.client, 2).json()["previous"] == {"name": "tiny", "version": 2}
        assert server.client.post("/v1/models/rollback").json()["model"]["version"] == 1
        assert (
            'fc7_model_info{device="cpu",name="tiny",precision="fp32",version="1"} 1.0'
            in server.client.get("/metrics").text
        )
        assert server.state.models.ids() == ["tiny:1"]
        assert server.client.post("/v1/models/rollback").json()["model"]["version"] == 2
    with thread_server(home) as server:
        assert server.client.get("/readyz").json()["model"]["version"] == 2


def test_a_failed_activation_leaves_the_current_version_active(home: Path) -> None:
    edited, broken, huge = (publish_tiny_model(home, seed=seed, activate=False) for seed in (1, 2, 3))
    with edited.weights_path.open("r+b") as file:
        file.write(b"edited")
    (broken.path / "model.onnx").write_bytes(b"no graph")
    manifest = json.loads((huge.path / "manifest.json").read_text())
    manifest["files"]["weights.bin"]["size"] = 10**15
    (huge.path / "manifest.json").write_text(json.dumps(manifest))
    with thread_server(home) as server:
        for answer, status, kind, words in (
            (activate(server.client, edited.version), 500, "model-files", "weights.bin"),
            (activate(server.client, broken.version), 500, "model-files", "model.onnx"),
            (activate(server.client, huge.version), 503, "memory-short", "MB"),
            (activate(server.client, 9), 404, "no-such-model", "tiny:9"),
            (activate(server.client, 1, "other"), 404, "no-such-model", "other:1"),
            (activate(server.client, 1, "..bad"), 422, "model-name", "..bad"),
            (activate(server.client, 0), 422, "parameter", "version=0"),
        ):
            assert (answer.status_code, answer.json()["type"]) == (status, f"urn:fc7:problem:{kind}"), answer.text
            assert words in answer.json()["detail"]
            assert server.state.models.ids() == ["tiny:1"]
        assert server.client.post("/v1/classify", content=pictures.jpeg()).json()["model"]["version"] == 1
        active = server.state.store.active()
        assert active is not None
        assert str(active.active) == "tiny:1"


class SlowRunner(Runner):
    """A real runner that waits while loading any version but the first."""

    may_load = threading.Event()

    def __init__(self, artifact: Artifact, options: RunnerOptions) -> None:
        if artifact.version > 1:
            assert self.may_load.wait(20)
        super().__init__(artifact, options)


def test_a_second_activation_at_the_same_time_returns_409(home: Path) -> None:
    publish_tiny_model(home, seed=1, activate=False)
    SlowRunner.may_load.clear()
    with thread_server(home, make_runner=SlowRunner) as server, ThreadPoolExecutor(1) as other:
        running = other.submit(httpx.post, f"{server.url}/v1/models/tiny/2/activate", timeout=30)
        try:
            wait_until(lambda: server.state.versions.running == "tiny:2")
            refused = server.client.post("/v1/models/rollback")
            assert (refused.status_code, refused.json()["type"]) == (409, "urn:fc7:problem:activation-running")
            assert "tiny:2" in refused.json()["detail"]
            assert server.client.post("/v1/classify", content=pictures.jpeg()).json()["model"]["version"] == 1
        finally:
            SlowRunner.may_load.set()
        assert running.result().status_code == 200
        assert server.client.post("/v1/classify", content=pictures.jpeg()).json()["model"]["version"] == 2


def test_a_named_version_is_loaded_and_the_least_recently_used_is_retired(home: Path) -> None:
    artifacts = [publish_tiny_model(home, seed=seed, activate=False) for seed in (1, 2, 3)]
    known = expected(*artifacts)
    with thread_server(home, max_loaded=2) as server:

        def classify_with(model: str) -> httpx.Response:
            return server.client.post("/v1/classify", params={"model": model, "k": 6}, content=pictures.jpeg(0))

        for artifact in (artifacts[0], artifacts[1]):
            assert check(classify_with(artifact.id), 0, known) == artifact.version
            assert set(server.state.models.ids()) == {"tiny:1", artifact.id}
        assert check(classify_with("tiny"), 0, known) == 4
        assert classify_with("tiny:1").json()["model"]["version"] == 1
        assert [classify_with(name).status_code for name in ("tiny:9", "other", "a b")] == [404, 404, 422]
        loaded = {each["version"]: each["loaded"] for each in server.client.get("/v1/models").json()["models"]}
        assert loaded == {1: True, 2: False, 3: False, 4: True}
    with thread_server(home, max_loaded=1) as server:
        refused = server.client.post("/v1/classify?model=tiny:2", content=pictures.jpeg())
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:fc7:problem:too-many-models")
        assert "FC7_MAX_LOADED" in refused.json()["detail"]


def test_a_version_edited_on_disk_is_reported_and_its_responses_do_not_change(home: Path) -> None:
    with thread_server(home) as server:
        before = server.client.post("/v1/classify", content=pictures.jpeg()).json()
        with (home / "models/tiny/1/weights.bin").open("r+b") as file:
            file.truncate(100)
        [note] = server.client.get("/readyz").json()["notes"]
        assert "weights.bin of tiny:1 changed" in note
        assert "fc7 models verify tiny:1" in note
        assert server.client.post("/v1/classify", content=pictures.jpeg()).json() == before


def test_a_service_without_a_model_can_activate_one(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path, activate=False)
    with thread_server(tmp_path) as server:
        assert server.client.get("/readyz").status_code == 503
        assert activate(server.client, 1).json()["previous"] is None
        assert server.client.get("/readyz").status_code == 200
        assert server.client.put("/v1/images/a", content=pictures.jpeg()).status_code == 201


def test_activation_reads_and_hashes_each_file_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = publish_tiny_model(home, seed=1, activate=False)
    hashed: list[str] = []

    def count_read(artifact: Artifact, name: str) -> bytes:
        hashed.append(name)
        return read(artifact, name)

    def count_hash(path: Path) -> str:
        hashed.append(path.relative_to(second.path).as_posix())
        return sha256_of(path)

    read = Artifact.read
    with thread_server(home) as server:
        monkeypatch.setattr(Artifact, "read", count_read)
        monkeypatch.setattr("model_store.artifact.sha256_of", count_hash)
        assert activate(server.client, 2).status_code == 200
        assert sorted(hashed) == sorted(second.manifest.files)


def test_files_edited_after_loading_prevent_activation(home: Path) -> None:
    second = publish_tiny_model(home, seed=1, activate=False)
    with thread_server(home) as server:
        assert server.client.post("/v1/classify?model=tiny:2", content=pictures.jpeg()).status_code == 200
        with second.weights_path.open("r+b") as file:
            file.write(b"edited")
        answer = activate(server.client, 2)
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:fc7:problem:model-files")
        assert server.client.get("/readyz").json()["model"]["version"] == 1
