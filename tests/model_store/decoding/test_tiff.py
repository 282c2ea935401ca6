"""TIFF: depths, sample types, color spaces and layouts are decoded correctly or refused by name."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from model_store.errors import ImageFormatError, ImageUnreadableError
from model_store.image import inspect_and_prepare, prepare
from tests.support.image_files import REVERSED, colors, encoded, packed, scaled, square, tiff

VALUES = colors()
RAMP = (VALUES[..., 0] - VALUES[..., 0].min()) / np.ptp(VALUES[..., 0])
TYPES: dict[str, NDArray[Any]] = {
    "int8": np.rint(RAMP * 255 - 128).astype(np.int8),
    "uint16": np.rint(RAMP * 65535).astype(np.uint16),
    "int16": np.rint(RAMP * 65535 - 32768).astype(np.int16),
    "uint32": np.rint(RAMP * (2**32 - 1)).astype(np.uint32),
    "int32": np.rint(RAMP * 4e9 - 2e9).astype(np.int32),
    "float16": RAMP.astype(np.float16),
    "float32": RAMP.astype(np.float32),
    "float64": RAMP.astype(np.float64),
}
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"rowsperstrip": 37},
    {"tile": (64, 80)},
    {"compression": "zlib", "predictor": True},
    {"compression": "zlib", "tile": (64, 80)},
    {"bigtiff": True},
)


def written(tmp_path: Any, pixels: NDArray[Any], **options: Any) -> bytes:
    tifffile.imwrite(tmp_path / "picture.tif", pixels, **options)
    return bytes((tmp_path / "picture.tif").read_bytes())


def difference(data: bytes, expected: NDArray[Any]) -> float:
    return float(np.abs(prepare(data).astype(int) - square(expected)).mean())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_gray_of_every_type(tmp_path: Any, dtype: str, inverted: bool, order: str) -> None:
    expected = (1 - RAMP if inverted else RAMP) * 255
    for layout in LAYOUTS:
        options = {"photometric": "miniswhite" if inverted else "minisblack", "byteorder": order, **layout}
        if dtype.startswith("float"):
            options.pop("predictor", None)  # see the next test
        data = written(tmp_path, TYPES[dtype], **options)
        if data.startswith(b"MM\0+"):
            with pytest.raises(ImageFormatError, match="BigTIFF"):
                prepare(data)
        else:
            assert difference(data, expected) < 1, layout


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating_point_predictor(dtype: str) -> None:
    rows = TYPES[dtype].astype(TYPES[dtype].dtype.newbyteorder(">"))
    planes = rows.view(np.uint8).reshape(260, 300, -1).transpose(0, 2, 1).reshape(260, -1)  # highest bytes first
    strip = zlib.compress(np.diff(planes, axis=1, prepend=np.uint8(0)).tobytes())
    bits = 8 * rows.dtype.itemsize
    tags = {256: 300, 257: 260, 258: bits, 259: 8, 262: 1, 277: 1, 278: 260, 317: 3, 339: 3}
    for order in "<>":
        assert difference(tiff(tags, [strip], order), RAMP * 255) < 1


@pytest.mark.parametrize("fill_order", [1, 2])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_gray_of_every_depth(bits: int, inverted: bool, fill_order: int) -> None:
    gray = scaled(RAMP, bits)
    expected = gray / (2**bits - 1) * 255
    for order in "<>":
        rows = [row.astype(order + "u2").tobytes() if bits == 16 else packed(row, bits) for row in gray]
        strips = [b"".join(rows[:130]), b"".join(rows[130:])]
        for compression in (1, 8):
            data = [zlib.compress(strip) if compression == 8 else strip for strip in strips]
            data = [strip.translate(REVERSED) for strip in data] if fill_order == 2 else data
            tags = {256: 300, 257: 260, 258: bits, 259: compression, 262: int(not inverted), 266: fill_order, 278: 130}
            assert difference(tiff(tags, data, order), 255 - expected if inverted else expected) < 1, (
                order,
                compression,
            )


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [None, "unassalpha", "assocalpha", "unspecified"])
def test_color_with_extra_samples(tmp_path: Any, extra: str | None, bits: int, planar: str) -> None:
    alpha = 0.4 + 0.6 * VALUES[..., 2:]
    pixels, expected = VALUES, VALUES
    if extra in ("unassalpha", "assocalpha"):
        expected = VALUES * alpha + 1 - alpha
    if extra:
        pixels = np.concatenate([VALUES * alpha if extra == "assocalpha" else VALUES, alpha], axis=-1)
    samples = scaled(pixels, bits).astype(np.uint8 if bits == 8 else np.uint16)
    samples = np.moveaxis(samples, -1, 0) if planar == "separate" else samples
    for layout in LAYOUTS:
        options = {"photometric": "rgb", "planarconfig": planar, "extrasamples": [extra] if extra else None, **layout}
        assert difference(written(tmp_path, samples, **options), expected * 255) < 1.5, layout


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_cmyk(tmp_path: Any, planar: str, bits: int) -> None:
    samples = scaled(np.concatenate([1 - VALUES, 0 * VALUES[..., :1]], axis=-1), bits)
    samples = samples.astype(np.uint8) if bits == 8 else samples
    samples = np.moveaxis(samples, -1, 0) if planar == "separate" else samples
    assert difference(written(tmp_path, samples, photometric="separated", planarconfig=planar), VALUES * 255) < 1.5


def test_lab(tmp_path: Any) -> None:
    picture = Image.fromarray(scaled(VALUES, 8).astype(np.uint8))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(picture)
    for data in (
        written(tmp_path, np.asarray(lab), photometric="cielab"),
        encoded(lab, "TIFF", compression="tiff_lzw"),
    ):
        assert difference(data, np.asarray(picture)) < 5  # the corners of this picture are outside 8-bit L*a*b*
    with pytest.raises(ImageFormatError, match="L\\*a\\*b\\* in separate planes"):
        prepare(written(tmp_path, np.moveaxis(np.asarray(lab), -1, 0), photometric="cielab", planarconfig="separate"))


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_ycbcr_without_jpeg(subsampling: tuple[int, int], compression: int) -> None:
    picture = Image.fromarray(scaled(VALUES, 8).astype(np.uint8))
    luma, *chroma = np.moveaxis(np.asarray(picture.convert("YCbCr")), -1, 0)
    across, down = subsampling
    blocks = [
        luma.reshape(260 // down, down, 300 // across, across).swapaxes(1, 2).reshape(260 // down, 300 // across, -1)
    ]
    for plane in chroma:
        means = plane.reshape(260 // down, down, 300 // across, across).mean(axis=(1, 3))
        blocks.append(np.rint(means).astype(np.uint8)[..., np.newaxis])
    strip = np.concatenate(blocks, axis=-1).tobytes()
    strip = zlib.compress(strip) if compression == 8 else strip
    tags: dict[int, int | Sequence[int]] = {256: 300, 257: 260, 258: [8] * 3, 259: compression}
    tags |= {262: 6, 277: 3, 278: 260, 530: subsampling}
    assert difference(tiff(tags, [strip]), np.asarray(picture)) < 2


@pytest.mark.parametrize("scale", [1, 257])
def test_palettes_with_8_and_16_bits(tmp_path: Any, scale: int) -> None:
    palette = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) * 7 % 256]).astype(np.uint16)
    indices = scaled(RAMP, 8).astype(np.uint8)
    data = written(tmp_path, indices, photometric="palette", colormap=palette * scale)
    assert difference(data, palette.T[indices]) < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int) -> None:
    gray = scaled(RAMP, 8)
    tags = {256: 300, 257: 260, 258: 8, 262: 1, 274: orientation, 277: 1, 278: 260}
    prepared = inspect_and_prepare(tiff(tags, [gray.astype(np.uint8).tobytes()]))
    assert (prepared.width, prepared.height) == ((260, 300) if orientation > 4 else (300, 260))
    upright = [
        gray,
        gray[:, ::-1],
        gray[::-1, ::-1],
        gray[::-1],
        gray.T,
        gray.T[:, ::-1],
        gray.T[::-1, ::-1],
        gray.T[::-1],
    ]
    assert np.abs(prepared.pixels.astype(int) - square(upright[orientation - 1])).mean() < 0.5


@pytest.mark.parametrize(
    ("dtype", "options", "name"),
    [
        ("float32", {"photometric": "rgb"}, "3 floating-point 32-bit samples"),
        ("uint32", {"photometric": "rgb"}, "3 unsigned 32-bit samples"),
        ("int16", {"photometric": "rgb"}, "3 signed 16-bit samples"),
        ("uint8", {"photometric": "icclab"}, "ICC L"),
    ],
)
def test_unsupported_combinations_are_named(tmp_path: Any, dtype: str, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ImageFormatError, match=f"TIFF with .*{name}.* is not supported"):
        prepare(written(tmp_path, np.ones((40, 30, 3), dtype), **options))


@pytest.mark.parametrize("value", [0.0, 0.5, -7.0, 1e9, -1e-38, np.nan, np.inf])
def test_pictures_of_one_value(tmp_path: Any, value: float) -> None:
    pixels = prepare(written(tmp_path, np.full((30, 40), value, np.float32)))
    assert set(pixels.reshape(-1)) == {128 if value == 0.5 else 0}


def test_missing_strips_are_rejected() -> None:
    half = scaled(RAMP, 8)[:130].astype(np.uint8).tobytes()
    for compression in (1, 8):
        strip = zlib.compress(half) if compression == 8 else half
        for rows in (130, 260):
            tags = {256: 300, 257: 260, 258: 8, 259: compression, 262: 1, 277: 1, 278: rows}
            with pytest.raises(ImageUnreadableError, match="TIFF"):
                prepare(tiff(tags, [strip]))
