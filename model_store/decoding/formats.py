"""Recognize the format of an image file by its first bytes.

Guarantees: the content decides, never the file name. The time is linear in the examined bytes: there are no regular
expressions. A format that is known but not supported is named in the error.
Out of scope: whether the rest of the file is complete; the decoder finds out.
References: ISO/IEC 14496-12 (`ftyp`, `meta`), ISO/IEC 23008-12 (HEIF brands), ISO/IEC 23000-22 (MIAF brands), AVIF 1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from model_store import errors

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")
"""The formats that `format_of` returns. HEIC can be decoded only with the extra `heic`."""

SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".avif", ".heic", ".heif"),
)
"""The file names, in lower case, that are taken for images in folders and archives."""

_HEAD = 1024
# Boxes of HEIF files that are examined for item types. Files with more than this before their items are rare.
_META = 65536

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_UNSUPPORTED = (
    (b"%PDF-", "PDF"),
    (b"8BPS", "PSD"),
    (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"%!PS", "PostScript"),
    (b"IIRO", "ORF (raw)"),
    (b"IIRS", "ORF (raw)"),
    (b"IIU\0", "RW2 (raw)"),
    (b"FUJIFILMCCD-RAW", "RAF (raw)"),
)

# Brand -> format. A file names one major brand and a list of compatible brands.
_BRANDS: dict[bytes, str] = {
    **dict.fromkeys((b"avif", b"avis", b"avio", b"MA1A", b"MA1B"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    **dict.fromkeys((b"MiHA", b"MiHB", b"MiHE"), "HEIC"),
    **dict.fromkeys((b"jpeg", b"jpgs"), "HEIF with JPEG"),
    **dict.fromkeys((b"avci", b"avcs", b"MiAB"), "HEIF with AVC"),
    **dict.fromkeys((b"vvic", b"vvis"), "HEIF with VVC"),
    **dict.fromkeys((b"j2ki", b"j2is"), "HEIF with JPEG 2000"),
    b"crx ": "CR3 (raw)",
}
# Brands that say only that the file has the structure of HEIF. Its items then decide.
_GENERAL_BRANDS = (b"mif1", b"mif2", b"msf1", b"miaf", b"1pic", b"MiPr", b"MiAn", b"MiCm", b"pict")
# Type of an item in `iinf` -> format
_ITEMS = {
    b"av01": "AVIF",
    b"hvc1": "HEIC",
    b"lhv1": "HEIC",
    b"jpeg": "HEIF with JPEG",
    b"avc1": "HEIF with AVC",
    b"vvc1": "HEIF with VVC",
    b"j2k1": "HEIF with JPEG 2000",
    b"unci": "HEIF without compression",
}


def format_of(data: bytes) -> str:
    """Return which of `FORMATS` the image file `data` has, from its first bytes.

    Raises ImageUnreadableError (empty, or no known format) and ImageFormatError (a known format, but not supported).
    """
    if not data:
        raise errors.ImageUnreadableError("the data is empty")
    head = bytes(data[:_HEAD])
    form = next((form for signature, form in _SIGNATURES if head.startswith(signature)), None)
    if form is None and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        form = "WEBP"
    if form is None and head[4:8] == b"ftyp":
        form = _heif_format(data)
    form = form or _unsupported(head)
    if form is None:
        raise errors.ImageUnreadableError(f"the first bytes are not those of a known image format ({head[:8]!r})")
    if form not in FORMATS:
        raise errors.ImageFormatError(form, FORMATS)
    return form


def _unsupported(head: bytes) -> str | None:
    form = next((form for signature, form in _UNSUPPORTED if head.startswith(signature)), None)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:4] in (b"\0\0\1\0", b"\0\0\2\0") and head[4:5] not in (b"", b"\0"):
        form = "ICO"
    elif head[:1] == b"P" and b"1" <= head[1:2] <= b"7" and head[2:3].isspace():
        form = "PNM"
    elif head[:4] in (b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0") and head[12:14] == b"\1\0":
        form = "BMP without a file header"
    elif text.startswith(b"<") and b"<svg" in text:
        form = "SVG"
    return form


def _heif_format(data: bytes) -> str:
    """Return the format of a file in the ISO base media format, by its brands and, if they are general, its items."""
    end = max(16, min(int.from_bytes(data[:4], "big"), _HEAD))
    major = bytes(data[8:12])
    brands = [major, *(bytes(data[at : at + 4]) for at in range(16, end, 4))]
    found = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    if major in _BRANDS:
        return found[0]
    if any(brand in _GENERAL_BRANDS for brand in brands):
        # The first format in the list is preferred by the writer. Items are more reliable than compatible brands.
        return next(iter(_item_formats(data)), None) or (found[0] if found else "HEIF")
    # Video files may name still picture brands among the compatible ones, if they also contain a picture.
    return found[0] if found and major[:2] not in (b"qt", b"is", b"mp", b"M4", b"3g") else "MP4 (video)"


def _item_formats(data: bytes) -> Iterator[str]:
    """Yield the formats of the items that the `infe` boxes at the start of the file list."""
    head = bytes(data[:_META])
    at = head.find(b"infe")
    while at >= 0:
        # infe: version and flags (4 bytes), item ID (2 or 4), protection (2), type (4)
        wide = head[at + 4 : at + 5] == b"\3"
        kind = head[at + 12 + 2 * wide : at + 16 + 2 * wide]
        if kind in _ITEMS:
            yield _ITEMS[kind]
        at = head.find(b"infe", at + 4)
