"""`GET /v1/index/map` and the job that computes the map, over real HTTP, on both backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from service.indexing.job import JobState
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module", params=["local", "milvus"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    folder = tmp_path_factory.mktemp("map")
    publish_tiny_model(folder / "home")
    uri = str(folder / "index.db") if request.param == "milvus" else None
    with thread_server(folder / "home", index_uri=uri) as running:
        for seed in range(6):
            running.client.put(f"/v1/images/i{seed}", content=pictures.jpeg(seed), headers=JPEG)
        for seed in range(3):
            running.client.patch(f"/v1/images/i{seed}", json={"metadata": {"label": "cat" if seed else "dög"}})
        yield running


def get(server: ThreadServer, query: str = "", status: int = 200) -> Any:
    response = server.client.get(f"/v1/index/map{query}")
    assert response.status_code == status, response.text
    return response.json()


def run_job(server: ThreadServer, parameters: dict[str, str]) -> Any:
    job = server.client.post("/v1/jobs?kind=map", json=parameters).json()["id"]
    wait_until(lambda: JobState(server.client.get(f"/v1/jobs/{job}").json()["state"]).ended)
    return server.client.get(f"/v1/jobs/{job}").json()


def test_the_map_comes_in_columns_and_pages_with_an_etag(server: ThreadServer) -> None:
    answer = get(server)
    assert answer["model"] == {"name": "tiny", "version": 1}
    assert (answer["method"], answer["field"], answer["images"], answer["missing"]) == ("pca", "label", 6, 0)
    assert answer["keys"] == [f"i{seed}" for seed in range(6)]
    assert [label if label is None else answer["labels"][label] for label in answer["label"]] == [
        *("dög", "cat", "cat"),
        *(None, None, None),
    ]
    assert len(answer["x"]) == len(answer["y"]) == 6
    assert all(-1.01 < value < 1.01 for value in answer["x"] + answer["y"])
    first = get(server, "?limit=4")
    second = get(server, f"?limit=4&cursor={first['next_cursor']}")
    assert first["keys"] + second["keys"] == answer["keys"]
    assert first["x"] + second["x"] == answer["x"]
    assert second["next_cursor"] is None
    assert get(server, "?where=label:cat")["keys"] == ["i1", "i2"]
    response = server.client.get("/v1/index/map")
    same = server.client.get("/v1/index/map", headers={"If-None-Match": response.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")


def test_invalid_parameters_are_rejected(server: ThreadServer) -> None:
    for query in ("?limit=0", "?limit=1000001", "?cursor=abc", "?field=a%20b", "?where=nothing:1", "?k=1"):
        assert get(server, query, 422)["status"] == 422
    for parameters in ({"method": "umap"}, {"perplexity": 5}):
        assert server.client.post("/v1/jobs?kind=map", json=parameters).status_code == 422


def test_a_job_computes_the_map_and_new_images_join_it(server: ThreadServer) -> None:
    job = run_job(server, {"method": "pca"})
    assert job["state"] == "done", job
    assert job["result"] == {"model": "tiny:1", "method": "pca", "images": 6}
    assert job["total"] == job["processed"] == 6
    before = get(server)
    server.client.put("/v1/images/new", content=pictures.jpeg(5), headers=JPEG)  # the same picture as i5
    after = get(server)
    assert after["keys"] == [*before["keys"], "new"]
    assert after["x"][:-1] == before["x"]
    assert (after["x"][-1], after["y"][-1]) == (after["x"][5], after["y"][5])
    server.client.delete("/v1/images/new")
    assert get(server)["keys"] == before["keys"]


def test_tsne_without_its_package_is_refused(server: ThreadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openTSNE", None)
    refused = server.client.post("/v1/jobs?kind=map")
    assert "fc7[map]" in refused.json()["detail"]
    assert refused.status_code == 409
    assert get(server)["method"] == "pca"
