"""A bucket over HTTP as S3 clients read it: ListObjectsV2, HeadObject and GetObject with a range. No signatures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"


@contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """Serve the files of a folder as the bucket `BUCKET`. Yields the parameters of an s3:// URI that lead here."""

    class Handler(_Handler):
        root = folder

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = quote(f"127.0.0.1:{server.server_port}", safe="")
        yield f"scheme=http&region=us-east-1&endpoint_override={address}"
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = parse_qs(parts.query, keep_blank_values=True)
        path = self.root / key
        if bucket != BUCKET:
            self._send(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif "list-type" in query:
            self._send(200, self._list(query.get("prefix", [""])[0], query.get("delimiter", [""])[0]))
        elif not key:
            self._send(200, b"")
        elif path.is_file():
            self._send_file(path.read_bytes())
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _list(self, prefix: str, delimiter: str) -> bytes:
        entries: dict[str, str] = {}
        for path in sorted(self.root.rglob("*")):
            key = path.relative_to(self.root).as_posix()
            if not path.is_file() or not key.startswith(prefix):
                continue
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                common = escape(prefix + head + delimiter)
                entries[common] = f"<CommonPrefixes><Prefix>{common}</Prefix></CommonPrefixes>"
            else:
                size = path.stat().st_size
                modified = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                entries[key] = f"<Contents><Key>{escape(key)}</Key>{modified}<Size>{size}</Size></Contents>"
        head = f"<Name>{BUCKET}</Name><KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{head}{''.join(entries.values())}</ListBucketResult>".encode()

    def _send_file(self, data: bytes) -> None:
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, data, kind="application/octet-stream")
            return
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(end or len(data)), len(data) - 1)
        self._send(
            206,
            data[first : last + 1],
            {"Content-Range": f"bytes {first}-{last}/{len(data)}"},
            kind="application/octet-stream",
        )

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, kind: str = "application/xml"
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name of the base class
        """Print nothing."""
