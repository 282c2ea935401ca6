"""Fetch a public weight file from a small table of addresses, whole and proven by its hash, or not at all.

Promises: a download that was cut goes on where it stopped, now or at the next try; the file appears under its name only
with the table's hash; one that is there already is not fetched again. What stops it says how to go on by hand.
Does not: try other addresses, fetch anything that is not in the table, need more than the standard library.
Source of the hashes: the readme files of Caffe's models (SHA-1), the Git LFS pointers of the ONNX zoo, and the name of
torchvision's file, which begins with its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from model_store.durable import locked, sync
from model_store.errors import DownloadError

_CHUNK: Final = 1 << 20
_TIMEOUT_S: Final = 30.0
_MOST_CUTS: Final = 20
_MAX_BYTES: Final = 1 << 30  # of a file whose size is not known
_GONE_TOO_FAR: Final = 416  # HTTP's answer to a range that begins at or behind the end

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all if known


@dataclass(frozen=True, slots=True)
class PublicFile:
    """A file to fetch: its hash in hexadecimal, by `algorithm`, and its size in bytes where it is known."""

    file: str
    address: str
    algorithm: str
    digest: str
    size: int | None
    command: str


_CAFFE: Final = "http://dl.caffe.berkeleyvision.org"
_ZOO: Final = "https://github.com/onnx/models/raw/main/validated/vision/classification/alexnet/model"
# For each importer, by the name to give it; the first is the one that is meant without a name.
PUBLIC_FILES: Final[Mapping[str, Mapping[str, PublicFile]]] = {
    "caffe": {
        "alexnet": PublicFile(
            "bvlc_alexnet.caffemodel",
            f"{_CAFFE}/bvlc_alexnet.caffemodel",
            "sha1",
            "9116a64c0fbe4459d18f4bb6b56d647b63920377",
            None,
            "caffe",
        ),
        "caffenet": PublicFile(
            "bvlc_reference_caffenet.caffemodel",
            f"{_CAFFE}/bvlc_reference_caffenet.caffemodel",
            "sha1",
            "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46",
            None,
            "caffe",
        ),
    },
    "onnx": {
        "alexnet-12": PublicFile(
            "bvlcalexnet-12.onnx",
            f"{_ZOO}/bvlcalexnet-12.onnx",
            "sha256",
            "6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945",
            243_863_787,
            "onnx",
        ),
        "alexnet-9": PublicFile(
            "bvlcalexnet-9.onnx",
            f"{_ZOO}/bvlcalexnet-9.onnx",
            "sha256",
            "ef3c82dad5c512f969dbf701fe35c0b3feb1585687d541f765eb68730c0a8af7",
            243_863_542,
            "onnx",
        ),
    },
    "torchvision": {
        "alexnet": PublicFile(
            "alexnet-owt-7be5be79.pth",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "sha256",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            244_408_911,
            "torchvision",
        ),
    },
}


def fetch(public: PublicFile, folder: Path, progress: Progress = lambda _done, _total: None) -> Path:
    """Return the path of `public` in `folder`, downloaded unless it is there with its hash.

    Raises DownloadError: no network, an address that has gone, another file than expected, a disk that is full. What
    came so far is kept for the next try, but for a whole file with another hash.
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
                raise _failed(public, f"its {public.algorithm} is {found}, and {public.digest} was expected")
            sync(part)
            part.replace(target)
            sync(folder)
    except (OSError, HTTPException) as exc:
        raise _failed(public, _reason(exc)) from exc
    return target


def _complete(public: PublicFile, part: Path, progress: Progress) -> None:
    """Make `part` whole, going on after each cut as long as every try brings more of it."""
    for _ in range(_MOST_CUTS):
        have = part.stat().st_size if part.exists() else 0
        if public.size is not None and have > public.size:
            part.unlink()
            have = 0
        if have == public.size:
            return
        try:
            done, total = _go_on(public, part, have, progress)
        except HTTPError as exc:
            if exc.code != _GONE_TOO_FAR or not have:
                raise
            # What is here is as long as the server's file, or longer: its size was not in the table.
            if exc.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            part.unlink()
            continue
        except (URLError, ConnectionError, TimeoutError, HTTPException):
            if (part.stat().st_size if part.exists() else 0) <= have:
                raise
            continue
        if total is None or done == total:
            return
        if done <= have:
            break
    raise _failed(public, "the connection was cut again and again. What came is kept: the same command goes on there")


def _go_on(public: PublicFile, part: Path, have: int, progress: Progress) -> tuple[int, int | None]:
    """Append what the server sends from byte `have` on; return (bytes in the file, bytes in all if it said so)."""
    request = Request(public.address, headers={"User-Agent": "fc7", "Accept-Encoding": "identity"})  # noqa: S310 - the table's
    if have:
        request.add_header("Range", f"bytes={have}-")
    response: HTTPResponse
    with urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
        if have and not (response.status == 206 and _starts_at(response, have)):
            have = 0  # the server sends the whole file again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        if total is not None and public.size not in (None, total):
            raise _failed(public, f"it has {total:,} bytes, and {public.size:,} were expected")
        limit, done = public.size or _MAX_BYTES, have
        with part.open("ab" if have else "wb") as file:
            while chunk := response.read(_CHUNK):
                done += len(chunk)
                if done > limit:
                    raise _failed(public, f"more than {limit:,} bytes came: it is another file")
                file.write(chunk)
                progress(done, public.size or total)
            file.flush()
            os.fsync(file.fileno())
    return done, public.size or total


def _starts_at(response: HTTPResponse, byte: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {byte}-")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _failed(public: PublicFile, reason: str) -> DownloadError:
    mend = (
        f"By hand: fetch {public.file} on a machine with a network or from another place, check its {public.algorithm} "
        f"({public.digest}), and run: fc7 import {public.command} {public.file}"
    )
    return DownloadError(public.address, reason, mend)


def _reason(error: OSError | HTTPException) -> str:
    """Say in words what stopped a download."""
    if isinstance(error, HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, URLError):
        cause = error.reason
        return f"there is no connection ({cause.strerror if isinstance(cause, OSError) else cause})"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
