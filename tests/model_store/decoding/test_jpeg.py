"""JPEG: missing end markers, missing pixels, and kinds that are not supported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_store.errors import ImageFormatError, ImageUnreadableError
from model_store.image import prepare
from tests.support.image_files import encoded

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart after each row": {"restart_marker_rows": 1},
    "restart after three blocks": {"restart_marker_blocks": 3},
    "no subsampling": {"subsampling": 0, "quality": 95},
}
END = b"\xff\xd9"


def picture(mode: str = "RGB", size: tuple[int, int] = (300, 260)) -> Image.Image:
    coarse = np.random.default_rng(1).integers(0, 256, (26, 30, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_only_the_end_marker_may_be_missing(kind: str, mode: str) -> None:
    data = encoded(picture(mode), "JPEG", **KINDS[kind])
    expected = prepare(data)
    for whole in (data[:-2], data[:-1], data + b"trailing" * 500, data[:-2] + bytes(5000)):
        np.testing.assert_array_equal(prepare(whole), expected)
    for missing in (30, 100, len(data) // 4, len(data) // 2, len(data) - 900):
        for tail in (b"", bytes(5000)):
            with pytest.raises(ImageUnreadableError, match="JPEG"):
                prepare(data[:-missing] + tail)


def test_a_picture_cut_at_a_restart_marker_is_rejected() -> None:
    data = encoded(picture(), "JPEG", restart_marker_rows=1)
    for marker in (0xD0, 0xD3, 0xD7):
        at = data.rindex(bytes((0xFF, marker)))
        for cut in (at, at + 2):
            with pytest.raises(ImageUnreadableError, match="JPEG"):
                prepare(data[:cut])


def test_a_progressive_picture_without_its_last_scans_is_rejected() -> None:
    data = encoded(picture(), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xc4")  # the tables of the last scan
    with pytest.raises(ImageUnreadableError, match="JPEG"):
        prepare(data[:at])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_an_end_marker_after_missing_pixels_does_not_hide_them(mode: str) -> None:
    data = encoded(picture(mode), "JPEG")
    with pytest.raises(ImageUnreadableError, match="truncated"):
        prepare(data[: len(data) * 2 // 3] + END)


@pytest.mark.parametrize("kind", KINDS)
def test_gray_like_that_of_missing_pixels_is_accepted(kind: str) -> None:
    gray = encoded(Image.new("RGB", (300, 260), (128, 128, 128)), "JPEG", **KINDS[kind])
    for data in (gray, gray[:-2]):
        assert set(prepare(data).reshape(-1)) == {128}


def test_large_metadata_does_not_refuse_a_picture() -> None:
    data = encoded(picture(), "JPEG")
    segment = b"\xff\xe2" + (65535).to_bytes(2, "big") + b"MPF\0".ljust(65533, b"x")
    np.testing.assert_array_equal(prepare(data[:2] + segment * 60 + data[2:]), prepare(data))
    broken_profile = b"\xff\xe2" + (65535).to_bytes(2, "big") + b"ICC_PROFILE\0\1\2".ljust(65533, b"x")
    np.testing.assert_array_equal(prepare(data[:2] + broken_profile + data[2:]), prepare(data))


@pytest.mark.parametrize(
    ("marker", "precision", "name"),
    [(0xC1, 12, "12-bit JPEG"), (0xC3, 8, "lossless JPEG"), (0xC5, 8, "hierarchical JPEG"), (0xCB, 8, "lossless JPEG")],
)
def test_kinds_that_are_not_supported_are_named(marker: int, precision: int, name: str) -> None:
    data = bytearray(encoded(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    with pytest.raises(ImageFormatError, match=f"{name} is not supported.*Convert it to") as caught:
        prepare(bytes(data))
    assert caught.value.found == name
