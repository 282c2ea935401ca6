"""Checkpoints: weights, velocities, random states and the position in the run, in one safetensors file.

Guarantees: writing is atomic. If the process is killed or the disk is full, the previous checkpoint stays. A resumed
run computes the same bits as an uninterrupted run on the same machine. Reading a checkpoint runs no code.
Out of scope: the order and augmentation of the images, which follow from seed, epoch and step.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model_store.classes.figures import Figures
from model_store.durable import atomic_file, sync
from model_store.errors import CheckpointError
from model_store.training.device import rng_states, set_rng_states
from model_store.training.errors import NonFiniteLossError
from model_store.training.runs.run import (
    BEST_FILE,
    CHECKPOINT_FILE,
    MODEL_FILE,
    RUN_FILE,
    WEIGHTS_PREFIX,
    read_info,
    read_tensors,
)

_VELOCITY_PREFIX: Final = "velocity."
_RANDOM_PREFIX: Final = "random."
_FIGURES_PREFIX: Final = "figures."
_POSITION: Final = "place"  # key in the metadata


@dataclass(frozen=True, slots=True)
class Position:
    """The position in a run: total steps done, the next epoch and batch (from 0), and sums over the epoch so far."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    wrong: int = 0
    seconds: float = 0.0
    schedule: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # the best validation so far, and the validations since
    head_steps: int = 0  # steps at the start that train only fc8


@dataclass(frozen=True, slots=True)
class Validation:
    """The figures of weights on the validation images. epoch: after which they were measured, from 1."""

    epoch: int
    figures: Figures

    def tensors(self) -> dict[str, Tensor]:
        """Return what `read_validation` reads, as tensors beside the weights."""
        return {
            f"{_FIGURES_PREFIX}confusion": torch.from_numpy(self.figures.confusion),
            f"{_FIGURES_PREFIX}calibration": torch.from_numpy(self.figures.calibration),
            f"{_FIGURES_PREFIX}epoch": torch.tensor(self.epoch),
        }


def write_checkpoint(run: Path, net: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
    """Replace the checkpoint in the run's folder. If this raises, the previous one stays.

    Raises CheckpointError if it cannot be written, NonFiniteLossError if a weight is NaN or infinite.
    """
    _require_finite(run, net, position.step)
    tensors = _weights(net)
    for name, weight in net.named_parameters():
        if "momentum_buffer" in optimizer.state.get(weight, {}):
            tensors[_VELOCITY_PREFIX + name] = optimizer.state[weight]["momentum_buffer"].contiguous()
    states = rng_states(next(net.parameters()).device)
    tensors |= {_RANDOM_PREFIX + device: state for device, state in states.items()}
    _write(run / CHECKPOINT_FILE, tensors, {_POSITION: json.dumps(asdict(position))})


def restore_checkpoint(run: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Load weights, velocities and random states, and return the position in the run. Raises CheckpointError."""
    file = run / CHECKPOINT_FILE
    try:
        with safe_open(file, framework="pt") as opened:
            position = Position(**json.loads((opened.metadata() or {})[_POSITION]))
        net.load_state_dict(read_tensors(file, WEIGHTS_PREFIX))
        velocities = read_tensors(file, _VELOCITY_PREFIX)
        for name, weight in net.named_parameters():
            if name in velocities:
                # In the memory layout of the weight, which the fused update requires.
                optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(velocities[name]).detach()
        set_rng_states(read_tensors(file, _RANDOM_PREFIX), next(net.parameters()).device)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} is missing or not a checkpoint of this run: {error}.") from error
    return position


def keep_weights(run: Path, net: nn.Module, step: int, validation: Validation) -> None:
    """Write the weights after `step` as the best ones so far, with their figures.

    Raises CheckpointError if they cannot be written, NonFiniteLossError if a weight is NaN or infinite.
    """
    _require_finite(run, net, step)
    _write(run / BEST_FILE, _weights(net) | validation.tensors(), {})


def finish(run: Path, net: nn.Module, step: int, validation: Validation | None) -> None:
    """Write the final weights after the last `step`, with their figures, and remove the checkpoint.

    validation: None if the final weights are those of `keep_weights`. Raises CheckpointError if they cannot be written,
    NonFiniteLossError if a weight is NaN or infinite.
    """
    if validation is None:
        try:
            (run / BEST_FILE).replace(run / MODEL_FILE)
            sync(run)
        except OSError as error:
            raise CheckpointError(f"{run / MODEL_FILE} cannot be written: {error}.") from error
    else:
        _require_finite(run, net, step)
        _write(run / MODEL_FILE, _weights(net) | validation.tensors(), {})
    for file in (BEST_FILE, CHECKPOINT_FILE):
        (run / file).unlink(missing_ok=True)


def read_validation(run: Path, classes: Sequence[str]) -> Validation | None:
    """Return the figures of a finished run's weights; None if an older version of fc7 wrote them.

    Raises CheckpointError.
    """
    found = read_tensors(run / MODEL_FILE, _FIGURES_PREFIX)
    if not found:
        return None
    figures = Figures(tuple(classes), found["confusion"].numpy(), found["calibration"].numpy())
    return Validation(int(found["epoch"]), figures)


def non_finite_error(run: Path, step: int) -> NonFiniteLossError:
    """Return the error for a non-finite loss or weight after `step` steps. It names the run's checkpoint."""
    checkpoint = run / CHECKPOINT_FILE
    rate = read_info(run).recipe.learning_rate / 10 if (run / RUN_FILE).exists() else None
    return NonFiniteLossError(step, checkpoint if checkpoint.exists() else None, rate)


def _require_finite(run: Path, net: nn.Module, step: int) -> None:
    # The last update can make weights non-finite although the loss before it was finite. Testing the sum of a tensor
    # takes a single pass: it is finite only if all terms are.
    if not all(bool(torch.isfinite(weight.detach().sum())) for weight in net.parameters()):
        raise non_finite_error(run, step)


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {WEIGHTS_PREFIX + name: value.detach().contiguous() for name, value in net.state_dict().items()}


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        with atomic_file(file) as temporary:
            # safetensors replaces the file at this path by a new one, which only the owner can read and which is not
            # synced. Until then it is called .tmp*.
            save_file(tensors, temporary.name, metadata)
            Path(temporary.name).chmod(stat.S_IMODE(os.fstat(temporary.fileno()).st_mode))
            sync(Path(temporary.name))
    except (OSError, SafetensorError) as error:
        kept = "The previous one is kept" if file.exists() else "There is no previous one"
        raise CheckpointError(
            f"{file} cannot be written: {error}. {kept}. Free some disk space, then continue with: fc7 train --resume "
            f"--name {file.parent.name}"
        ) from error
