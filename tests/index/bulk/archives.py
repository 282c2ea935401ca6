"""Archives of images, whole and damaged."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

from tests.support import pictures

Files = dict[str, bytes]


def images(count: int, first: int = 0) -> Files:
    """Return different images with the names birds/N.jpg."""
    return {f"birds/{n}.jpg": pictures.jpeg(n, 64, 64) for n in range(first, first + count)}


def zipped(files: Files, change: Callable[[zipfile.ZipInfo], None] = lambda _: None, **options: Any) -> bytes:
    """Return a zip file. change: called with the header of each entry."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", **options) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = options.get("compression", zipfile.ZIP_DEFLATED)
            change(info)
            archive.writestr(info, content)
    return data.getvalue()


def tarred(files: Files, mode: str = "w", form: int = tarfile.GNU_FORMAT, **changes: Any) -> bytes:
    """Return a tar file. changes: attributes of the header of each entry. Lone surrogates in names become bytes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode, format=form, errors="surrogateescape") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in changes.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def changed(data: bytes, at: int, to: bytes | None = None) -> bytes:
    """Return the data with other bytes at one place; by default the byte there is inverted."""
    to = bytes([data[at] ^ 0xFF]) if to is None else to
    return data[:at] + to + data[at + len(to) :]
