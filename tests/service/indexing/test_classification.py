"""Archives that are classified: a row for each image, in a file to download."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet
import pytest

from tests.index.bulk.archives import images, tarred, zipped
from tests.service.cli.helpers import invoke
from tests.service.indexing.test_jobs import ZIP, finished
from tests.support import pictures
from tests.support.novelty import FOREIGN, OWN, publish_with_reference
from tests.support.server import ThreadServer, process_server, thread_server, wait_until
from tests.support.tiny_model import publish_tiny_model

URL = "/v1/jobs?kind=classify"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("classify") / "home"
    publish_tiny_model(home)
    with thread_server(home, max_archive_bytes=3_000_000) as server:
        yield server


def rows_of(client: httpx.Client, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a result file."""
    answer = client.get(f"/v1/jobs/{job['id']}/result")
    assert (answer.status_code, len(answer.content)) == (200, job["result_bytes"])
    match job["result"]["file"].rpartition(".")[2]:
        case "csv":
            return list(csv.DictReader(answer.text.splitlines()))
        case "jsonl":
            return [json.loads(line) for line in answer.text.splitlines()]
        case _:
            table: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(answer.content)).to_pylist()
            return table


def test_each_image_gets_a_row_as_on_the_command_line(server: ThreadServer, tmp_path: Path) -> None:
    files = images(20) | {"birds/broken.png": b"no picture", "notes.txt": b"notes", ".hidden": b""}
    archive = tmp_path / "photos.zip"
    archive.write_bytes(zipped(files))
    client, home = server.client, server.state.settings.home
    for ending in ("csv", "jsonl", "parquet"):
        job = finished(client, client.post(f"{URL}&format={ending}&k=2", content=archive.read_bytes(), headers=ZIP))
        assert (job["state"], job["kind"], job["error"]) == ("done", "classify", None)
        assert (job["total"], job["seen"], job["processed"], job["skipped"], job["ignored"]) == (22, 22, 20, 2, 1)
        assert job["parameters"] == {"format": ending, "k": 2, "model": "tiny:1"}
        assert job["result"] == {"model": "tiny:1", "file": f"{job['id']}.{ending}"}
        assert {entry["name"] for entry in job["skipped_images"]} == {"birds/broken.png", "notes.txt"}
        here = tmp_path / f"here.{ending}"
        assert invoke(home, "classify", archive, "--out", here, "-k", "2").exit_code == 0
        if ending != "parquet":  # batches of another size round differently in the last digit
            expected = here.read_text().splitlines()
            found = client.get(f"/v1/jobs/{job['id']}/result").text.splitlines()
            assert [line.partition("0.")[0] for line in found] == [line.partition("0.")[0] for line in expected]
        rows = rows_of(client, job)
        assert [row["path"] for row in rows] == [name for name in files if name not in ("notes.txt", ".hidden")]
        assert rows[-1]["error"]
    assert client.get("/v1/index").json()["images"] == 0, "nothing is indexed"


def test_embeddings_and_ten_views(server: ThreadServer) -> None:
    client, data = server.client, zipped(images(3))
    query = "&format=parquet&embeddings=true&views="
    one, ten = (
        rows_of(client, finished(client, client.post(f"{URL}{query}{views}", content=data))) for views in (1, 10)
    )
    assert np.shape([row["embedding"] for row in one]) == (3, 4096)
    assert one[0]["predictions"] != ten[0]["predictions"]
    for row in (one[1], ten[1]):
        views = 1 if row is one[1] else 10
        answer = client.post(f"/v1/classify?views={views}", content=images(3)[row["path"]])
        expected = [entry["probability"] for entry in answer.json()["results"][0]["predictions"]]
        assert [entry["probability"] for entry in row["predictions"]] == pytest.approx(expected, abs=1e-5)


def test_the_novelty_is_that_of_an_answer(tmp_path: Path) -> None:
    publish_with_reference(tmp_path / "home")
    with thread_server(tmp_path / "home") as server:
        data = zipped({"foreign.png": FOREIGN, "own.jpg": OWN})
        for ending in ("csv", "jsonl"):
            rows = rows_of(
                server.client, finished(server.client, server.client.post(f"{URL}&format={ending}", content=data))
            )
            for row, image in zip(rows, (FOREIGN, OWN), strict=True):
                expected = server.client.post("/v1/classify", content=image).json()["results"][0]["novelty"]
                found = row["novelty"] if ending == "jsonl" else row
                assert float(found["distance"]) == pytest.approx(expected["distance"], rel=1e-4)
                assert str(found["unknown"]).lower() == str(expected["unknown"]).lower()
        assert rows[0]["novelty"]["unknown"] is True


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("&embeddings=true", 422, "Choose jsonl or parquet"),
        ("&format=xml", 422, "format=xml"),
        ("&k=0", 422, "from 1 to 1000"),
        ("&views=3", 422, "expected 1 or 10"),
        ("&model=none:1", 404, "none"),
        ("&model=..", 422, ".."),
    ],
)
def test_wrong_parameters_are_refused_before_the_upload(
    server: ThreadServer, query: str, status: int, message: str
) -> None:
    before = server.client.get("/v1/jobs").json()
    answer = server.client.post(URL + query, content=zipped(images(1)), headers=ZIP)
    assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text
    other = server.client.post("/v1/jobs?format=csv", content=zipped(images(1)), headers=ZIP)
    assert (other.status_code, "no parameters for this kind" in other.json()["detail"]) == (422, True), other.text
    assert server.client.get("/v1/jobs").json() == before


def test_a_cut_off_archive_fails_and_its_readable_images_have_rows(server: ThreadServer) -> None:
    data = tarred(images(20))
    data = data[: data.find(b"birds/13.jpg") + 700]
    job = finished(server.client, server.client.post(URL, content=data, headers=ZIP))
    assert (job["state"], job["processed"], job["skipped"], job["archive_bytes"]) == ("failed", 13, 1, 0)
    assert "in the entry birds/13.jpg" in job["error"]
    assert [row["path"] for row in rows_of(server.client, job)] == [f"birds/{n}.jpg" for n in range(13)]


def test_an_archive_without_images_gives_an_empty_file(server: ThreadServer) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        answer = server.client.post(f"{URL}&format={ending}", content=zipped({"a.txt": b""}), headers=ZIP)
        job = finished(server.client, answer)
        assert (job["state"], rows_of(server.client, job)) == ("done", [])


def test_a_result_that_is_too_large_fails_the_job(server: ThreadServer) -> None:
    data = zipped({f"{n}.jpg": pictures.jpeg(1, 16, 16) for n in range(400)})
    job = finished(server.client, server.client.post(f"{URL}&format=jsonl&embeddings=true", content=data, headers=ZIP))
    assert (job["state"], job["result_bytes"]) == ("failed", 0), job
    assert "more than 3,000,000 bytes" in job["error"]
    again = server.client.post(f"/v1/jobs/{job['id']}/retry")
    wait_until(lambda: server.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "failed")
    assert again.status_code == 200
    server.client.delete(f"/v1/jobs/{job['id']}")
    wait_until(lambda: not (server.state.settings.home / "jobs" / "results" / job["id"]).exists())


def test_a_killed_server_continues_after_the_complete_parts(home: Path) -> None:
    picture = pictures.jpeg(1, 40, 30)
    files = {f"{number:04}.jpg": picture for number in range(1100)} | {"0003.jpg": b"no picture"}
    with process_server(home) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        started = client.post(URL, content=zipped(files), headers=ZIP)
        job = started.json()["id"]
        parts = home / "jobs" / "results" / job / ".result.csv.parts"
        wait_until((parts / "000000.csv").exists)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    first = parts / "000000.csv"
    first.write_text(first.read_text().replace("0000.jpg,", "0000.jpg,kept,"))
    publish_tiny_model(home, seed=2)
    with thread_server(home) as server_2:
        done = finished(server_2.client, started)
        assert (done["state"], done["total"], done["seen"], done["processed"]) == ("done", 1100, 1100, 1099)
        assert [entry["name"] for entry in done["skipped_images"]] == ["0003.jpg"]
        lines = server_2.client.get(f"/v1/jobs/{job}/result").text.splitlines()
        assert [line[:8] for line in lines[1:]] == sorted(files)
        assert lines[1].startswith("0000.jpg,kept,"), "a complete part is not computed again"
        assert done["result"]["model"] == "tiny:1", "the version at the start of the job"


def test_a_cancelled_job_leaves_no_files(server: ThreadServer) -> None:
    data = zipped({f"{n}.jpg": pictures.jpeg(1, 16, 16) for n in range(400)})
    started = server.client.post(URL, content=data, headers=ZIP)
    server.client.delete(started.headers["location"])
    job = finished(server.client, started)
    assert (job["state"], job["result"]) == ("cancelled", None)
    assert server.client.get(f"/v1/jobs/{job['id']}/result").status_code == 404
    for folder in ("archives", "results"):
        path = server.state.settings.home / "jobs" / folder / job["id"]
        wait_until(lambda path=path: not path.exists())  # type: ignore[misc]
