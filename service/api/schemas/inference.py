"""The Open Inference Protocol."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class InferenceTensor(BaseModel):
    """A tensor of the Open Inference Protocol. A size of -1 means any size."""

    name: str
    datatype: str
    shape: list[int]


class InferenceServer(BaseModel):
    """Server metadata of the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class InferenceModel(BaseModel):
    """Model metadata of the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[InferenceTensor]
    outputs: list[InferenceTensor]


class InferenceAnswer(BaseModel):
    """An inference response. An output has `data` or, after the JSON, raw bytes (`parameters.binary_data_size`)."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[dict[str, Any]]
