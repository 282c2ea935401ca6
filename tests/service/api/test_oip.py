"""The Open Inference Protocol over real HTTP, with both clients of tritonclient."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from model_store.image import prepare, views
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import CLASSES, publish_tiny_model

IMAGES = [pictures.jpeg(seed) for seed in range(3)]
KEY = "read-0123456789abcdef"


@pytest.fixture(scope="module")
def triton_client(shared_server: ThreadServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{shared_server.port}") as client:
        yield client


@pytest.fixture(scope="module")
def expected(shared_server: ThreadServer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The model's outputs for the images, computed without HTTP."""
    outputs = shared_server.state.serving().runner.run(pixels())
    return outputs.probabilities, outputs.fc7


def pixels() -> NDArray[np.uint8]:
    return np.concatenate([views(prepare(data)) for data in IMAGES])


def pixels_input(binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("pixels", [len(IMAGES), 224, 224, 3], "UINT8")
    tensor.set_data_from_numpy(pixels(), binary_data=binary)
    return tensor


def image_input(shape: tuple[int, ...] = (len(IMAGES),)) -> triton.InferInput:
    tensor = triton.InferInput("image", list(shape), "BYTES")
    tensor.set_data_from_numpy(np.array(IMAGES, dtype=np.object_).reshape(shape))
    return tensor


def check(result: Any, expected: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected[0], atol=1e-6)
    np.testing.assert_allclose(result.as_numpy("fc7"), expected[1], rtol=1e-4, atol=1e-5)


def test_health_and_metadata_describe_the_published_model(triton_client: triton.InferenceServerClient) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready("tiny")
    assert triton_client.is_model_ready("tiny", "1")
    assert not triton_client.is_model_ready("tiny", "2")
    assert not triton_client.is_model_ready("another")
    server = triton_client.get_server_metadata()
    assert server["name"] == "fc7"
    assert server["extensions"] == ["binary_tensor_data", "classification"]
    for metadata in (triton_client.get_model_metadata("tiny"), triton_client.get_model_metadata("tiny", "1")):
        assert metadata == {
            "name": "tiny",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": "pixels", "datatype": "UINT8", "shape": [-1, 224, 224, 3]},
                {"name": "image", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, 6]},
                {"name": "fc7", "datatype": "FP32", "shape": [-1, 4096]},
            ],
        }


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("kind", ["pixels", "pixels in JSON", "image", "image, two axes"])
def test_pixels_and_image_inputs_return_the_outputs_of_the_model(
    triton_client: triton.InferenceServerClient,
    expected: tuple[NDArray[np.float32], NDArray[np.float32]],
    kind: str,
    compression: str | None,
) -> None:
    tensor = {
        "pixels": pixels_input(),
        "pixels in JSON": pixels_input(binary=False),
        "image": image_input(),
        "image, two axes": image_input((len(IMAGES), 1)),
    }[kind]
    result = triton_client.infer(
        "tiny",
        [tensor],
        model_version="" if compression else "1",
        request_id="an id",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    check(result, expected)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "an id")
    assert [entry["name"] for entry in answer["outputs"]] == ["probabilities", "fc7"]
    assert all(entry["parameters"]["binary_data_size"] for entry in answer["outputs"])


def test_requested_outputs_have_the_requested_order_and_form(
    triton_client: triton.InferenceServerClient, expected: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    requested = [
        triton.InferRequestedOutput("fc7", binary_data=True),
        triton.InferRequestedOutput("probabilities", binary_data=False),
    ]
    result = triton_client.infer("tiny", [pixels_input()], outputs=requested)
    check(result, expected)
    first, second = result.get_response()["outputs"]
    assert (first["name"], "data" in first) == ("fc7", False)
    assert (second["name"], len(second["data"])) == ("probabilities", len(IMAGES) * 6)
    alone = triton_client.infer("tiny", [image_input()], outputs=requested[1:])
    assert alone.as_numpy("fc7") is None
    np.testing.assert_allclose(alone.as_numpy("probabilities"), expected[0], atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_classification_returns_the_most_probable_classes(
    triton_client: triton.InferenceServerClient,
    expected: tuple[NDArray[np.float32], NDArray[np.float32]],
    binary: bool,
) -> None:
    requested = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=5)
    result = triton_client.infer("tiny", [image_input()], outputs=[requested])
    texts = result.as_numpy("probabilities")
    assert texts.shape == (len(IMAGES), 5)
    for row, values in zip(texts, expected[0], strict=True):
        found = [(text.decode() if binary else text).split(":") for text in row]
        order = np.argsort(-values, kind="stable")[:5]
        assert [int(index) for _, index, _ in found] == order.tolist()
        assert [label for _, _, label in found] == [CLASSES[index] for index in order]
        assert [float(value) for value, _, _ in found] == pytest.approx(values[order], abs=2e-6)


def test_ten_views_match_those_of_v1(triton_client: triton.InferenceServerClient, client: httpx.Client) -> None:
    result = triton_client.infer("tiny", [image_input()], parameters={"views": 10}).as_numpy("probabilities")
    for data, values in zip(IMAGES, result, strict=True):
        answer = client.post("/v1/classify?k=6&views=10", content=data, headers={"Content-Type": "image/jpeg"}).json()
        of_v1 = {entry["index"]: entry["probability"] for entry in answer["results"][0]["predictions"]}
        assert of_v1 == pytest.approx(dict(enumerate(values.tolist())), abs=1e-6)
    one = triton_client.infer("tiny", [image_input()]).as_numpy("probabilities")
    assert np.abs(one - result).max() > 1e-4


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # how the client sends JSON
def test_the_asyncio_client_works(
    shared_server: ThreadServer, expected: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    async def use_client() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{shared_server.port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("tiny", "1")
            assert (await client.get_server_metadata())["name"] == "fc7"
            compressed = await client.get_model_metadata("tiny", headers={"Accept-Encoding": "gzip"})
            assert compressed["versions"] == ["1"]
            results = await asyncio.gather(
                *(
                    client.infer("tiny", [tensor], request_compression_algorithm=compression)
                    for tensor, compression in (
                        (pixels_input(), None),
                        (pixels_input(), "deflate"),
                        (pixels_input(binary=False), None),
                        (image_input(), "gzip"),
                        (image_input(), None),
                    )
                )
            )
            for result in results:
                check(result, expected)
            with pytest.raises(InferenceServerException, match=r"The model another does not exist\. Published: tiny:1"):
                await client.get_model_metadata("another")
            broken = triton.InferInput("image", [1], "BYTES")
            broken.set_data_from_numpy(np.array([b"text"], np.object_))
            with pytest.raises(InferenceServerException, match="The image cannot be read"):
                await client.infer("tiny", [broken])

    asyncio.run(use_client())


def test_an_image_in_json_is_base64_and_pixels_may_be_nested(
    client: httpx.Client, expected: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    bodies = [
        {"name": "image", "datatype": "BYTES", "shape": [3], "data": [base64.b64encode(d).decode() for d in IMAGES]},
        {"name": "pixels", "datatype": "UINT8", "shape": [3, 224, 224, 3], "data": pixels().tolist()},
    ]
    for body in bodies:
        answer = client.post("/v2/models/tiny/infer", json={"inputs": [body]})
        assert answer.status_code == 200, answer.text
        assert "inference-header-content-length" not in answer.headers
        probabilities, fc7 = answer.json()["outputs"]
        assert probabilities["shape"] == [3, 6]
        np.testing.assert_allclose(np.reshape(probabilities["data"], (3, 6)), expected[0], atol=1e-6)
        np.testing.assert_allclose(np.reshape(fc7["data"], (3, 4096)), expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [15, -15])
def test_responses_are_never_compressed_and_deflate_works_with_and_without_a_header(
    client: httpx.Client, window: int
) -> None:
    data = [base64.b64encode(IMAGES[0]).decode()]
    body = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]}).encode()
    deflate = zlib.compressobj(wbits=window)
    answer = client.post(
        "/v2/models/tiny/infer",
        content=deflate.compress(body) + deflate.flush(),
        headers={"Content-Encoding": "deflate", "Accept-Encoding": "gzip, deflate"},
    )
    assert answer.status_code == 200, answer.text
    assert "content-encoding" not in answer.headers
    assert "content-encoding" not in client.get("/v2", headers={"Accept-Encoding": "gzip"}).headers


def test_requests_use_the_same_queue_and_metrics(home: Path) -> None:
    with thread_server(home) as server:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as own_client:
            own_client.infer("tiny", [pixels_input()])
            own_client.infer("tiny", [image_input()])
        text = server.client.get("/metrics").text
        timing = server.client.post(
            "/v2/models/tiny/infer",
            json={"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 224, 224, 3], "data": [0] * 150528}]},
        ).headers["server-timing"]
    assert 'fc7_requests_total{method="POST",route="/v2/models/{model}/infer",status="200"} 2.0' in text
    assert "fc7_images_total 6.0" in text
    assert 'fc7_stage_seconds_count{stage="queue"} 6.0' in text
    assert 'fc7_stage_seconds_count{stage="decode"} 3.0' in text
    assert "run;dur=" in timing


def test_keys_are_required_except_for_health(home: Path) -> None:
    with (
        thread_server(home, api_keys=f"read:{KEY}") as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        for call in (
            client.get_server_metadata,
            lambda: client.get_model_metadata("tiny"),
            lambda: client.infer("tiny", [pixels_input()]),
        ):
            with pytest.raises(InferenceServerException, match="A valid API key is required") as rejection:
                call()
            assert rejection.value.status() == "401"
        headers = {"Authorization": f"Bearer {KEY}"}
        assert client.infer("tiny", [pixels_input()], headers=headers).as_numpy("fc7").shape == (3, 4096)


def test_without_a_model_the_server_is_live_and_reports_why_it_is_not_ready(tmp_path: Path) -> None:
    with thread_server(tmp_path / "empty") as server:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert not client.is_model_ready("tiny")
            with pytest.raises(InferenceServerException, match="No model is published yet"):
                client.infer("tiny", [pixels_input()])
        answer = server.client.get("/v2/health/ready")
        assert (answer.status_code, [*answer.json()]) == (503, ["error"])
        assert answer.headers["retry-after"]


def test_a_path_can_name_a_version_that_is_not_active(
    home: Path, expected: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    publish_tiny_model(home, seed=5)
    with (
        thread_server(home) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        assert client.get_model_metadata("tiny")["versions"] == ["1", "2"]
        active = client.infer("tiny", [pixels_input()])
        assert active.get_response()["model_version"] == "2"
        assert np.abs(active.as_numpy("probabilities") - expected[0]).max() > 1e-3
        first = client.infer("tiny", [pixels_input()], model_version="1")
        assert first.get_response()["model_version"] == "1"
        check(first, expected)
        missing = r"The model tiny:3 does not exist\. Published: tiny:1, tiny:2"
        with pytest.raises(InferenceServerException, match=missing) as rejection:
            client.infer("tiny", [pixels_input()], model_version="3")
        assert rejection.value.status() == "404"


def test_a_gzip_body_is_decompressed(client: httpx.Client) -> None:
    body = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 224, 224, 3], "data": [7] * 150528}]}
    answer = client.post(
        "/v2/models/tiny/infer", content=gzip.compress(json.dumps(body).encode()), headers={"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 200, answer.text
