"""Exception hierarchy of the model_store package. The errors of the other packages derive from `Fc7Error` too.

Fc7Error
├── ShapeError                 an array has the wrong shape or dtype
├── MissingExtraError          a package of an optional extra is not installed
├── ImageError
│   ├── ImageUnreadableError   not an image, or a broken one
│   ├── ImageFormatError       an image format that is not supported
│   └── ImageTooLargeError     more pixels than the limit
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
├── PublishError               a version could not be written (disk full, no permission)
├── RunnerError                the inference engine failed
│   └── DeviceUnavailableError CUDA was requested and is not available
└── TrainingError
    ├── DatasetError           the data set cannot be used for training or evaluation
    ├── RecipeError            an unknown recipe, or an invalid value in one
    ├── CheckpointError        the checkpoint is missing, broken or of another run
    ├── ImportFormatError      the weight file cannot be imported
    ├── DownloadError          a public weight file could not be downloaded, or is not the expected one
    ├── NonFiniteLossError     the loss became NaN or infinite
    ├── ParityError            the exported graph differs from the trained net
    └── AgreementError         the net in another precision differs too much from fp32

Every message says what failed and how to fix it. Values are kept as attributes and in `args`, so that an error can be
pickled and sent to another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Fc7Error(Exception):
    """Base class of all errors that a user can see. The message says what failed and how to fix it."""


def sentence(text: str) -> str:
    """Return the text with a full stop, unless it ends with one already."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


class ShapeError(Fc7Error):
    """An array does not have the shape or dtype that the function expects."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        super().__init__(name, expected, found)
        self.name, self.expected, self.found = name, expected, found

    def __str__(self) -> str:
        return f"{self.name} must be {self.expected}, but is {self.found}."


class MissingExtraError(Fc7Error):
    """A package of an optional extra is not installed. `extra` may list alternatives: "cpu|gpu"."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package, self.extra = package, extra

    def __str__(self) -> str:
        commands = " or ".join(f"pip install 'fc7[{extra}]'" for extra in self.extra.split("|"))
        return f"The package {self.package} is required and not installed. Install it with: {commands}"


class ImageError(Fc7Error):
    """The bytes of an image were rejected."""


class ImageUnreadableError(ImageError):
    """The bytes are empty, not an image, or a broken or truncated image."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return sentence(f"The image cannot be read: {self.reason}")


class ImageFormatError(ImageError):
    """The bytes are of a known format that is not supported. `supported` are the formats that are."""

    def __init__(self, found: str, supported: Sequence[str]) -> None:
        super().__init__(found, tuple(supported))
        self.found, self.supported = found, tuple(supported)

    def __str__(self) -> str:
        return f"The format {self.found} is not supported. Supported formats: {', '.join(self.supported)}."


class ImageTooLargeError(ImageError):
    """The image header declares more pixels than the limit. Nothing was decoded."""

    def __init__(self, pixels: int, limit: int) -> None:
        super().__init__(pixels, limit)
        self.pixels, self.limit = pixels, limit

    def __str__(self) -> str:
        return (
            f"The image has {self.pixels:,} pixels, and the limit is {self.limit:,}. "
            "Send a smaller copy; 256 pixels on the shorter side are enough."
        )


class ArtifactError(Fc7Error):
    """A version on disk cannot be used."""


class ArtifactCorruptError(ArtifactError):
    """A file of a version differs from its manifest, so the version must not be served.

    `expected` and `found` are SHA-256 in hexadecimal. `found` is "missing" if the file does not exist.
    """

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(path, expected, found)
        self.path, self.expected, self.found = path, expected, found

    def __str__(self) -> str:
        state = "is missing" if self.found == "missing" else f"has SHA-256 {self.found[:12]}"
        return (
            f"{self.path} {state}, but the manifest expects SHA-256 {self.expected[:12]}. Copy or export the version "
            "again, or serve another one: fc7 models list; fc7 models activate NAME:VERSION."
        )


class ArtifactFormatError(ArtifactError):
    """A manifest or `active.json` is missing, broken, or in a format that this release does not support."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return sentence(f"{self.path} cannot be read: {self.reason}")


class ModelArchiveError(Fc7Error):
    """The archive of a version cannot be read or written. Nothing was published, and no file is left behind."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return sentence(f"The archive {self.path} was rejected: {self.reason}")


class PrecisionNotFoundError(ArtifactError):
    """A version has no files in this precision. `known` are the precisions that it has."""

    def __init__(self, model: str, precision: str, known: Sequence[str]) -> None:
        super().__init__(model, precision, tuple(known))
        self.model, self.precision, self.known = model, precision, tuple(known)

    def __str__(self) -> str:
        return (
            f"{self.model} has no {self.precision} files, only {', '.join(self.known)}. Publish a version "
            f"that has them: fc7 models quantize {self.model} --precision {self.precision} --data DIR. "
            f"Or serve it with FC7_PRECISION={self.known[0]}."
        )


class ModelNameError(Fc7Error):
    """The name of a model, or a reference to a version, is not valid."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.name!r} is not a valid model name. Use 1 to 64 of the characters a-z, A-Z, 0-9, '.', '_' and '-', "
            "starting with a letter or digit. Write NAME:VERSION for one version, for example solar:1."
        )


class ModelNotFoundError(Fc7Error):
    """The store has no model of this name, or not this version of it. `known` are the versions that it has."""

    def __init__(self, name: str, version: int | None, known: Sequence[str]) -> None:
        super().__init__(name, version, tuple(known))
        self.name, self.version, self.known = name, version, tuple(known)

    def __str__(self) -> str:
        wanted = self.name if self.version is None else f"{self.name}:{self.version}"
        if not self.known:
            return (
                f"The model {wanted} does not exist: no model is published yet. Train one (fc7 train) and publish it "
                "(fc7 export)."
            )
        return f"The model {wanted} does not exist. Published: {', '.join(self.known)}."


class NoActiveModelError(Fc7Error):
    """No version is active. `known` are the published versions."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        super().__init__(tuple(known))
        self.known = tuple(known)

    def __str__(self) -> str:
        if not self.known:
            return "No model is published yet. Train one (fc7 train) and publish it (fc7 export), or run: make demo."
        return (
            f"No model is active. Activate one: fc7 models activate {self.known[-1]}. "
            f"Published: {', '.join(self.known)}."
        )


class NoPreviousModelError(Fc7Error):
    """There is no version to roll back to."""

    def __str__(self) -> str:
        return (
            "There is no previous version to roll back to. Choose a version instead: "
            "fc7 models list; fc7 models activate NAME:VERSION."
        )


class ModelInUseError(Fc7Error):
    """A version is in use and cannot be removed."""

    def __init__(self, model: str, use: str) -> None:
        super().__init__(model, use)
        self.model, self.use = model, use

    def __str__(self) -> str:
        return f"{self.model} is {self.use} and was not removed. Activate another version first: fc7 models activate."


class PublishError(Fc7Error):
    """A version could not be written. Nothing of it is visible."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"Publishing failed while writing {self.path}: {self.reason}. "
            "No part of the version is visible. Fix the cause, for example free disk space, and publish again."
        )


class RunnerError(Fc7Error):
    """The inference engine could not load or run a version."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model, self.reason = model, reason

    def __str__(self) -> str:
        return sentence(f"The model {self.model} failed: {self.reason}")


class DeviceUnavailableError(RunnerError):
    """A CUDA device was requested and cannot be used. `available` are ONNX Runtime's execution providers."""

    def __init__(self, device: str, available: Sequence[str], reason: str = "") -> None:
        Fc7Error.__init__(self, device, tuple(available), reason)
        self.device, self.available, self.reason = device, tuple(available), reason

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


class ImportFormatError(TrainingError):
    """A weight, mean or label file cannot be imported. Nothing was published."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return sentence(f"{self.path} cannot be imported: {self.reason}")


class DownloadError(TrainingError):
    """A public file could not be downloaded, or is not the expected one. `fix` says how to continue by hand."""

    def __init__(self, address: str, reason: str, fix: str) -> None:
        super().__init__(address, reason, fix)
        self.address, self.reason, self.fix = address, reason, fix

    def __str__(self) -> str:
        return sentence(f"{self.address} was not downloaded: {self.reason}. {self.fix}")


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite. `checkpoint` is the last good checkpoint, if there is one."""

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        super().__init__(step, checkpoint)
        self.step, self.checkpoint = step, checkpoint

    def __str__(self) -> str:
        kept = f"The last good checkpoint is {self.checkpoint}." if self.checkpoint else "There is no checkpoint yet."
        return f"The loss is not finite at step {self.step}. Lower the learning rate (--set learning_rate=...). {kept}"


class ParityError(TrainingError):
    """An output of the exported graph differs from the trained net by more than the limit."""

    def __init__(self, difference: float, limit: float, output: str = "probabilities") -> None:
        super().__init__(difference, limit, output)
        self.difference, self.limit, self.output = difference, limit, output

    def __str__(self) -> str:
        return (
            f"The exported graph differs from the trained net by {self.difference:.2e} in {self.output}, and the limit "
            f"is {self.limit:.0e}. Nothing was published."
        )


class AgreementError(TrainingError):
    """The net in another precision differs too much from fp32 to be published."""

    def __init__(self, precision: str, agreement: float, limit: float) -> None:
        super().__init__(precision, agreement, limit)
        self.precision, self.agreement, self.limit = precision, agreement, limit

    def __str__(self) -> str:
        return (
            f"In {self.precision}, only {self.agreement:.2%} of the photographs have the best class of fp32 among "
            f"their best, and {self.limit:.0%} is required. Nothing was published. Calibrate on more photographs "
            "(--calibrate)."
        )
