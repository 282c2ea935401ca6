"""Every operation, with both clients against the real server."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from fc7_client import ConflictError, InvalidImageError, InvalidRequestError, NotFoundError, UnauthorizedError

from tests.client.helpers import OpenClient
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import CLASSES, publish_tiny_model
from tests.support.training.explainable_model import LABELS, publish_explainable_model

KEY = "folder/a b?#%&ü.jpg"


def test_images_are_classified_from_bytes_and_paths(client: Any, server: ThreadServer, tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    path.write_bytes(pictures.jpeg(1))
    answer = client.classify(path, str(path), pictures.jpeg(2), k=2)
    first, same, other = answer.results
    assert str(answer.model) == "tiny:1"
    assert first == same
    assert first != other
    raw = server.client.post("/v1/classify?k=2", content=pictures.jpeg(2)).json()["results"][0]
    assert [each.model_dump() for each in other.predictions] == raw["predictions"]
    assert other.predictions[0].label in CLASSES


def test_an_image_is_added_found_changed_and_deleted(client: Any) -> None:
    added = client.put_image(KEY, pictures.jpeg(1), {"label": "cat", "size": 3})
    assert (added.outcome, added.image.key, added.image.metadata) == ("added", KEY, {"label": "cat", "size": 3})
    assert client.put_image(KEY, pictures.jpeg(1), {"label": "cat", "size": 3}).outcome == "unchanged"
    assert client.put_image(KEY, pictures.jpeg(2)).outcome == "replaced"
    assert client.get_image(KEY).added.utcoffset() is not None
    assert client.update_metadata(KEY, {"label": "dog", "size": None}).metadata == {"label": "dog"}
    assert client.thumbnail(KEY).startswith(b"\xff\xd8")
    assert client.index().images == 1
    client.delete_image(KEY)
    with pytest.raises(NotFoundError, match="a b") as caught:
        client.get_image(KEY)
    assert (caught.value.status, caught.value.slug) == (404, "no-such-image")


def test_a_key_that_ends_like_another_path_is_addressed(client: Any) -> None:
    key = "folder/thumbnail"
    assert client.put_image(key, pictures.jpeg(1)).image.key == key
    assert client.get_image(key).key == key
    assert client.thumbnail(key).startswith(b"\xff\xd8")


def test_several_images_are_added_listed_filtered_and_deleted(client: Any) -> None:
    images = {f"{number}-ü.jpg": pictures.jpeg(number) for number in range(5)}
    answer = client.add_images(images, {"1-ü.jpg": {"label": "cat"}, "2-ü.jpg": {"label": "cat"}})
    assert [result.image.key for result in answer.results] == list(images)
    assert [image.key for image in client.list_images(order="-key", page_size=2)] == sorted(images, reverse=True)
    assert [image.key for image in client.list_images(prefix="3")] == ["3-ü.jpg"]
    assert [(label.value, label.count) for label in client.labels()] == [("cat", 2)]
    assert client.fields().fields[0].name == "label"
    assert client.delete_images("label:cat") == 2
    assert sorted(image.key for image in client.list_images()) == ["0-ü.jpg", "3-ü.jpg", "4-ü.jpg"]
    with pytest.raises(ValueError, match="put_image"):
        client.add_images({'a"b': pictures.jpeg(1)})


def test_labels_are_set_by_key_and_by_filter_and_suggested(client: Any) -> None:
    client.add_images({f"{number}.jpg": pictures.jpeg(number) for number in range(6)})
    assert client.label_images("cat", keys=["0.jpg", "1.jpg"]).changed == 2
    assert client.label_images("dog", where="label:cat", field="second").matched == 2
    assert client.get_image("1.jpg").metadata == {"label": "cat", "second": "dog"}
    assert client.label_images(None, keys=["1.jpg"]).changed == 1
    suggestions = client.suggestions(limit=2)
    assert (suggestions.labeled, suggestions.unlabeled, len(suggestions.suggestions)) == (1, 5, 2)
    voted = client.classify(pictures.jpeg(0), by="neighbours", neighbours=1).results[0]
    assert voted.evidence[0].key == "0.jpg"


def test_search_by_image_key_vector_and_examples(client: Any) -> None:
    client.add_images({f"{number}.jpg": pictures.jpeg(number) for number in range(6)}, {"2.jpg": {"label": "cat"}})
    one, two = client.search(pictures.jpeg(1), pictures.jpeg(2), k=3, include=["classes"]).results
    assert (one.neighbours[0].key, two.neighbours[0].key, len(one.neighbours)) == ("1.jpg", "2.jpg", 3)
    assert one.predictions
    assert one.novelty is None
    assert client.search(pictures.jpeg(1), include=[]).results[0].predictions == []
    [only] = client.search(pictures.jpeg(1), where=["label:cat"], mode="exact").results[0].neighbours
    assert (only.key, only.metadata) == ("2.jpg", {"label": "cat"})
    nearest = client.similar("1.jpg", k=1).results[0].neighbours[0]
    assert nearest.key == one.neighbours[1].key
    embedded = client.embed(pictures.jpeg(1))
    vector = embedded.results[0].embedding
    assert (len(vector), embedded.dimensions) == (4096, 4096)
    found = client.search_vectors(vector, model=str(embedded.model), k=1).results[0].neighbours[0]
    assert (found.key, found.distance) == ("1.jpg", pytest.approx(0, abs=0.1))
    by_examples = client.search_examples(["1.jpg"], ["2.jpg"], k=6).results[0].neighbours
    assert not {"1.jpg", "2.jpg"} & {near.key for near in by_examples}


def test_embeddings_are_those_of_the_json_form(client: Any, server: ThreadServer) -> None:
    raw = server.client.post("/v1/embed", content=pictures.jpeg(1)).json()["results"][0]["embedding"]
    assert client.embed(pictures.jpeg(1)).results[0].embedding == raw


def test_versions_are_listed_activated_and_rolled_back(home: Path, client: Any) -> None:
    publish_tiny_model(home, activate=False)
    assert [(model.version, model.active) for model in client.models()] == [(1, True), (2, False)]
    done = client.activate("tiny", 2)
    assert (str(done.model), str(done.previous)) == ("tiny:2", "tiny:1")
    assert str(client.ready().model) == "tiny:2"
    assert str(client.rollback().model) == "tiny:1"
    with pytest.raises(NotFoundError):
        client.activate("tiny", 9)


def test_an_answer_is_explained_as_grid_and_picture(tmp_path: Path, open_client: OpenClient) -> None:
    home = tmp_path / "other"
    publish_explainable_model(home)
    with thread_server(home) as server:
        client = open_client(server.url)
        explanation = client.explain(pictures.jpeg(1), class_=LABELS[1]).explanation
        assert explanation.class_ == LABELS[1]
        assert max(max(row) for row in explanation.grid) <= 1
        assert client.heat_map(pictures.jpeg(1), overlay=False).startswith(b"\x89PNG")
        best = client.classify(pictures.jpeg(1), explain=True).results[0]
        assert best.explanation.class_ == best.predictions[0].label
        assert best.explanation.image.startswith("data:image/png;base64,")


def test_backups_are_taken_listed_verified_downloaded_and_deleted(home: Path, tmp_path: Path, client: Any) -> None:
    client.put_image(KEY, pictures.jpeg(1))
    first, second = (client.wait_for_job(client.create_backup(keep=keep).id) for keep in (None, 1))
    assert second.result["deleted"] == [first.id]
    [backup] = client.list_backups()
    assert (backup.name, backup.images, backup.versions) == (second.id, 1, ["tiny:1"])
    assert client.verify_backup(backup.name) == backup
    with tarfile.open(client.download_backup(backup.name, tmp_path / "file.tar")) as tar:
        assert f"{backup.name}/backup.json" in tar.getnames()
    (home / backup.path / "home" / "active.json").unlink()
    with pytest.raises(ConflictError, match=r"active\.json"):
        client.verify_backup(backup.name)
    client.delete_backup(backup.name)
    assert client.list_backups() == []
    with pytest.raises(NotFoundError, match=backup.name):
        client.delete_backup(backup.name)


def test_snapshots_are_taken_listed_verified_downloaded_and_deleted(tmp_path: Path, client: Any) -> None:
    client.put_image(KEY, pictures.jpeg(1))
    snapshot = client.take_snapshot()
    assert (client.list_snapshots(), client.verify_snapshot(snapshot.name)) == ([snapshot], snapshot)
    with tarfile.open(client.download_snapshot(snapshot.name, tmp_path / "file.tar")) as tar:
        assert tar.getnames() == [f"{snapshot.name}/manifest.json", f"{snapshot.name}/catalog.db"]
    client.delete_snapshot(snapshot.name)
    assert client.list_snapshots() == []
    with pytest.raises(NotFoundError, match=snapshot.name):
        client.download_snapshot(snapshot.name, tmp_path / "another.tar")


def test_problems_are_typed_and_say_what_is_wrong(client: Any) -> None:
    with pytest.raises(InvalidImageError, match="image") as broken:
        client.classify(pictures.jpeg(1), b"\xff\xd8 no")
    assert (broken.value.index, broken.value.status) == (1, 400)
    with pytest.raises(InvalidRequestError, match="k=99") as parameter:
        client.classify(pictures.jpeg(1), k=99)
    assert not isinstance(parameter.value, InvalidImageError)
    assert parameter.value.members["parameter"] == "k"
    with pytest.raises(ConflictError):
        client.rollback()
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        client.classify("missing.jpg")


def test_a_key_and_a_path_prefix_are_used(home: Path, open_client: OpenClient) -> None:
    keys = "write:write-key-0123456789"
    with thread_server(home, api_keys=keys, root_path="/pictures") as server:
        with pytest.raises(UnauthorizedError, match="key"):
            open_client(server.url).models()
        client = open_client(f"{server.url}/pictures", key="write-key-0123456789")
        assert client.put_image(KEY, pictures.jpeg(1)).image.thumbnail.startswith("/pictures/")
        assert [image.key for image in client.list_images()] == [KEY]


def test_options_of_httpx_are_passed_on(server: ThreadServer, open_client: OpenClient) -> None:
    seen: list[httpx.Response] = []
    open_client(server.url, on_response=seen.append, headers={"X-Request-ID": "from-a-test"}).models()
    assert seen[0].headers["x-request-id"] == "from-a-test"
    assert seen[0].request.headers["user-agent"].startswith("fc7-client/")


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    server: ThreadServer, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert open_client(server.url).models()
