"""Archives of images over HTTP: added in the background, observed, cancelled, resumed and rejected."""

from __future__ import annotations

import io
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

ZIP = {"Content-Type": "application/zip"}
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("jobs") / "home"
    publish_tiny_model(home)
    with thread_server(home, max_body_bytes=100_000, max_archive_bytes=3_000_000, max_pixels=1_000_000) as server:
        yield server


@pytest.fixture
def client(server: ThreadServer) -> httpx.Client:
    for image in server.client.get("/v1/images").json()["images"]:
        server.client.delete(f"/v1/images/{image['key']}")
    return server.client


def zipped(files: Files, change: Callable[[zipfile.ZipInfo], None] = lambda _: None) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, content)
    return data.getvalue()


def tarred(files: Files, mode: str = "w", **changes: Any) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in changes.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def images(count: int, first: int = 0) -> Files:
    return {f"birds/{n}.jpg": pictures.jpeg(n, 64, 64) for n in range(first, first + count)}


def finished(client: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 60
    while True:
        job: dict[str, Any] = client.get(answer.headers["location"]).json()
        if job["state"] not in ("waiting", "running"):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.02)


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
    }
    assert len(files["./large.jpg"]) > 100_000 > len(files["many.png"])
    job = finished(client, client.post("/v1/jobs", content=pack(files), headers=ZIP))
    assert (job["state"], job["total"], job["seen"], job["added"], job["skipped"]) == ("done", 23, 23, 20, 3), job
    reasons = {entry["name"]: entry["reason"] for entry in job["skipped_images"]}
    assert reasons.keys() == {"birds/broken.jpg", "large.jpg", "many.png"}
    assert "100,000 bytes" in reasons["large.jpg"]
    assert "pixels" in reasons["many.png"]
    listed = client.get("/v1/images").json()["images"]
    assert {image["key"] for image in listed} == images(20).keys()
    answer = client.post("/v1/search?k=1", content=files["birds/3.jpg"], headers={"Content-Type": "image/jpeg"}).json()
    assert answer["results"][0]["neighbours"][0]["key"] == "birds/3.jpg"
    files["birds/0.jpg"] = pictures.jpeg(50, 64, 64)
    again = finished(client, client.post("/v1/jobs", content=pack(files), headers=ZIP))
    assert (again["added"], again["replaced"], again["unchanged"], again["skipped"]) == (0, 1, 19, 3)
    assert not list(server.state.settings.home.glob("jobs/*/archive")), "only the records remain"
    assert [entry["id"] for entry in client.get("/v1/jobs").json()["jobs"]][:2] == [again["id"], job["id"]]


def link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def encrypted(data: bytes) -> bytes:
    flags = data.find(b"PK\x01\x02") + 8
    return data[:flags] + b"\x01\x00" + data[flags + 2 :]


def pax_bomb() -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 8_000_000_000
    return header.tobuf() + bytes(10_000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped({"../x.jpg": b"x"}), "'../x.jpg', which is a path that leads out of the archive"),
        (zipped({"a/../../x.jpg": b"x"}), "leads out"),
        (zipped({"/etc/x.jpg": b"x"}), "leads out"),
        (zipped({"a\\..\\x.jpg": b"x"}), "leads out"),
        (zipped({"C:x.jpg": b"x"}), "leads out"),
        (zipped(images(1), link), "link or a device"),
        (encrypted(zipped(images(1))), "encrypted"),
        (zipped({"bomb.jpg": bytes(4_000_000)}), "unpacks to more than 3,000,000 bytes (at entry 'bomb.jpg')"),
        (zipped({f"{n}.txt": bytes(400_000) for n in range(9)}), "unpacks to more than 3,000,000 bytes"),
        (tarred({"../x.jpg": b"x"}), "leads out"),
        (tarred({"x.jpg": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
        (tarred({"x.jpg": b""}, type=tarfile.LNKTYPE, linkname="y.jpg"), "a link"),
        (tarred({"x.jpg": b""}, type=tarfile.FIFOTYPE), "a device"),
        (tarred({"bomb.jpg": bytes(4_000_000)}, "w:gz"), "unpacks to more than 3,000,000 bytes"),
        (pax_bomb(), "header of 8,000,000,000 bytes"),
        (tarred(images(3), "w:gz")[:-200], "damaged or has an unknown format"),
        (zipped(images(3))[:-30], "damaged or has an unknown format"),
        (pictures.jpeg(1), "damaged or has an unknown format"),
        (b"", "damaged or has an unknown format"),
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
    assert not list(server.state.settings.home.glob("jobs/*/archive"))


def test_large_upload_unsupported_type_and_unknown_job_are_rejected(client: httpx.Client) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(100_000)

    large = client.post("/v1/jobs", content=stream(), headers=ZIP)
    assert (large.status_code, large.json()["limit"]) == (413, 3_000_000)
    other = client.post("/v1/jobs", content=b"{}", headers={"Content-Type": "application/json"})
    assert (other.status_code, other.json()["type"]) == (415, "urn:fc7:problem:content-type")
    for answer in (client.get("/v1/jobs/nobody"), client.delete("/v1/jobs/nobody")):
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


def test_restart_resumes_the_job_and_removes_interrupted_uploads(home: Path) -> None:
    with thread_server(home) as server:
        answer = server.client.post("/v1/jobs", content=zipped(images(200)), headers=ZIP)
        assert answer.status_code == 202
    partial = home / "jobs" / "partial"
    partial.mkdir()
    (partial / "archive").write_bytes(b"PK")
    with thread_server(home) as server:
        job = finished(server.client, answer)
        assert (job["state"], job["seen"], job["added"] + job["unchanged"]) == ("done", 200, 200)
        assert server.client.get("/v1/index").json()["images"] == 200
        assert not partial.exists()
    with thread_server(home) as server:
        assert server.client.get(answer.headers["location"]).json() == job
