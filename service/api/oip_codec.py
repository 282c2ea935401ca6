"""The bodies of the Open Inference Protocol v2: JSON with tensors inside it or, as raw bytes, behind it.

Promises: what a request announces (header length, shapes, sizes, counts) is compared with what it brings before an
array is made; every refusal names the tensor and the rule; a compressed body is inflated to at most a limit.
Does not: know HTTP routes, decode pictures, read or write compressed answers, take tensors from shared memory.
Source: the Open Inference Protocol's REST API, and Triton's extensions for binary tensor data and classification.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.image import CROP
from model_store.runtime.runner import Outputs, top_k
from service.errors import BodyEncodingError, BodyMalformedError, BodyTooLargeError, TooManyImagesError

PIXELS: Final = "pixels"
IMAGE: Final = "image"
PROBABILITIES: Final = "probabilities"
FC7: Final = "fc7"
OUTPUTS: Final = (PROBABILITIES, FC7)
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
EXTENSIONS: Final = ("binary_tensor_data", "classification")

_VIEW: Final = (CROP, CROP, 3)
_DATATYPES: Final = {PIXELS: "UINT8", IMAGE: "BYTES"}
_KNOWN_DATATYPES: Final = frozenset(
    ["BOOL", "BYTES", "FP16", "BF16", "FP32", "FP64"]
    + [f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
)
_WINDOWS: Final = {"gzip": (31,), "deflate": (15, -15)}  # zlib's; "deflate" is sent with its header and without
_SHOWN: Final = 60  # characters of a client's value in an error
_LISTS_AN_IMAGE: Final = 60_000  # a nested one has 224 x 224 + 224 + 1
_LENGTH_BYTES: Final = 4  # before each element of a BYTES tensor


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output to answer with. `classes`: the best so many as text instead of all values; 0 for the values."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that keeps its promises: either views (uint8 [n,224,224,3]) or pictures (encoded), never both."""

    id: str | None
    views: NDArray[np.uint8] | None
    pictures: tuple[bytes, ...]
    count: int  # views of each picture, 1 or 10
    outputs: tuple[WantedOutput, ...]


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """A body, and the length of its JSON where raw tensors follow; None where none does."""

    body: bytes
    header_length: int | None


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Return a body as it was before `Content-Encoding`; never more than `limit` bytes are made.

    Raises BodyEncodingError, BodyTooLargeError, BodyMalformedError.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in _WINDOWS:
        raise BodyEncodingError(_show(name))
    plain, stream, reason = b"", None, ""
    for window in _WINDOWS[name]:
        tried = zlib.decompressobj(window)
        try:
            found = tried.decompress(body, limit + 1)
        except zlib.error as exc:
            reason = reason or str(exc)
            continue
        if tried.eof or len(found) > limit or not reason:  # without a header almost anything begins well
            plain, stream = found, tried
            break
    if stream is None:
        raise BodyMalformedError(f"the body is not {name}: {reason}")
    if len(plain) > limit:
        raise BodyTooLargeError(limit)
    if not stream.eof:
        raise BodyMalformedError(f"the {name} body was cut: its end is missing")
    if stream.unused_data:
        raise BodyMalformedError(f"{len(stream.unused_data):,} bytes follow the end of the {name} body")
    return plain


def parse(body: bytes, header_length: str | None, *, most_images: int, classes: int) -> InferRequest:
    """Read an inference request. `header_length` is the header of that name; `classes` the columns of probabilities.

    Raises BodyMalformedError, TooManyImagesError.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    text = body[:length]
    # Python's lists take some twenty times the bytes of "[],": without this, a small compressed body fills the memory.
    if sum(text.count(opening) for opening in (b"[", b"{", b'"')) > _LISTS_AN_IMAGE * most_images:
        raise BodyMalformedError(f"the request has more lists and texts than {most_images} images can have")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BodyMalformedError(f"the request is not JSON: {exc}") from None
    document = _object(document, "the request")
    parameters = _parameters(document, "the request", {"binary_data_output", "views"})
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BodyMalformedError(f"id must be a text, but is {_show(identity)}")
    tensor = _Tensor.of(document, most_images)
    raw = tensor.raw(memoryview(body)[length:])
    count = parameters.get("views", 1)
    if count not in (1, 10) or isinstance(count, bool) or (count == 10 and tensor.name == PIXELS):
        raise BodyMalformedError(
            f"views must be 1, or 10 for the input {IMAGE}, but is {_show(count)} for the input {tensor.name}"
        )
    return InferRequest(
        id=identity,
        views=tensor.views(raw) if tensor.name == PIXELS else None,
        pictures=tensor.pictures(raw) if tensor.name == IMAGE else (),
        count=int(count),
        outputs=_outputs(document, _flag(parameters, "binary_data_output", "the request"), classes),
    )


def write(request: InferRequest, outputs: Outputs, labels: Sequence[str], model: str, version: int) -> InferAnswer:
    """Return the answer's body: the wanted outputs in their order, raw tensors after the JSON in the same order."""
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for wanted in request.outputs:
        values = outputs.probabilities if wanted.name == PROBABILITIES else outputs.fc7
        texts = _classification(values, wanted.classes, labels) if wanted.classes else None
        entry: dict[str, Any] = {
            "name": wanted.name,
            "datatype": "FP32" if texts is None else "BYTES",
            "shape": [len(values), wanted.classes or values.shape[1]],
        }
        if wanted.binary:
            raw.append(values.astype("<f4", copy=False).tobytes() if texts is None else _elements(texts))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = values.ravel().tolist() if texts is None else texts
        described.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": str(version), "outputs": described}
    if request.id is not None:
        document["id"] = request.id
    head = json.dumps(document, separators=(",", ":")).encode()
    return InferAnswer(b"".join([head, *raw]), len(head) if raw else None)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The one input, as the JSON describes it: `size` bytes of raw data, or None with `data` in the JSON."""

    name: str
    shape: tuple[int, ...]
    size: int | None
    data: Any

    @classmethod
    def of(cls, document: Mapping[str, Any], most_images: int) -> _Tensor:
        inputs = document.get("inputs")
        if not isinstance(inputs, list) or len(inputs) != 1:
            found = f"{len(inputs)} of them" if isinstance(inputs, list) else _show(inputs)
            raise BodyMalformedError(f"inputs must be a list of one tensor, {PIXELS} or {IMAGE}, but is {found}")
        entry = _object(inputs[0], "inputs[0]")
        name = entry.get("name")
        if not isinstance(name, str) or name not in _DATATYPES:
            raise BodyMalformedError(f"input {_show(name)} is unknown: the model takes {PIXELS} or {IMAGE}")
        datatype = entry.get("datatype")
        if datatype != _DATATYPES[name]:
            known = isinstance(datatype, str) and datatype in _KNOWN_DATATYPES
            raise BodyMalformedError(
                f"input {name} must have datatype {_DATATYPES[name]}, but has {_show(datatype)}"
                + ("" if known else ", which is no datatype of the protocol")
            )
        shape = _shape(name, entry.get("shape"))
        if shape[0] > most_images:
            raise TooManyImagesError(most_images)
        parameters = _parameters(entry, f"input {name}", {"binary_data_size"})
        size = parameters.get("binary_data_size")
        if size is not None and (not _is_whole(size) or size < 0):
            raise BodyMalformedError(f"input {name}: binary_data_size must be a number of bytes, but is {_show(size)}")
        if (size is None) == ("data" not in entry):
            raise BodyMalformedError(f"input {name} needs its values once: either data, or binary_data_size bytes")
        return cls(name, shape, size, entry.get("data"))

    def raw(self, behind: memoryview) -> memoryview:
        """Return the tensor's own bytes behind the JSON, and refuse too few and too many of them."""
        size = self.size or 0
        if len(behind) != size:
            raise BodyMalformedError(
                f"{len(behind):,} bytes follow the JSON, but input {self.name} announces {size:,} (binary_data_size)"
            )
        return behind

    def views(self, raw: memoryview) -> NDArray[np.uint8]:
        needed = math.prod(self.shape)
        if self.size is not None:
            if self.size != needed:
                raise BodyMalformedError(
                    f"input {self.name}: shape {list(self.shape)} of UINT8 is {needed:,} bytes, "
                    f"but binary_data_size is {self.size:,}"
                )
            return np.frombuffer(raw, np.uint8).reshape(self.shape)
        try:
            values = np.asarray(self.data)
        except (ValueError, OverflowError):
            raise BodyMalformedError(f"input {self.name}: data is not a regular list of numbers") from None
        if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() > 255)):
            raise BodyMalformedError(f"input {self.name}: data must be whole numbers from 0 to 255")
        if values.size != needed or values.shape not in ((needed,), self.shape):
            raise BodyMalformedError(
                f"input {self.name}: shape {list(self.shape)} is {needed:,} values, flat or nested alike, "
                f"but data is {list(values.shape)}"
            )
        return values.astype(np.uint8).reshape(self.shape)

    def pictures(self, raw: memoryview) -> tuple[bytes, ...]:
        count = self.shape[0]
        found = _split(self.name, raw, count) if self.size is not None else _from_base64(self.name, self.data)
        if len(found) != count:
            raise BodyMalformedError(f"input {self.name}: shape {list(self.shape)}, but data has {len(found)} elements")
        return tuple(found)


def _header_length(text: str, available: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16) or int(text) > available:
        raise BodyMalformedError(
            f"{HEADER_LENGTH} must be the length of the JSON at the body's start, at most the body's {available:,} "
            f"bytes, but is {_show(text)}"
        )
    return int(text)


def _shape(name: str, shape: object) -> tuple[int, ...]:
    rest = _VIEW if name == PIXELS else ()
    wanted = f"[N, {', '.join(map(str, rest))}]" if rest else "[N] or [N, 1]"
    if (
        not isinstance(shape, list)
        or not all(_is_whole(size) for size in shape)
        or not shape
        or shape[0] < 1
        or tuple(shape[1:]) not in ((rest,) if rest else ((), (1,)))
    ):
        raise BodyMalformedError(f"input {name} must have shape {wanted}, N from 1, but has {_show(shape)}")
    return tuple(shape)


def _split(name: str, raw: memoryview, count: int) -> list[bytes]:
    """Cut a BYTES tensor into its elements: each is a little-endian uint32, its length, and its bytes."""
    elements: list[bytes] = []
    start = 0
    while start < len(raw):
        if len(elements) == count:
            raise BodyMalformedError(f"input {name}: {len(raw) - start:,} bytes follow its {count} elements")
        first = start + _LENGTH_BYTES
        end = first + int.from_bytes(raw[start:first], "little")
        if first > len(raw) or end > len(raw):
            raise BodyMalformedError(f"input {name}: element {len(elements)} is cut off by the tensor's end")
        elements.append(bytes(raw[first:end]))
        start = end
    if len(elements) < count:
        raise BodyMalformedError(f"input {name}: {count} elements are announced, but {len(elements)} are there")
    return elements


def _from_base64(name: str, data: object) -> list[bytes]:
    elements: list[Any] = data if isinstance(data, list) else [data]
    if all(isinstance(element, list) and len(element) == 1 for element in elements):
        elements = [element[0] for element in elements]
    pictures = []
    for position, element in enumerate(elements):
        if not isinstance(element, str):
            raise BodyMalformedError(f"input {name}: element {position} of data must be a text, the picture in base64")
        try:
            pictures.append(base64.b64decode(element, validate=True))
        except (binascii.Error, ValueError):
            raise BodyMalformedError(f"input {name}: element {position} of data is not base64") from None
    return pictures


def _outputs(document: Mapping[str, Any], binary: bool, classes: int) -> tuple[WantedOutput, ...]:
    asked = document.get("outputs")
    if asked is None or asked == []:
        return tuple(WantedOutput(name, binary) for name in OUTPUTS)
    if not isinstance(asked, list):
        raise BodyMalformedError(f"outputs must be a list, but is {_show(asked)}")
    wanted: dict[str, WantedOutput] = {}
    for position, value in enumerate(asked):
        entry = _object(value, f"outputs[{position}]")
        name = entry.get("name")
        if not isinstance(name, str) or name not in OUTPUTS or name in wanted:
            raise BodyMalformedError(
                f"output {_show(name)} is unknown or asked for twice: the model has {' and '.join(OUTPUTS)}"
            )
        parameters = _parameters(entry, f"output {name}", {"binary_data", "classification"})
        best = parameters.get("classification", 0)
        if "classification" in parameters and (
            name != PROBABILITIES or not _is_whole(best) or not 1 <= best <= classes
        ):
            raise BodyMalformedError(
                f"output {name}: classification is for {PROBABILITIES}, a whole number from 1 to {classes}, "
                f"but is {_show(best)}"
            )
        wanted[name] = WantedOutput(name, _flag(parameters, "binary_data", f"output {name}", otherwise=binary), best)
    return tuple(wanted.values())


def _classification(values: NDArray[np.float32], k: int, labels: Sequence[str]) -> list[str]:
    indices, best = top_k(values, k)
    pairs = zip(best.ravel().tolist(), indices.ravel().tolist(), strict=True)
    return [f"{value:.6f}:{index}:{labels[index]}" for value, index in pairs]


def _elements(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(part for text in encoded for part in (len(text).to_bytes(_LENGTH_BYTES, "little"), text))


def _object(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BodyMalformedError(f"{place} must be a JSON object, but is {_show(value)}")
    return value


def _parameters(entry: Mapping[str, Any], place: str, taken: set[str]) -> Mapping[str, Any]:
    parameters = _object(entry.get("parameters", {}), f"parameters of {place}")
    if unknown := parameters.keys() - taken:
        raise BodyMalformedError(
            f"{place}: parameter {_show(min(unknown))} is not taken; these are: {', '.join(sorted(taken))}"
        )
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, place: str, *, otherwise: bool = False) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise BodyMalformedError(f"{place}: {name} must be true or false, but is {_show(value)}")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _show(value: object) -> str:
    """Return a client's value for an error: short, and whatever it holds, text that can be sent."""
    if isinstance(value, str):
        return ascii(value[:_SHOWN])
    if isinstance(value, list | dict) and len(value) > _SHOWN:
        return f"a {type(value).__name__} of {len(value):,} entries"
    shown = ascii(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
