"""Joining a cluster, checking its nodes and placing actors, all without a running Ray."""

from __future__ import annotations

import os
import sys
import time

import pytest

from index.bulk.ray.cluster import Cluster, Node, Placement, join
from index.bulk.ray.worker import code_identity
from index.errors import ClusterError
from model_store.errors import MissingExtraError

CPUS = Node("a", "10.0.0.1", 8, 0)
GPUS = Node("b", "10.0.0.2", 16, 2)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_unusable_addresses_are_rejected_within_seconds() -> None:
    started = time.monotonic()
    for address, message in (
        ("127.0.0.1:1", "Nothing answers there .*GCS port"),
        ("ray://head:10001", "run this command on a machine of the cluster"),
        ("http://head:6379", "not an address of a cluster"),
        ("head", "not an address of a cluster"),
        ("head:port", "not an address of a cluster"),
    ):
        with pytest.raises(ClusterError, match=message), join(address, object_store_bytes=1):
            pass
    assert time.monotonic() - started < 10


def test_the_error_without_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"fc7\[ray\]"), join("local", object_store_bytes=1):
        pass


def test_nodes_without_the_same_fc7_or_the_source_are_rejected() -> None:
    Cluster(None, "x", [CPUS, GPUS]).check_probes([(code_identity(), ""), (code_identity(), "")])
    with pytest.raises(
        ClusterError, match=r"10\.0\.0\.1 cannot import fc7 \(No module named 'index'\)\. Run pip install"
    ):
        Cluster(None, "x", [CPUS]).check_probes([("", "No module named 'index'")])
    with pytest.raises(
        ClusterError, match=r"10\.0\.0\.2 has another version of fc7 \(code 0123.*Install the same version"
    ):
        Cluster(None, "x", [CPUS, GPUS]).check_probes([(code_identity(), ""), ("0123", "")])
    with pytest.raises(ClusterError, match=r"10\.0\.0\.1 cannot open the source: gone"):
        Cluster(None, "x", [CPUS]).check_probes([(code_identity(), "gone")])
    with pytest.raises(ClusterError, match="no node with a CPU"):
        Cluster(None, "x", []).check_probes([])


def test_actors_are_placed_by_cpus_gpus_and_device() -> None:
    assert Cluster(None, "x", [CPUS]).place_actors(None, None, "auto") == Placement(8, 1, 0)
    assert Cluster(None, "x", [CPUS]).place_actors(3, 2, "cpu") == Placement(3, 2, 0)
    assert Cluster(None, "x", [CPUS, GPUS]).place_actors(None, None, "cpu") == Placement(24, 1, 0)
    assert Cluster(None, "x", [CPUS, GPUS]).place_actors(None, None, "auto") == Placement(2, 8, 1)
    assert Cluster(None, "x", [CPUS, GPUS]).place_actors(9, 4, "cuda") == Placement(2, 4, 1)
    with pytest.raises(ClusterError, match=r"9 CPUs for an actor \(nodes: 10\.0\.0\.1 has 8 CPUs"):
        Cluster(None, "x", [CPUS]).place_actors(None, 9, "auto")
    with pytest.raises(ClusterError, match="and a GPU"):
        Cluster(None, "x", [CPUS]).place_actors(None, None, "cuda")
