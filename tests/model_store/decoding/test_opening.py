"""WebP files with a wrong size in their header, and GIF files without a trailer."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from model_store.errors import ImageUnreadableError
from model_store.image import prepare
from tests.support.image_files import colors, encoded, scaled

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


def test_gif_without_a_trailer_is_accepted() -> None:
    data = encoded(PICTURE.quantize(64), "GIF")
    np.testing.assert_array_equal(prepare(data[:-1]), prepare(data))
    for missing in (20, 1000, len(data) // 2):
        with pytest.raises(ImageUnreadableError, match="GIF"):
            prepare(data[:-missing])
