"""Tell what a weight file is by its content, whatever its name says, and send each kind to its own command.

Promises: only the first kilobytes are read; the refusal names what the file is and the command that takes it.
Does not: prove that the rest of the file is whole (its importer does).
Source: the formats' own signatures; caffe.proto and onnx.proto for the fields of their outermost messages.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Final

from model_store.errors import ImportFormatError
from model_store.training.importers.protobuf import Wire, outline

_HEAD: Final = 1 << 16


class Kind(Enum):
    """What a file is: in words, and the command that takes it ("" when none does)."""

    CAFFE = ("a Caffe model", "fc7 import caffe {}")
    BLOB = ("a Caffe blob (a mean image)", "fc7 import caffe MODEL.caffemodel --mean {}")
    ONNX = ("an ONNX model", "fc7 import onnx {}")
    TORCH = ("a PyTorch file", "fc7 import torchvision {}")
    SAFETENSORS = ("a safetensors file", "fc7 import torchvision {}")
    HDF5 = ("an HDF5 file (Caffe's other format; save it as .caffemodel)", "")
    POINTER = ("a Git LFS pointer, not the file it stands for (fetch that with: git lfs pull)", "")
    PAGE = ("a web page: the download was answered with a page instead of the file", "")
    ARCHIVE = ("a gzip archive (unpack it first)", "")
    TEXT = ("a text (a prototxt has no weights; the .caffemodel beside it does)", "")
    UNKNOWN = ("of no kind that is known here", "")

    @property
    def words(self) -> str:
        """What the file is."""
        return self.value[0]

    def command(self, path: Path) -> str:
        """Return the command that takes `path`, or ""."""
        return self.value[1].format(path)


_BEGINNINGS: Final[tuple[tuple[bytes, Kind], ...]] = (
    (b"PK\x03\x04", Kind.TORCH),
    *((bytes((0x80, protocol)), Kind.TORCH) for protocol in (2, 3, 4, 5)),  # pickles, PyTorch's older form
    (b"\x89HDF", Kind.HDF5),
    (b"\x1f\x8b", Kind.ARCHIVE),
    (b"version https://git-lfs", Kind.POINTER),
)


def expect(path: Path, *wanted: Kind) -> Kind:
    """Return the kind of `path` if it is one of `wanted`.

    Raises ImportFormatError: no such file, a folder, empty, not readable, or another kind (with the command for it).
    """
    kind = kind_of(path)
    if kind in wanted:
        return kind
    command = kind.command(path)
    raise ImportFormatError(
        path, f"it is {kind.words}, not {wanted[0].words}" + (f". For that: {command}" if command else "")
    )


def kind_of(path: Path) -> Kind:
    """Return what the file is, by its first bytes. Raises ImportFormatError when there are none to read."""
    if path.is_dir():
        raise ImportFormatError(path, "it is a folder: give the weight file itself")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise ImportFormatError(path, "there is no such file") from None
    except OSError as exc:
        raise ImportFormatError(path, exc.strerror or str(exc)) from exc
    if not head:
        raise ImportFormatError(path, "it is empty")
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return Kind.SAFETENSORS
    kind = _protocol_buffer(head)
    if kind is Kind.UNKNOWN and _is_text(head):
        return Kind.PAGE if head.lstrip()[:1] == b"<" else Kind.TEXT
    return kind


def _protocol_buffer(head: bytes) -> Kind:
    """Tell Caffe's net, Caffe's blob and ONNX's model by the outermost fields that begin in `head`."""
    found = outline(memoryview(head))
    if (5, Wire.LENGTH) in found or (5, Wire.FIXED32) in found:
        return Kind.BLOB  # BlobProto.data; an ONNX model's field 5 is its version, a varint
    if (1, Wire.VARINT) in found:
        return Kind.ONNX if (7, Wire.LENGTH) in found else Kind.UNKNOWN  # ir_version, and the graph
    if (100, Wire.LENGTH) in found or (2, Wire.LENGTH) in found:
        return Kind.CAFFE  # NetParameter.layer, or .layers of older files
    return Kind.UNKNOWN


def _is_text(head: bytes) -> bool:
    return not any(byte < 0x20 and byte not in b"\t\n\r\f" for byte in head)
