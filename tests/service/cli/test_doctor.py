"""`fc7 doctor`: what it finds on a good machine, and for each mistake that people make."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from service.cli.doctor import installation, machine
from tests.service.cli.helpers import invoke
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model


def examine(home: Path, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code and the findings by check. Without a port among the variables, a free one is used."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = str(listener.getsockname()[1])
    done = invoke(home, "doctor", "--json", **{"FC7_PORT": free, "FC7_DEVICE": "cpu"} | variables)
    return done.exit_code, {finding["check"]: finding for finding in json.loads(done.stdout)}


def test_a_home_with_an_active_model_has_no_problems(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    code, found = examine(tmp_path)
    assert code == 0
    assert [finding["check"] for finding in found.values() if finding["status"] == "problem"] == []
    assert "is active" in found["model"]["detail"]
    assert "onnxruntime" in found["versions"]["detail"]
    assert all(finding["fix"] for finding in found.values() if finding["status"] != "ok")


def test_an_empty_home_can_be_served_and_has_no_model(tmp_path: Path) -> None:
    code, found = examine(tmp_path / "new")
    assert code == 0
    assert found["model"]["status"] == "warning"
    assert "will be created" in found["home"]["detail"]
    assert found["index"]["status"] == "ok"


def test_the_table_shows_each_fix_and_the_next_step(tmp_path: Path) -> None:
    done = invoke(tmp_path, "doctor", FC7_PORT="0", FC7_DEVICE="cpu", FC7_PROT="1")
    assert "Did you mean FC7_PORT?" in done.stdout
    assert "Correct or remove these variables." in done.stdout
    assert "Next: fc7 serve" in done.stderr


@pytest.mark.parametrize(
    ("check", "variables", "words"),
    [
        ("address", {"FC7_HOST": "0.0.0.0"}, "FC7_API_KEYS"),
        ("address", {"FC7_HOST": "192.0.2.1", "FC7_ALLOW_ANONYMOUS": "true"}, "not an address of this machine"),
        ("GPU", {"FC7_DEVICE": "cuda:7"}, "CPU package"),
        ("engine", {"FC7_CUDA_GRAPHS": "true"}, "requires CUDA"),
        ("engine", {"FC7_ENGINE": "openvino", "FC7_DEVICE": "cuda"}, "FC7_ENGINE is openvino, which runs on the CPU"),
    ],
)
def test_settings_that_cannot_work_are_problems(
    tmp_path: Path, check: str, variables: dict[str, str], words: str
) -> None:
    publish_tiny_model(tmp_path)
    code, found = examine(tmp_path, **variables)
    assert code == 1
    assert found[check]["status"] == "problem"
    assert words in found[check]["detail"]
    assert found[check]["fix"]


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({}, "OpenVINO in f32 for tiny:1, because bf16 was not compared with f32"),
        ({"images": 20, "top1_agreement": 1.0}, "compared with f32 on 20 views of images"),
    ],
)
def test_the_reason_why_a_version_runs_in_f32_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, Any], words: str
) -> None:
    publish_tiny_model(tmp_path, metrics={"bf16": measured})
    monkeypatch.setattr(installation, "bf16_support", lambda: "native")
    _, found = examine(tmp_path)
    assert found["engine"]["status"] == "warning"
    assert words in found["engine"]["detail"]
    _, found = examine(tmp_path, FC7_ARITHMETIC="f32")
    assert found["engine"]["detail"] == "OpenVINO in f32, because FC7_ARITHMETIC is f32"


def test_limited_instructions_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "bf16_support", lambda: "none")
    _, found = examine(tmp_path)
    assert found["engine"]["status"] == "ok"
    assert "OpenVINO in f32; a processor that computes bf16" in found["engine"]["detail"]
    _, found = examine(tmp_path, ONEDNN_MAX_CPU_ISA="AVX2")
    assert found["engine"]["status"] == "warning"
    assert found["engine"]["fix"] == "Unset ONEDNN_MAX_CPU_ISA to use all instructions of the processor."


def test_a_port_of_another_program_is_a_problem_and_fc7_itself_is_not(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code, found = examine(tmp_path, FC7_PORT=str(listener.getsockname()[1]))
    assert code == 1
    assert "another program" in found["address"]["detail"]
    with thread_server(tmp_path) as server:
        code, found = examine(tmp_path, FC7_PORT=str(server.port))
    assert code == 0
    assert "an fc7 server is running" in found["address"]["detail"]


def test_a_damaged_model_is_a_problem(tmp_path: Path) -> None:
    artifact = publish_tiny_model(tmp_path)
    artifact.weights_path.write_bytes(artifact.weights_path.read_bytes()[:-1])
    code, found = examine(tmp_path)
    assert code == 1
    assert found["model"]["status"] == "problem"
    assert str(artifact.weights_path) in found["model"]["detail"]


def test_a_home_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, found = examine(tmp_path / "file")
    assert code == 1
    assert "is not a folder" in found["home"]["detail"]


def test_a_clock_behind_the_models_is_a_warning(tmp_path: Path) -> None:
    artifact = publish_tiny_model(tmp_path)
    manifest = artifact.path / "manifest.json"
    later = manifest.stat().st_mtime + 3600
    os.utime(manifest, (later, later))
    _, found = examine(tmp_path)
    assert found["clock"]["status"] == "warning"
    assert "before the newest file" in found["clock"]["detail"]


def test_features_of_the_processor_are_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Test CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n")
    finding = machine.check_processor(cpuinfo)
    assert finding.status == "ok"
    assert "Test CPU" in finding.detail
    assert "AVX-512 BF16" in finding.detail
    cpuinfo.write_text("model name\t: Old CPU\nflags\t\t: fpu sse2\n")
    assert machine.check_processor(cpuinfo).status == "warning"


def test_memory_is_compared_with_what_the_model_takes() -> None:
    assert machine.check_memory(1).status == "ok"
    assert machine.check_memory(1 << 60).status == "problem"


def test_a_home_on_a_network_file_system_is_a_warning(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/export {tmp_path} nfs4 rw 0 0\n")
    [home, *_] = machine.check_home(tmp_path / "home", mounts)
    assert home.status == "warning"
    assert "nfs4" in home.detail
