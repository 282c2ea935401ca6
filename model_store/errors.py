"""Every error that this room raises on purpose, drawn once. The other rooms' errors derive from `Fc7Error` too.

Fc7Error
├── ShapeError                 an array of a wrong shape or dtype
├── MissingExtraError          a package of an optional extra is not installed
├── ImageError
│   ├── ImageUnreadableError   no image, or a broken one
│   ├── ImageFormatError       a format that is not taken
│   └── ImageTooLargeError     more pixels than the limit
├── ArtifactError              a version on disk that cannot be used
│   ├── ArtifactCorruptError   a file differs from its manifest, or is missing
│   ├── ArtifactFormatError    a manifest that cannot be read: broken, or of a newer format
│   └── PrecisionNotFoundError the version has no files of this precision
├── ModelArchiveError               a file that is no whole archive of a version, or that cannot be written
├── ModelNameError             a name that cannot be a folder's name
├── ModelNotFoundError         no such name or version in the store
├── NoActiveModelError         nothing was activated yet
├── NoPreviousModelError       nothing to roll back to
├── ModelInUseError            a version that may not be removed now
├── PublishError               a version could not be written (disk full, no permission)
├── RunnerError                ONNX Runtime failed
│   └── DeviceUnavailableError CUDA was asked for and is not there
└── TrainingError
    ├── DatasetError           a data set that cannot be trained or evaluated on
    ├── RecipeError            a recipe's value that makes no sense, or an unknown one
    ├── CheckpointError        a checkpoint that is missing, broken or of another run
    ├── ImportFormatError      a weight file that is not what its importer reads
    ├── DownloadError          a public weight file could not be fetched, or is another one
    ├── NonFiniteLossError     the loss became NaN or infinite
    ├── ParityError            the exported graph does not answer as the trained net does
    └── AgreementError         a net in another precision does not answer as in fp32

Values are kept as attributes and in `args`, so that an error survives a worker process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class Fc7Error(Exception):
    """Base of all errors that a user can meet. The text names the thing and the mend."""


class ShapeError(Fc7Error):
    """An array has another shape or dtype than the function takes."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        super().__init__(name, expected, found)
        self.name, self.expected, self.found = name, expected, found

    def __str__(self) -> str:
        return f"{self.name} must be {self.expected}, but is {self.found}"


class MissingExtraError(Fc7Error):
    """A package that belongs to an optional extra is not installed. `extra` may name a choice: "cpu|gpu"."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package, self.extra = package, extra

    def __str__(self) -> str:
        commands = " or ".join(f"pip install 'fc7[{extra}]'" for extra in self.extra.split("|"))
        return f"this needs the package {self.package}, which is not installed: {commands}"


class ImageError(Fc7Error):
    """Bytes that were meant to be an image cannot be taken."""


class ImageUnreadableError(ImageError):
    """The bytes are empty, no image, or a broken or cut one."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"this is not a readable image: {self.reason}"


class ImageFormatError(ImageError):
    """The bytes are of a known kind that is not taken."""

    def __init__(self, found: str, taken: Sequence[str]) -> None:
        super().__init__(found, tuple(taken))
        self.found, self.taken = found, tuple(taken)

    def __str__(self) -> str:
        return f"{self.found} is not taken; these formats are: {', '.join(self.taken)}"


class ImageTooLargeError(ImageError):
    """The header announces more pixels than the limit: nothing was decoded."""

    def __init__(self, pixels: int, limit: int) -> None:
        super().__init__(pixels, limit)
        self.pixels, self.limit = pixels, limit

    def __str__(self) -> str:
        return (
            f"the image has {self.pixels:,} pixels, and at most {self.limit:,} are decoded: "
            "send a smaller copy (256 pixels on the shorter side are enough)"
        )


class ArtifactError(Fc7Error):
    """A version of a model on disk cannot be used."""


class ArtifactCorruptError(ArtifactError):
    """A file of a version is not the one its manifest describes: it must not be served.

    `expected` and `found` are SHA-256 in hexadecimal; `found` is "missing" when there is no such file.
    """

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(path, expected, found)
        self.path, self.expected, self.found = path, expected, found

    def __str__(self) -> str:
        state = "is missing" if self.found == "missing" else f"has SHA-256 {self.found[:12]}"
        return (
            f"{self.path} {state}, but its manifest says {self.expected[:12]}. "
            "Copy or export the version again, or serve another one: fc7 models list; fc7 models activate NAME:VERSION"
        )


class ArtifactFormatError(ArtifactError):
    """A manifest, or the store's own file, is missing, broken, or of a format this release cannot read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.reason}"


class ModelArchiveError(Fc7Error):
    """A version's archive cannot be read or written; nothing of it is published or left."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is not taken: {self.reason}"


class PrecisionNotFoundError(ArtifactError):
    """A version has no files of this precision. `known` are those that it has."""

    def __init__(self, model: str, precision: str, known: Sequence[str]) -> None:
        super().__init__(model, precision, tuple(known))
        self.model, self.precision, self.known = model, precision, tuple(known)

    def __str__(self) -> str:
        return (
            f"{self.model} has no {self.precision} files, only {', '.join(self.known)}. Publish a version with them: "
            f"fc7 models quantize {self.model} --precision {self.precision} --data DIR; or serve it with "
            f"FC7_PRECISION={self.known[0]}"
        )


class ModelNameError(Fc7Error):
    """A model's name, or a reference to a version, is not of the form that is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.name!r} is not a model's name: use 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-', the first a "
            "letter or digit, and NAME:VERSION for one version (solar:1)"
        )


class ModelNotFoundError(Fc7Error):
    """The store has no such name, or not this version of it. `known` are the references that it has."""

    def __init__(self, name: str, version: int | None, known: Sequence[str]) -> None:
        super().__init__(name, version, tuple(known))
        self.name, self.version, self.known = name, version, tuple(known)

    def __str__(self) -> str:
        wanted = self.name if self.version is None else f"{self.name}:{self.version}"
        if not self.known:
            return (
                f"there is no model {wanted}: none is published yet. Train one (fc7 train) and publish it (fc7 export)"
            )
        return f"there is no model {wanted}. Published: {', '.join(self.known)}"


class NoActiveModelError(Fc7Error):
    """No version was activated. `known` are the references that could be."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        super().__init__(tuple(known))
        self.known = tuple(known)

    def __str__(self) -> str:
        if not self.known:
            return "no model is published yet. Train one (fc7 train) and publish it (fc7 export), or run: make demo"
        return f"no model is active: fc7 models activate {self.known[-1]}. Published: {', '.join(self.known)}"


class NoPreviousModelError(Fc7Error):
    """There is no version to roll back to: at most one was ever activated."""

    def __str__(self) -> str:
        return "there is no version before the active one: fc7 models list; fc7 models activate NAME:VERSION"


class ModelInUseError(Fc7Error):
    """A version may not be removed, because something needs it."""

    def __init__(self, model: str, use: str) -> None:
        super().__init__(model, use)
        self.model, self.use = model, use

    def __str__(self) -> str:
        return f"{self.model} is {self.use} and is not removed: activate another version first (fc7 models activate)"


class PublishError(Fc7Error):
    """A version could not be written; nothing of it is visible."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"could not publish: writing {self.path} failed: {self.reason}. "
            "Nothing of it is visible; make room or mend it, and publish again"
        )


class RunnerError(Fc7Error):
    """ONNX Runtime could not load or run a version."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.model, self.reason = model, reason

    def __str__(self) -> str:
        return f"model {self.model} failed: {self.reason}"


class DeviceUnavailableError(RunnerError):
    """A CUDA device was asked for, and ONNX Runtime cannot use it. `available` are the providers that it has."""

    def __init__(self, device: str, available: Sequence[str], reason: str = "") -> None:
        Fc7Error.__init__(self, device, tuple(available), reason)
        self.device, self.available, self.reason = device, tuple(available), reason

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        have = f" ONNX Runtime here has: {', '.join(self.available)}." if self.available else ""
        return (
            f"device {self.device} was asked for and cannot be used{why}.{have} Check nvidia-smi and that fc7[gpu] is "
            "installed instead of fc7[cpu], or run with FC7_DEVICE=cpu or auto"
        )


class TrainingError(Fc7Error):
    """Training, evaluation or export cannot go on. The text is the message as given."""


class DatasetError(TrainingError):
    """A data set cannot be trained or evaluated on; the text names the folder or file."""


class RecipeError(TrainingError):
    """A recipe is unknown, or a value in it makes no sense; the text names key, value and what is taken."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, broken, or of another run; the text names the file and the command."""


class ImportFormatError(TrainingError):
    """A weight, mean or label file cannot be imported: broken, of another kind or another net. Nothing is published."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be imported: {self.reason}"


class DownloadError(TrainingError):
    """A public file was not fetched, or what came is another file. `mend` says how to go on by hand."""

    def __init__(self, address: str, reason: str, mend: str) -> None:
        super().__init__(address, reason, mend)
        self.address, self.reason, self.mend = address, reason, mend

    def __str__(self) -> str:
        return f"{self.address} was not downloaded: {self.reason}. {self.mend}"


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite. `checkpoint` is the last good one, if there is any."""

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        super().__init__(step, checkpoint)
        self.step, self.checkpoint = step, checkpoint

    def __str__(self) -> str:
        kept = f"The last good checkpoint is {self.checkpoint}" if self.checkpoint else "There is no checkpoint yet"
        return f"the loss is not finite at step {self.step}: lower the learning rate (--set learning_rate=...). {kept}"


class ParityError(TrainingError):
    """An output of the exported graph differs from the trained net's by more than the limit."""

    def __init__(self, difference: float, limit: float, output: str = "probabilities") -> None:
        super().__init__(difference, limit, output)
        self.difference, self.limit, self.output = difference, limit, output

    def __str__(self) -> str:
        return (
            f"the exported graph differs from the trained net by {self.difference:.2e} in {self.output}, and "
            f"{self.limit:.0e} is allowed: nothing was published"
        )


class AgreementError(TrainingError):
    """The net in another precision answers too differently from fp32 to be published."""

    def __init__(self, precision: str, agreement: float, limit: float) -> None:
        super().__init__(precision, agreement, limit)
        self.precision, self.agreement, self.limit = precision, agreement, limit

    def __str__(self) -> str:
        return (
            f"in {self.precision} only {self.agreement:.2%} of the photographs keep fp32's best class among their "
            f"best, and {self.limit:.0%} is needed: nothing was published. Calibrate on more photographs (--calibrate)"
        )
