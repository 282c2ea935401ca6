"""Filters, changed metadata, bulk deletion and snapshots over real HTTP."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from index.local.index import LocalImageIndex
from tests.service.cli.helpers import call, run
from tests.support import pictures
from tests.support.server import ThreadServer, process_server, thread_server
from tests.support.tiny_model import publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}
PATCH = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("catalog") / "home"
    publish_tiny_model(home)
    with thread_server(home) as server:
        yield server


@pytest.fixture(scope="module", params=["local", "milvus"])
def any_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    folder = tmp_path_factory.mktemp("catalog")
    publish_tiny_model(folder / "home")
    with thread_server(
        folder / "home", index_uri=str(folder / "index.db") if request.param == "milvus" else None
    ) as server:
        yield server


@pytest.fixture
def client(any_server: ThreadServer) -> httpx.Client:
    """Return a client of an index without images, in FC7_HOME and on Milvus Lite."""
    return emptied(any_server)


@pytest.fixture
def own_client(own_server: ThreadServer) -> httpx.Client:
    """Return a client of an index without images in FC7_HOME."""
    return emptied(own_server)


def emptied(server: ThreadServer) -> httpx.Client:
    for image in server.client.get("/v1/images").json()["images"]:
        server.client.delete(f"/v1/images/{quote(image['key'], safe='')}")
    return server.client


def fill(client: httpx.Client, count: int = 12) -> None:
    files = [("file", (f"{i:02}", pictures.jpeg(i, 64, 64), "image/jpeg")) for i in range(count)]
    metadata = {
        f"{i:02}": {"rare": i % 2 == 0, "year": 2010 + i, "label": "cat" if i < 3 else "dog"} for i in range(count)
    }
    answer = client.post("/v1/images", files=files, data={"metadata": json.dumps(metadata)})
    assert answer.status_code == 201, answer.text


def keys(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    document = answer.json()
    found = document["images"] if "images" in document else document["results"][0]["neighbours"]
    return [entry["key"] for entry in found]


def test_a_filter_applies_to_search_similar_and_list(client: httpx.Client) -> None:
    fill(client)
    even = [f"{i:02}" for i in range(0, 12, 2)]
    assert keys(client.get("/v1/images?where=rare:true")) == even
    found = keys(client.post("/v1/search?k=6&where=rare:true", content=pictures.jpeg(3, 64, 64), headers=JPEG))
    assert sorted(found) == even, "only six images match"
    assert sorted(keys(client.get("/v1/images/00/similar?k=6&where=rare:true"))) == even[1:]
    both = {"where": ["year>=2015", "year<2018"]}
    assert keys(client.get("/v1/images", params=both)) == ["05", "06", "07"]
    assert keys(client.get("/v1/images?where=label:cat,dog&where=year=2011")) == ["01"]
    first = client.get("/v1/images?where=rare:true&limit=4").json()
    rest = client.get("/v1/images", params={"where": "rare:true", "cursor": first["next_cursor"]})
    assert keys(rest) == even[4:]
    for other in ({}, {"where": "rare:false"}):
        rejected = client.get("/v1/images", params={**other, "cursor": first["next_cursor"]})
        assert (rejected.status_code, rejected.json()["type"]) == (422, "urn:fc7:problem:cursor")


@pytest.mark.parametrize(
    ("where", "words"), [("colour:red", "colour"), ("year:abc", "year, which holds numbers"), ("rare", "no operator")]
)
def test_an_invalid_filter_returns_422_and_is_named(client: httpx.Client, where: str, words: str) -> None:
    fill(client, 2)
    parameters = {"where": where}
    for answer in (
        client.get("/v1/images", params=parameters),
        client.get("/v1/images/00/similar", params=parameters),
        client.post("/v1/search", params=parameters, content=pictures.jpeg(), headers=JPEG),
        client.delete("/v1/images", params=parameters),
    ):
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:fc7:problem:where")
        assert words in answer.json()["detail"]
    assert client.get("/v1/index").json()["images"] == 2


def test_a_cursor_of_another_index_is_rejected(client: httpx.Client, tmp_path: Path) -> None:
    fill(client, 3)
    cursor = client.get("/v1/images?limit=1").json()["next_cursor"]
    publish_tiny_model(tmp_path / "other")
    with thread_server(tmp_path / "other") as other:
        fill(other.client, 3)
        answer = other.client.get("/v1/images", params={"cursor": cursor})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:fc7:problem:cursor")
        assert "does not belong to this index" in answer.json()["detail"]


def test_bulk_delete_requires_a_filter(client: httpx.Client) -> None:
    fill(client)
    assert client.delete("/v1/images").status_code == 422
    answer = client.delete("/v1/images?where=year<2014&where=label:dog")
    assert (answer.status_code, answer.json()) == (200, {"deleted": 1})
    assert client.delete("/v1/images?where=rare:true").json() == {"deleted": 6}
    assert keys(client.get("/v1/images")) == ["01", "05", "07", "09", "11"]
    assert len(keys(client.post("/v1/search?k=20", content=pictures.jpeg(3), headers=JPEG))) == 5
    assert client.delete("/v1/images?where=rare:true").json() == {"deleted": 0}


def patch(client: httpx.Client, body: Any, headers: dict[str, str] = PATCH) -> httpx.Response:
    content = body if isinstance(body, str) else json.dumps(body)
    return client.patch("/v1/images/a%2Fb", content=content, headers=headers)


def test_patch_merges_metadata(client: httpx.Client) -> None:
    metadata = {"label": "cat", "year": 2020, "camera": {"model": "D90", "lens": "50"}}
    file = {"file": ("x.jpg", pictures.jpeg(1), "image/jpeg")}
    before = client.put("/v1/images/a%2Fb", files=file, data={"metadata": json.dumps(metadata)}).json()["image"]
    answer = patch(client, {"metadata": {"year": None, "camera": {"lens": None, "iso": 100}, "tags": ["x"]}})
    assert answer.status_code == 200, answer.text
    expected = {"label": "cat", "camera": {"model": "D90", "iso": 100}, "tags": ["x"]}
    assert answer.json()["metadata"] == expected
    assert answer.json() | {"metadata": 0, "updated": 0} == before | {"metadata": 0, "updated": 0}
    assert client.get("/v1/images/a%2Fb").json() == answer.json()
    assert keys(client.get("/v1/images?where=camera.iso:100")) == ["a/b"]
    assert keys(client.get("/v1/images?where=year:2020")) == []
    assert patch(client, {}).json() == answer.json()
    assert patch(client, {"metadata": {"a": [1]}}, {"Content-Type": "application/json"}).status_code == 200
    assert patch(client, {"metadata": None}).json()["metadata"] == {}


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"label": "cat"}, 422, "metadata", "'label'"),
        ({"metadata": [1]}, 422, "metadata", "is a list, not an object"),
        ({"metadata": {"a": "x" * 17_000}}, 422, "metadata", "bytes"),
        ('{"metadata":' + '{"a":' * 12 + "null" + "}" * 13, 422, "metadata", "deeper than 8"),
        ('{"metadata":' + '{"a":' * 900 + "null" + "}" * 901, 422, "metadata", "deeper than 8"),
        ('{"metadata":{"a":' + "[" * 20 + "]" * 20 + "}}", 422, "metadata", "deeper than 8"),
        ('{"metadata":{"a":NaN}}', 422, "metadata", "nan"),
        ('{"metadata":' + "[" * 60_000, 400, "body-malformed", "not valid JSON"),
        ("[1]", 400, "body-malformed", "JSON object, but is a list"),
        ("", 400, "body-malformed", "not valid JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), 400, "body-malformed", "not valid JSON"),
        ('{"metadata":{"a":"' + "x" * 70_000 + '"}}', 413, "body-too-large", "65,536"),
    ],
)
def test_an_invalid_patch_changes_nothing(client: httpx.Client, body: Any, status: int, kind: str, words: str) -> None:
    file = {"file": ("x.jpg", pictures.jpeg(1), "image/jpeg")}
    before = client.put("/v1/images/a%2Fb", files=file, data={"metadata": '{"a": 1}'}).json()["image"]
    answer = patch(client, body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:fc7:problem:{kind}"), answer.text
    assert words in answer.json()["detail"]
    assert client.get("/v1/images/a%2Fb").json() == before


def test_a_patch_requires_its_content_type_and_an_existing_key(client: httpx.Client) -> None:
    assert patch(client, {"metadata": {}}).json()["type"] == "urn:fc7:problem:no-such-image"
    rejected = patch(client, {"metadata": {}}, {"Content-Type": "text/plain"})
    assert (rejected.status_code, rejected.json()["type"]) == (415, "urn:fc7:problem:content-type")
    assert "application/merge-patch+json" in rejected.json()["detail"]


@pytest.mark.parametrize(
    ("key", "status"),
    [("🦆 ente.jpg", 201), ("a/b/../c", 201), ("a" * 200, 201), ("a" * 201, 422), ("\0", 422), ("a\0b", 422)],
)
def test_keys_with_special_characters_are_accepted_and_invalid_ones_rejected(
    client: httpx.Client, key: str, status: int
) -> None:
    path = f"/v1/images/{quote(key, safe='')}"
    answer = client.put(path, content=pictures.jpeg(1), headers=JPEG)
    assert answer.status_code == status, answer.text
    if status == 201:
        assert client.patch(path, json={"metadata": {"seen": True}}).json()["metadata"] == {"seen": True}
        assert keys(client.get("/v1/images?where=seen:true")) == [key]
        assert client.delete(path).status_code == 204
    else:
        assert client.patch(path, json={"metadata": {}}).json()["type"] == "urn:fc7:problem:image-key"


def test_without_a_key_the_path_is_that_of_the_list(client: httpx.Client) -> None:
    assert client.put("/v1/images/", content=pictures.jpeg(1), headers=JPEG).status_code == 405
    assert client.get("/v1/images/").json()["images"] == []


@pytest.mark.parametrize("metadata", ['{"a": "' + "x" * 17_000 + '"}', '{"a":' * 9 + "1" + "}" * 9, "[]", "3", "{"])
def test_invalid_metadata_adds_nothing(client: httpx.Client, metadata: str) -> None:
    file = {"file": ("x.jpg", pictures.jpeg(1), "image/jpeg")}
    answer = client.put("/v1/images/a", files=file, data={"metadata": metadata})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:fc7:problem:metadata")
    assert client.get("/v1/images/a").status_code == 404


def test_a_restored_snapshot_returns_the_same_results(
    tmp_path: Path, own_server: ThreadServer, own_client: httpx.Client
) -> None:
    home = own_server.state.settings.home
    fill(own_client)
    answer = own_client.post("/v1/index/snapshots")
    assert answer.status_code == 201, answer.text
    snapshot = answer.json()
    assert (snapshot["images"], snapshot["vectors"]) == (12, 12)
    assert snapshot["path"] == f"snapshots/{snapshot['name']}"
    own_client.delete("/v1/images?where=rare:true")
    done = call("index", "restore", home / snapshot["path"], FC7_HOME=str(tmp_path / "other"))
    assert done.returncode == 0, done.stderr
    assert "12 images, 12 vectors of tiny:1" in done.stderr
    publish_tiny_model(tmp_path / "other")
    with thread_server(tmp_path / "other") as other:
        assert len(keys(other.client.get("/v1/images"))) == 12
        assert keys(other.client.get("/v1/images/00/similar?k=1&where=rare:true"))
        assert other.client.get("/v1/images/03/thumbnail").status_code == 200
    again = call("index", "restore", home / snapshot["path"], FC7_HOME=str(tmp_path / "other"))
    assert again.returncode == 1
    assert "already exists" in again.stderr


def test_snapshot_and_verify_while_a_server_runs(
    tmp_path: Path, own_server: ThreadServer, own_client: httpx.Client
) -> None:
    home = str(own_server.state.settings.home)
    fill(own_client, 3)
    done = run("index", "snapshot", tmp_path / "copy", FC7_HOME=home)
    assert done.returncode == 0, done.stderr
    assert "3 images" in done.stderr
    assert call("index", "snapshot", tmp_path / "copy", FC7_HOME=home).returncode == 1
    assert "3 images, 3 pictures, 3 vectors: all checksums match" in run("index", "verify", FC7_HOME=home).stderr
    assert call("index", "verify", tmp_path / "copy", FC7_HOME=home).returncode == 0
    data = bytearray((tmp_path / "copy/catalog.db").read_bytes())
    data[-5000] ^= 4
    (tmp_path / "copy/catalog.db").write_bytes(data)
    damaged = call("index", "verify", tmp_path / "copy", FC7_HOME=home)
    assert damaged.returncode == 1
    assert "Take another snapshot" in damaged.stderr
    rejected = call("index", "restore", tmp_path / "copy", FC7_HOME=str(tmp_path / "new"))
    assert rejected.returncode == 1
    assert "whose SHA-256 differs from the manifest" in rejected.stderr
    locked = run("index", "verify", "--repair", FC7_HOME=home)
    assert locked.returncode == 1
    assert "is open in process" in locked.stderr


def test_the_error_of_a_second_server_on_the_same_home_names_the_first(home: Path) -> None:
    with process_server(home) as first:
        done = run("serve", "--port", "0", FC7_HOME=str(home))
        assert done.returncode == 1
        assert f"process {first.process.pid}" in done.stderr
        assert httpx.get(f"{first.url}/readyz").status_code == 200


def test_duplicates_are_listed_and_matching_images_exported_while_a_server_runs(
    tmp_path: Path, own_server: ThreadServer, own_client: httpx.Client
) -> None:
    fill(own_client, 6)
    own_client.put("/v1/images/twin", content=pictures.jpeg(3, 64, 64), headers=JPEG)
    answer = own_client.get("/v1/index/duplicates?threshold=0.001")
    document = answer.json()
    [twins] = document.pop("groups")
    assert document == {"complete": True, "note": ""}, answer.text
    assert (twins["keep"]["key"], twins["size"]) == ("03", 2)
    assert [(other["key"], other["distance"]) for other in twins["others"]] == [("twin", 0)]
    none = own_client.get("/v1/index/duplicates?threshold=0.001&where=year>2000").json()
    assert (none["groups"], none["complete"]) == ([], True)
    assert own_client.get("/v1/index/duplicates?threshold=100000").json()["groups"][0]["size"] == 7
    for bad in ("", "?threshold=-1", "?threshold=nan", "?threshold=1&limit=0"):
        assert own_client.get(f"/v1/index/duplicates{bad}").status_code == 422, bad
    home = str(own_server.state.settings.home)
    done = run("index", "export", tmp_path / "all.parquet", "--where", "label:cat", FC7_HOME=home)
    assert done.returncode == 0, done.stderr
    assert "3 images" in done.stderr
    printed = call("index", "duplicates", "--threshold", "0.001", "--json", FC7_HOME=home)
    assert json.loads(printed.stdout)["groups"] == [twins]


def test_only_one_search_for_duplicates_runs_at_a_time(own_server: ThreadServer, own_client: httpx.Client) -> None:
    fill(own_client, 2)
    with own_server.state.duplicates:
        refused = own_client.get("/v1/index/duplicates?threshold=1")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:fc7:problem:queue-full")
    assert int(refused.headers["retry-after"]) >= 1
    assert own_client.get("/v1/index/duplicates?threshold=1").status_code == 200


def test_a_full_disk_returns_507_and_loses_nothing(home: Path) -> None:
    with process_server(home) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.put("/v1/images/first", content=pictures.jpeg(1), headers=JPEG).status_code == 201
        pid = server.process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        added = ["first"]
        for n in range(100):
            answer = client.put(f"/v1/images/{n}", content=pictures.jpeg(n), headers=JPEG)
            if answer.status_code != 201:
                break
            added.append(str(n))
        assert (answer.status_code, answer.json()["type"]) == (507, "urn:fc7:problem:index-full")
        zipped = {"Content-Type": "application/zip"}
        assert client.post("/v1/jobs", content=bytes(500_000), headers=zipped).status_code == 507
        assert keys(client.get("/v1/images")) == added
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        assert client.post("/v1/index/snapshots").status_code == 507
        assert not list((home / "snapshots").glob("*")), "no partial snapshot is left"
        assert keys(client.get("/v1/images")) == added
        assert keys(client.post("/v1/search?k=1", content=pictures.jpeg(1), headers=JPEG))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert client.put("/v1/images/later", content=pictures.jpeg(7), headers=JPEG).status_code == 201
    with thread_server(home) as again:
        assert keys(again.client.get("/v1/images")) == [*added, "later"]


def test_a_read_only_catalog_returns_503_and_loses_nothing(own_server: ThreadServer, own_client: httpx.Client) -> None:
    fill(own_client, 2)
    index = own_server.state.index()
    assert isinstance(index, LocalImageIndex)
    # SQLite behaves in this way on a file system that was remounted read-only.
    index._catalog.writer._connection.execute("PRAGMA query_only = ON")
    for answer in (
        own_client.put("/v1/images/new", content=pictures.jpeg(9), headers=JPEG),
        own_client.delete("/v1/images/00"),
        own_client.patch("/v1/images/00", json={"metadata": {"a": 1}}),
    ):
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:fc7:problem:index-read-only"), answer.text
        assert "Retry-After" in answer.headers
    assert keys(own_client.get("/v1/images")) == ["00", "01"]
    index._catalog.writer._connection.execute("PRAGMA query_only = OFF")
    assert own_client.put("/v1/images/new", content=pictures.jpeg(9), headers=JPEG).status_code == 201
