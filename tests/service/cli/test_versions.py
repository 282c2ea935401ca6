"""`fc7 models compare|save|load|remove|verify`."""

from __future__ import annotations

import json
from pathlib import Path

from index.local.index import LocalImageIndex
from index.records import IndexOptions
from model_store.errors import DatasetError, ModelArchiveError, ModelInUseError, ModelNotFoundError
from model_store.image import prepare, views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from tests.index.helpers import image
from tests.service.cli.test_models import fc7
from tests.support import pictures
from tests.support.tiny_model import CLASSES, publish_tiny_model


def test_compare_counts_agreement_and_errors_of_two_versions(tmp_path: Path) -> None:
    first, second = publish_tiny_model(tmp_path, seed=0), publish_tiny_model(tmp_path, seed=1)
    runners = [Runner(each, RunnerOptions(device="cpu")) for each in (first, second)]
    data, wrong, same = tmp_path / "data", [0, 0], 0
    for number in range(20):
        label = [*CLASSES[:3], "unknown"][number % 4]
        path = data / label / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures.jpeg(number))
        pixels = views(prepare(pictures.jpeg(number)))
        found = [CLASSES[int(runner.run(pixels).probabilities.argmax())] for runner in runners]
        same += found[0] == found[1]
        if label != "unknown":
            wrong = [count + (name != label) for count, name in zip(wrong, found, strict=True)]
    (data / "broken.jpg").write_bytes(b"no image")
    done = fc7(tmp_path, "compare", "tiny:1", "tiny:2", "--data", str(data), "--json", "--batch", "8")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["images"], result["labelled"], len(result["skipped"])) == (20, 15, 1)
    assert [side["top1_error"] for side in result["models"]] == [count / 15 for count in wrong]
    assert result["same_top1"] == same / 20
    assert -1 <= result["fc7_cosine"]["least"] <= result["fc7_cosine"]["mean"] < 0.99
    assert all(side["images_per_second"] > 0 for side in result["models"])
    alike = json.loads(fc7(tmp_path, "compare", "tiny:1", "tiny:1", "--data", str(data), "--json").stdout)
    assert (alike["same_top1"], alike["same_top5"]) == (1, 1)
    assert alike["fc7_cosine"]["least"] > 0.9999
    text = fc7(tmp_path, "compare", "tiny:1", "tiny:2", "--data", str(data)).output
    for words in (
        "top-1 error",
        "top-5 error",
        "images per second",
        "15 of them labelled",
        "1 skipped",
        "Cosine of fc7",
    ):
        assert words in text
    assert isinstance(fc7(tmp_path, "compare", "tiny", "tiny:9", "--data", str(data)).exception, ModelNotFoundError)
    (tmp_path / "empty").mkdir()
    empty = fc7(tmp_path, "compare", "tiny", "tiny", "--data", str(tmp_path / "empty"))
    assert isinstance(empty.exception, DatasetError)


def test_save_and_load_copy_a_version_to_another_home(tmp_path: Path) -> None:
    artifact = publish_tiny_model(tmp_path / "source", seed=0)
    file = tmp_path / "tiny.fc7.tar"
    done = fc7(tmp_path / "source", "save", "tiny:1", str(file))
    assert "fc7 models load tiny.fc7.tar" in done.output
    done = fc7(tmp_path / "target", "load", str(file))
    assert "fc7 models activate tiny:1" in done.output
    assert ModelStore(tmp_path / "target").get("tiny", 1).fingerprint == artifact.fingerprint
    assert "mine:1" in fc7(tmp_path / "target", "load", str(file), "--name", "mine").output
    file.write_bytes(file.read_bytes()[:100_000])
    assert isinstance(fc7(tmp_path / "target", "load", str(file)).exception, ModelArchiveError)


def test_remove_keeps_the_active_version_and_the_one_of_the_index(tmp_path: Path) -> None:
    first, second, third = (publish_tiny_model(tmp_path, seed=seed) for seed in range(3))
    with LocalImageIndex.open(tmp_path, IndexOptions(first.fingerprint, first.id)) as index:
        index.add_many([image("a", 1)])
    for model, use in ((third.id, "active version"), (first.id, "index's vectors")):
        error = fc7(tmp_path, "remove", model).exception
        assert isinstance(error, ModelInUseError)
        assert use in str(error)
    assert fc7(tmp_path, "remove", "tiny").exit_code == 2
    assert "Removed tiny:2." in fc7(tmp_path, "remove", second.id).output
    same = publish_tiny_model(tmp_path, seed=0)
    assert same.fingerprint == first.fingerprint
    assert fc7(tmp_path, "remove", first.id).exit_code == 0
    assert [artifact.id for artifact in ModelStore(tmp_path).list()] == ["tiny:3", "tiny:4"]


def test_verify_names_the_files_that_differ(tmp_path: Path) -> None:
    first, second = publish_tiny_model(tmp_path), publish_tiny_model(tmp_path, seed=1)
    done = fc7(tmp_path, "verify")
    assert (done.exit_code, done.output.count("2 files match the manifest")) == (0, 2)
    with first.weights_path.open("r+b") as file:
        file.write(b"edited")
    second.model_path.unlink()
    done = fc7(tmp_path, "verify")
    assert done.exit_code == 1
    assert "tiny:1: weights.bin differ" in done.output
    assert "tiny:2: model.onnx differ" in done.output
    (second.path / "manifest.json").write_text("{}")
    done = fc7(tmp_path, "verify")
    assert (done.exit_code, "broken:" in done.output) == (1, True)
