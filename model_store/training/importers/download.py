"""Download a public weight file from a fixed table of URLs and verify its hash.

Guarantees: an interrupted download resumes where it stopped, in the same command or in the next one. The file appears
under its name only if its hash matches the table, and it is not downloaded twice. An error says how to get the file by
hand.
Out of scope: other mirrors; files that are not in the table; packages beyond the standard library.
References for the hashes: the READMEs of Caffe's models (SHA-1); the Git LFS pointers of the ONNX zoo; the name of
torchvision's file, which starts with its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from model_store.durable import locked, sync
from model_store.training.errors import DownloadError

_CHUNK: Final = 1 << 20
_TIMEOUT_S: Final = 30.0
_MAX_ATTEMPTS: Final = 20
_MAX_BYTES: Final = 1 << 30  # for a file of unknown size
_RANGE_NOT_SATISFIABLE: Final = 416

Progress = Callable[[int, int | None], None]  # bytes done, total bytes if known


@dataclass(frozen=True, slots=True)
class PublicFile:
    """A file to download. digest: hexadecimal, by `algorithm`. size: bytes, if known. command: its importer."""

    file: str
    url: str
    algorithm: str
    digest: str
    size: int | None
    command: str


_SITES: Final = {
    "caffe": "http://dl.caffe.berkeleyvision.org",
    "onnx": "https://github.com/onnx/models/raw/main/validated/vision/classification/alexnet/model",
    "torchvision": "https://download.pytorch.org/models",
}


def _public(command: str, file: str, digest: str, size: int | None = None) -> PublicFile:
    algorithm = "sha1" if command == "caffe" else "sha256"
    return PublicFile(file, f"{_SITES[command]}/{file}", algorithm, digest, size, command)


_caffe = partial(_public, "caffe")
_zoo = partial(_public, "onnx")
_torchvision = partial(_public, "torchvision")

# The files of each importer by name. The first one is the default.
PUBLIC_FILES: Final[Mapping[str, Mapping[str, PublicFile]]] = {
    "caffe": {
        "alexnet": _caffe("bvlc_alexnet.caffemodel", "9116a64c0fbe4459d18f4bb6b56d647b63920377"),
        "caffenet": _caffe("bvlc_reference_caffenet.caffemodel", "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46"),
    },
    "onnx": {
        "alexnet-12": _zoo(
            "bvlcalexnet-12.onnx", "6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945", 243_863_787
        ),
        "alexnet-9": _zoo(
            "bvlcalexnet-9.onnx", "ef3c82dad5c512f969dbf701fe35c0b3feb1585687d541f765eb68730c0a8af7", 243_863_542
        ),
    },
    "torchvision": {
        "alexnet": _torchvision(
            "alexnet-owt-7be5be79.pth", "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02", 244_408_911
        ),
    },
}


def fetch(public: PublicFile, folder: Path, progress: Progress = lambda _done, _total: None) -> Path:
    """Return the path of `public` in `folder`. It is downloaded unless it exists with the right hash.

    Raises DownloadError if there is no network, the URL is gone, the content is another file or the disk is full.
    Received bytes are kept for the next attempt, unless the complete file has another hash.
    """
    target = folder / public.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".download.lock"):
            if target.is_file() and _digest(target, public.algorithm) == public.digest:
                return target
            part = folder / f".{public.file}.part"
            _complete(public, part, progress)
            found = _digest(part, public.algorithm)
            if found != public.digest:
                part.unlink()
                raise _failed(public, f"its {public.algorithm} is {found} instead of {public.digest}")
            sync(part)
            part.replace(target)
            sync(folder)
    except (OSError, HTTPException) as error:
        reason = _reason(error)
        if target.is_file():
            reason += f", and {target} is another file: its {public.algorithm} is {_digest(target, public.algorithm)}"
        raise _failed(public, reason) from error
    return target


def _complete(public: PublicFile, part: Path, progress: Progress) -> None:
    """Complete `part`. Interruptions are followed by another attempt while each attempt brings more bytes."""
    for _ in range(_MAX_ATTEMPTS):
        existing = _size(part)
        if public.size is not None and existing > public.size:
            part.unlink()
            existing = 0
        if existing == public.size:
            return
        try:
            done, total = _append(public, part, existing, progress)
        except HTTPError as error:
            if error.code != _RANGE_NOT_SATISFIABLE or not existing:
                raise
            # The part is at least as long as the server's file, whose size is not in the table.
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(existing):
                return
            part.unlink()
            continue
        except (URLError, ConnectionError, TimeoutError, HTTPException):
            if _size(part) <= existing:
                raise
            continue
        if total is None or done == total:
            return
        if done <= existing:
            break
    raise _failed(public, "the connection was interrupted repeatedly. Run the same command again to resume")


def _append(public: PublicFile, part: Path, existing: int, progress: Progress) -> tuple[int, int | None]:
    """Append the bytes after `existing`. Return (bytes in the file, total bytes if the server reports them)."""
    request = Request(public.url, headers={"User-Agent": "fc7", "Accept-Encoding": "identity"})  # noqa: S310 - fixed URLs
    if existing:
        request.add_header("Range", f"bytes={existing}-")
    response: HTTPResponse
    with urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
        if not (response.status == 206 and str(response.headers["Content-Range"]).startswith(f"bytes {existing}-")):
            existing = 0  # the server sends the whole file again
        length = response.headers.get("Content-Length")
        total = existing + int(length) if length and length.isdecimal() else None
        if total is not None and public.size not in (None, total):
            raise _failed(public, f"it has {total:,} bytes instead of {public.size:,}")
        limit, done = public.size or _MAX_BYTES, existing
        with part.open("ab" if existing else "wb") as file:
            while chunk := response.read(_CHUNK):
                done += len(chunk)
                if done > limit:
                    raise _failed(public, f"the server sent more than {limit:,} bytes, so it is another file")
                file.write(chunk)
                progress(done, public.size or total)
            file.flush()
            os.fsync(file.fileno())
    return done, public.size or total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _failed(public: PublicFile, reason: str) -> DownloadError:
    manual = (
        f"To import it by hand, download {public.file} on a machine with a network or from another site, check its "
        f"{public.algorithm} ({public.digest}), and run: fc7 import {public.command} {public.file}"
    )
    return DownloadError(public.url, reason, manual)


def _reason(error: OSError | HTTPException) -> str:
    """Describe why a download failed."""
    if isinstance(error, HTTPError):
        return f"the server responded with {error.code} {error.reason}"
    if isinstance(error, URLError):
        cause = error.reason
        return f"the connection failed ({cause.strerror if isinstance(cause, OSError) else cause})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
