"""The page, headers, metrics and log lines, and which modules are imported."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support import pictures
from tests.support.server import process_server, thread_server, wait_until

JPEG = {"Content-Type": "image/jpeg"}


def test_the_service_does_not_import_torch() -> None:
    program = (
        "import sys, pkgutil, importlib, service, index\n"
        "for package in (service, index):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "import onnxruntime, faiss\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/web/app.js", "text/javascript"),
        ("/web/common/server.js", "text/javascript"),
        ("/web/styles/base.css", "text/css"),
        ("/docs", "text/html"),
    ],
)
def test_the_page_loads_nothing_from_other_servers(client: httpx.Client, path: str, kind: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", answer.text)


@pytest.mark.parametrize(
    "name",
    [
        "..%2fapp.py",
        "%2e%2e/app.py",
        "ask/%2e%2e/app.js",
        "%2fetc%2fpasswd",
        "app.js/x.js",
        "a%00.js",
        "index.html.bak",
        "app.py",
    ],
)
def test_other_files_are_not_served(client: httpx.Client, name: str) -> None:
    assert client.get(f"/web/{name}").status_code == 404


def test_docs_describe_every_operation(client: httpx.Client) -> None:
    text = client.get("/docs").text
    for methods in client.get("/openapi.json").json()["paths"].values():
        for operation in methods.values():
            assert f"id='{operation['operationId']}'" in text
            for status in operation["responses"]:
                assert status < "400" or f"<h3 id=error-{status}>" in text, "errors are explained once"


def test_a_valid_request_id_is_kept_and_an_invalid_one_replaced(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = client.get("/livez", headers={"X-Request-ID": "two words"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


def test_metrics_count_requests_images_and_stages(home: Path) -> None:
    with thread_server(home) as server:
        files = [("file", (f"{i}.jpg", pictures.jpeg(i), "image/jpeg")) for i in range(3)]
        answer = server.client.post("/v1/images", files=files)
        assert re.fullmatch(r"decode;dur=[\d.]+, queue;dur=[\d.]+, run;dur=[\d.]+", answer.headers["server-timing"])
        server.client.get("/v1/images/0.jpg/thumbnail")
        server.client.get("/nothing")
        job = server.client.post("/v1/jobs?kind=map", json={"method": "pca"}).json()
        while server.client.get(f"/v1/jobs/{job['id']}").json()["state"] != "done":
            time.sleep(0.05)
        text = server.client.get("/metrics").text
    for line in (
        'fc7_requests_total{method="POST",route="/v1/images",status="201"} 1.0',
        'fc7_requests_total{method="GET",route="/v1/images/{key:path}/thumbnail",status="200"} 1.0',
        'fc7_requests_total{method="",route="unknown",status="404"} 1.0',
        "fc7_images_total 3.0",
        'fc7_stage_seconds_count{stage="decode"} 3.0',
        'fc7_stage_seconds_count{stage="queue"} 3.0',
        "fc7_admitted_images 0.0",
        "fc7_index_images 3.0",
        "fc7_index_missing_vectors 0.0",
        'fc7_jobs{kind="map",state="done"} 1.0',
        'fc7_jobs{kind="map",state="failed"} 0.0',
        'fc7_model_info{device="cpu",name="tiny",precision="fp32",version="1"} 1.0',
        "fc7_build_info{",
        "fc7_ready 1.0",
        "process_resident_memory_bytes",
    ):
        assert line in text


def test_two_applications_have_separate_metrics(home: Path, tmp_path: Path) -> None:
    with thread_server(home) as one, thread_server(tmp_path / "empty") as other:
        one.client.post("/v1/classify", content=pictures.jpeg(), headers=JPEG)
        assert "fc7_images_total 1.0" in one.client.get("/metrics").text
        assert "fc7_images_total 0.0" in other.client.get("/metrics").text


def test_each_request_logs_one_json_line_without_the_key(home: Path) -> None:
    key = "read-0123456789abcdef"
    with process_server(home, FC7_API_KEYS=f"read:{key}", FC7_MAXBATCH="3") as server:
        httpx.post(
            f"{server.url}/v1/classify?k=2",
            content=pictures.jpeg(),
            headers=JPEG | {"X-API-Key": key, "X-Request-ID": "mine"},
        )
        httpx.get(f"{server.url}/v1/models")
        # A request is logged after its response was sent.
        wait_until(lambda: sum(line["event"] == "request" and "/v1/" in line["path"] for line in server.lines()) == 2)
        lines = server.lines()
        [line] = [line for line in lines if line.get("request_id") == "mine"]
        assert (line["event"], line["method"], line["path"], line["status"]) == ("request", "POST", "/v1/classify", 200)
        assert line["images"] == 1
        assert line["ms"] > 0
        assert any(line.get("reason") == "unauthorized" and line["status"] == 401 for line in lines)
        assert any("Did you mean FC7_MAX_BATCH" in line.get("detail", "") for line in lines)
        assert key not in server.log.read_text()


@pytest.mark.parametrize(("level", "logged"), [("info", False), ("debug", True)])
def test_successful_probes_are_logged_at_the_level_debug_only(home: Path, level: str, logged: bool) -> None:
    with process_server(home, FC7_LOG_LEVEL=level) as server:
        for probe in ("livez", "readyz", "metrics"):
            assert httpx.get(f"{server.url}/{probe}").status_code == 200
        assert httpx.post(f"{server.url}/livez").status_code == 405
        httpx.get(f"{server.url}/v1/models")
        wait_until(lambda: any(line.get("path") == "/v1/models" for line in server.lines()))
        paths = {(line["path"], line["status"]) for line in server.lines() if line["event"] == "request"}
        assert paths >= {("/livez", 405), ("/v1/models", 200)}
        assert (paths >= {("/livez", 200), ("/readyz", 200), ("/metrics", 200)}) is logged
