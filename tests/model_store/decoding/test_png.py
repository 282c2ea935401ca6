"""PNG of every mode, with transparency, with ancillary chunks, and truncated."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_store.errors import ImageUnreadableError
from model_store.image import inspect_and_prepare, prepare
from tests.support.image_files import chunk, colors, encoded, png, scaled, square

GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
PICTURE = scaled(colors(), 8)


def difference(data: bytes, expected: NDArray[Any]) -> float:
    return float(np.abs(prepare(data).astype(int) - square(expected)).mean())


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_gray_of_every_depth_becomes_white(bits: int, interlaced: bool) -> None:
    gray = scaled(colors()[..., 0], bits)
    key = int(gray[10, 10])
    gray[50:150, 60:200] = key
    over = gray / (2**bits - 1) * 255
    assert difference(png(gray, bits, GRAY, interlaced=interlaced), over) < 1
    # The bits of the key above the depth of the picture mean nothing.
    body = struct.pack(">H", key | (0 if bits == 16 else 1 << 15))
    over[gray == key] = 255
    assert difference(png(gray, bits, GRAY, before=chunk(b"tRNS", body), interlaced=interlaced), over) < 1


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_rgb_is_compared_with_all_bits(bits: int) -> None:
    picture = scaled(colors(), bits)
    picture[:, :80], picture[:, 80:160] = 4660 >> (16 - bits), (4660 >> (16 - bits)) + 1  # differ in the lowest bit
    key = picture[0, 0]
    over = picture / (2**bits - 1) * 255
    over[:, :80] = 255
    data = png(picture, bits, RGB, before=chunk(b"tRNS", struct.pack(">HHH", *map(int, key))))
    assert difference(data, over) < 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("color_type", [GRAY_ALPHA, RGB_ALPHA])
def test_alpha_channels_are_blended_over_white(color_type: int, bits: int) -> None:
    values, alpha = colors(), colors()[..., 1:2]
    values = values if color_type == RGB_ALPHA else values[..., :1]
    over = (values * alpha + 1 - alpha) * 255
    data = png(scaled(np.concatenate([values, alpha], axis=-1), bits), bits, color_type)
    assert difference(data, over if color_type == RGB_ALPHA else over[..., 0]) < 1.5


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_with_partial_alpha_are_blended_over_white(bits: int) -> None:
    count = 2**bits
    palette = np.random.default_rng(bits).integers(0, 256, (count, 3))
    alpha = np.linspace(0, 1, count)[:, np.newaxis]
    indices = scaled(colors()[..., 0], bits)
    before = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    assert difference(png(indices, bits, PALETTE, before=before), palette[indices]) < 1.5
    before += chunk(b"tRNS", np.rint(alpha * 255).astype(np.uint8).tobytes())
    assert difference(png(indices, bits, PALETTE, before=before), (palette * alpha + 255 * (1 - alpha))[indices]) < 1.5


LARGE = zlib.compress(bytes(20_000_000))
ANCILLARY = {
    "large zTXt": (b"zTXt", b"Comment\0\0" + LARGE),
    "large iTXt": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "large tEXt": (b"tEXt", b"Comment\0" + b"x" * 2_000_000),
    "large iCCP": (b"iCCP", b"icc\0\0" + LARGE),
    "broken iCCP": (b"iCCP", b"icc\0\7"),
    "unknown method": (b"zTXt", b"Comment\0\7x"),
    "large eXIf": (b"eXIf", b"MM\0*" + b"\xff" * 1_000_000),
    "private": (b"prVt", b"x" * 1_000_000),
    "empty gAMA": (b"gAMA", b""),
    "empty cHRM": (b"cHRM", b""),
    "short tRNS": (b"tRNS", b"\0"),
    "empty acTL": (b"acTL", b""),
    "frames that do not follow": (b"acTL", struct.pack(">II", 9, 0)),
}


@pytest.mark.parametrize("name", ANCILLARY)
def test_ancillary_chunks_never_refuse_a_picture(name: str) -> None:
    plain = prepare(png(PICTURE, 8, RGB))
    for checksum in (None, 0):
        extra = chunk(*ANCILLARY[name], checksum)
        np.testing.assert_array_equal(prepare(png(PICTURE, 8, RGB, before=extra)), plain)
        np.testing.assert_array_equal(prepare(png(PICTURE, 8, RGB, after=extra)), plain)


@pytest.mark.parametrize("interlaced", [False, True])
def test_only_complete_pictures_are_accepted(interlaced: bool) -> None:
    whole = png(PICTURE, 8, RGB, interlaced=interlaced)
    plain = prepare(whole)
    for missing in (1, 4, 12, 16):  # IEND, and the checksum of IDAT
        np.testing.assert_array_equal(prepare(whole[:-missing]), plain)
    for missing in (200, 1000, len(whole) // 2, len(whole) - 60):
        with pytest.raises(ImageUnreadableError, match="PNG"):
            prepare(whole[:-missing])


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_complete_stream_with_too_few_rows_is_rejected(interlaced: bool) -> None:
    short = bytearray(png(PICTURE, 8, RGB, interlaced=interlaced))
    short[16:33] = chunk(b"IHDR", struct.pack(">IIBBBBB", 300, 270, 8, RGB, 0, 0, interlaced))[4:][4:]
    with pytest.raises(ImageUnreadableError, match="truncated"):
        prepare(bytes(short))
    black = np.zeros_like(PICTURE)
    assert prepare(png(black, 8, RGB, interlaced=interlaced)).max() == 0


def test_orientation_is_read_from_the_chunk_only() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    turned = inspect_and_prepare(png(PICTURE, 8, RGB, after=chunk(b"eXIf", body)))
    assert (turned.width, turned.height) == (260, 300)
    np.testing.assert_array_equal(turned.pixels, np.rot90(prepare(png(PICTURE, 8, RGB)), -1))
    assert inspect_and_prepare(encoded(Image.new("RGB", (20, 10)), "PNG", exif=exif)).width == 10
