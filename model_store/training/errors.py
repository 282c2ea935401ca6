"""Errors of importing, training and exporting. The others are in `model_store.errors`.

CheckpointError
└── UnusableRunError           a run cannot be continued with these images, or by this version of fc7

TrainingError
├── ImportFormatError          the weight file cannot be imported
├── DownloadError              a public weight file could not be downloaded, or is not the expected one
├── NonFiniteLossError         the loss became NaN or infinite
├── ParityError                the exported graph differs from the trained net
└── AgreementError             the net in another precision differs too much from fp32
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_store.errors import CheckpointError, TrainingError


@dataclass(eq=False)
class ImportFormatError(TrainingError):
    """A weight, mean or label file cannot be imported. Nothing was published."""

    path: Path
    reason: str
    message = "{path} cannot be imported: {reason}."


@dataclass(eq=False)
class DownloadError(TrainingError):
    """A public file could not be downloaded, or is not the expected one. `fix` says how to continue by hand."""

    address: str
    reason: str
    fix: str
    message = "{address} was not downloaded: {reason}. {fix}."


class UnusableRunError(CheckpointError):
    """A run cannot be continued: its images changed, or another version of fc7 wrote it. A new run can be started."""


@dataclass(eq=False)
class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite. `checkpoint` is the last good checkpoint, if there is one.

    rate: a learning rate to try instead, if the run's own is known. Resuming the run would give the same loss.
    """

    step: int
    checkpoint: Path | None
    rate: float | None = None

    def __str__(self) -> str:
        setting = f"--set learning_rate={'...' if self.rate is None else f'{self.rate:g}'}"
        kept = "There is no checkpoint yet."
        if self.checkpoint is not None:
            kept = (
                f"The last good checkpoint is {self.checkpoint}. To train on from it, use "
                f"--from {self.checkpoint.parent.name}, too."
            )
        return f"The loss is not finite at step {self.step}. Start a new run with a lower rate ({setting}). {kept}"


@dataclass(eq=False)
class ParityError(TrainingError):
    """An output of the exported graph differs from the trained net by more than the limit."""

    difference: float
    limit: float
    output: str = "probabilities"
    message = (
        "The exported graph differs from the trained net by {difference:.2e} in {output}, and the limit is "
        "{limit:.0e}. Nothing was published."
    )


@dataclass(eq=False)
class AgreementError(TrainingError):
    """The net in another precision differs too much from fp32 to be published."""

    precision: str
    agreement: float
    limit: float
    message = (
        "In {precision}, only {agreement:.2%} of the photographs have the best class of fp32 among their best, and "
        "{limit:.0%} is required. Nothing was published. Calibrate on more photographs (--calibrate)."
    )
