"""HEAD, OPTIONS, `Allow`, slashes, path prefixes, encodings, caching and types of bodies, over real HTTP."""

from __future__ import annotations

import gzip
import io
import json
import re
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from index.catalog.backup import take_snapshot
from service.backup import create_backup
from tests.support import pictures
from tests.support.proxy import reverse_proxy
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

PICTURE = pictures.jpeg(1, 32, 32)
PREFIX = "/apps/fc7"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("paths") / "home"
    publish_tiny_model(home)
    with thread_server(home, root_path=f"{PREFIX}/") as server:
        server.client.put("/v1/images/a%2Fb", content=PICTURE).raise_for_status()
        server.client.put("/v1/images/c", content=pictures.jpeg(2, 32, 32)).raise_for_status()
        take_snapshot(home, home / "snapshots" / "tiny")
        create_backup(home, home / "backups" / "tiny")
        yield server


@pytest.fixture(scope="module")
def client(server: ThreadServer) -> httpx.Client:
    return server.client


def get_paths(client: httpx.Client) -> Iterator[str]:
    """Yield every path that has GET, with an existing model and key."""
    yield from ("/", "/web/app.js", "/docs", "/openapi.json")
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        if "get" in methods and "{job}" not in path and "{file}" not in path:
            filled = (
                path.replace("{key}", "c")
                .replace("{model}", "tiny")
                .replace("{name}", "tiny")
                .replace("{version}", "1")
            )
            yield f"{filled}?threshold=1" if path.endswith("duplicates") else filled


def test_head_is_get_without_a_body(client: httpx.Client) -> None:
    for path in get_paths(client):
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"") == (200, b""), path
        for name in ("content-type", "etag", "cache-control"):
            assert head.headers.get(name) == get.headers.get(name), path
        assert path == "/metrics" or head.headers.get("content-length") == get.headers.get("content-length"), path
    assert client.head("/v1/nothing").status_code == 404
    assert client.head("/v1/classify").status_code == 405


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/", {"GET", "HEAD"}),
        ("/livez", {"GET", "HEAD"}),
        ("/openapi.json", {"GET", "HEAD"}),
        ("/v1/classify", {"POST"}),
        ("/v1/images", {"GET", "HEAD", "POST", "PATCH", "DELETE"}),
        ("/v1/images/", {"GET", "HEAD", "POST", "PATCH", "DELETE"}),
        ("/v1/images/a", {"GET", "HEAD", "PUT", "PATCH", "DELETE"}),
        ("/v1/images/a%2Fb", {"GET", "HEAD", "PUT", "PATCH", "DELETE"}),
        ("/v1/jobs", {"GET", "HEAD", "POST"}),
        ("/v1/jobs/1", {"GET", "HEAD", "DELETE"}),
        ("/v1/models/rollback", {"POST"}),
        ("/v2/models/tiny/infer", {"POST"}),
        (f"{PREFIX}/v1/jobs", {"GET", "HEAD", "POST"}),
    ],
)
def test_allow_lists_all_methods_of_the_path(client: httpx.Client, path: str, methods: set[str]) -> None:
    expected = methods | {"OPTIONS"}
    options = client.options(path)
    assert (options.status_code, options.content) == (204, b"")
    assert set(options.headers["allow"].split(", ")) == expected
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - methods:
        answer = client.request(method, path)
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == expected


def test_unknown_paths_have_no_methods(client: httpx.Client) -> None:
    for path in ("/v1/nothing", "//livez", "/v1//images", "/v1/models%2F", "/v1"):
        url = client.base_url.copy_with(raw_path=path.encode())
        assert client.options(url).status_code == 404, path
        assert client.get(url).status_code == 404, path


def test_a_trailing_slash_changes_nothing(client: httpx.Client) -> None:
    assert client.get("/v1/images/").json() == client.get("/v1/images").json()
    assert client.get("/v1/images/c/").json()["key"] == "c"
    assert client.get("/v1/images/c/similar//").status_code == 200
    assert client.post("/v1/classify/?k=1", content=PICTURE).status_code == 200
    answer = client.post("/v1/images/", files={"file": ("c", PICTURE)})
    assert (answer.status_code, answer.history) == (200, [])
    client.put("/v1/images/c", content=pictures.jpeg(2, 32, 32)).raise_for_status()
    assert client.get("/v1/images/a%2Fb/").json()["key"] == "a/b"
    assert client.get("/v1/images/c%2F").status_code == 404, "a slash that belongs to the key"
    assert "=../web/styles/base.css" in client.get("/docs/").text


@pytest.mark.parametrize("strip", [True, False], ids=["stripped", "kept"])
def test_everything_works_below_a_prefix(server: ThreadServer, strip: bool) -> None:
    with reverse_proxy(server.url, PREFIX, strip=strip) as address, httpx.Client() as client:
        images = client.get(f"{address}/v1/images?limit=1").json()
        assert [image["key"] for image in images["images"]] == ["a/b"]
        similar = client.get(f"{address}/v1/images/c/similar").json()["results"][0]["neighbours"]
        found = client.post(f"{address}/v1/search", content=PICTURE).json()["results"][0]["neighbours"]
        for entry in (*images["images"], *similar, *found):
            link = urljoin(address, entry["thumbnail"])
            assert link.startswith(f"{address}/v1/images/")
            assert client.get(link).headers["content-type"] == "image/jpeg"
        next_page = {"limit": 1, "cursor": images["next_cursor"]}
        assert client.get(f"{address}/v1/images", params=next_page).json()["images"][0]["key"] == "c"
        added = client.put(f"{address}/v1/images/x%2Fy%20%25", content=PICTURE)
        assert client.get(urljoin(address, added.headers["location"])).json()["key"] == "x/y %"
        assert client.delete(urljoin(address, added.headers["location"])).status_code == 204
        job = client.post(f"{address}/v1/jobs", content=zip_of("z", PICTURE))
        assert client.get(urljoin(address, job.headers["location"])).json()["id"] == job.json()["id"]
        document = client.get(f"{address}/openapi.json").json()
        assert document["servers"] == [{"url": PREFIX}]
        for page in (f"{address}/", f"{address}/docs", f"{address}/docs/"):
            links = re.findall(r"""(?:src|href)="?([^"#\s>]+)""", client.get(page).text)
            assert links
            for link in links:
                assert link.startswith("data:") or client.get(urljoin(page, link)).status_code == 200, link
        assert client.head(f"{address}/livez/").status_code == 200
    if not strip:
        assert server.client.get(PREFIX).headers["location"] == f"{PREFIX}/"


def test_the_prefix_is_optional_and_similar_paths_are_not_below_it(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == client.get(f"{PREFIX}/livez").status_code == 200
    assert client.get(f"{PREFIX}x/livez").status_code == 404
    assert client.get(f"{PREFIX}/nothing").status_code == 404


def zip_of(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.jpg", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/classify"),
        ("POST", "/v1/search"),
        ("PUT", "/v1/images/e"),
        ("POST", "/v1/images"),
        ("PATCH", "/v1/images/c"),
        ("POST", "/v1/jobs"),
        ("POST", f"{PREFIX}/v1/jobs"),
    ],
)
def test_compressed_bodies_are_rejected_with_the_accepted_encodings(
    client: httpx.Client, method: str, path: str
) -> None:
    for encoding in ("gzip", "GZIP", "br", "identity, gzip", "x" * 500):
        answer = client.request(method, path, content=gzip.compress(PICTURE), headers={"Content-Encoding": encoding})
        assert answer.status_code == 415
        assert answer.headers["accept-encoding"] == "identity"
        assert "uncompressed" in answer.json()["detail"]
    assert client.get("/v1/images/e").status_code == 404


def test_identity_is_accepted_and_v2_names_its_encodings(client: httpx.Client) -> None:
    assert client.post("/v1/classify", content=PICTURE, headers={"Content-Encoding": "identity"}).status_code == 200
    answer = client.post("/v2/models/tiny/infer", content=b"x", headers={"Content-Encoding": "br"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


@pytest.mark.parametrize(
    "kind", [None, "application/octet-stream", "application/x-www-form-urlencoded", "text/plain", "image/x", "a;b=c;"]
)
def test_an_image_is_recognized_whatever_its_type(client: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert client.post("/v1/classify", content=PICTURE, headers=headers).status_code == 200
    assert client.put("/v1/images/c", content=pictures.jpeg(2, 32, 32), headers=headers).status_code == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain"])
def test_another_body_gets_415_with_the_accepted_types(client: httpx.Client, kind: str) -> None:
    answer = client.post("/v1/classify", content=b"k=3", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert kind in answer.json()["detail"]
    assert "multipart/form-data" in answer.json()["detail"]


def test_a_pdf_is_named_whatever_its_type(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", content=b"%PDF-1.7", headers={"Content-Type": "text/plain"})
    assert (answer.status_code, "PDF" in answer.json()["detail"]) == (415, True)


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "application/octet-stream"])
def test_archives_and_patches_need_no_type(client: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert client.post("/v1/jobs", content=zip_of("z", PICTURE), headers=headers).status_code == 202
    assert client.patch("/v1/images/c", content=b'{"metadata":{}}', headers=headers).status_code == 200
    assert client.patch("/v1/images/c", content=b"a=b", headers=headers).status_code == 400
    assert client.patch("/v1/images/c", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415


def test_a_client_that_waits_for_100_continue_is_answered(server: ThreadServer) -> None:
    head = (
        f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(PICTURE)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"{head}\r\n".encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(PICTURE)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Encoding: gzip\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 415 "), "refused without asking for the body"


def test_unchanged_content_is_not_sent_again(client: httpx.Client) -> None:
    for path in ("/v1/images/c/thumbnail", "/", "/web/styles/base.css"):
        first = client.get(path)
        etag = first.headers["etag"]
        assert re.fullmatch('"[0-9a-f]{32}"', etag)
        assert "no-cache" in first.headers["cache-control"]
        for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
            for method in ("GET", "HEAD"):
                again = client.request(method, path, headers={"If-None-Match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
                assert "content-type" not in again.headers
        assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    old = client.get("/v1/images/c/thumbnail").headers["etag"]
    client.put("/v1/images/c", content=pictures.jpeg(3, 32, 32)).raise_for_status()
    changed = client.get("/v1/images/c/thumbnail", headers={"If-None-Match": old})
    assert (changed.status_code, changed.headers["etag"] != old) == (200, True)
    client.put("/v1/images/c", content=pictures.jpeg(2, 32, 32)).raise_for_status()


SURROGATE = "%ED%A0%80"
ODD: tuple[str, ...] = (
    "", "%00", SURROGATE, "%FF", "%EF%BC%91", "%C2%B2", "-1", "+1", "1_0", "1e3", "0x1", "%201", "NaN", "inf",
    "9" * 30, "9" * 5000, "%22", "%5B", "a:b", "a:%00", f"a:{SURROGATE}", "a:%EF%BC%91", "a%3E%EF%BC%91", "a%3E1e999",
    "m_i:%EF%BC%92", "m_i%3E=%D9%A1", "a:" + "9" * 5000, "..", "%2e%2e", "tiny:%EF%BC%91", "tiny:" + "9" * 400, "W10",
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/images?cursor="),
        ("GET", "/v1/images?limit="),
        ("GET", "/v1/images?where="),
        ("GET", "/v1/images/c/similar?k="),
        ("GET", "/v1/images/c/similar?mode="),
        ("GET", "/v1/images/c/similar?where="),
        ("GET", "/v1/index/duplicates?threshold="),
        ("GET", "/v1/index/duplicates?threshold=1&limit="),
        ("POST", "/v1/classify?k="),
        ("POST", "/v1/classify?views="),
        ("POST", "/v1/classify?model="),
        ("POST", "/v1/search?k="),
        ("POST", "/v1/search?model="),
        ("POST", "/v1/search?where="),
        ("GET", "/v1/images/"),
        ("GET", "/v1/jobs/"),
        ("GET", "/web/"),
        ("POST", "/v1/models/tiny/"),
        ("GET", "/v2/models/"),
        ("GET", "/v2/models/tiny/versions/"),
        ("GET", "/readyz?"),
        ("DELETE", "/v1/images?where=year:1&where="),
    ],
)
def test_no_value_in_an_address_is_a_server_error(server: ThreadServer, method: str, path: str) -> None:
    body: dict[str, Any] = {"content": PICTURE} if method == "POST" else {}
    client = server.client
    client.patch("/v1/images/c", json={"metadata": {"m_i": 1, "a": "x"}}).raise_for_status()
    for value in ODD:
        suffix = "/activate" if path == "/v1/models/tiny/" else ""
        # httpx would normalize the path.
        url = httpx.URL(server.url).copy_with(raw_path=f"{path}{value}{suffix}".encode())
        answer = client.request(method, url, **body)
        assert answer.status_code < 500, (value, answer.text)
        assert answer.status_code < 400 or "\\ud" not in answer.text or answer.json()


def test_digits_of_other_scripts_are_not_numbers(client: httpx.Client) -> None:
    client.patch("/v1/images/c", json={"metadata": {"m_i": 2}}).raise_for_status()
    for query in ("where=m_i:%EF%BC%92", "where=m_i%3E%EF%BC%92", "limit=%EF%BC%92", "limit=1_0"):
        assert client.get(f"/v1/images?{query}").status_code == 422, query


def test_no_response_contains_the_path_of_the_server(tmp_path: Path) -> None:
    home = tmp_path / "secret-place"
    home.mkdir()
    with thread_server(home) as server:
        (home / "active.json").write_text("not JSON")
        broken = server.client.get("/v1/models")
        assert (broken.status_code, "FC7_HOME/active.json" in broken.text) == (500, True)
        texts = [broken.text, *(server.client.get(path).text for path in ("/readyz", "/v2/health/ready", "/v1/index"))]
    artifact = publish_tiny_model(home)
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    manifest["metrics"] |= {"data": str(home / "photos"), "other": {"data": "/mnt/secret-place/photos"}}
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    with thread_server(home) as server:
        metrics = server.client.get("/v1/models").json()["models"][0]["metrics"]
        assert (metrics["data"], metrics["other"]["data"]) == ("photos", "photos")
        texts.append(server.client.post("/v1/index/snapshots").text)
        publish_tiny_model(home, activate=False)
        (artifact.path.parent / "2" / "model.onnx").write_bytes(b"damaged")
        damaged = server.client.post("/v1/models/tiny/2/activate")
        assert (damaged.status_code, "model.onnx" in damaged.text) == (500, True)
        texts += [damaged.text, server.client.get("/readyz").text, server.client.get("/v1/models").text]
    assert [text for text in texts if "secret-place" in text] == []
