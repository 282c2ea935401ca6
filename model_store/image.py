"""Decode an image file and prepare it for the network: the one path for training, indexing and serving.

Promises: at most `max_pixels` are ever decoded (the header is read first); EXIF orientation is applied; RGB uint8,
0-255; transparent pixels lie over white; the shorter side scaled to 256 and the central 256x256 taken, in one
antialiased bilinear resampling of the central square (of a large JPEG, after the decoder scaled it to no less than
twice that size); whatever the bytes are, the answer is an array or an `ImageError`. Safe in many threads at once.
Does not: subtract the mean (the exported graph does), apply colour profiles, fetch URLs, look at more than the first
frame, keep libtiff from writing a line on standard error about a broken TIFF.
Source: the paper, section 2 (shorter side to 256, then the central 256x256) and 4.1 (ten views).
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model_store.errors import (
    DatasetError,
    ImageError,
    ImageFormatError,
    ImageTooLargeError,
    ImageUnreadableError,
    ShapeError,
)

PREPARATION: Final = 1
"""Number of this way from bytes to pixels: whatever was made by another number must be made again."""
SIZE: Final = 256
CROP: Final = 224
DEFAULT_MAX_PIXELS: Final = 50_000_000
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# The decoder may scale a JPEG down by 2, 4 or 8 as long as this much is left on the shorter side for the resampling.
_DRAFT_SIZE = 2 * SIZE

_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"BM"), "BMP"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
)
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
_NOT_TAKEN = (
    (re.compile(rb"....ftyp(?:avif|avis)", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(?:hei[cxms]|hev[cmsx]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"....ftyp", re.DOTALL), "a film (MP4)"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"\0\0[\1\2]\0[^\0]"), "ICO"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "JPEG XL"),
    (re.compile(rb"P[1-7]\s"), "PNM"),
    (re.compile(rb"qoif"), "QOI"),
    (re.compile(rb"DDS "), "DDS"),
    (re.compile(rb"v/1\x01"), "OpenEXR"),
    (re.compile(rb"%!PS"), "PostScript"),
    (re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE svg[^>]*>\s*)?<svg", re.DOTALL), "SVG"),
)

# EXIF orientation -> what turns the stored picture upright, on an array [height, width, 3]. Source: EXIF 2.32, 4.6.4 A.
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
# CodeBuilder that are resampled as they are (RGBA and LA with premultiplied alpha, by Pillow); the others are converted
# before.
_RESAMPLED_AS_THEY_ARE = ("RGB", "L", "CMYK", "YCbCr", "RGBX", "RGBA", "LA", "RGBa", "La")


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A prepared picture, and what its file said.

    pixels: uint8 [256,256,3], RGB. width, height: pixels of the upright original. format: one of `FORMATS`.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str


def prepare(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the picture in the file `data` as the network's: uint8 [256,256,3], RGB, C-contiguous.

    Raises ImageUnreadableError (empty, no image, broken, cut), ImageFormatError (a known format that is not taken),
    ImageTooLargeError (more than `max_pixels` in the header; nothing was decoded). Source: the paper, section 2.
    """
    return inspect_and_prepare(data, max_pixels=max_pixels).pixels


def inspect_and_prepare(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> PreparedImage:
    """Return what `prepare` returns, with the original's size and format. Raises the same."""
    form = _format_of(data)
    _silence_decoders()
    try:
        with _OPENERS[form](io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageTooLargeError(width * height, max_pixels)
            pixels, orientation = _central_square(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:
        # Pillow's own limit, for a GIF whose first frame is larger than its screen: its text begins with the number.
        found = re.search(r"\d+", str(exc))
        raise ImageTooLargeError(int(found[0]) if found else max_pixels + 1, max_pixels) from exc
    except (
        Exception
    ) as exc:  # the seam: Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise ImageUnreadableError(f"broken or cut {form} ({str(exc) or type(exc).__name__})") from exc
    if orientation in _UPRIGHT:
        pixels = _UPRIGHT[orientation](pixels)
        if orientation >= 5:
            width, height = height, width
    return PreparedImage(np.ascontiguousarray(pixels), width, height, form)


def _format_of(data: bytes) -> str:
    if not data:
        raise ImageUnreadableError("it is empty")
    head = bytes(data[:1024])
    for signature, form in _SIGNATURES:
        if signature.match(head):
            return form
    for signature, form in _NOT_TAKEN:
        if signature.match(head):
            raise ImageFormatError(form, FORMATS)
    raise ImageUnreadableError(f"it does not begin like an image of any known format ({head[:8]!r})")


def _central_square(image: ImageFile) -> tuple[NDArray[np.uint8], int]:
    """Return the stored picture's central square, uint8 [256,256,3], not yet upright, and its orientation."""
    scaled = image.draft("RGB", (_DRAFT_SIZE, _DRAFT_SIZE))
    image.load()
    # Of a scaled JPEG the last column and row may lie only partly inside the picture: `draft` says its exact size.
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
    except Exception:  # a photograph with broken EXIF is still a photograph
        return 1
    return value if isinstance(value, int) else 1


def _resamplable(image: Image.Image) -> Image.Image:
    """Return the picture in a mode whose numbers can be averaged: grey and colours in 8 bits, with or without alpha."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data and image.mode not in _RESAMPLED_AS_THEY_ARE[4:]:
        return image.convert("RGBA")
    if image.mode not in _RESAMPLED_AS_THEY_ARE:
        return image.convert("L" if image.mode == "1" else "RGB")
    return image


def _eight_bits(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale greys of more than 8 bits to 0-255. uint16 has a fixed white; wider ones take the usual range that holds
    them.

    That range is 0-1 (floats only), 0-255 or 0-65535, and else the picture's own darkest to brightest; NaN counts as
    dark.
    """
    if grey.dtype.itemsize == 2 and grey.dtype.kind == "u":
        return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.nan_to_num(grey.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        white = 1.0 if high <= 1 and grey.dtype.kind == "f" else 255.0 if high <= 255 else 65535.0
        low, high = 0.0, white
    return np.rint((values - low) * (255 / max(high - low, np.finfo(float).tiny))).astype(np.uint8)


def _over_white(square: Image.Image) -> Image.Image:
    if square.mode not in ("RGBA", "LA", "RGBa", "La"):
        return square.convert("RGB")
    colours = square.convert("RGBA")
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=colours.getchannel("A"))
    return white


def _silence_decoders() -> None:
    # Pillow remarks on odd metadata by warnings, which a server would print once a file. They cannot be switched off
    # for one call: `catch_warnings` is not safe in threads. The rule is looked for first, so that the list does not
    # grow.
    rule = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if rule not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def views(pixels: NDArray[np.uint8], n: int = 1) -> NDArray[np.uint8]:
    """Return the network's inputs cut from prepared pictures: the centre, or the paper's ten views.

    pixels: uint8 [256,256,3], or a batch [B,256,256,3]. n: 1 or 10. Returns uint8 [n,224,224,3], or [B*n,224,224,3]
    with the views of one picture together: four corners (top left, top right, bottom left, bottom right), centre, then
    the mirror images of these five. Raises ShapeError, and ValueError for another n. Source: the paper, section 4.1.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-3:] != (SIZE, SIZE, 3):
        raise ShapeError(
            "pixels", f"uint8 [{SIZE},{SIZE},3] or a batch of them", f"{pixels.dtype} {list(pixels.shape)}"
        )
    if n not in (1, 10):
        raise ValueError(f"n must be 1 or 10 views, but is {n}")
    batch = pixels.reshape(-1, SIZE, SIZE, 3)
    end, middle = SIZE - CROP, (SIZE - CROP) // 2
    if n == 1:
        return np.ascontiguousarray(batch[:, middle : middle + CROP, middle : middle + CROP])
    places = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    result = np.empty((len(batch), 10, CROP, CROP, 3), np.uint8)
    for place, (top, left) in enumerate(places):
        result[:, place] = batch[:, top : top + CROP, left : left + CROP]
    result[:, 5:] = result[:, :5, :, ::-1]
    return result.reshape(-1, CROP, CROP, 3)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Return a picture, uint8 [height,width,3] RGB, as a JPEG file of this quality (1-95). Raises ShapeError."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ShapeError("pixels", "uint8 [height,width,3]", f"{pixels.dtype} {list(pixels.shape)}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def find_images(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder` whose suffix is one of `SUFFIXES`, in any case, sorted folder by folder.

    Hidden files and folders are left out, and links to folders are not followed. The files are not opened.
    Raises DatasetError for a folder that is missing or cannot be listed.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as exc:
        raise DatasetError(f"{folder} cannot be listed as a folder: {exc.strerror}") from exc
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from find_images(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            yield Path(entry.path)
