"""The process group of a distributed run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, cast

import torch
import torch.distributed as dist
from torch import Tensor

from model_store.errors import DatasetError
from model_store.training import device as machine

CPU: Final = torch.device("cpu")


TIMEOUT: Final = timedelta(minutes=30)  # the first process validates and writes while the others wait


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run. rank: this one's number, from 0; world: how many there are."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU  # where this process computes

    @property
    def first(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def totals(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes, each value by itself."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return cast(list[float], summed.tolist())

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return flag if self.world == 1 else self.totals([float(flag)])[0] > 0

    def versions(self) -> dict[str, str]:
        """Return what a run's figures depend on: the kind of device, and how many processes there are."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {"device": kind, "processes": str(self.world)}

    def from_first(self, value: Any) -> Any:
        """Return the first process's value."""
        if self.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every process with the first one's."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def require_same_data(self, digest: str) -> None:
        """Raise DatasetError in every process unless all read the same images."""
        digests: list[str] = [digest] * self.world
        if self.world > 1:
            dist.all_gather_object(digests, digest)
        if len(set(digests)) > 1:
            other = next(rank for rank, found in enumerate(digests) if found != digests[0])
            raise DatasetError(
                f"process {other} reads other images than process 0 (hash {digests[other][:12]}, {digests[0][:12]}): "
                "every machine needs the same data folder"
            )


@contextmanager
def joined(environment: Mapping[str, str], device: str = "auto") -> Iterator[Group]:
    """Join the processes that torchrun started, for the block; one process alone needs none of it.

    environment: the process's; torchrun puts RANK, WORLD_SIZE and LOCAL_RANK there. device: "auto", "cpu", "cuda" or
    "cuda:1"; with CUDA, each of several processes takes the device of its number. Raises DeviceUnavailableError.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    taken = machine.training_device(device, int(environment.get("LOCAL_RANK", "0")) if world > 1 else None)
    if world == 1:
        yield Group(device=taken)
        return
    dist.init_process_group("nccl" if taken.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Group(int(environment["RANK"]), world, taken)
    finally:
        dist.destroy_process_group()
