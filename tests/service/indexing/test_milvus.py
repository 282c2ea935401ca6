"""The service and the commands with an index on Milvus Lite: shared by replicas, and unreachable at times."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from index.errors import MilvusUnsupportedError
from service.cli.main import app
from service.indexing import reembedder
from service.settings import PREFIX
from tests.support import pictures
from tests.support.milvus import MilvusServer, free_port, milvus_server
from tests.support.server import process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}
COMMAND = [sys.executable, "-c", "from service.cli import main; main()"]


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[MilvusServer]:
    with milvus_server(tmp_path / "milvus") as server:
        yield server


def command(home: Path, uri: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {"FC7_HOME": str(home), "FC7_INDEX_URI": uri} | variables
    return subprocess.run([*COMMAND, *words], env=environment, capture_output=True, text=True, check=False, timeout=60)


def keys(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    document = answer.json()
    found = document["images"] if "images" in document else document["results"][0]["neighbours"]
    return [entry["key"] for entry in found]


def put(client: httpx.Client, key: str, seed: int, **metadata: object) -> httpx.Response:
    files = {"file": ("x.jpg", pictures.jpeg(seed, 64, 64), "image/jpeg")}
    return client.put(f"/v1/images/{key}", files=files, data={"metadata": json.dumps(metadata)})


def test_every_index_endpoint_works_with_a_file_of_milvus_lite(home: Path, tmp_path: Path) -> None:
    with thread_server(home, index_uri=str(tmp_path / "index.db")) as server:
        client = server.client
        for n in range(6):
            assert put(client, f"birds/{n}", n, n=n, label="heron" if n % 2 else "gull").status_code == 201
        assert put(client, "birds/0", 0, n=0, label="gull").json()["outcome"] == "unchanged"
        assert put(client, "birds/0", 0, n=7, label="gull").json()["outcome"] == "replaced"
        found = client.post("/v1/search?k=6&where=label:heron", content=pictures.jpeg(3, 64, 64), headers=JPEG)
        assert found.json()["mode"] == "exact"
        assert keys(found)[0] == "birds/3"
        assert sorted(keys(found)) == ["birds/1", "birds/3", "birds/5"]
        assert sorted(keys(client.get("/v1/images/birds%2F1/similar?where=n>=3"))) == [
            f"birds/{n}" for n in (0, 3, 4, 5)
        ]
        assert client.get("/v1/images/birds%2F1/thumbnail").headers["content-type"] == "image/jpeg"
        patched = client.patch("/v1/images/birds%2F1", json={"metadata": {"n": None, "seen": True}})
        assert patched.json()["metadata"] == {"label": "heron", "seen": True}
        first = client.get("/v1/images?limit=4").json()
        assert [image["key"] for image in first["images"]] == [f"birds/{n}" for n in range(4)]
        assert keys(client.get("/v1/images", params={"cursor": first["next_cursor"]})) == ["birds/4", "birds/5"]
        assert client.get("/v1/images?cursor=WyJ4IiwgIiIsIDNd").json()["type"] == "urn:fc7:problem:cursor"
        assert client.get("/v1/images?where=colour:red").json()["type"] == "urn:fc7:problem:where"
        put(client, "again", 5)
        [group] = client.get("/v1/index/duplicates?threshold=0.5").json()["groups"]
        assert (group["keep"]["key"], group["size"]) == ("birds/5", 2), "it is older"
        assert [(other["key"], other["distance"]) for other in group["others"]] == [("again", 0)]
        assert client.delete("/v1/images?where=label:gull").json() == {"deleted": 3}
        assert client.delete("/v1/images/again").status_code == 204
        assert client.delete("/v1/images/again").status_code == 404
        assert keys(client.get("/v1/images")) == ["birds/1", "birds/3", "birds/5"]
        refused = client.post("/v1/index/snapshots")
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:fc7:problem:index-on-milvus")
        assert "milvus-backup" in refused.json()["detail"]
        codes = client.post("/v1/search?mode=codes", content=pictures.jpeg(3), headers=JPEG)
        assert (codes.status_code, codes.json()["type"]) == (409, "urn:fc7:problem:mode-unavailable")
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as entries:
            entries.writestr("a/b.jpg", pictures.jpeg(20, 64, 64))
        job = client.post("/v1/jobs", content=archive.getvalue(), headers={"Content-Type": "application/zip"}).json()
        wait_until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["state"] == "done")
        assert client.get("/v1/index").json()["images"] == 4
        assert "fc7_index_images 4.0" in client.get("/metrics").text
    assert not (home / "index").exists()
    with thread_server(home, index_uri=str(tmp_path / "index.db")) as server:
        assert keys(server.client.get("/v1/images?where=seen:true")) == ["birds/1"]


@pytest.mark.slow
def test_two_replicas_share_an_index_and_survive_a_killed_milvus(
    home: Path, tmp_path: Path, milvus: MilvusServer
) -> None:
    publish_tiny_model(tmp_path / "second")
    variables = {"FC7_INDEX_URI": milvus.uri, "FC7_INDEX_TIMEOUT_S": "1", "FC7_INDEX_TOKEN": "root:s3cret"}
    with ExitStack() as stack:
        servers = [stack.enter_context(process_server(folder, **variables)) for folder in (home, tmp_path / "second")]
        one, two = (stack.enter_context(httpx.Client(base_url=server.url, timeout=20)) for server in servers)
        assert put(one, "a", 1, label="cat").status_code == 201
        assert put(two, "b", 2, label="dog").status_code == 201
        for client in (one, two):
            assert keys(client.get("/v1/images")) == ["a", "b"]
            query = client.post("/v1/search?where=label:dog", content=pictures.jpeg(2, 64, 64), headers=JPEG)
            assert keys(query) == ["b"]
        assert one.delete("/v1/images/b").status_code == 204
        assert two.get("/v1/images/b").status_code == 404
        assert keys(two.post("/v1/search", content=pictures.jpeg(2, 64, 64), headers=JPEG)) == ["a"]

        milvus.kill()
        for answer in (
            one.post("/v1/search", content=pictures.jpeg(2), headers=JPEG),
            one.get("/v1/images/a/similar"),
            put(one, "c", 3),
            one.get("/v1/images?where=label:cat"),
            one.get("/v1/index"),
        ):
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:fc7:problem:index-unreachable"), (
                answer.text
            )
            assert f"{milvus.uri} (FC7_INDEX_URI)" in answer.json()["detail"]
            assert "Retry-After" in answer.headers
            assert "s3cret" not in answer.text
        assert one.post("/v1/classify", content=pictures.jpeg(1), headers=JPEG).status_code == 200
        assert one.get("/metrics").status_code == 200
        ready = one.get("/readyz")
        assert ready.status_code == 200, "classification still works"
        assert "The last call to Milvus failed" in ready.json()["notes"][0]

        milvus.start()
        wait_until(lambda: one.get("/v1/images/a").status_code == 200)
        assert keys(one.get("/v1/images?where=label:cat")) == ["a"]
        assert put(two, "c", 3).status_code in {200, 201}
        assert "c" in keys(one.get("/v1/images"))
        assert one.get("/readyz").json().get("notes", []) == []
        for server in servers:
            assert "s3cret" not in server.log.read_text()


def test_the_service_does_not_start_if_milvus_is_unreachable(home: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    done = command(home, uri, "serve", FC7_INDEX_TIMEOUT_S="1", FC7_INDEX_TOKEN="root:s3cret", FC7_PORT="0")
    assert done.returncode == 1
    assert f"Milvus at {uri} (FC7_INDEX_URI) is not available" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "s3cret" not in done.stderr + done.stdout


def test_commands_work_on_milvus_or_name_an_alternative(home: Path, tmp_path: Path, milvus: MilvusServer) -> None:
    def run(*words: str) -> Result:
        return CliRunner().invoke(app, words, env={"FC7_HOME": str(home), "FC7_INDEX_URI": milvus.uri})

    (tmp_path / "photos").mkdir()
    for n in range(4):
        (tmp_path / "photos" / f"{n}.jpg").write_bytes(pictures.jpeg(n % 3, 64, 64))
    assert "fc7 index build DIR" in str(run("index", "stats").exception)
    for expected in ("4 added", "4 unchanged"):
        built = run("index", "build", str(tmp_path / "photos"))
        assert built.exit_code == 0, built.exception
        assert expected in built.stderr
    assert not (home / "index").exists()
    assert "4" in run("index", "stats").stdout
    found = command(home, milvus.uri, "search", str(tmp_path / "photos" / "1.jpg"), "-k", "1", "--json")
    assert json.loads(found.stdout)["results"][0]["neighbours"][0]["key"] == "1.jpg"
    found = json.loads(run("index", "duplicates", "--threshold", "0.5", "--json").stdout)
    [group] = found["groups"]
    assert (group["keep"]["key"], [other["key"] for other in group["others"]]) == ("0.jpg", ["3.jpg"])
    exported = run("index", "export", str(tmp_path / "all.parquet"))
    assert "4 images" in exported.stderr
    assert pyarrow.parquet.read_table(tmp_path / "all.parquet")["key"].to_pylist() == [f"{n}.jpg" for n in range(4)]
    for words, fix in [
        (("index", "snapshot", str(tmp_path / "copy")), "milvus-backup"),
        (("index", "restore", str(tmp_path / "copy")), "Unset FC7_INDEX_URI"),
        (("index", "verify"), "SNAPSHOT"),
        (("codes", "train"), "Unset FC7_INDEX_URI"),
    ]:
        refused = run(*words).exception
        assert isinstance(refused, MilvusUnsupportedError), words
        assert f"The index is on Milvus at {milvus.uri} (FC7_INDEX_URI)" in str(refused)
        assert fix in str(refused)


def test_search_switches_to_another_model_once_the_command_has_computed_its_vectors(
    home: Path, milvus: MilvusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembedder, "POLL_S", 0.05)
    publish_tiny_model(home, seed=7, activate=False)
    with thread_server(home, index_uri=milvus.uri) as server:
        client = server.client
        for n in range(5):
            put(client, str(n), n)
        assert client.post("/v1/models/tiny/2/activate").status_code == 200
        [note] = client.get("/readyz").json()["notes"]
        assert "fc7 index reembed --model tiny:2" in note
        assert put(client, "new", 20).status_code == 201
        found = client.post("/v1/search", content=pictures.jpeg(3, 64, 64), headers=JPEG)
        assert found.json()["model"] == {"name": "tiny", "version": 1}
        assert keys(found)[0] == "3"
        done = command(home, milvus.uri, "index", "reembed", "--model", "tiny:2")
        assert done.returncode == 0, done.stderr
        assert "6 of 6 images embedded" in done.stderr
        wait_until(lambda: not client.get("/readyz").json().get("notes"))
        found = client.post("/v1/search?k=10", content=pictures.jpeg(3, 64, 64), headers=JPEG)
        assert found.json()["model"] == {"name": "tiny", "version": 2}
        assert keys(found)[0] == "3"
        assert found.json()["results"][0]["neighbours"][0]["distance"] < 1, "computed from the stored JPEG"
        assert sorted(keys(found)) == ["0", "1", "2", "3", "4", "new"]
