"""One version of a model on disk: its manifest, its files, its fingerprint, and the proof that they belong together.

A version is a folder with `manifest.json`, `model.onnx`, `weights.bin` (the graph's external data) and `report/`; it
may have the same net as a CPU computes batches fastest (`batches.onnx`, with `batches.bin` beside `weights.bin`), and
in other precisions, in folders named `int8` and `fp16` with a graph and weights each.
Promises: a manifest that was read is complete and of a known format; a verified artifact's files are, byte for byte,
those that the manifest describes, and the file that differs is named.
Does not: write versions (the store does), load the graph (the runner does), prove who made a version (hashes, no
signature).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
BATCHES_FILE: Final = "batches.onnx"
BATCHES_WEIGHTS_FILE: Final = "batches.bin"
REPORT_FOLDER: Final = "report"
FEATURES: Final = 4096
PRECISIONS: Final = ("fp32", "int8", "fp16")
_FULL: Final = "fp32"  # of `model.onnx` and `weights.bin`; the others' are in folders of their names

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = r"^[0-9a-f]{64}$"


def check_name(name: str) -> str:
    """Return `name` if it may be a model's name, which is a folder's name and part of a URL. Raises ModelNameError."""
    if not _NAME.fullmatch(name):
        raise ModelNameError(name)
    return name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ClassLabel(_Frozen):
    """One class of the network: the row of `probabilities`, and what people call it."""

    index: int = Field(ge=0)
    label: str = Field(min_length=1)


def _count_up(classes: tuple[ClassLabel, ...]) -> tuple[ClassLabel, ...]:
    if [entry.index for entry in classes] != list(range(len(classes))):
        raise ValueError("class indices must be 0, 1, 2, ... in this order")
    return classes


_Name = Annotated[str, AfterValidator(check_name)]
_Classes = Annotated[tuple[ClassLabel, ...], Field(min_length=1), AfterValidator(_count_up)]


class InputContract(_Frozen):
    """What the graph takes. `preparation` numbers the way from bytes to pixels (`model_store.image.PREPARATION`)."""

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
    """What a file of the version must be: SHA-256 in hexadecimal, and size in bytes."""

    sha256: str = Field(pattern=_SHA256)
    size: int = Field(ge=0)


class PrecisionEntry(_Frozen):
    """The net in another precision: what identifies its answers, and what was measured of it against fp32."""

    fingerprint: str = Field(pattern=_SHA256)
    metrics: dict[str, Any]


class ManifestDraft(_Frozen):
    """What the maker of a version knows of it; the store adds version, time, hashes and fingerprint.

    `metrics` holds what was measured (top-1/top-5 error, views, data set and its hash), `recipe` how it was trained,
    `parent_run` the run's folder name, `parent_version` the version whose fp32 files these are, `precisions` what was
    measured of the net in each other precision. Values must be JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

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
    input: InputContract = InputContract()


class Manifest(_Frozen):
    """`manifest.json`: what a version is, and which files belong to it (all but the manifest itself)."""

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
        if self.fingerprint != _fingerprint_of(self.files, _FULL):
            raise ValueError("the fingerprint is not that of the listed graph and weights")
        for precision, entry in self.precisions.items():
            if entry.fingerprint != _fingerprint_of(self.files, precision):
                raise ValueError(f"the fingerprint of {precision} is not that of its listed graph and weights")
        return self

    @classmethod
    def complete(
        cls, draft: ManifestDraft, *, version: int, created: datetime, files: dict[str, FileEntry]
    ) -> Manifest:
        """Return the manifest of a version made from `draft` and the hashes of its files."""
        return cls(
            **draft.model_dump(exclude={"precisions"}),
            precisions={
                precision: PrecisionEntry(fingerprint=_fingerprint_of(files, precision), metrics=metrics)
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
            fingerprint=_fingerprint_of(files, _FULL),
        )

    def to_bytes(self) -> bytes:
        """Return the text of `manifest.json`."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def class_labels(labels: Sequence[str]) -> tuple[ClassLabel, ...]:
    """Return the classes of a manifest, numbered as the labels are."""
    return tuple(ClassLabel(index=index, label=label) for index, label in enumerate(labels))


def fingerprint(model_path: Path, weights_path: Path) -> str:
    """Return what identifies a model's answers: SHA-256, in hexadecimal, over the graph's and the weights' SHA-256.

    Name, version and report are not in it: the same net published twice has one fingerprint. Raises OSError.
    """
    return _fingerprint(sha256_of(model_path), sha256_of(weights_path))


def graph_files(precision: str) -> tuple[str, str]:
    """Return where a version has graph and weights in this precision, relative to its folder."""
    return (
        (MODEL_FILE, WEIGHTS_FILE)
        if precision == _FULL
        else (f"{precision}/{MODEL_FILE}", f"{precision}/{WEIGHTS_FILE}")
    )


def _fingerprint_of(files: Mapping[str, FileEntry], precision: str) -> str:
    model, weights = graph_files(precision)
    if model not in files or weights not in files:
        raise ValueError(f"{model} and {weights} are not both listed")
    return _fingerprint(files[model].sha256, files[weights].sha256)


def _fingerprint(model_sha256: str, weights_sha256: str) -> str:
    return hashlib.sha256(bytes.fromhex(model_sha256) + bytes.fromhex(weights_sha256)).hexdigest()


class Artifact:
    """A version on disk, in one precision, whose manifest was read. `verified`: were its files compared with it?"""

    def __init__(self, path: Path, manifest: Manifest, *, verified: bool, precision: str = _FULL) -> None:
        self.path = path
        self.precision = precision
        self.manifest = manifest
        self._unverified = set() if verified else set(manifest.files)

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Artifact:
        """Read the version in the folder `path`, and compare its files with the manifest unless told not to.

        Raises ArtifactFormatError for a manifest that is missing, broken or of a newer format, ArtifactCorruptError
        for the first file that differs or is missing.
        """
        artifact = cls(path, _open_manifest(path / MANIFEST_FILE), verified=False)
        if verify:
            artifact.verify()
        return artifact

    @property
    def verified(self) -> bool:
        """Whether every file was compared with the manifest, by `verify` or `read`."""
        return not self._unverified

    def verify(self) -> None:
        """Compare the files that were not verified yet with the SHA-256 in the manifest.

        Raises ArtifactCorruptError for the first file that differs or is missing.
        """
        for name in [name for name in self.manifest.files if name in self._unverified]:
            path, entry = self.path / name, self.manifest.files[name]
            with _read_errors(path, entry):
                found = sha256_of(path)
            if found != entry.sha256:
                raise ArtifactCorruptError(path, entry.sha256, found)
            self._unverified.discard(name)

    def differing(self) -> list[str]:
        """Return the names of all files that differ from the manifest or are missing. Raises ArtifactFormatError."""
        names = []
        for name, entry in self.manifest.files.items():
            path = self.path / name
            try:
                with _read_errors(path, entry):
                    found = sha256_of(path)
            except ArtifactCorruptError:
                found = "missing"
            if found != entry.sha256:
                names.append(name)
        return names

    def read(self, name: str) -> bytes:
        """Return a file's bytes, compared with the manifest as they are read. Raises as `verify` does for it."""
        path, entry = self.path / name, self.manifest.files[name]
        with _read_errors(path, entry):
            data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise ArtifactCorruptError(path, entry.sha256, found)
        self._unverified.discard(name)
        return data

    def at(self, precision: str) -> Artifact:
        """Return the same version in another precision. Raises PrecisionNotFoundError."""
        if precision not in self.precisions:
            raise PrecisionNotFoundError(self.id, precision, self.precisions)
        other = Artifact(self.path, self.manifest, verified=False, precision=precision)
        other._unverified = set(self._unverified)
        return other

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the version has files of; fp32 always."""
        return (_FULL, *self.manifest.precisions)

    @property
    def name(self) -> str:
        """The model's name: "solar"."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The version, from 1."""
        return self.manifest.version

    @property
    def id(self) -> str:
        """Name and version: "solar:1"."""
        return f"{self.name}:{self.version}"

    @property
    def embedder(self) -> str:
        """What an index calls the maker of its vectors: "solar:1", "solar:1 (int8)"."""
        return self.id if self.precision == _FULL else f"{self.id} ({self.precision})"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over graph and weights of the precision: equal fingerprints give comparable fc7 vectors."""
        if self.precision == _FULL:
            return self.manifest.fingerprint
        return self.manifest.precisions[self.precision].fingerprint

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The classes' names, in the order of the columns of `probabilities`."""
        return tuple(entry.label for entry in self.manifest.classes)

    @property
    def batches(self) -> tuple[str, str, str] | None:
        """Graph and weights for batches on a CPU, relative to the version's folder; None where it has none."""
        if self.precision != _FULL or not {BATCHES_FILE, BATCHES_WEIGHTS_FILE} <= self.manifest.files.keys():
            return None
        return BATCHES_FILE, WEIGHTS_FILE, BATCHES_WEIGHTS_FILE

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


@contextmanager
def _read_errors(path: Path, entry: FileEntry) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ArtifactCorruptError(path, entry.sha256, "missing") from None
    except OSError as exc:
        raise ArtifactFormatError(path, exc.strerror or str(exc)) from exc


def _open_manifest(path: Path) -> Manifest:
    try:
        return read_manifest(path, path.read_bytes())
    except FileNotFoundError:
        raise ArtifactFormatError(path, "there is no such file, so this is no version of a model") from None
    except OSError as exc:
        raise ArtifactFormatError(path, exc.strerror or str(exc)) from exc


def read_manifest(path: Path, data: bytes) -> Manifest:
    """Return the manifest with these bytes, found at `path`. Raises ArtifactFormatError: broken, or a newer format."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ArtifactFormatError(path, f"it is not JSON ({exc})") from exc
    number = values.get("format") if isinstance(values, dict) else None
    if not isinstance(number, int) or number < 1:
        raise ArtifactFormatError(path, "it is not a manifest: the format number is missing")
    if number > FORMAT:
        maker = values.get("producer")
        newer = f"the one that wrote it ({maker})" if isinstance(maker, str) else "a newer one"
        raise ArtifactFormatError(
            path, f"it is of format {number}, and this fc7 reads formats up to {FORMAT}: install {newer}"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ArtifactFormatError(path, f"{place}: {first['msg']}") from exc
    except ModelNameError as exc:
        raise ArtifactFormatError(path, str(exc)) from exc
