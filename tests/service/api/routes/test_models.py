"""`/v1/models`: figures of the published versions, and the activation of a version that learned nothing."""

from __future__ import annotations

from pathlib import Path

from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model

WEAK = {
    "better_than_baseline": False,
    "top1_error_interval": [0.3, 0.7],
    "majority_class_error": 0.5,
    "balanced_accuracy": 0.25,
}


def test_a_version_no_better_than_the_baseline_is_activated_only_by_force(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    publish_tiny_model(tmp_path, seed=1, activate=False, metrics=WEAK)
    with thread_server(tmp_path) as server:
        answer = server.client.post("/v1/models/tiny/2/activate")
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:fc7:problem:no-better-than-baseline")
        assert "95 % interval 30.0% to 70.0%" in answer.json()["detail"]
        assert "force=true" in answer.json()["detail"]
        assert server.client.get("/readyz").json()["model"]["version"] == 1
        first, second = server.client.get("/v1/models").json()["models"]
        assert (first["active"], second["active"]) == (True, False)
        assert second["metrics"]["better_than_baseline"] is False
        forced = server.client.post("/v1/models/tiny/2/activate", params={"force": "true"})
        assert forced.status_code == 200, forced.text
        assert server.client.get("/readyz").json()["model"]["version"] == 2
