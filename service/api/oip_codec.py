"""Parses and writes the bodies of the Open Inference Protocol v2: JSON with tensors inside it, or raw bytes after it.

Guarantees: what a request announces (header length, shapes, sizes, counts) is checked against what it contains before
an array is allocated; every error names the tensor and the rule.
Out of scope: HTTP routes, decoding images, compression, tensors in shared memory.
References: the Open Inference Protocol's REST API; Triton's extensions for binary tensor data and classification.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.image import CROP
from model_store.runtime.runner import top_k
from service.api.bounded_json import Numbers, cut_numbers, loads
from service.errors import BodyMalformedError, TooManyImagesError

PIXELS: Final = "pixels"
IMAGE: Final = "image"
PROBABILITIES: Final = "probabilities"
FC7: Final = "fc7"
NOVELTY: Final = "novelty"
OUTPUTS: Final = (PROBABILITIES, FC7)  # without a selection
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
EXTENSIONS: Final = ("binary_tensor_data", "classification")

_DATATYPES: Final = {PIXELS: "UINT8", IMAGE: "BYTES"}
_SHAPES: Final = {PIXELS: f"[N, {CROP}, {CROP}, 3]", IMAGE: "[N] or [N, 1]"}
_SHAPES_OF_ONE: Final = {PIXELS: ([CROP, CROP, 3],), IMAGE: ([], [1])}  # the sizes after N
_KNOWN_DATATYPES: Final = frozenset(
    ["BOOL", "BYTES", "FP16", "BF16", "FP32", "FP64"]
    + [f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
)
_MAX_SHOWN: Final = 60  # characters of a client's value in an error message
_NUMBERS: Final = "(a long list of numbers)"  # in its place, see `cut_numbers`
_LENGTH_BYTES: Final = 4  # before each element of a BYTES tensor


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """A requested output. `classes`: how many of the most probable classes to return as text; 0 returns all values."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A valid request with either `views` (uint8 [n,224,224,3]) or `images` (encoded images), never both."""

    id: str | None
    views: NDArray[np.uint8] | None
    images: tuple[bytes, ...]
    view_count: int  # views per image, 1 or 10
    outputs: tuple[RequestedOutput, ...]
    threshold: float | None  # share of the validation images to accept, 0 to 1; None for the default


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the model of a request has: its number of classes, and whether it has the output `novelty`."""

    classes: int
    novelty: bool

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all outputs."""
        return (*OUTPUTS, NOVELTY) if self.novelty else OUTPUTS


def parse(body: bytes, header_length: str | None, max_images: int, model: Abilities) -> InferRequest:
    """Parse an inference request. `header_length`: the header of that name.

    Raises BodyMalformedError, TooManyImagesError.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    text, raw = body[:length], memoryview(body)[length:]
    text, numbers = cut_numbers(text, _NUMBERS)
    try:
        document = loads(text)
    except ValueError as exc:
        raise BodyMalformedError(f"The request {exc}. Large tensors can be sent as raw bytes after the JSON.") from None
    document = _object(document, "the request")
    parameters = _parameters(document, "the request", {"binary_data_output", "threshold", "views"})
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BodyMalformedError(f"id must be a string, but is {_show(identity)}.")
    tensor = _Tensor.of(document, numbers, max_images)
    if len(raw) != (tensor.size or 0):
        raise BodyMalformedError(
            f"{len(raw):,} bytes follow the JSON, but input {tensor.name} announces {tensor.size or 0:,} "
            "(binary_data_size)."
        )
    view_count = parameters.get("views", 1)
    if view_count not in (1, 10) or isinstance(view_count, bool) or (view_count == 10 and tensor.name == PIXELS):
        raise BodyMalformedError(
            f"views must be 1, or 10 for the input {IMAGE}, but is {_show(view_count)} for the input {tensor.name}."
        )
    return InferRequest(
        id=identity,
        views=tensor.views(raw) if tensor.name == PIXELS else None,
        images=tensor.images(raw) if tensor.name == IMAGE else (),
        view_count=int(view_count),
        outputs=_outputs(document, _flag(parameters, "binary_data_output", "the request"), model),
        threshold=_threshold(parameters),
    )


def write(
    request: InferRequest, outputs: Mapping[str, NDArray[np.float32]], artifact: Artifact
) -> tuple[bytes, int | None]:
    """Return the response body and, if raw tensors follow its JSON, the length of the JSON.

    outputs: by name, one row for each image.
    The body has the requested outputs in their order, and the raw tensors in the same order.
    """
    described: list[str] = []
    raw: list[bytes] = []
    for output in request.outputs:
        values = outputs[output.name]
        texts = _classification(values, output.classes, artifact.labels) if output.classes else None
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": "FP32" if texts is None else "BYTES",
            "shape": [len(values), output.classes or values.shape[1]],
        }
        if output.binary:
            raw.append(values.astype("<f4", copy=False).tobytes() if texts is None else _elements(texts))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        elif texts is not None:
            entry["data"] = texts
        described.append(_with_data(entry, values) if "data" not in entry and not output.binary else _dump(entry))
    document = {"model_name": artifact.name, "model_version": str(artifact.version)}
    if request.id is not None:
        document["id"] = request.id
    head = f'{_dump(document)[:-1]},"outputs":[{",".join(described)}]}}'.encode()
    return b"".join([head, *raw]), len(head) if raw else None


def _with_data(entry: dict[str, Any], values: NDArray[np.float32]) -> str:
    """Return `entry` and the values as JSON. One row at a time, so that other threads can run in between."""
    rows = ",".join(_dump(row.tolist())[1:-1] for row in values)
    return f'{_dump(entry)[:-1]},"data":[{rows}]}}'


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The input as described by the JSON. `size`: the number of its raw bytes; None if its values are in `data`."""

    name: str
    shape: tuple[int, ...]
    size: int | None
    data: Any

    @classmethod
    def of(cls, document: Mapping[str, Any], numbers: Numbers | None, max_images: int) -> _Tensor:
        inputs = document.get("inputs")
        if not isinstance(inputs, list) or len(inputs) != 1:
            found = f"a list of {len(inputs)}" if isinstance(inputs, list) else _show(inputs)
            raise BodyMalformedError(f"inputs must be a list of one tensor, {PIXELS} or {IMAGE}, but is {found}.")
        entry = _object(inputs[0], "inputs[0]")
        name = entry.get("name")
        if not isinstance(name, str) or name not in _DATATYPES:
            raise BodyMalformedError(f"Input {_show(name)} is unknown. The model accepts {PIXELS} or {IMAGE}.")
        datatype = entry.get("datatype")
        if datatype != _DATATYPES[name]:
            known = isinstance(datatype, str) and datatype in _KNOWN_DATATYPES
            raise BodyMalformedError(
                f"Input {name} must have the datatype {_DATATYPES[name]}, but has {_show(datatype)}"
                + ("." if known else ", which is not a datatype of the protocol.")
            )
        shape: Any = entry.get("shape")
        whole = isinstance(shape, list) and shape and all(_is_whole(size) for size in shape)
        if not whole or shape[0] < 1 or shape[1:] not in _SHAPES_OF_ONE[name]:
            raise BodyMalformedError(
                f"Input {name} must have the shape {_SHAPES[name]} with N of at least 1, but has {_show(shape)}."
            )
        if shape[0] > max_images:
            raise TooManyImagesError(max_images)
        parameters = _parameters(entry, f"input {name}", {"binary_data_size"})
        size = parameters.get("binary_data_size")
        if size is not None and (not _is_whole(size) or size < 0):
            raise BodyMalformedError(f"Input {name}: binary_data_size must be a number of bytes, but is {_show(size)}.")
        if (size is None) == ("data" not in entry):
            raise BodyMalformedError(
                f"Input {name} must have its values either in data or in binary_data_size raw bytes."
            )
        data = entry.get("data")
        return cls(name, tuple(shape), size, numbers if numbers is not None and data == _NUMBERS else data)

    def views(self, raw: memoryview) -> NDArray[np.uint8]:
        needed = math.prod(self.shape)
        if self.size is not None:
            if self.size != needed:
                raise BodyMalformedError(
                    f"Input {self.name}: the shape {list(self.shape)} of UINT8 requires {needed:,} bytes, "
                    f"but binary_data_size is {self.size:,}."
                )
            return np.frombuffer(raw, np.uint8).reshape(self.shape)
        if isinstance(self.data, Numbers):
            try:
                return self.data.parse((needed,), self.shape).reshape(self.shape)
            except ValueError as exc:
                need = f"The shape {list(self.shape)} requires {needed:,} values, flat or nested."
                raise BodyMalformedError(f"Input {self.name}: {exc}. {need}") from None
        try:
            values = np.asarray(self.data)
        except (ValueError, OverflowError):
            raise BodyMalformedError(f"Input {self.name}: data is not a regular list of numbers.") from None
        if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() > 255)):
            raise BodyMalformedError(f"Input {self.name}: data must contain whole numbers from 0 to 255.")
        if values.size != needed or values.shape not in ((needed,), self.shape):
            raise BodyMalformedError(
                f"Input {self.name}: the shape {list(self.shape)} requires {needed:,} values, flat or nested, "
                f"but data has the shape {list(values.shape)}."
            )
        return values.astype(np.uint8).reshape(self.shape)

    def images(self, raw: memoryview) -> tuple[bytes, ...]:
        count = self.shape[0]
        found = _split(self.name, raw, count) if self.size is not None else _from_base64(self.name, self.data)
        if len(found) != count:
            raise BodyMalformedError(
                f"Input {self.name}: the shape is {list(self.shape)}, but data has {len(found)} elements."
            )
        return tuple(found)


def _header_length(text: str, available: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16) or int(text) > available:
        raise BodyMalformedError(
            f"{HEADER_LENGTH} must be the length of the JSON at the start of the body, at most the {available:,} bytes "
            f"of the body, but is {_show(text)}."
        )
    return int(text)


def _split(name: str, raw: memoryview, count: int) -> list[bytes]:
    """Split a BYTES tensor into its elements. Each is its length, a little-endian uint32, followed by its bytes."""
    elements: list[bytes] = []
    start = 0
    while start < len(raw):
        if len(elements) == count:
            raise BodyMalformedError(f"Input {name}: {len(raw) - start:,} bytes follow its {count} elements.")
        first = start + _LENGTH_BYTES
        end = first + int.from_bytes(raw[start:first], "little")
        if first > len(raw) or end > len(raw):
            raise BodyMalformedError(f"Input {name}: element {len(elements)} extends beyond the end of the tensor.")
        elements.append(bytes(raw[first:end]))
        start = end
    if len(elements) < count:
        raise BodyMalformedError(f"Input {name}: {count} elements are announced, but there are only {len(elements)}.")
    return elements


def _from_base64(name: str, data: object) -> list[bytes]:
    elements: list[Any] = data if isinstance(data, list) else [data]
    if all(isinstance(element, list) and len(element) == 1 for element in elements):
        elements = [element[0] for element in elements]
    images = []
    for position, element in enumerate(elements):
        if not isinstance(element, str):
            raise BodyMalformedError(f"Input {name}: element {position} of data must be a string, the image in base64.")
        try:
            images.append(base64.b64decode(element, validate=True))
        except (binascii.Error, ValueError):
            raise BodyMalformedError(f"Input {name}: element {position} of data is not valid base64.") from None
    return images


def _threshold(parameters: Mapping[str, Any]) -> float | None:
    value = parameters.get("threshold")
    if value is None and "threshold" not in parameters:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BodyMalformedError(
            f"The parameter threshold of the request must be a number from 0 to 1, but is {_show(value)}."
        )
    return float(value)


def _outputs(document: Mapping[str, Any], binary: bool, model: Abilities) -> tuple[RequestedOutput, ...]:
    requested = document.get("outputs")
    if requested is None or requested == []:
        return tuple(RequestedOutput(name, binary) for name in OUTPUTS)
    if not isinstance(requested, list):
        raise BodyMalformedError(f"outputs must be a list, but is {_show(requested)}.")
    outputs: dict[str, RequestedOutput] = {}
    for position, value in enumerate(requested):
        entry = _object(value, f"outputs[{position}]")
        name = entry.get("name")
        if name == NOVELTY and not model.novelty:
            raise BodyMalformedError(
                f"Output {NOVELTY} is not available: this version was published without a reference of its training "
                "images. Publish the model again with fc7 export."
            )
        if not isinstance(name, str) or name not in model.outputs or name in outputs:
            raise BodyMalformedError(
                f"Output {_show(name)} is unknown or requested twice. The model has {', '.join(model.outputs)}."
            )
        parameters = _parameters(entry, f"output {name}", {"binary_data", "classification"})
        best = parameters.get("classification", 0)
        if "classification" in parameters and (
            name != PROBABILITIES or not _is_whole(best) or not 1 <= best <= model.classes
        ):
            raise BodyMalformedError(
                f"Output {name}: classification is only supported for {PROBABILITIES} and must be a whole number from "
                f"1 to {model.classes}, but is {_show(best)}."
            )
        outputs[name] = RequestedOutput(name, _flag(parameters, "binary_data", f"output {name}", default=binary), best)
    return tuple(outputs.values())


def _classification(values: NDArray[np.float32], k: int, labels: Sequence[str]) -> list[str]:
    indices, best = top_k(values, k)
    pairs = zip(best.ravel().tolist(), indices.ravel().tolist(), strict=True)
    return [f"{value:.6f}:{index}:{labels[index]}" for value, index in pairs]


def _elements(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(part for text in encoded for part in (len(text).to_bytes(_LENGTH_BYTES, "little"), text))


def _object(value: object, subject: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BodyMalformedError(f"Expected a JSON object for {subject}, but found {_show(value)}.")
    return value


def _parameters(entry: Mapping[str, Any], subject: str, accepted: set[str]) -> Mapping[str, Any]:
    parameters = _object(entry.get("parameters", {}), f"the parameters of {subject}")
    if unknown := parameters.keys() - accepted:
        raise BodyMalformedError(
            f"The parameter {_show(min(unknown))} of {subject} is not supported. "
            f"Supported parameters: {', '.join(sorted(accepted))}."
        )
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, subject: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BodyMalformedError(f"The parameter {name} of {subject} must be true or false, but is {_show(value)}.")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _show(value: object) -> str:
    """Return a client's value for an error message, shortened and in ASCII."""
    if isinstance(value, str):
        return ascii(value[:_MAX_SHOWN])
    if isinstance(value, list | dict) and len(value) > _MAX_SHOWN:
        return f"a {type(value).__name__} of {len(value):,} entries"
    shown = ascii(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
