"""Decode an image and prepare it for the network: the only path for training, indexing and serving.

Guarantees: the header is read first, and at most `max_pixels` pixels are decoded. EXIF orientation is applied. The
result is sRGB, uint8, 0-255: color profiles are converted, and transparent pixels are blended over white. The central
square is resampled to 256x256 in one antialiased bilinear step; large JPEGs are first scaled down by the decoder, to at
least twice that size. Any input gives an array or an `ImageError`; a picture that would be decoded wrongly gives an
`ImageFormatError`. Thread-safe.
Out of scope: mean subtraction (the exported graph does it), URLs, frames after the first. libtiff may still print a
line about a broken TIFF to standard error. How formats, depths and colors are handled: `model_store.decoding`.
References: the paper, section 2 (shorter side to 256, then the central 256x256) and 4.1 (ten views).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store import errors
from model_store.decoding import formats
from model_store.decoding.color import to_srgb
from model_store.decoding.opening import open_source
from model_store.decoding.source import central_square

PREPARATION: Final = 2
"""Version of the preparation. Pictures and vectors made by another version must be computed again."""
SIZE: Final = 256
CROP: Final = 224
DEFAULT_MAX_PIXELS: Final = 50_000_000
SUFFIXES: Final = formats.SUFFIXES

# The JPEG decoder may scale down by 2, 4 or 8, but must leave at least this size on the shorter side.
_LEAST_SIZE = 2 * SIZE

# EXIF orientation -> transformation of an array [height, width, 3] to the upright picture. See EXIF 2.32, 4.6.4 A.
_UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A prepared picture, with the size and format of the original.

    pixels: uint8 [256,256,3], RGB. width, height: of the upright original, in pixels. format: one of `formats.FORMATS`.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str


def prepare(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode and prepare the image file `data`. Returns uint8 [256,256,3], RGB, C-contiguous.

    Raises ImageUnreadableError (empty, not an image, broken or truncated), ImageFormatError (an unsupported format),
    ImageTooLargeError (the header declares more than `max_pixels`; nothing was decoded).
    References: the paper, section 2.
    """
    return inspect_and_prepare(data, max_pixels=max_pixels).pixels


def inspect_and_prepare(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> PreparedImage:
    """As `prepare`, but also return the size and format of the original."""
    form = formats.format_of(data)
    _silence_decoders()
    try:
        source = open_source(data, form, _LEAST_SIZE)
        with source.image:
            width, height = source.size
            if width * height > max_pixels:
                raise errors.ImageTooLargeError(width * height, max_pixels)
            source.load()
            square = to_srgb(central_square(source, SIZE), source.profile())
            pixels, orientation = np.asarray(_over_white(square)), source.orientation()
    except errors.ImageError:
        raise
    except Image.DecompressionBombError as exc:
        # Pillow raises this for a GIF whose first frame is larger than its screen. The message contains the number.
        found = re.search(r"\d+", str(exc))
        raise errors.ImageTooLargeError(int(found[0]) if found else max_pixels + 1, max_pixels) from exc
    except Exception as exc:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise errors.ImageUnreadableError(
            f"the {form} is broken or truncated ({str(exc) or type(exc).__name__})"
        ) from exc
    if orientation in _UPRIGHT:
        pixels = _UPRIGHT[orientation](pixels)
        if orientation >= 5:
            width, height = height, width
    return PreparedImage(np.ascontiguousarray(pixels), width, height, form)


def _over_white(square: Image.Image) -> Image.Image:
    if square.mode != "RGBA":
        return square
    white = Image.new("RGB", square.size, "white")
    white.paste(square, mask=square.getchannel("A"))
    return white


def _silence_decoders() -> None:
    # Pillow warns about unusual metadata, once for each file. `catch_warnings` is not thread-safe, so a global filter
    # is added. It is added only once, so that the list of filters does not grow.
    rule = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if rule not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def views(pixels: NDArray[np.uint8], n: int = 1) -> NDArray[np.uint8]:
    """Crop the inputs of the network from prepared pictures: the center, or the paper's ten views.

    pixels: uint8 [256,256,3], or a batch [B,256,256,3]. n: 1 or 10. Returns uint8 [n,224,224,3], or [B*n,224,224,3]
    with the views of each picture together: four corners (top left, top right, bottom left, bottom right), center, then
    the mirror images of these five. Raises ShapeError, and ValueError for another n. References: section 4.1.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-3:] != (SIZE, SIZE, 3):
        raise errors.ShapeError(
            "pixels", f"uint8 [{SIZE},{SIZE},3] or a batch of them", f"{pixels.dtype} {list(pixels.shape)}"
        )
    if n not in (1, 10):
        raise ValueError(f"n must be 1 or 10, but is {n}.")
    batch = pixels.reshape(-1, SIZE, SIZE, 3)
    end, middle = SIZE - CROP, (SIZE - CROP) // 2
    if n == 1:
        return np.ascontiguousarray(batch[:, middle : middle + CROP, middle : middle + CROP])
    corners = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    result = np.empty((len(batch), 10, CROP, CROP, 3), np.uint8)
    for number, (top, left) in enumerate(corners):
        result[:, number] = batch[:, top : top + CROP, left : left + CROP]
    result[:, 5:] = result[:, :5, :, ::-1]
    return result.reshape(-1, CROP, CROP, 3)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Encode a picture, uint8 [height,width,3] RGB, as JPEG with this quality (1-95). Raises ShapeError."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise errors.ShapeError("pixels", "uint8 [height,width,3]", f"{pixels.dtype} {list(pixels.shape)}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
