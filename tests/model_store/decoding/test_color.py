"""ICC profiles and color chunks are converted to sRGB, and useless profiles are ignored."""

from __future__ import annotations

import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from model_store.decoding.color import MAX_PROFILE_BYTES, TransformCache, coded_profile, matrix_profile, to_srgb
from model_store.image import prepare
from tests.support.image_files import chunk, colors, encoded, png, scaled, square

P3, ADOBE = coded_profile(12, 13), matrix_profile(((0.3127, 0.329), (0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 2.2)
# Linear P3 and Adobe RGB (1998) to linear sRGB, from the chromaticities; computed independently of the code under test.
P3_TO_SRGB = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
ADOBE_TO_SRGB = np.array([[1.3984, -0.3984, 0.0], [0.0, 1.0, 0.0], [0.0, -0.0429, 1.0429]])
PICTURE = scaled(0.2 + 0.6 * colors(), 8).astype(np.uint8)


def srgb_curve(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_linear(stored: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)


P3_AS_SRGB = 255 * srgb_curve(srgb_linear(PICTURE / 255) @ P3_TO_SRGB.T)
ADOBE_AS_SRGB = 255 * srgb_curve((PICTURE / 255) ** 2.2 @ ADOBE_TO_SRGB.T)


def difference(data: bytes, expected: NDArray[Any]) -> float:
    return float(np.abs(prepare(data).astype(int) - square(expected)).mean())


def gray_profile(gamma: float) -> bytes:
    """Return an ICC profile of gray with this gamma."""
    curve = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(gamma * 256)) + b"\0\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">III", 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
    header = struct.pack(">II4s4s4s4s", 192, 0, b"\2\x10\0\0", b"mntr", b"GRAY", b"XYZ ").ljust(36, b"\0") + b"acsp"
    return (header.ljust(68, b"\0") + white[8:]).ljust(128, b"\0") + table + white + curve


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}),
     ("AVIF", {"quality": 95, "subsampling": "4:4:4"})],
)  # fmt: skip
def test_profiles_of_every_format_are_converted(form: str, options: dict[str, Any]) -> None:
    picture = Image.fromarray(PICTURE)
    assert difference(encoded(picture, form, icc_profile=P3, **options), P3_AS_SRGB) < 1.5
    assert difference(encoded(picture, form, icc_profile=ADOBE, **options), ADOBE_AS_SRGB) < 1.5
    assert np.abs(ADOBE_AS_SRGB - PICTURE).mean() > 5


def test_color_is_converted_before_alpha_is_blended() -> None:
    alpha = colors()[..., 2:]
    picture = Image.fromarray(np.concatenate([PICTURE, scaled(alpha, 8).astype(np.uint8)], axis=-1))
    assert difference(encoded(picture, "PNG", icc_profile=P3), P3_AS_SRGB * alpha + 255 * (1 - alpha)) < 1.5


def test_gray_profiles_are_converted() -> None:
    gray = PICTURE[..., 0]
    expected = 255 * srgb_curve((gray / 255) ** 1.0)
    for form in ("PNG", "TIFF", "JPEG"):
        assert difference(encoded(Image.fromarray(gray), form, icc_profile=gray_profile(1.0)), expected) < 1.5


def test_cmyk_profiles_are_used() -> None:
    # Little CMS can make a CMYK profile only from a transform: take the ink of the naive conversion, darkened.
    lab = ImageCms.createProfile("LAB")
    cmyk = Image.fromarray(PICTURE).convert("CMYK")
    data = ImageCms.ImageCmsProfile(lab).tobytes()
    np.testing.assert_array_equal(np.asarray(to_srgb(cmyk, data)), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize(
    "profile",
    [b"", b"x", bytes(200), (P3 or b"")[:200], (P3 or b"")[:-40], gray_profile(2.2), b"\0" * (MAX_PROFILE_BYTES + 1)],
    ids=["empty", "one byte", "zeros", "header", "truncated", "gray", "too large"],
)
def test_unusable_profiles_are_ignored(profile: bytes) -> None:
    picture = Image.fromarray(PICTURE)
    np.testing.assert_array_equal(np.asarray(to_srgb(picture, profile)), PICTURE)
    assert difference(encoded(picture, "TIFF", icc_profile=profile), PICTURE) < 0.5


def test_damaged_profiles_never_raise() -> None:
    random, picture = np.random.default_rng(0), Image.fromarray(PICTURE[:8, :8])
    for _ in range(300):
        damaged = np.frombuffer(P3 or b"", np.uint8).copy()
        damaged[random.integers(0, len(damaged), 6)] = random.integers(0, 256, 6)
        assert to_srgb(picture, damaged.tobytes()).mode == "RGB"


def test_srgb_profiles_change_nothing_and_cost_little() -> None:
    picture = Image.fromarray(PICTURE)
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), coded_profile(1, 13)):
        to_srgb(picture, profile)
        started = time.perf_counter()
        for _ in range(50):
            np.testing.assert_array_equal(np.asarray(to_srgb(picture, profile)), PICTURE)
        assert time.perf_counter() - started < 0.5


def test_color_chunks_of_png_have_the_order_of_precedence_of_the_standard() -> None:
    p3 = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
    gamma, linear = chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"gAMA", struct.pack(">I", 100000))
    white_p3_22 = 255 * srgb_curve((PICTURE / 255) ** 2.2 @ P3_TO_SRGB.T)
    standard, profile = chunk(b"sRGB", b"\0"), io.BytesIO()
    Image.fromarray(PICTURE).save(profile, "PNG", icc_profile=P3)
    icc = profile.getvalue()[33:]
    icc = icc[: 12 + int.from_bytes(icc[:4], "big")]
    for before, expected in (
        (gamma + p3, white_p3_22),
        (linear, PICTURE),  # without primaries it is ignored, as in browsers
        (standard + linear + p3, PICTURE),
        (icc + standard, P3_AS_SRGB),
        (chunk(b"cICP", b"\x0c\x0d\0\1") + standard, P3_AS_SRGB),
        (chunk(b"cICP", b"\x09\x10\0\1"), PICTURE),  # PQ
        (chunk(b"cHRM", bytes(32)) + gamma, PICTURE),
        (chunk(b"cHRM", b"\xff" * 32) + gamma, PICTURE),
    ):
        assert difference(png(PICTURE.astype(np.uint16), 8, 2, before=before), expected) < 1.5, before


def test_cache_is_bounded_and_shared_by_threads() -> None:
    cache = TransformCache(2)
    profiles = [matrix_profile(((0.3127, 0.329), (0.64, 0.33), (0.3, 0.6), (0.15, 0.06)), gamma) for gamma in (1, 2, 3)]
    transforms = [cache.get(profile or b"", "RGB") for profile in profiles]
    assert cache.get(profiles[2] or b"", "RGB") is transforms[2]
    assert cache.get(profiles[0] or b"", "RGB") is not transforms[0]
    data = [encoded(Image.fromarray(np.roll(PICTURE, shift)), "PNG", icc_profile=P3) for shift in range(8)]
    alone = [prepare(each) for each in data]
    with ThreadPoolExecutor(8) as pool:
        for number, pixels in enumerate(pool.map(prepare, data * 4)):
            np.testing.assert_array_equal(pixels, alone[number % 8])
