"""Archives of images over HTTP: added in the background, observed, cancelled and rejected."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.decoder.decoder import Decoder
from model_store.image import PreparedImage
from tests.index.bulk.archives import Files, changed, images, tarred, zipped
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

ZIP = {"Content-Type": "application/zip"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("jobs") / "home"
    publish_tiny_model(home)
    with thread_server(home, max_body_bytes=100_000, max_archive_bytes=3_000_000, max_pixels=1_000_000) as server:
        yield server


@pytest.fixture
def client(server: ThreadServer) -> httpx.Client:
    for image in server.client.get("/v1/images").json()["images"]:
        server.client.delete(f"/v1/images/{image['key'].replace('/', '%2F')}")
    return server.client


def finished(client: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 60
    while True:
        job: dict[str, Any] = client.get(answer.headers["location"]).json()
        if job["state"] not in ("waiting", "running"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.02)


def keys(client: httpx.Client) -> set[str]:
    return {image["key"] for image in client.get("/v1/images?limit=1000").json()["images"]}


def test_images_of_an_archive_are_decoded_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, both, calls = Decoder.decode, threading.Barrier(2, timeout=30), itertools.count()

    def waiting(self: Decoder, data: bytes) -> PreparedImage:
        if next(calls) < 2:
            both.wait()  # raises, unless another thread is here too
        return decode(self, data)

    monkeypatch.setattr(Decoder, "decode", waiting)
    publish_tiny_model(tmp_path)
    with thread_server(tmp_path, decode_threads=2) as server:
        job = finished(server.client, server.client.post("/v1/jobs", content=zipped(images(4)), headers=ZIP))
    assert (job["state"], job["added"]) == ("done", 4), job


@pytest.mark.parametrize(
    "pack",
    [zipped, tarred, lambda files: tarred(files, "w:gz"), lambda files: tarred(files, "w:bz2")],
    ids=["zip", "tar", "tar.gz", "tar.bz2"],
)
def test_archive_is_added_once(client: httpx.Client, server: ThreadServer, pack: Callable[[Files], bytes]) -> None:
    files = images(20) | {
        "birds/broken.jpg": b"not an image",
        "read me.txt": b"text",
        "__MACOSX/birds/._0.jpg": b"shadow",
        "./large.jpg": pictures.jpeg(1, 64, 64) + bytes(100_000),
        "many.png": pictures.encoded(pictures.scene(1, 1200, 1000).quantize(4), "PNG"),
        "k" * 200 + ".jpg": b"",
    }
    assert len(files["./large.jpg"]) > 100_000 > len(files["many.png"])
    job = finished(client, client.post("/v1/jobs", content=pack(files), headers=ZIP))
    assert (job["state"], job["total"], job["seen"], job["added"], job["skipped"]) == ("done", 25, 25, 20, 5), job
    assert job["ignored"] == 1
    assert job["skipped_by_reason"] == {"broken_image": 1, "not_an_image": 1, "too_large": 2, "invalid_key": 1}
    reasons = {entry["name"]: entry["reason"] for entry in job["skipped_images"]}
    assert reasons.keys() == {"birds/broken.jpg", "read me.txt", "large.jpg", "many.png", "k" * 200 + ".jpg"}
    assert "100,000 bytes" in reasons["large.jpg"]
    assert "pixels" in reasons["many.png"]
    assert keys(client) == images(20).keys()
    answer = client.post("/v1/search?k=1", content=files["birds/3.jpg"], headers={"Content-Type": "image/jpeg"}).json()
    assert answer["results"][0]["neighbours"][0]["key"] == "birds/3.jpg"
    files["birds/0.jpg"] = pictures.jpeg(50, 64, 64)
    again = finished(client, client.post("/v1/jobs", content=pack(files), headers=ZIP))
    assert (again["added"], again["replaced"], again["unchanged"], again["skipped"]) == (0, 1, 19, 5)
    wait_until(lambda: not list(server.state.settings.home.glob("jobs/*/*/archive")))  # only the records remain
    assert [entry["id"] for entry in client.get("/v1/jobs").json()["jobs"]][:2] == [again["id"], job["id"]]


def test_a_damaged_entry_costs_one_image(client: httpx.Client) -> None:
    data = zipped(images(40))
    bad = changed(data, data.find(b"birds/20.jpg") + 300)
    job = finished(client, client.post("/v1/jobs", content=bad, headers=ZIP))
    assert (job["state"], job["added"], job["skipped_by_reason"]) == ("done", 39, {"damaged_entry": 1})
    assert keys(client) == images(40).keys() - {"birds/20.jpg"}


def test_names_that_are_not_utf8_become_escaped_keys(client: httpx.Client) -> None:
    name = "a/M\udcfcller.jpg"
    job = finished(client, client.post("/v1/jobs", content=tarred({name: pictures.jpeg(1, 64, 64)}), headers=ZIP))
    assert (job["state"], job["added"]) == ("done", 1)
    assert keys(client) == {"a/M\\xfcller.jpg"}
    assert client.get("/v1/images/a%2FM%5Cxfcller.jpg").status_code == 200
    after = finished(client, client.post("/v1/jobs", content=zipped(images(1)), headers=ZIP))
    assert after["state"] == "done", "later jobs run"


def test_a_truncated_archive_keeps_what_it_added_and_says_so(client: httpx.Client) -> None:
    data = tarred(images(20))
    job = finished(client, client.post("/v1/jobs", content=data[: data.find(b"birds/13.jpg") + 700], headers=ZIP))
    assert (job["state"], job["added"], job["skipped"], job["seen"]) == ("failed", 13, 1, job["total"])
    assert "in the entry birds/13.jpg" in job["error"]
    assert "13 images were added" in job["error"]
    assert keys(client) == images(13).keys()
    assert job["archive_bytes"] == 0
    assert client.post(f"/v1/jobs/{job['id']}/retry").json()["type"] == "urn:fc7:problem:job-state"


def test_a_repeated_name_is_added_and_then_replaced(client: httpx.Client) -> None:
    first, second = tarred(images(1)), tarred({"birds/0.jpg": pictures.jpeg(9, 64, 64)})
    data = first[: first.find(bytes(1024))].ljust(-(-first.find(bytes(1024)) // 512) * 512, b"\0") + second
    job = finished(client, client.post("/v1/jobs", content=data, headers=ZIP))
    assert (job["state"], job["added"], job["replaced"], job["total"]) == ("done", 1, 1, 2)


def test_all_skipped_entries_can_be_listed_page_by_page(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", content=zipped({f"{n}.txt": b"" for n in range(250)}), headers=ZIP)
    job = finished(client, answer)
    assert (job["state"], job["skipped"], len(job["skipped_images"])) == ("done", 250, 100)
    path, names = f"{answer.headers['location']}/skipped", []
    cursor: int | None = 0
    while cursor is not None:
        page = client.get(path, params={"limit": 120, "cursor": cursor}).json()
        names += [entry["name"] for entry in page["skipped"]]
        cursor = page["next_cursor"]
    assert names == [f"{n}.txt" for n in range(250)]
    assert client.get(f"{path}?limit=0").status_code == 422
    assert client.get("/v1/jobs/missing/skipped").status_code == 404


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped({"bomb.jpg": bytes(4_000_000)}), "unpacks to more than 3,000,000 bytes (at entry bomb.jpg)"),
        (zipped(images(3))[:-30], "without the directory at its end"),
        (b"\xfd7zXZ\0" + bytes(600), "compressed with xz"),
        (pictures.jpeg(1), "damaged or has an unknown format"),
    ],
)
def test_unacceptable_archive_is_rejected_as_a_whole(
    client: httpx.Client, server: ThreadServer, data: bytes, message: str
) -> None:
    before = client.get("/v1/jobs").json()
    answer = client.post("/v1/jobs", content=data, headers=ZIP)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:fc7:problem:archive"), answer.text
    assert message in answer.json()["detail"]
    assert client.get("/v1/jobs").json() == before
    assert client.get("/v1/index").json()["images"] == 0
    wait_until(lambda: not list(server.state.settings.home.glob("jobs/*/*")))


def test_large_upload_unsupported_type_and_unknown_job_are_rejected(client: httpx.Client) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(100_000)

    large = client.post("/v1/jobs", content=stream(), headers=ZIP)
    assert (large.status_code, large.json()["limit"]) == (413, 3_000_000)
    other = client.post("/v1/jobs", content=b"{}", headers={"Content-Type": "application/json"})
    assert (other.status_code, other.json()["type"]) == (415, "urn:fc7:problem:content-type")
    unknown = (client.get("/v1/jobs/missing"), client.delete("/v1/jobs/missing"), client.post("/v1/jobs/missing/retry"))
    for answer in unknown:
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:fc7:problem:no-such-job")


def test_cancelled_job_keeps_the_images_it_added(client: httpx.Client) -> None:
    data = zipped(images(300))
    running = client.post("/v1/jobs", content=data, headers=ZIP)
    waiting = client.post("/v1/jobs", content=data, headers=ZIP)
    assert client.delete(waiting.headers["location"]).json()["state"] == "cancelled"
    client.delete(running.headers["location"])
    job = finished(client, running)
    assert job["state"] == "cancelled"
    assert job["seen"] < 300
    assert client.get("/v1/index").json()["images"] == job["added"]
    assert client.delete(running.headers["location"]).json() == job


def test_keys_that_no_url_can_name_are_rejected(client: httpx.Client) -> None:
    for key in ("%2E", "%2e%2e"):
        answer = client.put(f"/v1/images/{key}", content=pictures.jpeg(1, 8, 8), headers={"Content-Type": "image/jpeg"})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:fc7:problem:image-key")


def test_an_archive_brings_metadata(client: httpx.Client) -> None:
    rows = "".join(json.dumps({"path": f"birds/{n}.jpg", "label": "gull", "n": n}) + "\n" for n in range(3))
    archive = zipped(images(4) | {"metadata.jsonl": rows.encode()})
    job = finished(client, client.post("/v1/jobs", content=archive, headers=ZIP))
    assert (job["state"], job["total"], job["added"], job["skipped"]) == ("done", 4, 4, 0), job
    listed = client.get("/v1/images?where=label:gull&where=n>=1").json()["images"]
    assert [image["key"] for image in listed] == ["birds/1.jpg", "birds/2.jpg"]
    client.patch("/v1/images/birds%2F1.jpg", json={"metadata": {"seen": True}})
    assert job["result"] is None
    gone = json.dumps({"path": "birds/gone.jpg", "n": 1})
    again = zipped(images(4) | {"metadata.jsonl": (rows.replace("gull", "tern") + gone).encode()})
    job = finished(client, client.post("/v1/jobs", content=again, headers=ZIP))
    assert (job["unchanged"], job["skipped"]) == (4, 0), job
    assert job["result"] == {"unmatched_metadata": {"rows": 1, "first": ["birds/gone.jpg"]}}
    record = client.get("/v1/images/birds%2F1.jpg").json()
    assert record["metadata"] == {"label": "tern", "n": 1, "seen": True}
    refused = client.post("/v1/jobs", content=zipped(images(1) | {"metadata.jsonl": b"{}"}), headers=ZIP)
    assert refused.status_code == 422
    assert "line 1 has no path" in refused.json()["detail"]
