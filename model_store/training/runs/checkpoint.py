"""A run's checkpoint: weights, velocities, dropout's random state and the place in the run, in one safetensors file.

Promises: the file is whole or the former one stays, whatever kills the process or fills the disk; what goes on from it
computes, on the same machine, the same bits as an uninterrupted run; reading it runs no code.
Does not: hold the order of the images or their augmentation, which follow from seed, epoch and step.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model_store.durable import sync
from model_store.errors import CheckpointError, NonFiniteLossError
from model_store.training import device as machine
from model_store.training.runs.run import CHECKPOINT_FILE, MODEL_FILE, WEIGHTS_PREFIX, read_tensors

_VELOCITY_PREFIX: Final = "velocity."
_RANDOM_PREFIX: Final = "random."
_PLACE: Final = "place"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands: `step` steps done in all, `epoch` (from 0) and `batch` the next to do, sums of this epoch."""

    step: int
    epoch: int
    batch: int
    loss_sum: float
    wrong: int
    seconds: float
    schedule: dict[str, float]


def write_checkpoint(run: Path, net: nn.Module, optimiser: torch.optim.Optimizer, place: Place) -> None:
    """Replace the checkpoint of the run's folder. The former one stays when this raises.

    Raises CheckpointError when it cannot be written, NonFiniteLossError when a weight is NaN or infinite.
    """
    _require_finite(run, net, place.step)
    tensors = _weights(net)
    for name, weight in net.named_parameters():
        if "momentum_buffer" in optimiser.state.get(weight, {}):
            tensors[_VELOCITY_PREFIX + name] = optimiser.state[weight]["momentum_buffer"].contiguous()
    states = machine.random_states(next(net.parameters()).device)
    tensors |= {_RANDOM_PREFIX + kind: state for kind, state in states.items()}
    _write(run / CHECKPOINT_FILE, tensors, {_PLACE: json.dumps(asdict(place))})


def restore_checkpoint(run: Path, net: nn.Module, optimiser: torch.optim.Optimizer) -> Place:
    """Load the checkpoint into `net`, `optimiser` and torch's random state; return the place.

    Raises CheckpointError.
    """
    file = run / CHECKPOINT_FILE
    try:
        with safe_open(file, framework="pt") as opened:
            place = Place(**json.loads((opened.metadata() or {})[_PLACE]))
        net.load_state_dict(read_tensors(file, WEIGHTS_PREFIX))
        velocities = read_tensors(file, _VELOCITY_PREFIX)
        for name, weight in net.named_parameters():
            if name in velocities:
                # Of the weight's own memory layout, which the fused update relies on.
                optimiser.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(velocities[name]).detach()
        machine.set_random_states(read_tensors(file, _RANDOM_PREFIX), next(net.parameters()).device)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file} is missing or no checkpoint of this run: {error}") from error
    return place


def finish(run: Path, net: nn.Module, step: int) -> None:
    """Write the weights after the last `step` and remove the checkpoint, which is of no use any more.

    Raises as `write_checkpoint`.
    """
    _require_finite(run, net, step)
    _write(run / MODEL_FILE, _weights(net), {})
    (run / CHECKPOINT_FILE).unlink(missing_ok=True)


def not_finite(run: Path, step: int) -> NonFiniteLossError:
    """Return the error for a loss or weight that is not finite after `step` steps, naming the run's checkpoint."""
    checkpoint = run / CHECKPOINT_FILE
    return NonFiniteLossError(step, checkpoint if checkpoint.exists() else None)


def _require_finite(run: Path, net: nn.Module, step: int) -> None:
    # The loss was finite before the last update; the weights need not be after it. A sum is finite only if all of its
    # terms are, and takes one pass.
    if not all(bool(torch.isfinite(weight.detach().sum())) for weight in net.parameters()):
        raise not_finite(run, step)


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {WEIGHTS_PREFIX + name: value.detach().contiguous() for name, value in net.state_dict().items()}


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        sync(temporary)
        temporary.replace(file)
        sync(file.parent)
    except (OSError, SafetensorError) as error:
        kept = "the former one is kept" if file.exists() else "there is none yet"
        raise CheckpointError(
            f"{file} cannot be written ({error}); {kept}. Make room and go on: fc7 train --resume"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
