"""The group of processes that train together. torchrun starts them."""

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
from model_store.training.device import training_device

CPU: Final = torch.device("cpu")
TIMEOUT: Final = timedelta(minutes=30)  # other processes wait while the first one validates and writes


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run. rank: the number of this process, from 0. world: the number of processes."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU  # of this process

    @property
    def first(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over all processes."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return cast(list[float], summed.tolist())

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return flag if self.world == 1 else self.sum([float(flag)])[0] > 0

    def versions(self) -> dict[str, str]:
        """Return the device and the number of processes, which results depend on."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {"device": device, "processes": str(self.world)}

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first process."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every process with those of the first one."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def require_same_data(self, digest: str) -> None:
        """Raise DatasetError in every process unless all of them read the same images."""
        digests: list[str] = [digest] * self.world
        if self.world > 1:
            dist.all_gather_object(digests, digest)
        if len(set(digests)) > 1:
            other = next(rank for rank, found in enumerate(digests) if found != digests[0])
            raise DatasetError(
                f"Process {other} reads other images than process 0 (data hash {digests[other][:12]} instead of "
                f"{digests[0][:12]}). Every machine needs the same data folder."
            )


@contextmanager
def join_group(environment: Mapping[str, str], device: str = "auto") -> Iterator[Group]:
    """Join the processes that torchrun started. Without torchrun, the group is a single process.

    environment: variables of the process, in which torchrun sets RANK, WORLD_SIZE and LOCAL_RANK.
    device: "auto", "cpu", "cuda" or "cuda:1". With CUDA, each of several processes uses the device of its local rank.
    Raises DeviceUnavailableError.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    selected = training_device(device, int(environment.get("LOCAL_RANK", "0")) if world > 1 else None)
    if world == 1:
        yield Group(device=selected)
        return
    dist.init_process_group("nccl" if selected.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Group(int(environment["RANK"]), world, selected)
    finally:
        dist.destroy_process_group()
