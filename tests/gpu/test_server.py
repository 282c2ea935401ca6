"""The service on CUDA, over HTTP."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from model_store.artifact import Artifact
from tests.gpu.test_runner import pictures
from tests.support.server import process_server, wait_until

pytestmark = pytest.mark.gpu
IMAGES, CLIENTS, REQUESTS = 300, 32, 1000


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pictures(1, seed)[0]).resize((500, 375)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_service(artifact: Artifact, figure: Callable[[str], None], device: str) -> None:
    """Service: add, search and classify over HTTP"""
    home = artifact.path.parents[2]
    images = [jpeg(seed) for seed in range(IMAGES)]
    with process_server(home, FC7_DEVICE=device) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        wait_until(lambda: client.get("/readyz").status_code == httpx.codes.OK)
        for number, content in enumerate(images):
            client.put(f"/v1/images/{number}", content=content).raise_for_status()
        if device == "cuda":
            wait_until(lambda: client.get("/v1/index").json()["device"]["vectors"] >= 256)
        found = client.post("/v1/search?k=3", content=images[7]).raise_for_status().json()
        assert found["results"][0]["neighbours"][0]["key"] == "7"
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = pool.map(lambda n: client.post("/v1/classify", content=images[n % IMAGES]), range(REQUESTS))
            codes = [answer.status_code for answer in answers]
        rate = REQUESTS / (time.perf_counter() - started)
        assert set(codes) == {httpx.codes.OK}
        loaded = next(line for line in server.lines() if line.get("event") == "model loaded")
        assert loaded["device"] == ("cuda:0" if device == "cuda" else "cpu")
        figure(f"{device}: {rate:,.0f} images/s with {CLIENTS} clients")
    assert np.isfinite(rate)
