"""One version of a model on disk: the manifest, the files, and the fingerprint.

A version is a folder with `manifest.json`, `model.onnx`, `weights.bin` (the graph's external data) and `report/`. It
may also hold the net in other precisions, in the folders `int8` and `fp16`, each with its own graph and weights.
Guarantees: a manifest that was read is complete and has a known format. The files of a verified version match the
SHA-256 in the manifest; a file that does not is named.
Out of scope: writing (`store`) and loading (`runtime`) versions, signatures that prove who made a version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from datetime import datetime
from functools import cached_property
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

from model_store.durable import sha256_of
from model_store.errors import ArtifactCorruptError, ArtifactFormatError, ModelNameError, PrecisionNotFoundError
from model_store.image import CROP, PREPARATION, SIZE

FORMAT: Final = 1
MANIFEST_FILE: Final = "manifest.json"
MODEL_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "weights.bin"
REPORT_FOLDER: Final = "report"
FEATURES: Final = 4096
_FULL: Final = "fp32"  # its files are not in a folder of their own

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


class PrecisionEntry(_Frozen):
    """The net in another precision: its fingerprint, and its measured agreement with fp32."""

    fingerprint: str = Field(pattern=_SHA256)
    metrics: dict[str, Any]


class ManifestDraft(_Frozen):
    """The fields of a manifest that the publisher provides. The store adds version, time, hashes and fingerprint.

    metrics: evaluation results (top-1/top-5 error, views, data set and its hash). recipe: the training recipe.
    parent_run: folder name of the training run. parent_version: the version that the fp32 files were copied from.
    precisions: metrics of the net in each other precision. base_graphs: by precision, the SHA-256 of the graph of a
    version that differs only in the last layer. All values must be JSON.
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
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
                raise ValueError(f"{name!r} is not a path inside the version")
        if missing := {MODEL_FILE, WEIGHTS_FILE} - files.keys():
            raise ValueError(f"{', '.join(sorted(missing))} is not listed")
        return files

    @model_validator(mode="after")
    def _fingerprints_are_of_these_files(self) -> Manifest:
        if self.fingerprint != fingerprint_of(self.files, _FULL):
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
            fingerprint=fingerprint_of(files, _FULL),
        )

    def to_bytes(self) -> bytes:
        """Return the content of `manifest.json`."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def class_labels(labels: Sequence[str]) -> tuple[ClassLabel, ...]:
    """Return the classes of a manifest for these labels, in their order."""
    return tuple(ClassLabel(index=index, label=label) for index, label in enumerate(labels))


def graph_files(precision: str) -> tuple[str, str]:
    """Return the paths of graph and weights in this precision, relative to the version's folder."""
    folder = "" if precision == _FULL else f"{precision}/"
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


class Artifact:
    """A version on disk in one precision. `verified` tells whether its files were compared with the manifest."""

    def __init__(self, path: Path, manifest: Manifest, *, verified: bool, precision: str = _FULL) -> None:
        self.path = path
        self.precision = precision
        self.manifest = manifest
        self._unverified = set() if verified else set(manifest.files)

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Artifact:
        """Read the version in the folder `path`. With `verify`, compare its files with the manifest.

        Raises ArtifactFormatError if the manifest is missing, broken or has a newer format, ArtifactCorruptError for
        the first file that is missing or differs.
        """
        file = path / MANIFEST_FILE
        try:
            manifest = read_manifest(file, file.read_bytes())
        except FileNotFoundError:
            reason = "the file does not exist, so this folder is not a version of a model"
            raise ArtifactFormatError(file, reason) from None
        except OSError as exc:
            raise ArtifactFormatError(file, exc.strerror or str(exc)) from exc
        artifact = cls(path, manifest, verified=False)
        if verify:
            artifact.verify()
        return artifact

    @property
    def verified(self) -> bool:
        """Whether every file was compared with the manifest, by `verify` or `read`."""
        return not self._unverified

    def verify(self) -> None:
        """Compare the files not verified yet with the manifest. Raises ArtifactCorruptError for the first bad one."""
        for name in self.manifest.files:
            if name in self._unverified:
                self._check(name, sha256_of)

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Yield the verified graph's path. Raises as `verify`, and ArtifactFormatError if a file changed meanwhile."""
        stamps = self.stamps()
        for name in graph_files(self.precision):
            self._check(name, sha256_of)
        yield self.model_path
        if self.stamps() != stamps:
            raise ArtifactFormatError(self.path, "its files changed while they were loaded. Try again")

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return the size and modification time (ns) of each file; (-1, 0) for a missing file."""
        stamps = dict.fromkeys(self.manifest.files, (-1, 0))
        for name in stamps:
            with suppress(OSError):
                status = (self.path / name).stat()
                stamps[name] = status.st_size, status.st_mtime_ns
        return stamps

    def differing(self) -> list[str]:
        """Return the names of all files that are missing or differ from the manifest. Raises ArtifactFormatError."""
        names = []
        for name in self.manifest.files:
            try:
                self._check(name, sha256_of)
            except ArtifactCorruptError:
                names.append(name)
        return names

    def read(self, name: str) -> bytes:
        """Return the bytes of a file after comparing them with the manifest. Raises the same errors as `verify`."""
        data = b""

        def read_and_hash(path: Path) -> str:
            nonlocal data
            data = path.read_bytes()
            return hashlib.sha256(data).hexdigest()

        self._check(name, read_and_hash)
        return data

    def _check(self, name: str, sha256: Callable[[Path], str]) -> None:
        path, entry = self.path / name, self.manifest.files[name]
        try:
            found = sha256(path)
        except FileNotFoundError:
            raise ArtifactCorruptError(path, entry.sha256, "missing") from None
        except OSError as exc:
            raise ArtifactFormatError(path, exc.strerror or str(exc)) from exc
        if found != entry.sha256:
            raise ArtifactCorruptError(path, entry.sha256, found)
        self._unverified.discard(name)

    def at(self, precision: str) -> Artifact:
        """Return the same version in another precision. Raises PrecisionNotFoundError."""
        if precision not in self.precisions:
            raise PrecisionNotFoundError(self.id, precision, self.precisions)
        other = copy(self)
        other.precision = precision
        return other

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the version has files in. fp32 is always one of them."""
        return (_FULL, *self.manifest.precisions)

    @property
    def name(self) -> str:
        """The name of the model, for example "solar"."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The version number, from 1."""
        return self.manifest.version

    @property
    def id(self) -> str:
        """Name and version, for example "solar:1"."""
        return f"{self.name}:{self.version}"

    @property
    def embedder(self) -> str:
        """The name of the model that an index shows for its vectors: "solar:1" or "solar:1 (int8)"."""
        return self.id if self.precision == _FULL else f"{self.id} ({self.precision})"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the vectors in this precision. fc7 vectors are comparable if these are equal."""
        return fingerprint_of(self.manifest.files, self.precision, self.manifest.base_graphs.get(self.precision))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the columns of `probabilities`."""
        return tuple(entry.label for entry in self.manifest.classes)

    @property
    def model_path(self) -> Path:
        """The ONNX graph."""
        return self.path / graph_files(self.precision)[0]

    @property
    def weights_path(self) -> Path:
        """The graph's external data."""
        return self.path / graph_files(self.precision)[1]

    def __repr__(self) -> str:
        return f"Artifact({self.embedder!r}, {str(self.path)!r})"


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
        raise ArtifactFormatError(
            path, f"it has format {number}, and this fc7 supports formats up to {FORMAT}. Install {newer} of fc7"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ArtifactFormatError(path, f"{field}: {first['msg']}") from exc
    except ModelNameError as exc:
        raise ArtifactFormatError(path, str(exc)) from exc
