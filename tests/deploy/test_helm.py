"""The Helm chart: its values against its schema, its templates against its values, and `helm` where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from typing import Any

import jsonschema
import pytest
import yaml

from service.settings import Settings
from tests.support.reference import ROOT, container_settings

CHART = ROOT / "deploy" / "helm" / "fc7"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
KEY = {"apiKeys": {"value": "read:a-long-random-text-1"}}
MILVUS = {"FC7_INDEX_URI": "http://milvus:19530"}


def values(*changes: dict[str, Any]) -> dict[str, Any]:
    """Return values.yaml with changes, merged as Helm does it."""
    merged: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for change in changes:
        for name, value in change.items():
            merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return merged


@pytest.mark.parametrize(
    "changes",
    [
        (KEY,),
        ({"apiKeys": {"existingSecret": "keys"}},),
        ({"settings": {"FC7_ALLOW_ANONYMOUS": "true"}},),
        (KEY, {"settings": MILVUS, "replicas": 3, "persistence": {"accessMode": "ReadWriteMany"}}),
        (KEY, {"settings": MILVUS, "autoscaling": {"enabled": True}, "persistence": {"accessMode": "ReadWriteMany"}}),
        (KEY, {"image": {"target": "gpu"}}),
    ],
    ids=["key", "secret", "anonymous", "replicas", "autoscaling", "gpu"],
)
def test_valid_values_are_accepted(changes: tuple[dict[str, Any], ...]) -> None:
    jsonschema.validate(values(*changes), SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (KEY, {"replicas": 2}),
        (KEY, {"replicas": 2, "persistence": {"accessMode": "ReadWriteMany"}}),
        (KEY, {"replicas": 2, "settings": MILVUS}),
        (KEY, {"autoscaling": {"enabled": True}}),
        (KEY, {"settings": {"FC7_HOME": "/home"}}),
        (KEY, {"settings": {"FC7_API_KEYS": "read:a-long-random-text-1"}}),
        (KEY, {"settings": {"FC7_MAX_BATCH": 4}}),
        (KEY, {"image": {"target": "train"}}),
        (KEY, {"resources": {"limits": {"cpu": "1"}}}),
        (KEY, {"replica": 1}),
    ],
    ids=[
        "no key",
        "local index",
        "local index on a shared volume",
        "one home",
        "autoscaling of a local index",
        "home",
        "key as setting",
        "number",
        "train",
        "no memory limit",
        "unknown",
    ],
)
def test_values_that_would_not_work_are_refused(changes: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values(*changes), SCHEMA)


def test_the_version_is_that_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == version("fc7")


def test_the_templates_use_every_value_and_no_other() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir()]
    used = {match.rstrip(".") for text in texts for match in re.findall(r"\.Values\.([\w.]+)", text)}
    known = {
        f"{name}.{child}" if isinstance(value, dict) and child else name
        for name, value in values().items()
        for child in (
            value
            if isinstance(value, dict) and name not in ("settings", "podAnnotations", "nodeSelector", "affinity")
            else [""]
        )
    }
    assert used == known


def test_the_settings_that_the_chart_fixes_exist() -> None:
    names = {line.variable for line in container_settings()} | {"FC7_HOME", "FC7_HOST"}
    assert set(SCHEMA["properties"]["settings"]["propertyNames"]["not"]["enum"]) <= names
    texts = " ".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir())
    assert set(re.findall(r"FC7_[A-Z_]+", texts)) <= names


def test_the_pod_has_more_time_to_stop_than_the_service_needs() -> None:
    assert values()["terminationGracePeriodSeconds"] > Settings().shutdown_timeout_s + 5


@pytest.mark.parametrize("command", [("lint", "--strict"), ("template", "demo")], ids=["lint", "template"])
def test_helm_accepts_the_chart(command: tuple[str, ...]) -> None:
    if shutil.which("helm") is None:
        pytest.skip("helm is not installed")
    arguments = ["helm", *command, str(CHART), "--set", f"apiKeys.value={KEY['apiKeys']['value']}"]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
