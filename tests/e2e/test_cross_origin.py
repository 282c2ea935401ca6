"""A page of another site, and of a name that was rebound to this server, cannot use a server without keys."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser

from tests.support import pictures
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

# Tries everything that a page can send without the consent of the server, and what needs a preflight request.
_ATTACK = """async ([target, picture]) => {
  const bytes = Uint8Array.from(picture);
  const file = new File([bytes], "evil.jpg", {type: "image/jpeg"});
  const form = new FormData();
  form.append("file", file);
  const log = [];
  const send = async (mode, method, path, body) => {
    try {
      const response = await fetch(target + path, {mode, method, body});
      log.push([mode, method, path, response.type, response.status]);
    } catch (error) {
      log.push([mode, method, path, "failed", 0]);
    }
  };
  for (const mode of ["no-cors", "cors"]) {
    await send(mode, "POST", "/v1/images", form);
    await send(mode, "POST", "/v1/images", new Blob([bytes], {type: "text/plain"}));
    await send(mode, "POST", "/v1/models/rollback", "");
    await send(mode, "POST", "/v1/models/tiny/2/activate", "");
    await send(mode, "POST", "/v1/index/snapshots", "");
    await send(mode, "POST", "/v1/classify", form);
    await send(mode, "GET", "/v1/images");
    if (mode === "cors") {
      await send(mode, "PUT", "/v1/images/evil", bytes);
      await send(mode, "DELETE", "/v1/images/mine");
      await send(mode, "DELETE", "/v1/images?where=label:cat");
    }
  }
  for (const path of ["/v1/images/mine/thumbnail", "/v1/models/rollback"]) {
    const image = new Image();
    const shown = new Promise((resolve) => { image.onload = () => resolve(200); image.onerror = () => resolve(0); });
    image.src = target + path;
    log.push(["img", "GET", path, "image", await shown]);
  }
  const frame = Object.assign(document.createElement("iframe"), {name: "sink"});
  const element = Object.assign(document.createElement("form"),
    {action: target + "/v1/images", method: "POST", enctype: "multipart/form-data", target: "sink"});
  const input = Object.assign(document.createElement("input"), {type: "file", name: "file"});
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
  element.append(input);
  document.body.append(frame, element);
  element.submit();
  navigator.sendBeacon(target + "/v1/images", form);
  await new Promise((resolve) => setTimeout(resolve, 300));
  return log;
}"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>other site</title><body></body>")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def site_port() -> Iterator[int]:
    """Serve an empty page on another port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site.server_port
        site.shutdown()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    home: Path = tmp_path_factory.mktemp("target") / "home"
    publish_tiny_model(home)
    publish_tiny_model(home, seed=1, activate=False)
    with thread_server(home) as server:
        server.client.put("/v1/images/mine", content=pictures.jpeg()).raise_for_status()
        patch = {"metadata": {"label": "cat"}}
        server.client.patch("/v1/images/mine", json=patch).raise_for_status()
        yield server


def observed(server: ThreadServer) -> list[object]:
    """Return everything that the attack tries to change."""
    models = server.client.get("/v1/models").json()["models"]
    snapshots = list((server.state.settings.home / "snapshots").glob("*"))
    return [server.client.get("/v1/images").json()["images"], [model["active"] for model in models], snapshots]


@pytest.mark.parametrize(
    ("page", "address"),
    [
        ("http://127.0.0.1:{site}/", "http://127.0.0.1:{fc7}"),  # the same site, another origin
        ("http://evil.test:{site}/", "http://127.0.0.1:{fc7}"),
        ("http://evil.test:{site}/", "http://localhost:{fc7}"),
        ("http://rebound.test:{fc7}/", ""),  # the name first had another address
    ],
)
def test_a_page_of_another_site_changes_nothing(
    browser: Browser, target: ThreadServer, site_port: int, page: str, address: str
) -> None:
    expected = "403" if address else "421"
    before = observed(target)
    refused = rejections(target, expected)
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(page.format(site=site_port, fc7=target.port))
    picture = list(pictures.jpeg(9, 32, 32))
    log = tab.evaluate(_ATTACK, [address.format(fc7=target.port), picture])
    context.close()
    assert observed(target) == before
    readable = [line for line in log if line[3] in ("basic", "cors", "image") and line[4] == 200]
    assert readable == []
    assert rejections(target, expected) - refused >= 12, "the requests arrived, and the server refused them"


def rejections(server: ThreadServer, status: str) -> float:
    metrics = httpx.get(f"{server.url}/metrics").text
    return sum(float(count) for count in re.findall(rf'fc7_requests_total{{.*status="{status}"}} ([\d.]+)', metrics))
