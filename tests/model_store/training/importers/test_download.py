"""Downloads from a local HTTP server that interrupts and misreports. No URL of the table is requested."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model_store.training.errors import DownloadError
from model_store.training.importers.download import PUBLIC_FILES, PublicFile, fetch

CONTENT = bytes(range(256)) * 12_000  # three chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Host(ThreadingHTTPServer):
    """Serves CONTENT. cuts: bytes after which each next response is interrupted. ranges: whether Range is supported."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.ranges, self.lengths, self.status, self.content = True, True, 200, CONTENT
        self.requested: list[str | None] = []

    def file(self, size: int | None = len(CONTENT), digest: str = SHA256, algorithm: str = "sha256") -> PublicFile:
        url = f"http://127.0.0.1:{self.server_port}/net.bin"
        return PublicFile("net.bin", url, algorithm, digest, size, "caffe")


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host = self.server
        requested = self.headers["Range"]
        host.requested.append(requested)
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and host.ranges else 0
        if host.status != 200:
            self.send_error(host.status)
            return
        if start >= len(host.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(host.content)}")
            self.end_headers()
            return
        self.send_response(206 if requested and host.ranges else 200)
        if requested and host.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(host.content) - 1}/{len(host.content)}")
        if host.lengths:
            self.send_header("Content-Length", str(len(host.content) - start))
        self.end_headers()
        end = min(len(host.content), start + host.cuts.pop(0)) if host.cuts else len(host.content)
        self.wfile.write(host.content[start:end])

    def log_message(self, *_args: object) -> None:
        """Print nothing."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Host()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".download.lock")


def test_a_file_is_downloaded_once_and_progress_is_reported(tmp_path: Path, host: Host) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(host.file(), tmp_path / "new", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == ["net.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(seen) > 1
    fetch(host.file(), path.parent)
    assert len(host.requested) == 1  # not fetched again


def test_an_interrupted_download_resumes_where_it_stopped(tmp_path: Path, host: Host) -> None:
    host.cuts = [1_000_000, 500_000]
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT
    assert host.requested == [None, "bytes=1000000-", "bytes=1500000-"]


def test_the_next_command_resumes_where_the_last_one_stopped(tmp_path: Path, host: Host) -> None:
    host.cuts = [700_000, 0]
    with pytest.raises(DownloadError, match="Run the same command again to resume"):
        fetch(host.file(), tmp_path)
    assert files_in(tmp_path) == [".net.bin.part"]
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT
    assert host.requested[-1] == "bytes=700000-"


def test_a_server_without_ranges_sends_the_file_again(tmp_path: Path, host: Host) -> None:
    host.ranges, host.cuts = False, [700_000]
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_complete_part_is_not_downloaded_again(tmp_path: Path, host: Host, size: int | None) -> None:
    (tmp_path / ".net.bin.part").write_bytes(CONTENT)
    assert fetch(host.file(size), tmp_path).read_bytes() == CONTENT
    assert files_in(tmp_path) == ["net.bin"]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_is_too_long_is_discarded(tmp_path: Path, host: Host, size: int | None) -> None:
    (tmp_path / ".net.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(host.file(size), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_with_another_hash_is_discarded(tmp_path: Path, host: Host, lengths: bool) -> None:
    host.content, host.lengths = CONTENT[:-1] + b"x", lengths
    with pytest.raises(DownloadError, match=f"instead of {SHA256}") as caught:
        fetch(host.file(), tmp_path)
    assert files_in(tmp_path) == []
    assert "To import it by hand, download net.bin" in str(caught.value)
    assert "fc7 import caffe net.bin" in str(caught.value)


def test_a_part_of_another_file_is_discarded_because_of_its_hash(tmp_path: Path, host: Host) -> None:
    (tmp_path / ".net.bin.part").write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match=r"its sha256 is .* instead of"):
        fetch(host.file(), tmp_path)
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT


def test_a_file_of_another_size_is_rejected_before_it_is_complete(tmp_path: Path, host: Host) -> None:
    with pytest.raises(DownloadError, match=f"it has {len(CONTENT):,} bytes instead of 5"):
        fetch(host.file(5), tmp_path)
    host.lengths = False
    with pytest.raises(DownloadError, match="the server sent more than 5 bytes"):
        fetch(host.file(5), tmp_path)


def test_a_wrong_file_under_the_name_is_replaced(tmp_path: Path, host: Host) -> None:
    (tmp_path / "net.bin").write_bytes(b"old")
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT


def test_sha1_is_supported(tmp_path: Path, host: Host) -> None:
    sha1 = hashlib.sha1(CONTENT, usedforsecurity=False).hexdigest()
    assert fetch(host.file(None, sha1, "sha1"), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "expected"), [(404, "the server responded with 404"), (503, "the server responded with 503")]
)
def test_the_error_names_the_status_of_the_server(tmp_path: Path, host: Host, status: int, expected: str) -> None:
    host.status = status
    with pytest.raises(DownloadError, match=expected):
        fetch(host.file(), tmp_path)


def test_the_error_without_a_network_explains_the_import_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    public = PublicFile("net.bin", f"http://127.0.0.1:{port}/net.bin", "sha256", SHA256, None, "onnx")
    with pytest.raises(DownloadError, match=r"the connection failed .Connection refused.") as caught:
        fetch(public, tmp_path)
    assert f"check its sha256 ({SHA256}), and run: fc7 import onnx net.bin" in str(caught.value)


def test_the_error_says_that_a_folder_cannot_be_written(tmp_path: Path, host: Host) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"Not a directory|File exists"):
        fetch(host.file(), tmp_path / "file")


def test_every_entry_of_the_table_is_consistent() -> None:
    lengths = {"sha1": 40, "sha256": 64}
    for command, entries in PUBLIC_FILES.items():
        for public in entries.values():
            assert public.command == command
            assert len(bytes.fromhex(public.digest)) * 2 == lengths[public.algorithm]
            assert public.url.startswith(("https://", "http://"))
            assert public.url.endswith(f"/{public.file}")
    assert PUBLIC_FILES["torchvision"]["alexnet"].digest.startswith("7be5be79")
