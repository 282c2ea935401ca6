"""The manifest of a version, `manifest.json`: its fields, their checks, and the fingerprints of its files.

Guarantees: a manifest that was read is complete and has a known format.
Out of scope: reading and verifying the other files of a version (`artifact`), writing versions (`store`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from model_store.errors import ArtifactFormatError, ModelNameError
from model_store.image import CROP, PREPARATION, SIZE

FORMAT: Final = 1
MANIFEST_FILE: Final = "manifest.json"
MODEL_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "weights.bin"
REPORT_FOLDER: Final = "report"
FEATURES: Final = 4096
INT8: Final = "int8"
FULL: Final = "fp32"  # the precision whose files are not in a folder of their own

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = r"^[0-9a-f]{64}$"


def check_name(name: str) -> str:
    """Return `name` if it is a valid model name (a folder name and part of a URL). Raises ModelNameError."""
    if not _NAME.fullmatch(name):
        raise ModelNameError(name)
    return name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ClassLabel(_Frozen):
    """One class: its column in `probabilities`, and its name."""

    index: int = Field(ge=0)
    label: str = Field(min_length=1)


def _count_up(classes: tuple[ClassLabel, ...]) -> tuple[ClassLabel, ...]:
    if [entry.index for entry in classes] != list(range(len(classes))):
        raise ValueError("the class indices must be 0, 1, 2, ... in this order")
    return classes


_Name = Annotated[str, AfterValidator(check_name)]
_Classes = Annotated[tuple[ClassLabel, ...], Field(min_length=1), AfterValidator(_count_up)]


class InputContract(_Frozen):
    """The input of the graph. `preparation` is the value of `model_store.image.PREPARATION`."""

    name: str = "pixels"
    dtype: str = "uint8"
    shape: tuple[int | str, ...] = ("N", CROP, CROP, 3)
    layout: str = "NHWC"
    colour: str = "RGB, 0-255"
    prepared_size: int = SIZE
    preparation: int = PREPARATION


class OutputContract(_Frozen):
    """One output of the graph."""

    name: str
    dtype: str = "float32"
    shape: tuple[int | str, ...]


class FileEntry(_Frozen):
    """SHA-256 (hexadecimal) and size in bytes of one file of the version."""

    sha256: str = Field(pattern=_SHA256)
    size: int = Field(ge=0)


def check_file_names(files: Iterable[str], folder: str) -> None:
    """Raise ValueError unless all names are relative paths inside a folder. folder: what the message calls it."""
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
            raise ValueError(f"{name!r} is not a path inside the {folder}")


class PrecisionEntry(_Frozen):
    """The net in another precision: its fingerprint, and its measured agreement with fp32."""

    fingerprint: str = Field(pattern=_SHA256)
    metrics: dict[str, Any]


class ManifestDraft(_Frozen):
    """The fields of a manifest that the publisher provides. The store adds version, time, hashes and fingerprint.

    metrics: evaluation results (top-1/top-5 error, views, data set and its hash). recipe: the training recipe.
    parent_run: folder name of the training run. parent_version: the version that the fp32 files were copied from.
    precisions: metrics of the net in each other precision. base_graphs: by precision, the SHA-256 of the graph of a
    version that differs only after fc7. All values must be JSON.
    """

    model_config = ConfigDict(extra="forbid")
    name: _Name
    architecture: str
    classes: _Classes
    recipe: dict[str, Any] = Field(default_factory=dict)
    opset: int
    producer: str
    metrics: dict[str, Any] = Field(default_factory=dict)
    parent_run: str | None = None
    parent_version: str | None = None
    precisions: dict[str, dict[str, Any]] = Field(default_factory=dict)
    base_graphs: dict[str, str] = Field(default_factory=dict)
    input: InputContract = InputContract()


class Manifest(_Frozen):
    """The content of `manifest.json`. `files` lists every file of the version except the manifest itself."""

    format: int
    name: _Name
    version: int = Field(ge=1)
    created: AwareDatetime
    architecture: str
    recipe: dict[str, Any]
    classes: _Classes
    input: InputContract
    outputs: tuple[OutputContract, ...]
    opset: int
    producer: str
    metrics: dict[str, Any]
    parent_run: str | None
    parent_version: str | None = None
    precisions: dict[str, PrecisionEntry] = Field(default_factory=dict)
    base_graphs: dict[str, Annotated[str, Field(pattern=_SHA256)]] = Field(default_factory=dict)
    files: dict[str, FileEntry]
    fingerprint: str = Field(pattern=_SHA256)

    @field_validator("files")
    @classmethod
    def _files_stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        check_file_names(files, "version")
        if missing := {MODEL_FILE, WEIGHTS_FILE} - files.keys():
            raise ValueError(f"{', '.join(sorted(missing))} is not listed")
        return files

    @model_validator(mode="after")
    def _fingerprints_are_of_these_files(self) -> Manifest:
        if self.fingerprint != fingerprint_of(self.files, FULL):
            raise ValueError("the fingerprint does not match the listed graph and weights")
        for precision, entry in self.precisions.items():
            if entry.fingerprint != fingerprint_of(self.files, precision):
                raise ValueError(f"the fingerprint of {precision} does not match its listed graph and weights")
        return self

    @classmethod
    def complete(
        cls, draft: ManifestDraft, *, version: int, created: datetime, files: dict[str, FileEntry]
    ) -> Manifest:
        """Return the complete manifest for `draft` and the hashes of its files."""
        return cls(
            **draft.model_dump(exclude={"precisions"}),
            precisions={
                precision: PrecisionEntry(fingerprint=fingerprint_of(files, precision), metrics=metrics)
                for precision, metrics in draft.precisions.items()
            },
            format=FORMAT,
            version=version,
            created=created,
            outputs=(
                OutputContract(name="probabilities", shape=("N", len(draft.classes))),
                OutputContract(name="fc7", shape=("N", FEATURES)),
            ),
            files=files,
            fingerprint=fingerprint_of(files, FULL),
        )

    def to_bytes(self) -> bytes:
        """Return the content of `manifest.json`."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def class_labels(labels: Sequence[str]) -> tuple[ClassLabel, ...]:
    """Return the classes of a manifest for these labels, in their order."""
    return tuple(ClassLabel(index=index, label=label) for index, label in enumerate(labels))


def graph_files(precision: str) -> tuple[str, str]:
    """Return the paths of graph and weights in this precision, relative to the version's folder."""
    folder = "" if precision == FULL else f"{precision}/"
    return folder + MODEL_FILE, folder + WEIGHTS_FILE


def fingerprint_of(files: Mapping[str, FileEntry], precision: str, graph: str | None = None) -> str:
    """Return the fingerprint of a model: the SHA-256 (hexadecimal) over the SHA-256 of the graph and of the weights.

    Name, version and report are not part of it: the same net published twice has the same fingerprint. graph: the
    SHA-256 of another graph that computes the same fc7 with these weights.
    """
    model, weights = graph_files(precision)
    if missing := {model, weights} - files.keys():
        raise ValueError(f"{min(missing)} is not listed")
    return hashlib.sha256(bytes.fromhex((graph or files[model].sha256) + files[weights].sha256)).hexdigest()


def read_manifest(path: Path, data: bytes) -> Manifest:
    """Parse a manifest; `path` is only for messages. Raises ArtifactFormatError (broken, or a newer format)."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ArtifactFormatError(path, f"it is not valid JSON ({exc})") from exc
    number = values.get("format") if isinstance(values, dict) else None
    if not isinstance(number, int) or number < 1:
        raise ArtifactFormatError(path, "it is not a manifest: the format number is missing")
    if number > FORMAT:
        producer = values.get("producer")
        newer = f"the version that wrote it ({producer})" if isinstance(producer, str) else "a newer version"
        own = f"this fc7 ({metadata.version('fc7')}) supports formats up to {FORMAT}"
        raise ArtifactFormatError(path, f"it has format {number}, and {own}. Install {newer} of fc7")
    try:
        return Manifest.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ArtifactFormatError(path, f"{field}: {first['msg']}") from exc
    except ModelNameError as exc:
        raise ArtifactFormatError(path, str(exc)) from exc
