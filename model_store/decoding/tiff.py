"""TIFF: every combination of depth, sample type and color space is decoded correctly or refused by name.

Guarantees: signed, unsigned and floating-point gray of 8 to 64 bits, WhiteIsZero at every depth, both byte orders.
Samples that Pillow has no mode for are read as bits of the same size, and interpreted here.
Out of scope: pages after the first; color with more than 16 bits a sample; CFA, LogLuv and other raw or HDR data.
References: TIFF 6.0, sections 3 to 6, 18, 19, 21 and 23; TIFF Technical Note 1 (BigTIFF).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImagePalette
from PIL.TiffImagePlugin import COMPRESSION_INFO, TiffImageFile

from model_store import errors
from model_store.decoding import depth
from model_store.decoding.formats import FORMATS
from model_store.decoding.source import Source

_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _PLANAR, _COLOR_MAP = 273, 274, 277, 278, 284, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _INK_SET, _FORMAT = 322, 323, 324, 332, 339
_PACKBITS = 32773
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_NAMES = {
    4: "transparency mask", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "color filter array", 34892: "linear raw",
    32844: "LogL", 32845: "LogLuv",
}  # fmt: skip
_DEPTHS = {
    _WHITE_IS_ZERO: (1, 2, 4, 8, 16),
    _BLACK_IS_ZERO: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _CMYK: (8, 16),
    _YCBCR: (8,),
    _LAB: (8,),
}
_MAX_SAMPLES = 16
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
# (bits, sample format) of gray -> (NumPy type, value of white; None if it follows from the values)
_GRAY: dict[tuple[int, int], tuple[str, float | None]] = {
    (8, _SIGNED): ("i1", None),
    (12, _UNSIGNED): ("u2", 4095),
    (16, _UNSIGNED): ("u2", 65535),
    (16, _SIGNED): ("i2", None),
    (16, _FLOAT): ("f2", None),
    (32, _UNSIGNED): ("u4", None),
    (32, _SIGNED): ("i4", None),
    (32, _FLOAT): ("f4", None),
    (64, _FLOAT): ("f4", None),  # Pillow converts double precision to single
}


class _TiffFile(TiffImageFile):
    """Pillow's TIFF file, with tags changed to the nearest combination that Pillow decodes without loss."""

    upright = 1
    inverted = False
    dtype: str | None = None
    white: float | None = None

    def _setup(self) -> None:
        tags = self.tag_v2
        # Pillow would transpose the whole picture.
        self.upright = tags.pop(_ORIENTATION, 1)
        bits, sample_format = _samples(tags)
        photometric = tags.get(_PHOTOMETRIC, 6 if tags.get(_COMPRESSION) == 6 else _WHITE_IS_ZERO)
        planar = tags.get(_PLANAR, 1) == 2 and len(bits) > 1
        if tags.get(_COMPRESSION) == 6:  # old JPEG; its tags are unreliable, and libtiff ignores them
            super()._setup()
            return
        _check_supported(tags, photometric, bits, sample_format)
        tags[_FORMAT] = (1,)
        # libtiff handles these by itself, but Pillow only calls it for compressed files. The file is not changed.
        by_libtiff = planar or photometric == _YCBCR or tags.get(_FILL_ORDER, 1) == 2
        if by_libtiff and tags.get(_COMPRESSION, 1) == 1:
            tags[_COMPRESSION] = _PACKBITS
        if tags.get(_FILL_ORDER, 1) == 2:
            tags[_FILL_ORDER] = 1
        depth_ = (bits[0], sample_format)
        if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and depth_ in _GRAY:
            self.dtype, self.white = _GRAY[depth_]
            self.inverted = photometric == _WHITE_IS_ZERO
            tags[_PHOTOMETRIC] = _BLACK_IS_ZERO
            self._setup_gray(bits[0])
        else:
            self._setup_known()
        if photometric == _PALETTE and max(tags[_COLOR_MAP]) < 256:  # written with 8 bits by mistake
            self.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOR_MAP]))
        self._check_parts()

    def _setup_known(self) -> None:
        try:
            super()._setup()
        except SyntaxError as exc:  # Pillow does not know the combination
            raise _unsupported("this combination of samples") from exc

    def _setup_gray(self, bits: int) -> None:
        """Set up tiles that copy the bits of each sample, in the byte order of this machine where Pillow can."""
        tags = self.tag_v2
        little = tags.prefix[:2] == b"II"
        mode, raw = {
            8: ("L", "L"),
            12: ("I;16", "I;12"),
            16: ("I;16", "I;16" if little else "I;16B"),
            32: ("I", "I;32S" if little else "I;32BS"),
            64: ("F", "F;64F" if little else "F;64BF"),
        }[bits]
        # The tags of a layout that Pillow knows, in which a pixel has 8, 16 or 32 bits
        tags[_BITS] = (min(32, 16 if bits == 12 else bits),)
        if bits in (32, 64):
            tags[_FORMAT] = (_SIGNED,)
        self._setup_known()
        self._mode = mode
        if self.use_load_libtiff:  # always the byte order of this machine
            raw = {16: "I;16N", 32: "I;32N", 64: "F;64NF"}.get(bits, raw)
        tiles = []
        for tile in self.tile:
            _, stride, *rest = tile.args if isinstance(tile.args, tuple) else (raw, 0)
            if not self.use_load_libtiff:  # bytes between the rows of a tile that is wider than the picture
                stride = stride * bits // tags[_BITS][0]
            tiles.append(tile._replace(args=(raw, stride, *rest)))
        self.tile = tiles

    def _check_parts(self) -> None:
        """Raise OSError if there are fewer strips or tiles than the picture has; Pillow would leave them black."""
        if self.use_load_libtiff:
            return
        width, height = self._tile_size
        tags = self.tag_v2
        if _STRIP_OFFSETS in tags:
            expected, found = -(-height // max(1, tags.get(_ROWS_PER_STRIP, height))), len(tags[_STRIP_OFFSETS])
        else:
            across, down = max(1, tags[_TILE_WIDTH]), max(1, tags[_TILE_HEIGHT])
            expected, found = -(-width // across) * -(-height // down), len(tags[_TILE_OFFSETS])
        if found < expected:
            raise OSError(f"only {found} of {expected} strips or tiles are in the file")

    def load_end(self) -> None:
        """Do nothing: Pillow would read all metadata, and transpose the whole picture."""


class TiffSource(Source):
    """The first page of a TIFF file."""

    image: _TiffFile

    def __init__(self, data: bytes) -> None:
        """Read the first directory. Raises ImageFormatError for combinations that are not supported."""
        if data.startswith(b"MM\0+"):
            raise _unsupported("64-bit offsets in big-endian order (BigTIFF)")
        super().__init__(_TiffFile(io.BytesIO(data)))
        self._span: tuple[float, float] | None = None

    def load(self) -> None:
        """Decode the pixels, and find the range of wide values."""
        super().load()
        if self.image.dtype and self.image.white is None:
            self._span = depth.value_range(self._values(band) for _, band in self.bands())
        elif self.image.white is not None:
            self._span = (0, self.image.white)

    def orientation(self) -> int:
        """Return the tag Orientation."""
        return self.image.upright if isinstance(self.image.upright, int) else 1

    def is_direct(self) -> bool:
        """Return whether the decoded picture can be resampled as it is."""
        return self._span is None and super().is_direct()

    def resamplable(self, band: Image.Image) -> Image.Image:
        """Convert a band to 8-bit gray or color, with or without alpha."""
        if self._span is not None:
            gray = depth.eight_bits(self._values(band), self._span)
            return Image.fromarray(255 - gray if self.image.inverted else gray)
        return super().resamplable(band)

    def _values(self, band: Image.Image) -> NDArray[np.generic]:
        values = np.asarray(band)
        return values.view(np.dtype(self.image.dtype).newbyteorder(values.dtype.byteorder))


def _samples(tags: Mapping[int, Any]) -> tuple[tuple[int, ...], int]:
    """Return the bits of each sample, and their common format: 0 if they differ."""
    count = tags.get(_SAMPLES, 3 if tags.get(_COMPRESSION) == 6 else 1)
    bits = tuple(tags.get(_BITS, (1,)))
    formats = {_UNSIGNED if value == _UNDEFINED else value for value in tags.get(_FORMAT, (_UNSIGNED,))}
    if tags.get(_PHOTOMETRIC) == _LAB:  # a and b are signed by definition, whatever the tag says
        formats = {_UNSIGNED}
    bits = bits * min(count, _MAX_SAMPLES) if len(bits) == 1 else bits[:count]
    return bits, formats.pop() if len(formats) == 1 else 0


def _check_supported(tags: Mapping[int, Any], photometric: int, bits: tuple[int, ...], sample_format: int) -> None:
    """Raise ImageFormatError for combinations that cannot be decoded correctly."""
    if photometric not in _CHANNELS:
        raise _unsupported(f"the color space {_NAMES.get(photometric, photometric)}")
    if tags.get(_COMPRESSION, 1) not in COMPRESSION_INFO:
        raise _unsupported(f"the compression {tags.get(_COMPRESSION)}")
    channels, planar = _CHANNELS[photometric], tags.get(_PLANAR, 1) == 2
    gray = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    if len(set(bits)) != 1 or not sample_format:
        raise _unsupported("samples of different types")
    kind = (bits[0], sample_format)
    deep = gray and len(bits) == 1 and kind in _GRAY
    if not deep and (sample_format != _UNSIGNED or bits[0] not in _DEPTHS[photometric]):
        name = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "floating-point"}.get(sample_format, "complex")
        raise _unsupported(f"{len(bits)} {name} {bits[0]}-bit samples a pixel")
    if len(bits) > channels and (bits[0] < 8 or (planar and (gray or len(bits) > 4))):
        raise _unsupported(f"{len(bits)} samples a pixel")
    if len(bits) == 2 and photometric == _WHITE_IS_ZERO:
        raise _unsupported("alpha and white as zero")
    if photometric == _LAB and planar:
        raise _unsupported("L*a*b* in separate planes")
    if photometric == _CMYK and tags.get(_INK_SET, 1) != 1:
        raise _unsupported("inks other than CMYK")


def _unsupported(what: str) -> errors.ImageFormatError:
    return errors.ImageFormatError(f"TIFF with {what}", FORMATS, "Convert it to 8-bit or 16-bit gray, or 8-bit RGB")
