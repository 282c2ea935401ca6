"""Photographs for the benchmarks: read from a folder or a tar file, and enlarged to 12 megapixels.

Out of scope: decoding what is read; files are selected by their suffix.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image

from model_store.decoding.formats import SUFFIXES
from model_store.image_files import find_images

LARGE = (4032, 3024)  # 12.2 megapixels, as from a phone


def read_photographs(source: Path, count: int) -> list[bytes]:
    """Return up to `count` image files of a folder or a tar file, in the order of their names. Raises SystemExit."""
    found: list[bytes] = []
    if source.is_dir():
        found = [path.read_bytes() for path, _ in zip(find_images(source), range(count), strict=False)]
    elif source.is_file() and tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            members = sorted(
                (entry for entry in archive if entry.isfile() and entry.name.lower().endswith(SUFFIXES)),
                key=lambda entry: entry.name,
            )
            for member in members[:count]:
                file = archive.extractfile(member)
                if file is not None:
                    found.append(file.read())
    if not found:
        raise SystemExit(f"{source} is not a folder or tar file with photographs ({', '.join(SUFFIXES)}).")
    return found


def enlarge(data: bytes) -> bytes:
    """Return the photograph as a JPEG of 4032x3024 pixels, quality 90."""
    with Image.open(io.BytesIO(data)) as picture:
        large = picture.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90)
    return file.getvalue()
