"""Image files for tests of the service: valid, unusual and malicious ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def scene(seed: int = 0, width: int = 320, height: int = 240) -> Image.Image:
    """Return an image of colored patches that depends on the seed and changes when it is rotated or mirrored."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BILINEAR)


def encoded(picture: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    """Return the image as a file of this format."""
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def jpeg(seed: int = 0, width: int = 320, height: int = 240) -> bytes:
    """Return a scene as a JPEG file."""
    return encoded(scene(seed, width, height), quality=95)


def animated_gif() -> bytes:
    """Return a GIF with three frames."""
    first, *others = [scene(seed).convert("P") for seed in range(3)]
    return encoded(first, "GIF", save_all=True, append_images=others)


def with_orientation(picture: Image.Image, orientation: int) -> bytes:
    """Return a PNG file with this EXIF orientation that decodes to `picture`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture if orientation == 1 else picture.transpose(undo[orientation])
    return encoded(stored, "PNG", exif=exif)


def bomb(side: int = 30_000) -> bytes:
    """Return a valid PNG file of about 100 KB that has `side` x `side` pixels."""
    row = b"\0" * (1 + side // 8)
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(row * 1000) for _ in range(side // 1000)) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
