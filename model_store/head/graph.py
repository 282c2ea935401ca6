"""Replace the last layer of a served graph: everything that computes fc7 stays, byte for byte.

The new layer is in float32 and inside the graph, also in int8 and fp16, so the file of the other weights is shared.

Guarantees: the nodes that compute fc7 and their tensors are not changed, so the vectors are the same. What only the old
layer needed is removed. The package onnx is not needed.
Out of scope: running the graph.
References: onnx.proto (field numbers); ONNX operators Gemm and Softmax, version 13.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.head.errors import HeadGraphError
from model_store.head.protobuf import Field, Wire, WireError, encode, fields

FEATURES: Final = "fc7"
PROBABILITIES: Final = "probabilities"
LAYER: Final = "fc8"
_GRAPH: Final = 7  # of ModelProto
_NODE, _INITIALIZER, _OUTPUT, _VALUE_INFO, _QUANTIZATION = 1, 5, 12, 13, 14  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_TENSOR_NAME: Final = 8
_VALUE_NAME: Final = 1
_INT: Final = 2  # type of an attribute
_FLOAT: Final = 1  # type of a tensor


def replace_head(
    model: bytes, weights: NDArray[np.float32], biases: NDArray[np.float32], *, of: str = "the model"
) -> bytes:
    """Return the ONNX model with another last layer. weights: [classes, 4096]. biases: [classes].

    of: name of the model for the message. Raises HeadGraphError.
    """
    try:
        parts = list(fields(memoryview(model)))
        [graph] = [part.data for part in parts if part.id == _GRAPH]
        new = _replace(list(fields(graph)), weights, biases)
        return b"".join(encode(_GRAPH, new) if part.id == _GRAPH else _copied(part) for part in parts)
    except (WireError, ValueError) as error:
        raise HeadGraphError(of, str(error)) from error


def _replace(graph: list[Field], weights: NDArray[np.float32], biases: NDArray[np.float32]) -> bytes:
    """Return the fields of the graph with the new layer. Raises ValueError if it does not compute fc7."""
    nodes = [(part, _names(part, _NODE_INPUT), _names(part, _NODE_OUTPUT)) for part in graph if part.id == _NODE]
    needed, kept = {FEATURES}, set()
    for number, (_, inputs, outputs) in reversed([*enumerate(nodes)]):  # nodes are sorted topologically
        if needed & set(outputs):
            kept.add(number)
            needed |= set(inputs)
    if not kept:
        raise ValueError(f"no node computes {FEATURES}")
    known = {name for number in kept for name in nodes[number][2]} | needed
    named = {_INITIALIZER: _TENSOR_NAME, _VALUE_INFO: _VALUE_NAME, _QUANTIZATION: _VALUE_NAME}  # fields with names
    result, number, written = [], -1, False
    for part in graph:
        if part.id == _NODE:
            number += 1
            if number in kept:
                result.append(_copied(part))
        elif part.id == _OUTPUT and PROBABILITIES in _names(part, _VALUE_NAME):
            result.append(encode(_OUTPUT, _output(len(biases))))
            written = True
        elif part.id not in named or known & set(_names(part, named[part.id])):
            result.append(_copied(part))
    if not written:
        raise ValueError(f"it has no output {PROBABILITIES}")
    result += [encode(_NODE, node) for node in _layer()]
    tensors = ((f"{LAYER}.weight", weights), (f"{LAYER}.bias", biases))
    result += [encode(_INITIALIZER, _tensor(name, values)) for name, values in tensors]
    return b"".join(result)


def _layer() -> list[bytes]:
    """Return the nodes of the layer and of its softmax."""
    linear = f"{LAYER}.linear"
    return [
        _node("Gemm", [FEATURES, f"{LAYER}.weight", f"{LAYER}.bias"], linear, "transB"),
        _node("Softmax", [linear], PROBABILITIES, "axis"),
    ]


def _node(operator: str, inputs: list[str], output: str, attribute: str) -> bytes:
    """Return a node with an attribute whose value is 1."""
    value = encode(1, attribute.encode()) + encode(3, 1) + encode(20, _INT)
    return b"".join(
        (
            *(encode(_NODE_INPUT, name.encode()) for name in inputs),
            encode(_NODE_OUTPUT, output.encode()),
            encode(_NODE_NAME, output.encode()),
            encode(_NODE_OPERATOR, operator.encode()),
            encode(_NODE_ATTRIBUTE, value),
        )
    )


def _tensor(name: str, values: NDArray[np.float32]) -> bytes:
    dimensions = b"".join(encode(1, size) for size in values.shape)
    data = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return dimensions + encode(2, _FLOAT) + encode(_TENSOR_NAME, name.encode()) + encode(9, data)


def _output(classes: int) -> bytes:
    """Return the description of the output `probabilities`, float32 [N, classes]."""
    shape = encode(1, encode(2, b"N")) + encode(1, encode(1, classes))
    kind = encode(1, encode(1, _FLOAT) + encode(2, shape))
    return encode(1, PROBABILITIES.encode()) + encode(2, kind)


def _names(part: Field, number: int) -> list[str]:
    """Return the texts of a field of the message `part`."""
    return [bytes(each.data).decode() for each in fields(part.data) if each.id == number]


def _copied(part: Field) -> bytes:
    return encode(part.id, part.number if part.wire is Wire.VARINT else part.data)
