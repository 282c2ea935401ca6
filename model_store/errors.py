"""Exception hierarchy of the model_store package. The errors of the other packages derive from `Fc7Error` too.

Fc7Error
├── ShapeError                 an array has the wrong shape or dtype
├── MissingExtraError          a package of an optional extra is not installed
├── TableError                 a CSV, JSON Lines or Parquet file cannot be read
├── ImageError
│   ├── ImageUnreadableError   not an image, or a broken one
│   ├── ImageFormatError       an image format that is not supported
│   ├── ImageTooLargeError     more pixels than the limit
│   ├── DecodeTimeError        decoding takes more time than the limit
│   ├── DecodeMemoryError      decoding takes more memory than the limit
│   └── DecoderCrashError      the process that decoded the image ended
├── DecoderBusyError           too many expensive images wait for decoding
├── ArtifactError              a version on disk cannot be used
│   ├── ArtifactCorruptError   a file is missing or differs from the manifest
│   ├── ArtifactFormatError    the manifest is broken or has a newer format
│   └── PrecisionNotFoundError the version has no files in this precision
├── ModelArchiveError          the archive of a version is invalid or cannot be written
├── ModelNameError             the name of a model or version is not valid
├── ModelNotFoundError         the store has no such model or version
├── NoActiveModelError         no version is active
├── NoPreviousModelError       there is no version to roll back to
├── ModelInUseError            the version is in use and cannot be removed
├── NoBetterThanBaselineError  the version predicts no better than always the same class
├── PublishError               a version could not be written (disk full, no permission)
│   └── ActivationError        `active.json` could not be written
│       └── ActivationDiskFullError  because the disk is full
├── RunnerError                the inference engine failed
│   └── DeviceUnavailableError CUDA was requested and is not available
└── TrainingError              more in model_store/training/errors.py
    ├── DatasetError           the data set cannot be used for training or evaluation
    ├── RecipeError            an unknown recipe, or an invalid value in one
    ├── CheckpointError        the checkpoint is missing, broken or of another run
    └── TrainingMemoryError    training needs more memory than there is
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class Fc7Error(Exception):
    """Base class of all errors that a user can see. The message says what failed and how to fix it. Can be pickled.

    A subclass with values is a dataclass, and formats them into its template `message`. Without a template, the message
    is the text passed to the constructor.
    """

    message: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.args = tuple(vars(self).values())  # pickle passes them to the constructor

    def __str__(self) -> str:
        values = vars(self)
        if "reason" in values:  # it may be quoted from a library, and end with a full stop already
            values = values | {"reason": str(values["reason"]).rstrip(".")}
        return self.message.format(**values) if self.message else super().__str__()


@dataclass(eq=False)
class ShapeError(Fc7Error):
    """An array does not have the shape or dtype that the function expects."""

    name: str
    expected: str
    found: str
    message = "{name} must be {expected}, but is {found}."


@dataclass(eq=False)
class MissingExtraError(Fc7Error):
    """A package of an optional extra is not installed. `extra` may list alternatives: "cpu|gpu"."""

    package: str
    extra: str

    def __str__(self) -> str:
        commands = " or ".join(f"pip install 'fc7[{extra}]'" for extra in self.extra.split("|"))
        return f"The package {self.package} is required and not installed. Install it with: {commands}"


@dataclass(eq=False)
class TableError(Fc7Error):
    """A CSV, JSON Lines or Parquet file is not valid, or lacks a column. The reason says how to fix it."""

    file: Path | str
    reason: str
    message = "The table {file} cannot be used: {reason}."


class ImageError(Fc7Error):
    """The bytes of an image were rejected."""


@dataclass(eq=False)
class ImageUnreadableError(ImageError):
    """The bytes are empty, not an image, or a broken or truncated image."""

    reason: str
    message = "The image cannot be read: {reason}."


@dataclass(eq=False)
class ImageFormatError(ImageError):
    """The bytes are of a known format that is not supported. `supported` are the formats that are.

    advice: a sentence without a full stop about how to get a supported file; empty if there is none.
    """

    found: str
    supported: Sequence[str]
    advice: str = ""

    def __str__(self) -> str:
        advice = f" {self.advice}." if self.advice else ""
        return f"The format {self.found} is not supported. Supported formats: {', '.join(self.supported)}.{advice}"


@dataclass(eq=False)
class ImageTooLargeError(ImageError):
    """The image header declares more pixels than the limit. Nothing was decoded."""

    pixels: int
    limit: int
    message = (
        "The image has {pixels:,} pixels, and the limit is {limit:,} (FC7_MAX_PIXELS). Use a smaller copy; 256 pixels "
        "on the shorter side are enough."
    )


@dataclass(eq=False)
class DecodeTimeError(ImageError):
    """Decoding the image takes more seconds than the limit. It was not started, or it was stopped."""

    seconds: float
    limit: float
    message = (
        "Decoding the image takes {seconds:g} s or more, and the limit is {limit:g} s (FC7_DECODE_S). Send a smaller "
        "copy, or save it again as a baseline JPEG; 256 pixels on the shorter side are enough."
    )


@dataclass(eq=False)
class DecodeMemoryError(ImageError):
    """Decoding the image takes more memory than the limit, in megabytes. It was not started, or it was stopped."""

    megabytes: int
    limit: int
    message = (
        "Decoding the image takes {megabytes:,} MB of memory or more, and the limit is {limit:,} MB "
        "(FC7_MAX_DECODE_MB). Send a smaller copy, or save it again as a baseline JPEG; 256 pixels on the shorter side "
        "are enough."
    )


@dataclass(eq=False)
class DecoderCrashError(ImageError):
    """The process that decoded the image ended. Other images are not affected."""

    reason: str
    message = (
        "The process that decoded the image stopped: {reason}. The image is probably damaged. Save it "
        "again, for example as a JPEG."
    )


@dataclass(eq=False)
class DecoderBusyError(Fc7Error):
    """So many expensive images wait for decoding that another one would miss its deadline."""

    retry_after: int
    message = "Too many images that are expensive to decode are waiting. Try again in {retry_after} s."


class ArtifactError(Fc7Error):
    """A version on disk cannot be used."""


@dataclass(eq=False)
class ArtifactCorruptError(ArtifactError):
    """A file of a version differs from its manifest, so the version must not be served.

    `expected` and `found` are SHA-256 in hexadecimal. `found` is "missing" if the file does not exist.
    """

    path: Path
    expected: str
    found: str

    def __str__(self) -> str:
        state = "is missing" if self.found == "missing" else f"has SHA-256 {self.found[:12]}"
        return (
            f"{self.path} {state}, but the manifest expects SHA-256 {self.expected[:12]}. Copy or export the version "
            "again, or serve another one: fc7 models list; fc7 models activate NAME:VERSION."
        )


@dataclass(eq=False)
class ArtifactFormatError(ArtifactError):
    """A manifest or `active.json` is missing, broken, or in a format that this release does not support."""

    path: Path
    reason: str
    message = "{path} cannot be read: {reason}."


@dataclass(eq=False)
class ModelArchiveError(Fc7Error):
    """The archive of a version cannot be read or written. Nothing was published, and no file is left behind."""

    path: Path
    reason: str
    message = "The archive {path} was rejected: {reason}."


@dataclass(eq=False)
class PrecisionNotFoundError(ArtifactError):
    """A version has no files in this precision. `known` are the precisions that it has."""

    model: str
    precision: str
    known: Sequence[str]

    def __str__(self) -> str:
        return (
            f"{self.model} has no {self.precision} files, only {', '.join(self.known)}. Publish a version "
            f"that has them: fc7 models quantize {self.model} --precision {self.precision} --data DIR. "
            f"Or serve it with FC7_PRECISION={self.known[0]}."
        )


@dataclass(eq=False)
class ModelNameError(Fc7Error):
    """The name of a model, or a reference to a version, is not valid."""

    name: str
    message = (
        "{name!r} is not a valid model name. Use 1 to 64 of the characters a-z, A-Z, 0-9, '.', '_' and '-', starting "
        "with a letter or digit. Write NAME:VERSION for one version, for example solar:1."
    )


@dataclass(eq=False)
class ModelNotFoundError(Fc7Error):
    """The store has no model of this name, or not this version of it. `known` are the versions that it has."""

    name: str
    version: int | None
    known: Sequence[str]

    def __str__(self) -> str:
        wanted = self.name if self.version is None else f"{self.name}:{self.version}"
        if not self.known:
            return (
                f"The model {wanted} does not exist: no model is published yet. Train one (fc7 train) and publish it "
                "(fc7 export)."
            )
        return f"The model {wanted} does not exist. Published: {', '.join(self.known)}."


@dataclass(eq=False)
class NoActiveModelError(Fc7Error):
    """No version is active. `known` are the published versions."""

    known: Sequence[str] = ()

    def __str__(self) -> str:
        if not self.known:
            return "No model is published yet. Train one (fc7 train) and publish it (fc7 export), or run: make demo."
        return (
            f"No model is active. Activate one: fc7 models activate {self.known[-1]}. "
            f"Published: {', '.join(self.known)}."
        )


class NoPreviousModelError(Fc7Error):
    """There is no version to roll back to."""

    message = (
        "There is no previous version to roll back to. Choose a version instead: fc7 models list; fc7 models "
        "activate NAME:VERSION."
    )


@dataclass(eq=False)
class ModelInUseError(Fc7Error):
    """A version is in use and cannot be removed."""

    model: str
    use: str
    message = "{model} is {use} and was not removed. Activate another version first: fc7 models activate."


@dataclass(eq=False)
class NoBetterThanBaselineError(Fc7Error):
    """The version is not activated, because its validation does not show that it has learned anything."""

    model: str
    figures: str
    message = (
        "{model} was not activated, because it is no better than always predicting the same class: {figures}. Train "
        "with more images, train longer (fc7 train --minutes 20), or start from weights that were trained on "
        "ImageNet (fc7 train --from imagenet). To activate it anyway, use --force (force=true over HTTP)."
    )


@dataclass(eq=False)
class PublishError(Fc7Error):
    """A version could not be written. Nothing of it is visible."""

    path: Path
    reason: str
    message = (
        "Publishing failed while writing {path}: {reason}. No part of the version is visible. Fix the cause, for "
        "example free disk space, and publish again."
    )


class ActivationError(PublishError):
    """`active.json` could not be written. The active version did not change."""

    message = (
        "The active version could not be changed, because writing {path} failed: {reason}. It is the same as before. "
        "Make the folder writable, and try again."
    )


class ActivationDiskFullError(ActivationError):
    """`active.json` could not be written, because the disk is full. The active version did not change."""

    message = (
        "The active version could not be changed, because writing {path} failed: {reason}. It is the same as before. "
        "Free disk space, and try again."
    )


@dataclass(eq=False)
class RunnerError(Fc7Error):
    """The inference engine could not load or run a version."""

    model: str
    reason: str
    message = "The model {model} failed: {reason}."


class DeviceUnavailableError(RunnerError):
    """A CUDA device was requested and cannot be used. `available` are ONNX Runtime's execution providers."""

    def __init__(self, device: str, available: Sequence[str], reason: str = "") -> None:
        Fc7Error.__init__(self, device, tuple(available), reason)
        self.device, self.available, self.reason = device, tuple(available), reason

    __repr__ = Exception.__repr__  # that of a dataclass needs the fields of RunnerError

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        have = f" Available execution providers: {', '.join(self.available)}." if self.available else ""
        return (
            f"The device {self.device} was requested and cannot be used{why}.{have} Check nvidia-smi, and check that "
            "fc7[gpu] is installed instead of fc7[cpu]. To run without a GPU, set FC7_DEVICE to cpu or auto."
        )


class TrainingError(Fc7Error):
    """Training, evaluation or export failed. The message is the one given."""


class DatasetError(TrainingError):
    """A data set cannot be used for training or evaluation. The message names the folder or file."""


class RecipeError(TrainingError):
    """A recipe is unknown, or a value in it is invalid. The message names the key, the value and what is expected."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, broken, or of another run. The message names the file and the command that helps."""


@dataclass(eq=False)
class TrainingMemoryError(TrainingError):
    """Training needs more memory than the machine, the container or `ulimit -v` allows. needed, left: bytes.

    batch_size: one with which training fits, None if there is none.
    """

    needed: int
    left: int
    batch_size: int | None

    def __str__(self) -> str:
        batches = "" if self.batch_size is None else f" or use smaller batches (--set batch_size={self.batch_size})"
        needed, left = (f"{count / 1e6:,.0f} MB" for count in (self.needed, self.left))
        return f"Training needs about {needed} of memory, and {left} are available. Raise the memory limit{batches}."
