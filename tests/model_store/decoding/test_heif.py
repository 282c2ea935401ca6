"""AVIF and HEIC: brands, orientation, sequences, and the missing extra."""

from __future__ import annotations

import io
import struct
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_store.decoding.formats import format_of
from model_store.errors import ImageFormatError, ImageUnreadableError
from model_store.image import inspect_and_prepare, prepare
from tests.support.image_files import colors, encoded, scaled, square

PICTURE = scaled(colors(), 8).astype(np.uint8)


def heic(pixels: NDArray[np.uint8], exif: bytes | None = None) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file, picture = io.BytesIO(), Image.fromarray(pixels)
    if exif:
        picture.info["exif"] = exif  # its orientation becomes that of the container
    pillow_heif.from_pillow(picture).save(file, quality=95)
    return file.getvalue()


def with_brands(data: bytes, major: bytes, *compatible: bytes) -> bytes:
    """Replace the file type box; the item locations keep their meaning, because the box keeps its size."""
    size = struct.unpack(">I", data[:4])[0]
    brands = b"".join(compatible).ljust(size - 16, b"\0")
    return data[:8] + major + bytes(4) + brands + data[size:]


@pytest.mark.parametrize("brand", [b"avif", b"mif1", b"msf1", b"miaf"])
def test_avif_is_recognized_by_all_brands(brand: bytes) -> None:
    data = encoded(Image.fromarray(PICTURE), "AVIF", quality=95)
    prepared = inspect_and_prepare(with_brands(data, brand, b"avif", b"mif1"))
    assert prepared.format == "AVIF"
    assert np.abs(prepared.pixels.astype(int) - square(PICTURE)).mean() < 2


@pytest.mark.parametrize(
    "brand",
    [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"MiHE", b"MiHB", b"miaf", b"1pic"],
)
def test_heic_is_recognized_by_all_brands(brand: bytes) -> None:
    data = with_brands(heic(PICTURE), brand, b"mif1", b"heic")
    assert format_of(data) == "HEIC"
    if brand != b"1pic":
        assert np.abs(prepare(data).astype(int) - square(PICTURE)).mean() < 2


@pytest.mark.parametrize(
    ("major", "compatible", "name"),
    [
        (b"isom", b"iso2", "MP4"),
        (b"qt  ", b"heic", "MP4"),
        (b"mp42", b"avif", "MP4"),
        (b"jpeg", b"mif1", "HEIF with JPEG"),
        (b"mif1", b"vvic", "HEIF with VVC"),
        (b"mif1", b"miaf", "HEIF"),
        (b"crx ", b"isom", "CR3"),
    ],
)
def test_other_files_of_the_container_are_named(major: bytes, compatible: bytes, name: str) -> None:
    with pytest.raises(ImageFormatError, match=f"The format {name}"):
        format_of(b"\0\0\0\x14ftyp" + major + bytes(4) + compatible)


def test_items_decide_where_the_brands_are_general() -> None:
    for kind, form in ((b"av01", "AVIF"), (b"hvc1", "HEIC")):
        box = b"infe\2\0\0\0\0\1\0\0" + kind
        assert format_of(b"\0\0\0\x14ftypmif1\0\0\0\0miaf" + struct.pack(">I", 8 + len(box)) + box) == form


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_avif_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = PICTURE
    upright = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1]]
    turned = pixels.transpose(1, 0, 2)
    upright += [turned, turned[:, ::-1], turned[::-1, ::-1], turned[::-1]]
    prepared = inspect_and_prepare(encoded(Image.fromarray(pixels), "AVIF", quality=95, exif=exif))
    assert (prepared.width, prepared.height) == ((260, 300) if orientation > 4 else (300, 260))
    assert np.abs(prepared.pixels.astype(int) - square(upright[orientation - 1])).mean() < 2


def test_orientation_of_heic_is_applied_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = bytearray(heic(PICTURE, exif.tobytes()))  # has a box irot, and EXIF that says the same
    at = data.index(b"irot") + 4
    data[at] = 0
    stored = prepare(bytes(data))
    for turns in range(4):
        data[at] = turns
        prepared = inspect_and_prepare(bytes(data))
        assert (prepared.width, prepared.height) == ((260, 300) if turns % 2 else (300, 260))
        np.testing.assert_array_equal(prepared.pixels, np.rot90(stored, turns))
    exif[0x0112] = 2
    data = bytearray(heic(PICTURE, exif.tobytes()))
    at = data.index(b"imir") + 4
    data[at] = 1
    mirrored = prepare(bytes(data))
    data[at] = 0
    np.testing.assert_array_equal(prepare(bytes(data)), mirrored[::-1, ::-1])


def test_first_frame_of_a_sequence() -> None:
    frames = [Image.fromarray(pixels) for pixels in (PICTURE, 255 - PICTURE)]
    data = encoded(frames[0], "AVIF", quality=95, save_all=True, append_images=frames[1:])
    assert np.abs(prepare(data).astype(int) - square(PICTURE)).mean() < 2


def test_alpha_is_blended_over_white() -> None:
    alpha = colors()[..., 2:]
    pixels = np.concatenate([PICTURE, scaled(alpha, 8).astype(np.uint8)], axis=-1)
    for data in (encoded(Image.fromarray(pixels), "AVIF", quality=95), heic(pixels)):
        expected = square(PICTURE * alpha + 255 * (1 - alpha))
        assert np.abs(prepare(data).astype(int) - expected).mean() < 3


def test_color_properties_of_avif_are_used() -> None:
    data = encoded(Image.fromarray(PICTURE), "AVIF", quality=95)
    at = data.index(b"colrnclx") + 8
    p3 = data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :]
    assert np.abs(prepare(p3).astype(int) - prepare(data)).mean() > 3


def test_truncated_files_are_rejected() -> None:
    for data in (encoded(Image.fromarray(PICTURE), "AVIF"), heic(PICTURE)):
        for share in (0.1, 0.5, 0.9):
            with pytest.raises(ImageUnreadableError):
                prepare(data[: int(len(data) * share)])


def test_the_error_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(PICTURE)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageFormatError, match=r'HEIC is not supported.*pip install "fc7\[heic\]"') as caught:
        prepare(data)
    assert "HEIC" not in caught.value.supported
