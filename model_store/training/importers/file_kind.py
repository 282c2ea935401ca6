"""Recognize a weight file by its content, whatever its name, and name the command that imports it.

Guarantees: only the first 64 KiB are read. An error says what the file is and which command accepts it.
Out of scope: checking that the rest of the file is complete (its importer does that).
References: the signatures of the file formats; caffe.proto and onnx.proto for the fields of their outermost messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

from model_store.head.protobuf import Wire, WireError, outline
from model_store.training.errors import ImportFormatError

_HEAD: Final = 1 << 16


class Kind(Enum):
    """A kind of file: its description with an article, and the command that imports it ("" if none does)."""

    CAFFE = ("a Caffe model", "fc7 import caffe {}")
    BLOB = ("a Caffe blob (a mean image)", "fc7 import caffe MODEL.caffemodel --mean {}")
    ONNX = ("an ONNX model", "fc7 import onnx {}")
    TORCH = ("a PyTorch file", "fc7 import torchvision {}")
    SAFETENSORS = ("a safetensors file", "fc7 import torchvision {}")
    CUDA_CONVNET = ("a checkpoint of cuda-convnet", "fc7 import cuda-convnet {}")
    HDF5 = ("an HDF5 file (Caffe's other format; save it as .caffemodel)", "")
    POINTER = ("a Git LFS pointer instead of the file itself (download the file with: git lfs pull)", "")
    PAGE = ("a web page, which the server sent instead of the file", "")
    ARCHIVE = ("a gzip archive (unpack it first)", "")
    TEXT = ("a text file (a prototxt has no weights; use the .caffemodel that belongs to it)", "")
    UNKNOWN = ("of an unknown kind", "")

    def __init__(self, description: str, command: str) -> None:
        self.description, self.command = description, command


_SIGNATURES: Final[tuple[tuple[bytes, Kind], ...]] = (
    (b"PK\x03\x04", Kind.TORCH),
    *((bytes((0x80, protocol)), Kind.TORCH) for protocol in (2, 3, 4, 5)),  # pickles, PyTorch's older format
    (b"\x89HDF", Kind.HDF5),
    (b"\x1f\x8b", Kind.ARCHIVE),
    (b"version https://git-lfs", Kind.POINTER),
)
# A zip whose first entry is named `data`, of 4 characters, as cuda-convnet writes with --zip-save.
_CUDA_CONVNET_ZIP: Final = re.compile(rb"PK\x03\x04.{22}\x04\x00..data", re.DOTALL)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError or a WireError in the block into an ImportFormatError for `path`."""
    try:
        yield
    except OSError as error:
        raise ImportFormatError(path, error.strerror or str(error)) from error
    except WireError as error:
        raise ImportFormatError(path, str(error)) from error


def expect(path: Path, *expected: Kind) -> Kind:
    """Return the kind of `path` if it is one of `expected`.

    Raises ImportFormatError if the file is missing, empty, unreadable or of another kind (with the command for it).
    """
    kind = kind_of(path)
    if kind in expected:
        return kind
    hint = f". To import it, run: {kind.command.format(path)}" if kind.command else ""
    raise ImportFormatError(path, f"it is {kind.description}, not {expected[0].description}{hint}")


def kind_of(path: Path) -> Kind:
    """Return the kind of the file according to its first bytes. Raises ImportFormatError if it has none."""
    if path.is_dir():
        raise ImportFormatError(path, "it is a folder. Specify the weight file itself")
    with readable(path), path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise ImportFormatError(path, "the file is empty")
    # Without its zip, a pickled dictionary; PyTorch's older format starts with a number instead.
    if _CUDA_CONVNET_ZIP.match(head) or (head.startswith(b"\x80\x02}") and b"model_state" in head):
        return Kind.CUDA_CONVNET
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return Kind.SAFETENSORS
    kind = _protobuf_kind(head)
    is_text = not any(byte < 0x20 and byte not in b"\t\n\r\f" for byte in head)
    if kind is Kind.UNKNOWN and is_text:
        return Kind.PAGE if head.lstrip()[:1] == b"<" else Kind.TEXT
    return kind


def _protobuf_kind(head: bytes) -> Kind:
    """Distinguish a Caffe net, a Caffe blob and an ONNX model by the outermost fields that start in `head`."""
    found = outline(memoryview(head))
    if (5, Wire.LENGTH) in found or (5, Wire.FIXED32) in found:
        return Kind.BLOB  # BlobProto.data; field 5 of an ONNX model is its version, a varint
    if (1, Wire.VARINT) in found:
        return Kind.ONNX if (7, Wire.LENGTH) in found else Kind.UNKNOWN  # ir_version and graph
    if (100, Wire.LENGTH) in found or (2, Wire.LENGTH) in found:
        return Kind.CAFFE  # NetParameter.layer, or .layers in older files
    return Kind.UNKNOWN
