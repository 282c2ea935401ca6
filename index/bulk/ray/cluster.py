"""A Ray cluster to work on: join one or start one on this machine, and find out before the work whether it can do it.

Promises: an address where no Ray answers, a cluster of another Ray or Python, one that wants a token, nodes without
fc7, with another fc7, or without the source, and a wish that no node can fulfil are each one `ClusterError` that names
the mend, within about a minute. A cluster that is started here listens to whoever knows its token, which is made anew
each time and written nowhere; it keeps no dashboard, and its folder is removed at the end.
Does not: send usage statistics (Ray would, by default), stop a cluster that it joined, start machines.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from index.bulk.ray.worker import another_code, code_identity
from index.errors import ClusterError
from model_store.cores import usable_cores
from model_store.errors import MissingExtraError

LOCAL = "local"
_CONNECT_S = 5.0
_PROBE_S = 60.0
_WANTS_ONE = (
    "it wants a token: give this command the RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) "
    "that the cluster was started with"
)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster that work can go to; cpus and gpus as Ray counts them."""

    id: str
    address: str
    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Placement:
    """How actors are laid out: so many now, on `gpus` and `threads` CPUs each."""

    actors: int
    threads: int
    gpus: int


class Cluster:
    """A cluster that this process has joined. `ray` is the package, `nodes` those that can be given work."""

    def __init__(self, ray: Any, address: str) -> None:
        """For `join`."""
        self.ray, self.address = ray, address
        self.nodes = [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
            )
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        ]

    def check(self, place: str) -> None:
        """Ask every node whether it has this very fc7 and sees the source. Raises ClusterError."""
        affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        probe = self.ray.remote(num_cpus=0, max_retries=1)(_probe())
        asked = [probe.options(scheduling_strategy=affinity(node.id, soft=False)).remote(place) for node in self.nodes]
        try:
            answers = self.ray.get(asked, timeout=_PROBE_S)
        except self.ray.exceptions.GetTimeoutError:
            raise ClusterError(self.address, f"not all of its nodes ran a task within {_PROBE_S:.0f} s") from None
        except self.ray.exceptions.RayError as error:
            raise ClusterError(self.address, f"a node cannot run a task: {_first_line(error)}") from error
        judge(self.address, self.nodes, answers)

    def place_actors(self, actors: int | None, threads: int | None, device: str) -> Placement:
        """Return how many actors there is room for, all by default. Raises ClusterError when there is none.

        threads: CPUs of each; by default one, or where actors have a GPU each its share of the node's. device: as in
        RunnerOptions; "auto" takes GPUs where the cluster has some.
        """
        return place_actors(self.address, self.nodes, actors, threads, device)


def place_actors(
    address: str, nodes: Sequence[Node], actors: int | None, threads: int | None, device: str
) -> Placement:
    """Do as `Cluster.placement` for these nodes."""
    gpus = 0 if device == "cpu" or (device == "auto" and not any(node.gpus for node in nodes)) else 1
    able = [node for node in nodes if node.gpus >= gpus]
    if threads is None:
        threads = min([1 if not gpus else max(1, node.cpus // node.gpus) for node in able], default=1)
    room = sum(min(node.cpus // threads, node.gpus if gpus else node.cpus) for node in able)
    if not room:
        have = "; ".join(f"{node.address} has {node.cpus} CPUs and {node.gpus} GPUs" for node in nodes) or "none"
        raise ClusterError(
            address,
            f"no node has {threads} CPUs{' and a GPU' * gpus} for an actor (nodes: {have}). "
            "FC7_THREADS says how many CPUs an actor takes, FC7_DEVICE whether it takes a GPU",
        )
    return Placement(min(actors or room, room), threads, gpus)


def judge(address: str, nodes: Sequence[Node], answers: Sequence[tuple[str, str]]) -> None:
    """Raise ClusterError for the first node whose answer, (code, what is wrong), does not do."""
    if not nodes:
        raise ClusterError(address, "it has no node with a CPU to work on")
    wanted = code_identity()
    for node, (code, wrong) in zip(nodes, answers, strict=True):
        if not code:
            mend = "pip install 'fc7[cpu,ray]' (or 'fc7[gpu,ray]') in the Python that runs Ray there"
            raise ClusterError(address, f"its node {node.address} cannot import fc7 ({wrong}): {mend}")
        if code != wanted:
            raise ClusterError(address, f"its node {node.address} {another_code(code, wanted)}")
        if wrong:
            raise ClusterError(
                address, f"its node {node.address} does not see the source: {wrong}. Every node must, under one name"
            )


@contextmanager
def join(address: str, *, object_store_bytes: int) -> Iterator[Cluster]:
    """Join the cluster at `address` for the block; "local" starts one with all of this machine's cores.

    address: "local", "auto" (the one that runs on this machine, or RAY_ADDRESS), HOST:PORT. object_store_bytes: shared
    memory of one that is started here. Raises ClusterError, MissingExtraError.
    """
    folder = tempfile.mkdtemp(prefix="fc7-ray-") if address == LOCAL else None
    try:
        _prepare_environment(address)
        ray = _import()
        # Ray's driver prints there what its nodes remark, whatever it is told; the report may go there too.
        with _silent_logs(), Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            if folder is not None:
                options: dict[str, Any] = {
                    "address": "local",
                    "num_cpus": usable_cores(),
                    "object_store_memory": object_store_bytes,
                    "include_dashboard": False,
                    "_temp_dir": folder,
                }
            else:
                _check_reachable(address)
                options = {"address": address}
            try:
                _connect(ray, address, options)
                yield Cluster(ray, address)
            finally:
                ray.shutdown()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _prepare_environment(address: str) -> None:
    """Tell Ray, which reads its settings from the environment when it is imported, what this use of it wants."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DEDUP_LOGS": "0"}
    # With neither a GPU nor this, Ray hides the devices from its workers, and announces that it will not one day.
    wanted["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    if address == LOCAL:
        wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        # Each try waits 40 seconds where something answers that is no Ray; by default there are twenty.
        wanted["RAY_gcs_server_port_wait_time_s"] = "1"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _import() -> Any:
    try:
        import ray  # noqa: PLC0415 - an extra, and it reads the environment when it is imported
        import ray.data  # noqa: PLC0415
        import ray.util.scheduling_strategies  # noqa: PLC0415
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("ray", "pyarrow", "pandas", "fsspec"):
            raise
        raise MissingExtraError(package, "ray") from error
    return ray


def _check_reachable(address: str) -> None:
    """Raise ClusterError, within seconds, unless somebody listens at HOST:PORT."""
    if address == "auto":
        return
    try:
        place = urlsplit(f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:
        host = port = None
    if "://" in address or not host or not port:
        mend = 'give local, auto, or the HOST:PORT that "ray start --head" printed (its GCS port, 6379 by default)'
        if address.startswith("ray://"):
            mend += "; Ray Data does not run over Ray's client protocol, so start this on a machine of the cluster"
        raise ClusterError(address, f"that is no address to join: {mend}")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        mend = "is it running (ray status), is this its GCS port, does a firewall let it through?"
        raise ClusterError(address, f"nobody answers there ({error.strerror or error}): {mend}") from error


def _connect(ray: Any, address: str, options: Mapping[str, Any]) -> None:
    try:
        with _silent_stderr():
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(address, _WANTS_ONE) from error
    except (Exception, SystemExit) as error:  # the seam: ConnectionError, RuntimeError, ValueError and others
        said = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
        if "InvalidAuthToken" in said or "AuthenticationError" in said:
            raise ClusterError(address, _WANTS_ONE) from error
        if "ersion mismatch" in said:
            raise ClusterError(
                address, f"it has another Ray or Python ({_first_line(error)}): install the same"
            ) from error
        if address == "auto":
            mend = "start one (ray start --head), set RAY_ADDRESS, or use --ray local"
            raise ClusterError(address, f"none runs on this machine ({_first_line(error)}): {mend}") from error
        mend = "is this its GCS port (6379 by default), and is it the same version of Ray?"
        raise ClusterError(address, f"it cannot be joined ({_first_line(error)}): {mend}") from error


@contextmanager
def _silent_logs() -> Iterator[None]:
    """Keep Ray's remarks off the terminal, where the progress is: what matters comes as errors."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what is written to standard error, also by Ray's C++ code, which remarks there on how it logs."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _probe() -> Callable[[str], tuple[str, str]]:
    """Return the function that each node runs: made here, so that it travels by value to where no fc7 is."""

    def probe(place: str) -> tuple[str, str]:
        try:
            import onnxruntime  # noqa: F401, PLC0415

            from index.bulk.ray.worker import code_identity  # noqa: PLC0415
            from index.bulk.sources import open_source  # noqa: PLC0415
        except ImportError as error:
            return "", str(error)
        try:
            open_source(place).check()
        except Exception as error:  # to be said, whatever it is
            return code_identity(), str(error)
        return code_identity(), ""

    return probe


def _first_line(error: BaseException) -> str:
    with suppress(IndexError):
        return str(error).strip().splitlines()[0][:300]
    return type(error).__name__
