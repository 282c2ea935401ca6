"""Rejecting bad images: cheaply, and always with an `ImageError`."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_store.decoding.formats import FORMATS
from model_store.errors import ImageError, ImageFormatError, ImageTooLargeError, ImageUnreadableError
from model_store.image import prepare
from tests.model_store.test_image import encoded, photograph

WRITABLE = [form for form in FORMATS if form != "HEIC"]  # see tests/model_store/decoding/test_heif.py
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "JPEG": [{}, {"progressive": True}],
    "PNG": [{}],
    "WEBP": [{}, {"lossless": True}],
    "GIF": [{}],
    "BMP": [{}],
    "AVIF": [{}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "tiff_adobe_deflate"}],
}


def bomb(width: int, height: int) -> bytes:
    """Return a complete, black 1-bit PNG. The file has about a thousandth as many bytes as the image has pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    deflate = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join([deflate.compress(row * 100) for _ in range(height // 100)]) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is a letter, and its name ends in .jpg", "b'this is '"),
        (b"\xff\xd8\xff\xe0", "JPEG is broken or truncated"),
        (b"\x89PNG\r\n\x1a\n", "PNG is broken or truncated"),
        (b"GIF89a", "GIF is broken or truncated"),
        (b"BM", "BMP is broken or truncated"),
        (b"II*\0", "TIFF is broken or truncated"),
        (b"RIFF\0\0\0\0WEBP", "WEBP is broken or truncated"),
        (b"\0" * 5000, "not those of a known image format"),
    ],
)
def test_data_that_is_not_an_image_is_rejected_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageUnreadableError) as caught:
        prepare(data)
    assert reason in str(caught.value)


@pytest.mark.parametrize("form", WRITABLE)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_image_is_rejected(form: str, share: float) -> None:
    for options in OPTIONS[form]:
        data = encoded(photograph(600, 400), form, **options)
        with pytest.raises(ImageUnreadableError, match=form):
            prepare(data[: int(len(data) * share)])


def test_truncated_large_jpeg_is_rejected_even_if_the_decoder_scales_it() -> None:
    data = encoded(photograph(4000, 3000), "JPEG")
    with pytest.raises(ImageUnreadableError, match="JPEG"):
        prepare(data[:-1000])


@pytest.mark.parametrize(
    ("form", "name"),
    [("PDF", "PDF"), ("ICO", "ICO"), ("JPEG2000", "JPEG 2000"), ("PPM", "PNM"), ("DDS", "DDS")],
)
def test_the_error_for_an_unsupported_format_lists_the_supported_ones(form: str, name: str) -> None:
    with pytest.raises(
        ImageFormatError, match=f"{name} is not supported.*JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"
    ) as caught:
        prepare(encoded(photograph(64, 64), form))
    assert (caught.value.found, caught.value.supported) == (name, FORMATS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"8BPS\0\1" + b"\0" * 20, "PSD"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "MP4"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!-- a --> <!-- b -->\n<!DOCTYPE svg>\n<svg/>", "SVG"),
        (b"\xff\x0a\0\0\0\0", "JPEG XL"),
    ],
)
def test_the_error_for_a_format_that_pillow_cannot_write_names_it(data: bytes, name: str) -> None:
    with pytest.raises(ImageFormatError, match=name):
        prepare(data)


@pytest.mark.parametrize("part", [b"<!---->", b"<!-- -->", b" ", b"<?xml?>", b"<", b"<!DOCTYPE svg>", b"<sv"])
def test_recognizing_a_format_takes_linear_time(part: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(ImageUnreadableError, match="known image format"):
        prepare(part * 40_000 + b"x")
    assert time.perf_counter() - started < 0.5


def test_image_of_exactly_the_pixel_limit_is_accepted() -> None:
    data = encoded(photograph(100, 80), "PNG")
    assert prepare(data, max_pixels=8000).shape == (256, 256, 3)
    with pytest.raises(ImageTooLargeError, match=r"8,000 pixels.*7,999") as caught:
        prepare(data, max_pixels=7999)
    assert (caught.value.pixels, caught.value.limit) == (8000, 7999)


@pytest.mark.parametrize("form", WRITABLE)
def test_pixel_limit_applies_to_every_format(form: str) -> None:
    with pytest.raises(ImageTooLargeError, match="1,000,000 pixels"):
        prepare(encoded(Image.new("RGB", (1000, 1000)), form), max_pixels=999_999)


def test_pixel_limit_above_pillows_limit_is_respected() -> None:
    data = bomb(14_000, 14_000)  # Pillow itself rejects images from 179 million pixels on
    with pytest.raises(ImageTooLargeError, match="196,000,000"):
        prepare(data)
    assert prepare(data, max_pixels=196_000_000).max() == 0


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_gif_frame_larger_than_its_screen_counts_toward_the_limit(side: int) -> None:
    data = bytearray(encoded(Image.new("P", (20, 20)), "GIF"))
    frame = data.index(b",\0\0\0\0\x14\0\x14\0")
    data[frame + 5 : frame + 9] = struct.pack("<HH", side, side)
    with pytest.raises(ImageTooLargeError) as caught:
        prepare(bytes(data))
    assert caught.value.pixels == side * side


def test_decompression_bomb_costs_little_memory_and_time() -> None:
    data = bomb(30_000, 30_000)
    assert len(data) < 150_000
    program = """
import resource, sys, time
from model_store.errors import ImageTooLargeError
from model_store.image import prepare
data = sys.stdin.buffer.read()
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    prepare(data)
except ImageTooLargeError as error:
    print(error.pixels, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start)
"""
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    pixels, kibibytes, seconds = done.stdout.split()
    assert int(pixels) == 900_000_000
    assert int(kibibytes) < 4096
    assert float(seconds) < 0.1


def test_long_thin_picture_does_not_take_more_memory() -> None:
    # Scaling the shorter side to 256 before the crop would give 655 million pixels.
    data = encoded(Image.new("L", (10_000, 1)), "PNG")
    program = """
import resource, sys
from model_store.image import prepare
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(data)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert int(done.stdout) < 20_000


def repair_checksums(png: bytearray) -> None:
    """Correct the checksums of a damaged PNG, so that the damaged data reaches the decoder."""
    offset = 8
    while offset + 12 <= len(png):
        end = offset + 8 + int.from_bytes(png[offset : offset + 4], "big")
        png[end : end + 4] = struct.pack(">I", zlib.crc32(png[offset + 4 : end]))
        offset = end + 4


@pytest.mark.parametrize("form", WRITABLE)
def test_damaged_files_give_an_array_or_an_image_error_and_no_warnings(
    form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    random_ = random.Random(form)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a test"
    answers = {"array": 0, "error": 0}
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        for options in OPTIONS[form]:
            extra = {} if form in ("GIF", "BMP") else {"exif": exif}
            whole = encoded(photograph(40, 30), form, **options, **extra)
            for _ in range(400):
                data = bytearray(whole)
                for _ in range(random_.choice([1, 1, 2, 8])):
                    near = min(len(data), random_.choice([32, 200, len(data)]))
                    data[random_.randrange(near)] = random_.randrange(256)
                if random_.random() < 0.3:
                    del data[random_.randrange(len(data)) :]
                if form == "PNG":
                    repair_checksums(data)
                try:
                    pixels = prepare(bytes(data), max_pixels=1_000_000)
                except ImageError:
                    answers["error"] += 1
                else:
                    assert pixels.shape == (256, 256, 3)
                    assert pixels.dtype == np.uint8
                    answers["array"] += 1
    assert answers["array"]
    assert answers["error"]
    assert [str(remark.message) for remark in remarks] == []
    written = capfd.readouterr()
    assert written.out == ""
    assert written.err == "" or form == "TIFF"  # libtiff writes directly to standard error


def test_decoder_error_is_kept_as_the_cause() -> None:
    data = encoded(photograph(600, 400), "JPEG")
    with pytest.raises(ImageUnreadableError) as caught:
        prepare(data[:2000])
    assert isinstance(caught.value.__cause__, OSError)
