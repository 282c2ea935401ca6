"""Decode an image and prepare it for the network: the only path for training, indexing and serving.

Guarantees: the header is read first, and at most `max_pixels` pixels are decoded. EXIF orientation is applied. The
result is RGB, uint8, 0-255; transparent pixels are blended over white. The central square is resampled to 256x256 in
one antialiased bilinear step; large JPEGs are first scaled down by the decoder, to at least twice that size. Any input
gives an array or an `ImageError`. Thread-safe.
Out of scope: mean subtraction (the exported graph does it), color profiles, URLs, frames after the first. libtiff may
still print a line about a broken TIFF to standard error.
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
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from model_store import errors
from model_store.decoding import formats

PREPARATION: Final = 1
"""Version of the preparation. Pictures and vectors made by another version must be computed again."""
SIZE: Final = 256
CROP: Final = 224
DEFAULT_MAX_PIXELS: Final = 50_000_000
SUFFIXES: Final = formats.SUFFIXES

# The JPEG decoder may scale down by 2, 4 or 8, but must leave at least this size on the shorter side.
_DRAFT_SIZE = 2 * SIZE

# Format -> decoder. Called directly, because `Image.open` would try all formats that Pillow knows.
_DECODERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

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
_ORIENTATION = 0x0112
# Modes that are resampled directly (Pillow premultiplies alpha for RGBA and LA). Other modes are converted first.
_RESAMPLED_DIRECTLY = ("RGB", "L", "CMYK", "YCbCr", "RGBX", "RGBA", "LA", "RGBa", "La")


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
    if form not in _DECODERS:
        raise errors.ImageFormatError(form, formats.FORMATS)
    _silence_decoders()
    try:
        with _DECODERS[form](io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise errors.ImageTooLargeError(width * height, max_pixels)
            pixels, orientation = _central_square(image)
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


def _central_square(image: ImageFile) -> tuple[NDArray[np.uint8], int]:
    """Return the central square, uint8 [256,256,3], before orientation is applied, and the EXIF orientation."""
    scaled = image.draft("RGB", (_DRAFT_SIZE, _DRAFT_SIZE))
    image.load()
    # The last column and row of a scaled JPEG may be only partly inside the picture. `draft` gives the exact size.
    width, height = scaled[1][2:] if scaled else image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = _resamplable(image).resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    return np.asarray(_over_white(square)), _orientation(image)


def _orientation(image: ImageFile) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF does not make the picture unusable
        return 1
    return value if isinstance(value, int) else 1


def _resamplable(image: Image.Image) -> Image.Image:
    """Return the picture in a mode that can be resampled: 8-bit gray or color, with or without alpha."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data and image.mode not in _RESAMPLED_DIRECTLY[4:]:
        return image.convert("RGBA")
    if image.mode not in _RESAMPLED_DIRECTLY:
        return image.convert("L" if image.mode == "1" else "RGB")
    return image


def _eight_bits(gray: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale gray values of more than 8 bits to 0-255.

    uint16 is scaled from 0-65535. For wider types, the range is the smallest of 0-1 (floats only), 0-255 and 0-65535
    that contains all values, and otherwise the minimum to the maximum of the picture. NaN is treated as 0.
    """
    if gray.dtype.itemsize == 2 and gray.dtype.kind == "u":
        return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.nan_to_num(gray.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        white = 1.0 if high <= 1 and gray.dtype.kind == "f" else 255.0 if high <= 255 else 65535.0
        low, high = 0.0, white
    return np.rint((values - low) * (255 / max(high - low, np.finfo(float).tiny))).astype(np.uint8)


def _over_white(square: Image.Image) -> Image.Image:
    if square.mode not in ("RGBA", "LA", "RGBa", "La"):
        return square.convert("RGB")
    rgba = square.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
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
