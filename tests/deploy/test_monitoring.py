"""The alerts and the dashboard ask for metrics, labels and values that a running service exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from service.api.problems import STATUS
from tests.support import novelty, pictures
from tests.support.reference import ROOT
from tests.support.server import thread_server

PROMETHEUS = ROOT / "deploy" / "prometheus"
BOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "fc7.json").read_text(encoding="utf-8"))
JPEG = {"content-type": "image/jpeg"}
_METRIC = re.compile(r"\b((?:fc7|process|up)(?:_\w+)?)(?![\w-])(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> list[str]:
    targets = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
    return [*(rule["expr"] for rule in rules()), *targets, BOARD["annotations"]["list"][0]["expr"]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """Values of each label of each metric, after requests of several kinds."""
    home = tmp_path_factory.mktemp("monitoring") / "home"
    novelty.publish_with_reference(home)
    with thread_server(home, max_decode_mb=30) as server:
        client = server.client
        for path in ("/v1/classify", "/v1/search"):
            assert client.post(path, content=pictures.jpeg(), headers=JPEG).status_code == 200
        costly = pictures.encoded(Image.new("RGB", (5000, 5000)), "PNG")
        assert client.post("/v1/classify", content=costly, headers={"content-type": "image/png"}).status_code == 422
        for probe in ("/livez", "/readyz", "/metrics"):
            client.get(probe)
        text = client.get("/metrics").text
    values: dict[str, dict[str, set[str]]] = {"up": {}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = values.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return values


def metrics_of(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return each metric of an expression with its matchers: label, operator, value."""
    bare = re.sub(r"\b(?:by|ignoring|on)\s*\([^)]*\)", "", expression)
    return [(name, _MATCHER.findall(matchers)) for name, matchers in _METRIC.findall(bare) if f'"{name}' not in bare]


def test_every_metric_and_label_of_the_alerts_and_the_dashboard_is_exported(
    exported: dict[str, dict[str, set[str]]],
) -> None:
    used = [metric for expression in expressions() for metric in metrics_of(expression)]
    assert len({name for name, _ in used}) > 20
    assert {name for name, _ in used} - exported.keys() == set()
    for name, matchers in used:
        for label, operator, value in matchers:
            if label == "instance":
                continue
            if label == "job":
                assert value == "fc7", name
                continue
            assert label in exported[name], f"{name} has no label {label}"
            if label in ("route", "stage", "le") and operator in ("=", "=~", "!~"):
                assert set(value.split("|")) <= exported[name][label] | {"/livez", "/readyz", "/metrics"}, name


def test_the_labels_by_which_results_are_grouped_are_exported(exported: dict[str, dict[str, set[str]]]) -> None:
    for expression in expressions():
        known = {label for name, _ in metrics_of(expression) for label in exported[name]} | {"instance", "job"}
        grouped = re.findall(r"\b(?:by|ignoring)\s*\(([^)]*)\)", expression)
        assert {label.strip() for group in grouped for label in group.split(",")} <= known, expression


def test_every_reason_in_the_alerts_is_a_problem_type() -> None:
    slugs = {kind.slug for kind in STATUS.values()}
    reasons = re.findall(r'fc7_refusals_total\{reason=~?"([^"]*)"\}', " ".join(rule["expr"] for rule in rules()))
    assert len(reasons) >= 5
    assert {reason for group in reasons for reason in group.split("|")} - slugs == set()


def test_every_alert_has_a_summary_a_severity_and_a_section_in_the_runbook() -> None:
    headings = re.findall(r"^### (Fc7\w+)$", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_the_panels_do_not_overlap_and_use_the_provisioned_source() -> None:
    provisioned = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    )
    uid = provisioned["datasources"][0]["uid"]
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells.isdisjoint(own), panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= own
        if "datasource" in panel:
            assert panel["datasource"] == {"type": "prometheus", "uid": uid}
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_port_and_the_names_that_are_scraped_are_those_of_the_services() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    [scrape] = config["scrape_configs"]
    assert scrape["job_name"] == "fc7"
    assert scrape["dns_sd_configs"] == [{"names": ["fc7", "replica"], "type": "A", "port": 8000}]
    assert (
        set(scrape["dns_sd_configs"][0]["names"])
        <= yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"].keys()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_accepts_the_configuration_and_the_alerts(arguments: tuple[str, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
