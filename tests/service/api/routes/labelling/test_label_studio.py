"""Label Studio's requests, as it sends them to an ML backend, over real HTTP."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from pydantic import SecretStr

from service.api_keys import ApiKey, Scope
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import CLASSES, publish_tiny_model

JPEG = {"Content-Type": "image/jpeg"}
TOKEN = "0123456789abcdef0123456789abcdef01234567"


def config(*choices: str, name: str = "label", extra: str = "") -> str:
    tags = "".join(f'<Choice value="{choice}"/>' for choice in choices)
    return f"""<View><Header value="What is it?"/><Image name="img" value="$photo" zoom="true"/>
        <Choices name="{name}" toName="img" choice="single" showInLine="true">{tags}</Choices>{extra}</View>"""


NETWORK = config(*CLASSES)
TAUGHT = config("beagle", "poodle")


def task(photo: str | bytes, number: int = 7, **data: Any) -> dict[str, Any]:
    if isinstance(photo, bytes):
        photo = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
    return {"id": number, "data": {"photo": photo, **data}, "meta": {}, "project": 1, "predictions": []}


def predict_request(tasks: list[dict[str, Any]], label_config: str) -> dict[str, Any]:
    params = {"login": None, "password": None, "context": None}
    return {"tasks": tasks, "project": "1.1700000000", "label_config": label_config, "params": params}


def event(
    action: str, work: dict[str, Any], *choices: str, annotation: int = 9, label_config: str = TAUGHT, **more: Any
) -> dict[str, Any]:
    value = {"from_name": "label", "to_name": "img", "type": "choices", "id": "Xy1", "value": {"choices": [*choices]}}
    result = [{**value, "origin": "manual"}] if choices else []
    return {
        "action": action,
        "annotation": {"id": annotation, "task": work["id"], "result": result, "was_cancelled": False, **more},
        "project": {"id": 1, "title": "Dogs", "label_config": label_config},
        "task": work,
    }


class FakeLabelStudio(BaseHTTPRequestHandler):
    """Serves the files of Label Studio to requests with its token."""

    files: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.2:9/secret.jpg")
            self.end_headers()
            return
        known = self.headers["Authorization"] in (f"Token {TOKEN}", "Bearer fresh")
        content = self.files.get(self.path) if known else None
        self.send_response(401 if not known else 404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"access": "fresh"} if body == {"refresh": "a.b.c"} else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def label_studio() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeLabelStudio) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        FakeLabelStudio.files = {
            "/data/upload/1/ab12-dog.jpg": pictures.jpeg(50),
            "/data/local-files/?d=dogs/a%20b.jpg": pictures.jpeg(51),
            "/large.jpg": bytes(2_000_000),
        }
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, label_studio: str) -> Iterator[ThreadServer]:
    home = tmp_path_factory.mktemp("studio") / "home"
    publish_tiny_model(home)
    with thread_server(
        home, label_studio_url=label_studio, label_studio_token=TOKEN, max_body_bytes=1_000_000
    ) as running:
        yield running


@pytest.fixture
def client(server: ThreadServer) -> httpx.Client:
    for image in server.client.get("/v1/images").json()["images"]:
        server.client.delete(f"/v1/images/{image['key'].replace('/', '%2F')}")
    return server.client


def send(client: httpx.Client, path: str, body: object, status: int = 200) -> Any:
    response = client.post(f"/label-studio/{path}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def labels(client: httpx.Client) -> dict[str, Any]:
    return {image["key"]: image["metadata"].get("label") for image in client.get("/v1/images").json()["images"]}


def test_connecting_checks_health_and_the_configuration(client: httpx.Client) -> None:
    for path in ("/label-studio/health", "/label-studio", "/label-studio/"):
        assert client.get(path).json()["status"] == "UP"
    request = {"project": "1.17", "schema": NETWORK, "hostname": "http://x", "access_token": "t", "extra_params": None}
    assert send(client, "setup", request) == {"model_version": "tiny:1"}
    assert send(client, "setup", {**request, "schema": TAUGHT}) == {"model_version": "tiny:1+neighbours"}
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><View>&a;</View>'
    text_only = '<View><Text name="t" value="$t"/><Choices name="c" toName="t"><Choice value="x"/></Choices></View>'
    for schema in (None, "", "<View>", bomb, text_only, config(), 5):
        answer = send(client, "setup", {**request, "schema": schema}, 422)
        assert answer["type"].endswith("label-config")
        assert "Choices" in answer["detail"]


def test_predictions_have_the_form_and_the_numbers_of_classify(client: httpx.Client) -> None:
    photos = [pictures.jpeg(seed) for seed in range(10)]
    answer = send(client, "predict", predict_request([task(p, n) for n, p in enumerate(photos)], NETWORK))
    assert answer["model_version"] == "tiny:1"
    assert len(answer["results"]) == 10
    for photo, prediction in zip(photos, answer["results"], strict=True):
        best = client.post("/v1/classify", content=photo, headers=JPEG).json()["results"][0]["predictions"][0]
        assert prediction["model_version"] == "tiny:1"
        assert prediction["score"] == pytest.approx(best["probability"], abs=1e-4)
        [result] = prediction["result"]
        assert result["score"] == prediction["score"]
        assert {key: result[key] for key in ("from_name", "to_name", "type", "value")} == {
            "from_name": "label",
            "to_name": "img",
            "type": "choices",
            "value": {"choices": [best["label"]]},
        }


def test_choices_are_matched_by_predicted_values_alias_and_case(client: httpx.Client) -> None:
    schema = """<View><Image name="img" value="$photo"/><Choices name="kind" toName="img">
        <Choice value="Animal" alias="animal" predicted_values="cat,dog, heron"/>
        <Choice value="FERRY"/><Choice value="mushroom"/><Choice value="Lamp"/></Choices></View>"""
    photo = pictures.jpeg(3)
    [prediction] = send(client, "predict", predict_request([task(photo)], schema))["results"]
    shares = client.post("/v1/classify?k=6", content=photo, headers=JPEG).json()["results"][0]["predictions"]
    by_label = {each["label"]: each["probability"] for each in shares}
    sums = {"animal": by_label["cat"] + by_label["dog"] + by_label["heron"], "FERRY": by_label["ferry"]}
    sums |= {"mushroom": by_label["mushroom"], "Lamp": by_label["lamp"]}
    best = max(sums, key=lambda name: sums[name])
    assert prediction["result"][0]["value"] == {"choices": [best]}
    assert prediction["score"] == pytest.approx(sums[best], abs=1e-4)


def test_annotations_label_images_and_predictions_learn_from_them(client: httpx.Client) -> None:
    indexed, other = pictures.jpeg(20), pictures.jpeg(21)
    client.put("/v1/images/mine.jpg?", content=indexed, headers=JPEG)
    same_bytes, new = task(indexed, 1), task(other, 2)
    assert send(client, "webhook", event("ANNOTATION_CREATED", same_bytes, "beagle"), 201)["status"] == "ok"
    send(client, "webhook", event("ANNOTATION_CREATED", new, "poodle", annotation=10), 201)
    digest = next(key for key in labels(client) if key != "mine.jpg")
    assert labels(client) == {"mine.jpg": "beagle", digest: "poodle"}
    request = predict_request([task(other, 3), task(indexed, 4)], TAUGHT)
    answer = send(client, "predict", request)
    assert answer["model_version"] == "tiny:1+neighbours"
    assert [each["result"][0]["value"]["choices"] for each in answer["results"]] == [["poodle"], ["beagle"]]
    assert answer["results"][0]["score"] > 0.99

    send(client, "webhook", event("ANNOTATION_UPDATED", new, "beagle", annotation=10), 201)
    assert labels(client)[digest] == "beagle"
    send(client, "webhook", event("ANNOTATION_UPDATED", new, "beagle", "poodle", annotation=10), 201)
    assert labels(client)[digest] == ["beagle", "poodle"]
    client.patch("/v1/images/mine.jpg", json={"metadata": {"label": "by hand", "year": 2020}})
    deleted = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 9}, {"id": 10}], "project": {"id": 1}}
    assert len(send(client, "webhook", deleted, 201)["result"]["keys"]) == 2
    assert labels(client) == {"mine.jpg": "by hand", digest: None}
    assert client.get("/v1/images/mine.jpg").json()["metadata"] == {"label": "by hand", "year": 2020}


def test_other_events_and_forms_of_events(client: httpx.Client) -> None:
    work = task(pictures.jpeg(22), 5)
    assert send(client, "webhook", {"action": "PROJECT_UPDATED"}, 200)["status"] == "Unknown event"
    assert send(client, "webhook", {"action": "START_TRAINING", "project": {"id": 1}}, 200)["status"] == "ok"
    skipped = event("ANNOTATION_CREATED", work, was_cancelled=True)
    assert send(client, "webhook", skipped, 201)["result"]["keys"] == []
    assert labels(client) == {}
    bulk = event("ANNOTATIONS_CREATED", work, "beagle")
    bulk |= {"annotation": [bulk["annotation"]], "task": [work]}
    send(client, "webhook", bulk, 201)
    assert list(labels(client).values()) == ["beagle"]
    one = {"action": "ANNOTATION_DELETED", "annotation": {"id": 9}, "task": work, "project": {"id": 1}}
    send(client, "webhook", one, 201)
    assert list(labels(client).values()) == [None]
    malformed: list[object] = [[], {"action": "ANNOTATION_CREATED", "annotation": 5, "task": "x", "project": {}}]
    for body in malformed:
        assert client.post("/label-studio/webhook", json=body).status_code in (400, 422)
    assert client.post("/label-studio/webhook", content=b"{").status_code == 400


def test_tasks_name_indexed_images_by_key(client: httpx.Client) -> None:
    client.put("/v1/images/suggestions", content=pictures.jpeg(23), headers=JPEG)
    work = task("data:,", 6, fc7_key="suggestions")
    [prediction] = send(client, "predict", predict_request([work], NETWORK))["results"]
    assert prediction["result"]
    send(client, "webhook", event("ANNOTATION_CREATED", work, "beagle"), 201)
    assert labels(client) == {"suggestions": "beagle"}
    unknown = task("data:,", 6, fc7_key="unknown")
    assert "data:" in send(client, "predict", predict_request([unknown], NETWORK), 422)["detail"]


def test_files_of_label_studio_are_fetched_and_nothing_else(client: httpx.Client, label_studio: str) -> None:
    upload, local = "/data/upload/1/ab12-dog.jpg", "/data/local-files/?d=dogs/a%20b.jpg"
    tasks = [task(upload, 1), task(label_studio + local, 2)]
    answer = send(client, "predict", predict_request(tasks, NETWORK))
    assert all(each["result"] for each in answer["results"])
    for work in tasks:
        send(client, "webhook", event("ANNOTATION_CREATED", work, "beagle", annotation=work["id"]), 201)
    assert labels(client) == {"upload/1/ab12-dog.jpg": "beagle", "dogs/a b.jpg": "beagle"}
    FakeLabelStudio.requests.clear()
    port = label_studio.rpartition(":")[2]
    refused = (
        "http://127.0.0.2:9/a.jpg",
        f"https://127.0.0.1:{port}/a.jpg",
        f"http://127.0.0.1:{port}@127.0.0.2:9/a.jpg",
        f"//127.0.0.2:{port}/a.jpg",
        "file:///etc/passwd",
        "s3://bucket/a.jpg",
        "http://[::1/a.jpg",
    )
    for url in refused:
        detail = send(client, "predict", predict_request([task(url)], NETWORK), 422)["detail"]
        assert "only address" in detail or "not a URL" in detail
    assert FakeLabelStudio.requests == []
    expected = {"/away": "only address", "/missing.jpg": "404", "/large.jpg": "larger than"}
    for path, reason in expected.items():
        assert reason in send(client, "predict", predict_request([task(path)], NETWORK), 422)["detail"]
    assert TOKEN not in json.dumps(send(client, "predict", predict_request([task("/missing.jpg")], NETWORK), 422))


def test_one_bad_task_costs_no_other_its_prediction(client: httpx.Client) -> None:
    bad = [task(b"not an image"), task("data:image/png;base64,###"), {"id": 1}, task("", 3), task("/missing.jpg")]
    answer = send(client, "predict", predict_request([*bad, task(pictures.jpeg(1))], NETWORK))
    assert [bool(each["result"]) for each in answer["results"]] == [False] * len(bad) + [True]
    assert all(each["error"] and each["score"] == 0 for each in answer["results"][:-1])
    assert send(client, "predict", predict_request([], NETWORK))["results"] == []
    send(client, "predict", {"tasks": "x", "label_config": NETWORK}, 400)


def test_keys_are_sent_as_basic_passwords(tmp_path: Path) -> None:
    home = tmp_path / "home"
    publish_tiny_model(home)
    read, write = "read-key-0123456789", "write-key-0123456789"
    keys = tuple(ApiKey(scope, SecretStr(secret)) for scope, secret in ((Scope.READ, read), (Scope.WRITE, write)))
    with thread_server(home, api_keys=keys) as server:
        client, body = server.client, {"schema": NETWORK, "project": "1.1"}
        assert client.get("/label-studio/health").status_code == 200
        assert client.post("/label-studio/setup", json=body).status_code == 401
        assert client.post("/label-studio/setup", json=body, auth=("studio", "wrong")).status_code == 401
        assert client.post("/label-studio/setup", json=body, auth=("studio", read)).status_code == 200
        work = event("ANNOTATION_CREATED", task(pictures.jpeg(1)), "beagle")
        assert client.post("/label-studio/webhook", json=work, auth=("studio", read)).status_code == 403
        assert client.post("/label-studio/webhook", json=work, auth=("studio", write)).status_code == 201
        assert client.get("/v1/images", auth=("studio", read)).status_code == 401  # elsewhere, Basic is not accepted
        refused = client.post(
            "/label-studio/predict", json=predict_request([task("/data/upload/1/a.jpg")], NETWORK), auth=("s", read)
        )
        assert refused.status_code == 422
        assert "FC7_LABEL_STUDIO_URL" in refused.json()["detail"]


def test_a_personal_access_token_is_exchanged(tmp_path: Path, label_studio: str) -> None:
    publish_tiny_model(tmp_path / "home")
    with thread_server(tmp_path / "home", label_studio_url=label_studio, label_studio_token="a.b.c") as server:
        answer = send(server.client, "predict", predict_request([task("/data/upload/1/ab12-dog.jpg")], NETWORK))
        assert answer["results"][0]["result"]
