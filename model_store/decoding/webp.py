"""WebP: less memory, and files whose RIFF header declares another size than the file has.

Guarantees: a file is accepted if it contains all chunks of its first picture, whatever the RIFF size says.
Out of scope: truncated pictures, and frames after the first.
References: RFC 9649, section 2.
"""

from __future__ import annotations

import struct

from PIL.WebPImagePlugin import WebPImageFile

_HEADER = 12


class WebPFile(WebPImageFile):
    """Pillow's WebP file, without the two canvases of its decoder while the pixels are copied."""

    def load_prepare(self) -> None:
        """Release the decoder: the first frame is decoded, and no other is needed."""
        self._decoder = None
        super().load_prepare()


def repaired(data: bytes) -> bytes:
    """Return the file with the RIFF size of its complete chunks, or `data` itself if its size is right."""
    if len(data) < _HEADER or struct.unpack("<I", data[4:8])[0] + 8 == len(data):
        return data
    end = _HEADER
    while end + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[end : end + 8])
        following = end + 8 + size + size % 2
        if not name.isascii() or following - size % 2 > len(data):
            break
        end = following
    return b"RIFF" + struct.pack("<I", end - 8) + data[8:end].ljust(end - 8, b"\0")
