"""A folder is added once, several images at a time, across failures and restarts."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fc7_client import FolderReport, ForbiddenError, folder_label

from tests.client.helpers import OpenClient
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server

JPEGS = ("cat/0.jpg", "cat/1.JPG", "dog/deep/2.jpg", "ü 3.jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(JPEGS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pictures.jpeg(number))
    (folder / ".hidden").mkdir()
    for name in (".hidden/a.jpg", ".b.jpg", "notes.txt"):
        (folder / name).write_bytes(b"no image")
    return folder


def sent(responses: list[httpx.Response]) -> list[httpx.Response]:
    return [response for response in responses if response.request.method == "PUT"]


def test_images_get_their_path_as_key_and_their_folder_as_label(client: Any, photos: Path) -> None:
    report = client.add_folder(photos, prefix="mine/", metadata=folder_label)
    assert (report.total, report.done, report.added, report.skipped) == (4, 4, 4, [])
    labels = {image.key: image.metadata.get("label") for image in client.list_images()}
    assert labels == {
        "mine/cat/0.jpg": "cat",
        "mine/cat/1.JPG": "cat",
        "mine/dog/deep/2.jpg": "deep",
        "mine/ü 3.jpg": None,
    }


def test_a_second_run_sends_only_what_is_new_or_changed(
    server: ThreadServer, open_client: OpenClient, photos: Path
) -> None:
    responses: list[httpx.Response] = []
    client = open_client(server.url, on_response=responses.append)
    client.add_folder(photos)
    assert len(sent(responses)) == 4
    (photos / "ü 3.jpg").write_bytes(pictures.jpeg(30))
    (photos / "new.png").write_bytes(pictures.encoded(pictures.scene(31), "PNG"))
    responses.clear()
    report = client.add_folder(photos)
    assert (report.added, report.replaced, report.unchanged, report.done) == (1, 1, 3, 5)
    assert len(sent(responses)) == 2


def test_rejected_files_are_reported_and_the_others_added(client: Any, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    report = client.add_folder(photos)
    assert (report.added, report.done, report.total) == (4, 6, 6)
    skipped = {entry.name: entry for entry in report.skipped}
    assert skipped["broken.jpg"].kind == "image-unreadable"
    assert "No such file" in skipped["gone.jpg"].reason


def test_progress_is_reported_after_each_file_and_requests_are_bounded(
    server: ThreadServer, open_client: OpenClient, photos: Path
) -> None:
    for number in range(10, 26):
        (photos / f"{number}.jpg").write_bytes(pictures.jpeg(number))
    done: list[tuple[int, int]] = []
    threads = set()

    def progress(report: FolderReport) -> None:
        done.append((report.done, report.total))
        threads.add(threading.get_ident())

    client = open_client(server.url)
    client.add_folder(photos, progress=progress, concurrency=3)
    assert done == [(number, 20) for number in range(1, 21)]
    assert threads == {threading.get_ident()}


def test_an_interrupted_run_is_continued_by_repeating_it(home: Path, open_client: OpenClient, photos: Path) -> None:
    def stop(report: FolderReport) -> None:
        if report.done == 2:
            raise KeyboardInterrupt

    with thread_server(home) as server:
        client = open_client(server.url)
        with pytest.raises(KeyboardInterrupt):
            client.add_folder(photos, progress=stop, concurrency=1)
        first = client.index().images
    assert 2 <= first < 4
    with thread_server(home, port=server.port):
        report = client.add_folder(photos)
        assert (report.unchanged, report.added) == (first, 4 - first)


def test_a_restart_in_between_is_waited_out(home: Path, open_client: OpenClient, photos: Path) -> None:
    for number in range(10, 30):
        (photos / f"{number}.jpg").write_bytes(pictures.jpeg(number))
    with ExitStack() as first, ExitStack() as second, ThreadPoolExecutor(1) as pool:
        server = first.enter_context(thread_server(home))

        def restart() -> None:
            first.close()
            second.enter_context(thread_server(home, port=server.port))

        restarts: list[Future[None]] = []

        def progress(report: FolderReport) -> None:
            if report.done == 3:
                restarts.append(pool.submit(restart))

        client = open_client(server.url)
        report = client.add_folder(photos, progress=progress, concurrency=2)
        restarts[0].result()
        assert (report.done, report.skipped, client.index().images) == (24, [], 24)


def test_a_full_queue_is_waited_out(home: Path, open_client: OpenClient, photos: Path) -> None:
    statuses: list[int] = []
    with thread_server(home, queue_size=1, max_images=1) as server:
        client = open_client(server.url, on_response=lambda response: statuses.append(response.status_code))
        assert client.add_folder(photos, concurrency=4).added == 4
    assert 503 in statuses


def test_an_error_that_is_not_a_files_ends_the_run(home: Path, open_client: OpenClient, photos: Path) -> None:
    with thread_server(home, api_keys="read:read-key-0123456789") as server:
        client = open_client(server.url, key="read-key-0123456789")
        with pytest.raises(ForbiddenError):
            client.add_folder(photos)


def test_a_missing_folder_and_a_bad_concurrency_are_rejected(client: Any, photos: Path) -> None:
    with pytest.raises(NotADirectoryError, match="missing is not a folder"):
        client.add_folder(photos / "missing")
    with pytest.raises(ValueError, match="concurrency=0"):
        client.add_folder(photos, concurrency=0)
