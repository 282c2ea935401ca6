"""Preparing images of all formats, compared with a plain Pillow implementation of the paper's steps."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_store.errors import ShapeError
from model_store.image import encode_jpeg, inspect_and_prepare, prepare, views

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
}


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture with smooth colors and four different corners."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def prepare_with_pillow(image: Image.Image) -> NDArray[np.uint8]:
    """Scale the shorter side to 256 and crop the central 256x256, as in section 2 of the paper."""
    scale = 256 / min(image.size)
    scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (scaled.width - 256) // 2, (scaled.height - 256) // 2
    return np.asarray(scaled.crop((left, top, left + 256, top + 256)).convert("RGB"))


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (1200, 256), (100, 80), (640, 480)])
@pytest.mark.parametrize("form", LOSSLESS)
def test_every_format_and_size_gives_the_central_square_of_the_paper(form: str, size: tuple[int, int]) -> None:
    picture = photograph(*size)
    prepared = inspect_and_prepare(encoded(picture, form, **LOSSLESS[form]))
    assert (prepared.format, prepared.width, prepared.height) == (form, *size)
    assert prepared.pixels.shape == (256, 256, 3)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.pixels.flags.c_contiguous
    assert difference(prepared.pixels, prepare_with_pillow(picture)) < 1


def test_256_pixel_square_is_unchanged() -> None:
    picture = photograph(256, 256)
    np.testing.assert_array_equal(prepare(encoded(picture, "PNG")), np.asarray(picture))


@pytest.mark.parametrize("size", [(500, 375), (1023, 1024), (3000, 2001), (4032, 3024), (9000, 700)])
def test_jpeg_scaled_by_the_decoder_is_nearly_the_same_picture(size: tuple[int, int]) -> None:
    data = encoded(photograph(*size), "JPEG", quality=92)
    with Image.open(io.BytesIO(data)) as full:
        expected = prepare_with_pillow(full)
    found = prepare(data)
    assert difference(found, expected) < 1
    assert np.abs(found.astype(int) - expected).max() <= 12


def test_decoder_keeps_at_least_twice_the_target_size() -> None:
    # Fine detail: a decoder that scales below twice the target size would blur it (difference 7 instead of 1.3).
    fine = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    picture = Image.fromarray(fine).resize((1100, 1100), Image.Resampling.BICUBIC)
    data = encoded(picture, "JPEG", quality=95, subsampling=0)
    assert difference(prepare(data), prepare_with_pillow(picture)) < 2


def test_partial_last_column_does_not_shift_a_scaled_jpeg() -> None:
    edge = np.zeros((1025, 1025, 3), np.uint8)  # half of the width is 512.5 columns, which the decoder rounds up to 513
    edge[:, 980:] = 255
    found = prepare(encoded(Image.fromarray(edge), "JPEG", quality=95, subsampling=0))
    assert np.abs(found.astype(int) - prepare_with_pillow(Image.fromarray(edge))).max() < 20


def stored_with_orientation(upright: Image.Image, orientation: int) -> Image.Image:
    """Return the pixels that a camera stores for this EXIF orientation. Source: EXIF 2.32, 4.6.4 A."""
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    return upright.copy() if stored is None else upright.transpose(stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "size"), [("JPEG", (2400, 1800)), ("JPEG", (300, 400)), ("PNG", (400, 300))])
def test_exif_orientation_is_applied(form: str, size: tuple[int, int], orientation: int) -> None:
    upright = photograph(*size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    prepared = inspect_and_prepare(encoded(stored_with_orientation(upright, orientation), form, exif=exif))
    assert (prepared.width, prepared.height) == size
    assert difference(prepared.pixels, prepare_with_pillow(upright)) < 1.5
    assert prepared.pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["TIFF", "WEBP"])
def test_orientation_of_tiff_and_webp_is_applied_once(form: str, orientation: int) -> None:
    upright = photograph(400, 300)
    exif = Image.Exif()
    exif[0x0112] = orientation
    prepared = inspect_and_prepare(encoded(stored_with_orientation(upright, orientation), form, exif=exif))
    assert (prepared.width, prepared.height) == (400, 300)
    assert difference(prepared.pixels, prepare_with_pillow(upright)) < 3


def test_broken_exif_is_ignored() -> None:
    picture = photograph(300, 300)
    broken = encoded(picture, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    np.testing.assert_array_equal(prepare(broken), prepare(encoded(picture, "JPEG")))


def test_cmyk_is_converted_to_rgb() -> None:
    picture = photograph(320, 256)
    for form in ("JPEG", "TIFF"):
        assert difference(prepare(encoded(picture.convert("CMYK"), form)), prepare_with_pillow(picture)) < 2, form


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_gray_one_bit_and_palette_images_are_converted_to_rgb(mode: str) -> None:
    picture = photograph(300, 256).convert(mode)
    expected = prepare_with_pillow(picture.convert("L" if mode == "1" else "RGB"))
    for form in ("PNG", "TIFF", "BMP"):
        assert difference(prepare(encoded(picture, form)), expected) < 1, form


def ramp(dtype: Any, low: float, high: float) -> NDArray[Any]:
    return np.repeat(np.linspace(low, high, 256)[None], 256, axis=0).astype(dtype)


@pytest.mark.parametrize(
    ("form", "gray"),
    [
        ("PNG", ramp(np.uint16, 0, 65535)),
        ("TIFF", ramp(np.uint16, 0, 65535)),
        ("TIFF", ramp(">u2", 0, 65535)),
        ("TIFF", ramp(np.int32, 0, 255)),
        ("TIFF", ramp(np.int32, 0, 65535)),
        ("TIFF", ramp(np.int32, -4000, 2_000_000)),
        ("TIFF", ramp(np.float32, 0, 1)),
        ("TIFF", ramp(np.float32, 0, 255)),
        ("TIFF", ramp(np.float32, -2, 7)),
    ],
)
def test_deep_gray_images_are_scaled_not_clipped(form: str, gray: NDArray[Any]) -> None:
    found = prepare(encoded(Image.fromarray(gray), form))
    np.testing.assert_allclose(found[128, :, 0].astype(int), np.arange(256), atol=1)


def test_dark_16_bit_picture_stays_dark() -> None:
    assert prepare(encoded(Image.fromarray(ramp(np.uint16, 0, 2570)), "PNG")).max() == 10


def test_nan_and_infinity_are_black() -> None:
    gray = np.full((256, 256), 0.5, np.float32)
    gray[:128] = np.nan
    found = prepare(encoded(Image.fromarray(gray), "TIFF"))
    assert found[:120].max() == 0
    assert found[140:].min() == 128


def composed_over_white(picture: Image.Image) -> NDArray[np.uint8]:
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return prepare_with_pillow(white.convert("RGB"))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_become_white(form: str) -> None:
    picture = photograph(320, 260).convert("RGBA")
    alpha = np.zeros((260, 320), np.uint8)
    alpha[:130] = 255
    alpha[130:180] = 100
    picture.putalpha(Image.fromarray(alpha))
    assert difference(prepare(encoded(picture, form, **LOSSLESS[form])), composed_over_white(picture)) < 1
    assert (
        difference(
            prepare(encoded(picture.convert("LA"), "PNG")), composed_over_white(picture.convert("LA").convert("RGBA"))
        )
        < 1
    )


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_transparent_palette_colors_become_white(form: str) -> None:
    picture = Image.new("P", (256, 256), 0)
    picture.putpalette([200, 0, 0, 0, 0, 200])
    picture.paste(1, (0, 0, 256, 100))
    found = prepare(encoded(picture, form, transparency=0))
    assert found[200, 128].tolist() == [255, 255, 255]
    assert found[50, 128].tolist() == [0, 0, 200]


def test_transparent_color_of_an_rgb_png_becomes_white() -> None:
    picture = Image.new("RGB", (256, 256), (10, 20, 30))
    assert prepare(encoded(picture, "PNG", transparency=(10, 20, 30))).min() == 255


@pytest.mark.parametrize("size", [(1, 1), (10_000, 1), (1, 10_000), (2, 3)])
def test_very_small_and_very_long_pictures_are_accepted(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (9, 99, 199))
    for form in ("PNG", "JPEG", "TIFF"):
        assert np.abs(prepare(encoded(picture, form)).astype(int) - (9, 99, 199)).max() <= 2, form


def test_only_the_first_frame_is_used() -> None:
    frames = [photograph(256, 256, seed) for seed in range(3)]
    for form, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        many = prepare(encoded(frames[0], form, save_all=True, append_images=frames[1:], **options))
        assert difference(many, np.asarray(frames[0])) < 8, form
        assert difference(many, np.asarray(frames[1])) > 20, form


def test_concurrent_decoding_gives_the_same_pictures() -> None:
    files = [encoded(photograph(300 + 40 * seed, 300, seed), "JPEG") for seed in range(8)]
    alone = [prepare(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for index, pixels in enumerate(pool.map(prepare, files * 8)):
            np.testing.assert_array_equal(pixels, alone[index % 8])


def test_one_view_is_the_center_and_ten_views_match_the_paper() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(views(pixels[0]), pixels[:1, 16:240, 16:240])
    np.testing.assert_array_equal(views(pixels), pixels[:, 16:240, 16:240])
    ten = views(pixels, 10)
    assert ten.shape == (20, 224, 224, 3)
    for picture in range(2):
        for place, (top, left) in enumerate([(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]):
            crop = pixels[picture, top : top + 224, left : left + 224]
            np.testing.assert_array_equal(ten[10 * picture + place], crop)
            np.testing.assert_array_equal(ten[10 * picture + 5 + place], crop[:, ::-1])
    np.testing.assert_array_equal(views(pixels[1], 10), ten[10:])


def test_views_rejects_other_arrays_and_counts() -> None:
    with pytest.raises(ShapeError, match=r"256.*float32"):
        views(np.zeros((256, 256, 3), np.float32))
    with pytest.raises(ShapeError, match=r"\[224, 224, 3\]"):
        views(np.zeros((224, 224, 3), np.uint8))
    with pytest.raises(ValueError, match="1 or 10"):
        views(np.zeros((256, 256, 3), np.uint8), 3)


def test_encoded_jpeg_decodes_to_nearly_the_same_picture() -> None:
    pixels = prepare(encoded(photograph(400, 300), "PNG"))
    data = encode_jpeg(pixels)
    assert difference(prepare(data), pixels) < 2
    assert len(encode_jpeg(pixels, quality=30)) < len(data)
    with pytest.raises(ShapeError, match="float32"):
        encode_jpeg(pixels.astype(np.float32))
