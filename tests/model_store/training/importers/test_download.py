"""Downloads, from a real HTTP server that cuts, lies and forgets; none of the table's addresses is asked."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model_store.errors import DownloadError
from model_store.training.importers.download import PUBLIC_FILES, PublicFile, fetch

CONTENT = bytes(range(256)) * 12_000  # three chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Host(ThreadingHTTPServer):
    """Serves CONTENT. cuts: bytes after which each next answer breaks off. ranges: whether Range is heeded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.ranges, self.lengths, self.status, self.content = True, True, 200, CONTENT
        self.asked: list[str | None] = []

    def file(self, size: int | None = len(CONTENT), digest: str = SHA256, algorithm: str = "sha256") -> PublicFile:
        address = f"http://127.0.0.1:{self.server_port}/net.bin"
        return PublicFile("net.bin", address, algorithm, digest, size, "caffe")


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host = self.server
        wanted = self.headers["Range"]
        host.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and host.ranges else 0
        if host.status != 200:
            self.send_error(host.status)
            return
        if start >= len(host.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(host.content)}")
            self.end_headers()
            return
        self.send_response(206 if wanted and host.ranges else 200)
        if wanted and host.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(host.content) - 1}/{len(host.content)}")
        if host.lengths:
            self.send_header("Content-Length", str(len(host.content) - start))
        self.end_headers()
        end = min(len(host.content), start + host.cuts.pop(0)) if host.cuts else len(host.content)
        self.wfile.write(host.content[start:end])

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


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


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".download.lock")


def test_a_file_comes_whole_with_its_progress(tmp_path: Path, host: Host) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(host.file(), tmp_path / "new", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert left(path.parent) == ["net.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(seen) > 1
    fetch(host.file(), path.parent)
    assert len(host.asked) == 1  # not fetched again


def test_a_cut_download_goes_on_where_it_stopped(tmp_path: Path, host: Host) -> None:
    host.cuts = [1_000_000, 500_000]
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT
    assert host.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_the_next_command_goes_on_where_the_last_one_stopped(tmp_path: Path, host: Host) -> None:
    host.cuts = [700_000, 0]
    with pytest.raises(DownloadError, match="the same command goes on there"):
        fetch(host.file(), tmp_path)
    assert left(tmp_path) == [".net.bin.part"]
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT
    assert host.asked[-1] == "bytes=700000-"


def test_a_server_without_ranges_starts_again(tmp_path: Path, host: Host) -> None:
    host.ranges, host.cuts = False, [700_000]
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_whole_part_is_not_fetched_again(tmp_path: Path, host: Host, size: int | None) -> None:
    (tmp_path / ".net.bin.part").write_bytes(CONTENT)
    assert fetch(host.file(size), tmp_path).read_bytes() == CONTENT
    assert left(tmp_path) == ["net.bin"]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_is_too_long_is_dropped(tmp_path: Path, host: Host, size: int | None) -> None:
    (tmp_path / ".net.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(host.file(size), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("lengths", [True, False])
def test_another_file_is_not_kept(tmp_path: Path, host: Host, lengths: bool) -> None:
    host.content, host.lengths = CONTENT[:-1] + b"x", lengths
    with pytest.raises(DownloadError, match=f"{SHA256} was expected") as caught:
        fetch(host.file(), tmp_path)
    assert left(tmp_path) == []
    assert "By hand: fetch net.bin" in str(caught.value)
    assert "fc7 import caffe net.bin" in str(caught.value)


def test_a_part_of_another_file_is_found_by_the_hash_and_dropped(tmp_path: Path, host: Host) -> None:
    (tmp_path / ".net.bin.part").write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match="was expected"):
        fetch(host.file(), tmp_path)
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_at_once(tmp_path: Path, host: Host) -> None:
    with pytest.raises(DownloadError, match=f"it has {len(CONTENT):,} bytes, and 5 were expected"):
        fetch(host.file(5), tmp_path)
    host.lengths = False
    with pytest.raises(DownloadError, match="more than 5 bytes came"):
        fetch(host.file(5), tmp_path)


def test_a_wrong_file_under_the_name_is_replaced(tmp_path: Path, host: Host) -> None:
    (tmp_path / "net.bin").write_bytes(b"old")
    assert fetch(host.file(), tmp_path).read_bytes() == CONTENT


def test_older_hashes_are_compared_too(tmp_path: Path, host: Host) -> None:
    sha1 = hashlib.sha1(CONTENT, usedforsecurity=False).hexdigest()
    assert fetch(host.file(None, sha1, "sha1"), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "said"), [(404, "the server answered 404"), (503, "the server answered 503")])
def test_a_refusal_of_the_server_is_said(tmp_path: Path, host: Host, status: int, said: str) -> None:
    host.status = status
    with pytest.raises(DownloadError, match=said):
        fetch(host.file(), tmp_path)


def test_no_network_is_said_with_the_way_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    public = PublicFile("net.bin", f"http://127.0.0.1:{port}/net.bin", "sha256", SHA256, None, "onnx")
    with pytest.raises(DownloadError, match=r"there is no connection .Connection refused.") as caught:
        fetch(public, tmp_path)
    assert f"check its sha256 ({SHA256}), and run: fc7 import onnx net.bin" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, host: Host) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"Not a directory|File exists"):
        fetch(host.file(), tmp_path / "file")


def test_every_entry_of_the_table_can_be_checked() -> None:
    lengths = {"sha1": 40, "sha256": 64}
    for command, entries in PUBLIC_FILES.items():
        for public in entries.values():
            assert public.command == command
            assert len(bytes.fromhex(public.digest)) * 2 == lengths[public.algorithm]
            assert public.address.startswith(("https://", "http://"))
            assert public.address.endswith(f"/{public.file}")
    assert PUBLIC_FILES["torchvision"]["alexnet"].digest.startswith("7be5be79")
