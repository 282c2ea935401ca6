"""Join a Ray cluster, or start one on this machine, and check that its nodes can do the work.

Guarantees: each of these problems raises a `ClusterError` that says how to fix it, within about a minute: no Ray at the
address, another version of Ray or Python, a missing token, a node without fc7, with another version of fc7 or without
access to the source, and actors that do not fit on any node. A cluster that is started here requires a random token,
which is not written to disk; it has no dashboard, and its folder is removed at the end. Ray's usage statistics are off.
Out of scope: stopping a cluster that was joined; starting machines.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from index.bulk.ray.worker import code_identity, code_mismatch
from index.errors import ClusterError
from model_store.cores import usable_cores
from model_store.errors import MissingExtraError

LOCAL = "local"
_CONNECT_S = 5.0
_PROBE_S = 60.0
_NEEDS_AUTH = (
    "A token is required. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the values with which "
    "the cluster was started."
)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster that can run actors, with its CPUs and GPUs as Ray counts them."""

    id: str
    address: str
    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of actors, and the CPUs (`threads`) and GPUs of each."""

    actors: int
    threads: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that this process has joined (see `join`). ray: the package; nodes: those that can run actors."""

    ray: Any
    address: str
    nodes: Sequence[Node]

    def check(self, location: str) -> None:
        """Check that every node has the same fc7 and access to the source at `location`. Raises ClusterError."""
        affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        probe = self.ray.remote(num_cpus=0, max_retries=1)(_make_probe())
        tasks = [
            probe.options(scheduling_strategy=affinity(node.id, soft=False)).remote(location) for node in self.nodes
        ]
        try:
            results = self.ray.get(tasks, timeout=_PROBE_S)
        except self.ray.exceptions.GetTimeoutError:
            raise ClusterError(self.address, f"Not all nodes ran a task within {_PROBE_S:.0f} s.") from None
        except self.ray.exceptions.RayError as error:
            raise ClusterError(self.address, f"A node cannot run a task: {first_line(error)}") from error
        self.check_probes(results)

    def check_probes(self, results: Sequence[tuple[str, str]]) -> None:
        """Raise ClusterError for the first node that cannot do the work. results: of the probe on each node."""
        if not self.nodes:
            raise ClusterError(self.address, "It has no node with a CPU.")
        expected = code_identity()
        for node, (code, problem) in zip(self.nodes, results, strict=True):
            name = f"Node {node.address}"
            if not code:
                fix = (
                    "Run pip install 'fc7[cpu,ray]' (or 'fc7[gpu,ray]') in the Python environment of Ray on this node."
                )
                raise ClusterError(self.address, f"{name} cannot import fc7 ({problem}). {fix}")
            if code != expected:
                raise ClusterError(self.address, code_mismatch(name, code, expected))
            if problem:
                fix = "Every node must have access to it under the same path or URI."
                raise ClusterError(self.address, f"{name} cannot open the source: {problem}. {fix}")

    def place_actors(self, actors: int | None, threads: int | None, device: str) -> Placement:
        """Return the placement of at most `actors` actors, by default as many as fit. Raises ClusterError if none fits.

        threads: CPUs of each actor; by default 1, or the CPUs per GPU of a node if actors use GPUs. device: as in
        RunnerOptions; "auto" uses GPUs if the cluster has some.
        """
        gpus = 0 if device == "cpu" or (device == "auto" and not any(node.gpus for node in self.nodes)) else 1
        usable = [node for node in self.nodes if node.gpus >= gpus]
        if threads is None:
            threads = min([1 if not gpus else max(1, node.cpus // node.gpus) for node in usable], default=1)
        capacity = sum(min(node.cpus // threads, node.gpus if gpus else node.cpus) for node in usable)
        if not capacity:
            found = "; ".join(f"{node.address} has {node.cpus} CPUs and {node.gpus} GPUs" for node in self.nodes)
            raise ClusterError(
                self.address,
                f"No node has {threads} CPUs{' and a GPU' * gpus} for an actor (nodes: {found or 'none'}). "
                "FC7_THREADS sets the number of CPUs of an actor, FC7_DEVICE whether it uses a GPU.",
            )
        return Placement(min(actors or capacity, capacity), threads, gpus)


@contextmanager
def join(address: str, *, object_store_bytes: int) -> Iterator[Cluster]:
    """Join the cluster at `address` for the block; "local" starts one with all cores of this machine.

    address: "local", "auto" (the cluster that runs on this machine, or RAY_ADDRESS), or HOST:PORT. object_store_bytes:
    shared memory of a cluster that is started here. Raises ClusterError, MissingExtraError.
    """
    _prepare_environment(address)
    ray = _import()
    options: dict[str, Any] = {}
    # Ray's driver prints messages of its nodes to standard output, which may be reserved for the report.
    with ExitStack() as stack, _silent_logs(), Path(os.devnull).open("w") as null, redirect_stdout(null):
        if address == LOCAL:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fc7-ray-", ignore_cleanup_errors=True))
            options = {"num_cpus": usable_cores(), "object_store_memory": object_store_bytes}
            options |= {"include_dashboard": False, "_temp_dir": folder}
        else:
            _check_reachable(address)
        try:
            _connect(ray, address, options)
            yield Cluster(ray, address, _usable_nodes(ray))
        finally:
            ray.shutdown()


def _usable_nodes(ray: Any) -> list[Node]:
    """Return the nodes with a CPU."""
    nodes = []
    for node in ray.nodes():
        cpus, gpus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        if node["Alive"] and cpus:
            nodes.append(Node(node["NodeID"], node["NodeManagerAddress"], cpus, gpus))
    return nodes


def _prepare_environment(address: str) -> None:
    """Set Ray's options in the environment, which Ray reads when it is imported."""
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DEDUP_LOGS": "0"}
    # Without this, Ray hides the GPUs from workers that did not ask for one, and warns that this will change.
    variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    if address == LOCAL:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        # If something other than Ray answers, each attempt takes 40 seconds, and there are 20 attempts by default.
        variables["RAY_gcs_server_port_wait_time_s"] = "1"
    for name, value in variables.items():
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
    """Raise ClusterError within seconds if nothing listens at HOST:PORT."""
    if address == "auto":
        return
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if "://" in address or not host or not port:
        fix = 'Use local, auto, or the HOST:PORT that "ray start --head" printed (its GCS port, 6379 by default).'
        if address.startswith("ray://"):
            fix += " Ray Data does not support ray:// addresses: run this command on a machine of the cluster."
        raise ClusterError(address, f"This is not an address of a cluster. {fix}")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        fix = "Check that Ray is running (ray status), that this is its GCS port, and that no firewall blocks it."
        raise ClusterError(address, f"Nothing answers there ({error.strerror or error}). {fix}") from error


def _connect(ray: Any, address: str, options: Mapping[str, Any]) -> None:
    try:
        with _silent_stderr():
            ray.init(address=address, **options, log_to_driver=False, logging_level=logging.CRITICAL)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(address, _NEEDS_AUTH) from error
    except (Exception, SystemExit) as error:  # ConnectionError, RuntimeError, ValueError and others
        text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
        cause = first_line(error)
        if "InvalidAuthToken" in text or "AuthenticationError" in text:
            reason = _NEEDS_AUTH
        elif "ersion mismatch" in text:
            reason = f"It has another version of Ray or Python ({cause}). Install the same version."
        elif address == "auto":
            reason = (
                f"No cluster runs on this machine ({cause}). Start one (ray start --head), set RAY_ADDRESS, or use "
                "--ray local."
            )
        else:
            reason = (
                f"Joining it failed ({cause}). Check that this is its GCS port (6379 by default), and that it has the "
                "same version of Ray."
            )
        raise ClusterError(address, reason) from error


@contextmanager
def _silent_logs() -> Iterator[None]:
    """Keep Ray's log messages off the terminal, which shows the progress. Failures are raised as errors."""
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
    """Discard standard error, including what Ray's C++ code writes to it about its logging."""
    sys.stderr.flush()
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _make_probe() -> Callable[[str], tuple[str, str]]:
    """Return the function to run on each node: its result is the node's code identity ("" without fc7) and a problem.

    It is a local function, so that Ray sends it by value: a node may be without fc7.
    """

    def probe(location: str) -> tuple[str, str]:
        try:
            import onnxruntime  # noqa: F401, PLC0415

            from index.bulk.ray.worker import code_identity  # noqa: PLC0415
            from index.bulk.sources import open_source  # noqa: PLC0415
        except ImportError as error:
            return "", str(error)
        try:
            open_source(location).check()
        except Exception as error:  # any error is reported
            return code_identity(), str(error)
        return code_identity(), ""

    return probe


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    with suppress(IndexError):
        return str(error).strip().splitlines()[0][:300]
    return type(error).__name__
