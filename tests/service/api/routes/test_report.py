"""`/v1/models/{name}/{version}/report`: exactly the files that were published with the version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model_store.store import ModelStore
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model, tiny_draft, write_tiny_graph

TABLE = "class,recall\ncat,0.25\n"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home: Path = tmp_path_factory.mktemp("report") / "home"
    store = ModelStore(home)
    with store.staging("tiny") as folder:
        write_tiny_graph(folder)
        (folder / "report").mkdir()
        (folder / "report" / "per class.csv").write_text(TABLE, encoding="utf-8")
        (folder / "report" / "page.html").write_text("<script>alert(1)</script>", encoding="utf-8")
        artifact = store.publish(folder, tiny_draft())
    store.activate(artifact.name, artifact.version)
    publish_tiny_model(home, seed=1, activate=False)
    with thread_server(home) as server:
        yield server.client


def test_the_files_are_listed_and_sent_as_published(client: httpx.Client) -> None:
    files = client.get("/v1/models/tiny/1/report").raise_for_status().json()["files"]
    assert [(each["name"], each["media_type"], each["size"]) for each in files] == [
        ("page.html", "application/octet-stream", 25),
        ("per class.csv", "text/csv; charset=utf-8", len(TABLE)),
    ]
    answer = client.get(files[1]["path"])
    assert (answer.text, answer.headers["content-type"]) == (TABLE, "text/csv; charset=utf-8")
    unchanged = client.get(files[1]["path"], headers={"If-None-Match": answer.headers["etag"]})
    assert unchanged.status_code == 304


def test_a_browser_cannot_run_a_file_of_a_report(client: httpx.Client) -> None:
    answer = client.get("/v1/models/tiny/1/report/page.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_version_without_a_report_has_an_empty_list(client: httpx.Client) -> None:
    assert client.get("/v1/models/tiny/2/report").json() == {"files": []}


@pytest.mark.parametrize(
    "path", ["tiny/1/report/nothing.png", "tiny/1/report/..%2Fmodel.onnx", "tiny/9/report", "other/1/report"]
)
def test_what_does_not_exist_is_not_found(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/v1/models/{path}")
    assert answer.status_code == 404
    assert answer.json()["detail"]
