"""WebP files with a wrong size in their header, and GIF files without a trailer."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from model_store.errors import ImageUnreadableError
from model_store.image import prepare
from tests.support.image_files import colors, encoded, scaled, square

PICTURE = Image.fromarray(scaled(colors(), 8).astype(np.uint8))


@pytest.mark.parametrize("lossless", [False, True])
def test_webp_with_a_wrong_size_is_accepted_if_its_chunks_are_complete(lossless: bool) -> None:
    exif = Image.Exif()
    exif[0x010E] = "description" * 50
    data = encoded(PICTURE, "WEBP", lossless=lossless, exif=exif)
    expected = prepare(data)
    for size in (0, 100, len(data), 2**31):
        np.testing.assert_array_equal(prepare(data[:4] + struct.pack("<I", size) + data[8:]), expected)
    np.testing.assert_array_equal(prepare(data[:-30]), expected)  # only the description is truncated
    np.testing.assert_array_equal(prepare(data + b"trailing"), expected)
    image_end = data.index(b"EXIF")
    for missing in (1, 10, 1000, image_end // 2):
        with pytest.raises(ImageUnreadableError, match="WEBP"):
            prepare(data[: image_end - missing])


def test_what_the_first_frame_of_a_gif_does_not_cover_is_white() -> None:
    data = bytearray(encoded(PICTURE.quantize(64), "GIF"))
    data[6:10] = struct.pack("<HH", 400, 400)  # the screen; the frame remains 300x260
    frame = data.index(b",\0\0\0\0" + struct.pack("<HH", 300, 260))
    data[frame + 1 : frame + 5] = struct.pack("<HH", 60, 80)
    expected = Image.new("RGB", (400, 400), "white")
    expected.paste(PICTURE.quantize(64).convert("RGB"), (60, 80))
    assert np.abs(prepare(bytes(data)).astype(int) - square(np.asarray(expected))).mean() < 0.5


@pytest.mark.parametrize(("alpha", "visible"), [(0, True), (255, True), (7, False)])
def test_alpha_of_bmp_counts_unless_it_is_zero_everywhere(alpha: int, visible: bool) -> None:
    pixels = np.full((40, 40, 4), alpha, np.uint8)
    pixels[..., :3] = (10, 20, 30)  # blue, green, red
    header = struct.pack("<IiiHHIIiiII4I", 108, 40, 40, 1, 32, 3, 6400, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF << 24)
    data = b"BM" + struct.pack("<IHHI", 122 + 6400, 0, 0, 122) + header.ljust(108, b"\0") + pixels.tobytes()
    assert (prepare(data)[128, 128].tolist() == [30, 20, 10]) is visible


def test_gif_without_a_trailer_is_accepted() -> None:
    data = encoded(PICTURE.quantize(64), "GIF")
    np.testing.assert_array_equal(prepare(data[:-1]), prepare(data))
    for missing in (20, 1000, len(data) // 2):
        with pytest.raises(ImageUnreadableError, match="GIF"):
            prepare(data[:-missing])
