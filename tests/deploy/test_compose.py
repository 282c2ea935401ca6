"""The Compose files and the Dockerfile: their content, and what `docker compose config` makes of it if installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.support.reference import (
    COMPOSE_VARIABLES,
    IMAGE_SETTINGS,
    ROOT,
    SETTINGS_ENV,
    container_settings,
    render_settings_env,
)
from tests.support.server import environment_of, thread_server

FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
PROFILES = ("train", "proxy", "observability", "scale")
OWN = ("prepare", "fc7", "train", "replica")
DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")


def services(file: str = FILES[0]) -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["services"]
    return loaded


def filled(text: str) -> str:
    """Return the text with the defaults of its variables."""
    return DEFAULT.sub(lambda match: match[2], text)


def test_without_a_profile_the_demo_is_prepared_and_served() -> None:
    plain = {name: service for name, service in services().items() if "profiles" not in service}
    assert set(plain) == {"prepare", "fc7"}
    assert plain["fc7"]["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
    assert plain["prepare"]["command"] == ["demo"]
    assert filled(plain["fc7"]["ports"][0]) == "127.0.0.1:8000:8000"


def test_each_profile_starts_its_services() -> None:
    found = {name: service["profiles"] for name, service in services().items() if "profiles" in service}
    assert found == {
        "train": ["train"],
        "caddy": ["proxy"],
        "prometheus": ["observability"],
        "grafana": ["observability"],
        "replica": ["scale"],
        "balancer": ["scale"],
        "milvus": ["scale"],
    }
    assert services()["replica"]["deploy"]["replicas"] == 3


@pytest.mark.parametrize("name", services())
def test_every_container_is_limited(name: str) -> None:
    service = services()[name]
    assert service.get("read_only", False) is (name != "milvus")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service.get("cap_add", ())) <= ({"NET_BIND_SERVICE"} if name == "caddy" else set())
    assert re.fullmatch(r"\d+[mg]", filled(service["mem_limit"]))
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert not service.get("privileged")
    assert "user" not in service, "the image of fc7 has a user of its own"


def test_images_have_a_fixed_version() -> None:
    for name, service in (*services().items(), *services(FILES[1]).items()):
        if "image" in service:
            image = filled(service["image"])
            if name in OWN:
                assert re.fullmatch(rf"fc7:{re.escape(version('fc7'))}-(cpu|gpu|train|cpu-scale)", image)
            else:
                assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\d.]*", image)


def test_only_the_proxy_is_published_beyond_the_chosen_address() -> None:
    published = {name: service.get("ports", []) for name, service in services().items() if name != "caddy"}
    assert all(filled(port).startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert "ports" not in services()["milvus"]
    assert "ports" not in services()["replica"]


def test_every_mounted_file_exists() -> None:
    mounts = [volume for service in services().values() for volume in service.get("volumes", [])]
    paths = [ROOT / mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(paths) >= 6
    assert [path for path in paths if not path.exists()] == []


def test_an_existing_model_needs_no_image_for_training() -> None:
    prepare = services()["prepare"]
    assert prepare["image"].endswith("-${FC7_PREPARE:-train}")
    assert prepare["build"]["target"] == "${FC7_PREPARE:-train}"


def test_every_setting_reaches_the_containers() -> None:
    assert SETTINGS_ENV.read_text(encoding="utf-8") == render_settings_env(), "Run: python -m tests.support.reference"
    for name in OWN:
        assert services()[name]["env_file"] == "deploy/settings.env"
        assert set(services()[name]["environment"]).isdisjoint(IMAGE_SETTINGS)


def test_every_variable_of_the_compose_files_is_in_the_example() -> None:
    defaults = {name: value for name, value, _ in COMPOSE_VARIABLES} | {"FC7_PREPARE": "train"}
    settings = {line.variable for line in container_settings()}
    for file in FILES:
        for name, value in DEFAULT.findall((ROOT / file).read_text(encoding="utf-8")):
            assert name in settings or defaults[name] == value, name


def test_the_containers_have_more_time_to_stop_than_the_service_needs() -> None:
    for name in ("fc7", "replica"):
        assert int(services()[name]["stop_grace_period"].rstrip("s")) > Settings().shutdown_timeout_s + 5


def test_the_gpu_file_gives_a_device_to_training_and_serving() -> None:
    for name, service in services(FILES[1]).items():
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert (name, device["driver"]) in {(each, "nvidia") for each in ("prepare", "train", "fc7")}
    assert filled(services(FILES[1])["fc7"]["environment"]["FC7_DEVICE"]) == "cuda"


def test_targets_exist_and_the_image_does_not_run_as_root() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE))
    built = [service["build"]["target"] for file in FILES for service in services(file).values() if "build" in service]
    assert {filled(target) for target in built} <= targets
    runtime = text[text.index(" AS runtime") :]
    assert re.findall(r"^USER (\S+)$", runtime, re.MULTILINE) == ["10001"]


@pytest.mark.parametrize("ready", [True, False])
def test_the_health_check_of_the_image_tells_whether_the_service_is_ready(
    ready: bool, home: Path, tmp_path: Path
) -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    [command] = re.findall(r"^HEALTHCHECK --interval.* CMD (\[.*\])$", text, re.MULTILINE)
    with thread_server(home if ready else tmp_path / "empty") as server:
        environment = environment_of(home) | {"FC7_PORT": str(server.port)}
        code = subprocess.run(json.loads(command), env=environment, check=False, capture_output=True).returncode
    assert (code == 0) is ready


def clients() -> list[list[str]]:
    """Return the command of each installed Compose client."""
    found = [["docker-compose"]] if shutil.which("docker-compose") else []
    plugin = ["docker", "compose"]
    if shutil.which("docker") and not subprocess.run([*plugin, "version"], check=False, capture_output=True).returncode:
        found.append(plugin)
    return found


@pytest.mark.parametrize("profile", ["", *PROFILES])
@pytest.mark.parametrize("files", [FILES[:1], FILES], ids=["cpu", "gpu"])
def test_compose_accepts_the_files_and_passes_the_settings(
    files: tuple[str, ...], profile: str, tmp_path: Path
) -> None:
    if not clients():
        pytest.skip("no Compose client is installed")
    for name in files:
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    (tmp_path / ".env").write_text("FC7_MAX_BATCH=5\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FC7_", "COMPOSE_"))}
    environment |= {"FC7_MAX_DELAY_MS": "7", "COMPOSE_PROFILES": profile}
    for client in clients():
        arguments = [argument for name in files for argument in ("-f", name)]
        done = subprocess.run(
            [*client, *arguments, "config"], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        passed = yaml.safe_load(done.stdout)["services"]["fc7"]["environment"]
        assert (passed["FC7_MAX_BATCH"], passed["FC7_MAX_DELAY_MS"]) == ("5", "7")
        assert passed.get("FC7_QUEUE_SIZE") is None, "unset in the container"
