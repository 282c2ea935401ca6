"""FC7_PRECISION: the service uses that precision or does not start, and never compares vectors of two precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_store.errors import PrecisionNotFoundError
from model_store.store import ModelStore
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model, tiny_draft, write_tiny_graph

JPEG = {"Content-Type": "image/jpeg"}


def publish_with_int8(home: Path) -> None:
    """Publish a tiny version whose "int8" files are a different net, so that the predictions show which one was run."""
    store = ModelStore(home)
    with store.staging("tiny") as staged:
        write_tiny_graph(staged)
        (staged / "int8").mkdir()
        write_tiny_graph(staged / "int8", seed=1)
        store.publish(staged, tiny_draft().model_copy(update={"precisions": {"int8": {"top5_agreement": 1.0}}}))
    store.activate("tiny")


def test_the_precision_selects_the_graph(home: Path, tmp_path: Path) -> None:
    publish_with_int8(home)
    publish_tiny_model(tmp_path / "other", seed=1)
    answers = []
    for folder, precision in ((home, "fp32"), (home, "int8"), (tmp_path / "other", "fp32")):
        with thread_server(folder, precision=precision) as server:
            answer = server.client.post("/v1/classify?k=6", content=pictures.jpeg(), headers=JPEG).json()
            answers.append({entry["index"]: entry["probability"] for entry in answer["results"][0]["predictions"]})
            assert f'precision="{precision}"' in server.client.get("/metrics").text
    assert answers[1] == pytest.approx(answers[2], abs=1e-6)
    assert answers[0] != pytest.approx(answers[1], abs=1e-3)


def test_a_version_without_the_precision_prevents_the_start(home: Path) -> None:
    with (
        pytest.raises(
            PrecisionNotFoundError, match=r"tiny:1 has no int8 files.*fc7 models quantize.*FC7_PRECISION=fp32"
        ),
        thread_server(home, precision="int8"),
    ):
        pass


def test_a_named_version_without_the_precision_returns_409(home: Path) -> None:
    publish_with_int8(home)
    with thread_server(home, precision="int8") as server:
        answer = server.client.post("/v1/classify?model=tiny:1", content=pictures.jpeg(), headers=JPEG)
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:fc7:problem:no-such-precision")
        assert server.client.post("/v1/classify", content=pictures.jpeg(), headers=JPEG).status_code == 200


def test_adding_images_and_activation_work_in_another_precision(home: Path) -> None:
    publish_with_int8(home)
    model = {"name": "tiny", "version": 2}
    with thread_server(home, precision="int8", engine="onnxruntime") as server:
        assert server.client.put("/v1/images/a", content=pictures.jpeg(), headers=JPEG).status_code == 201
        many = server.client.post("/v1/images", files=[("file", ("b.jpg", pictures.jpeg(1), "image/jpeg"))])
        assert (many.status_code, many.json()["model"]) == (201, model)
        assert server.client.get("/v1/index").json()["model"] == "tiny:2 (int8)"
        assert server.client.post("/v1/models/tiny/2/activate").status_code == 200


def test_the_index_is_migrated_to_the_precision_and_never_compares_two(home: Path) -> None:
    publish_with_int8(home)

    def nearest(server: ThreadServer) -> dict[str, Any]:
        answer = server.client.post("/v1/search", content=pictures.jpeg(), headers=JPEG).json()
        found: dict[str, Any] = answer["results"][0]["neighbours"][0]
        return found

    def wait_for(server: ThreadServer, model: str) -> dict[str, Any]:
        """Wait until search uses the vectors of this model, and return the state of the index."""
        wait_until(lambda: server.client.get("/v1/index").json()["model"] == model)
        found: dict[str, Any] = server.client.get("/v1/index").json()
        assert found["vectors"] == 1
        return found

    with thread_server(home) as server:
        assert server.client.put("/v1/images/a", content=pictures.jpeg(), headers=JPEG).status_code == 201
        before = server.client.get("/v1/index").json()
    with thread_server(home, precision="int8", engine="onnxruntime") as server:
        assert wait_for(server, "tiny:2 (int8)")["fingerprint"] != before["fingerprint"]
        assert nearest(server)["key"] == "a"
    with thread_server(home) as server:
        assert wait_for(server, "tiny:2")["fingerprint"] == before["fingerprint"]
        assert nearest(server)["key"] == "a"
