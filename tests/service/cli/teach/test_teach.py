"""`fc7 index label`, `fc7 classify --by neighbours` and `fc7 head fit`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from index.errors import IndexModelError, KeyNotFoundError
from model_store.errors import NoBetterThanBaselineError
from model_store.head.errors import TooFewLabelsError, UnlabelledError
from model_store.store import ModelStore
from tests.service.cli.helpers import invoke
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with twelve red and blue images that have no class folders."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        for name, color in (("red", (220, 20 * number, 20)), ("blue", (20, 20 * number, 220))):
            Image.new("RGB", (64, 64), color).save(folder / f"{name}{number}.png")
    return folder


@pytest.fixture
def labeled(home: Path, photos: Path) -> Path:
    assert invoke(home, "index", "build", photos).exit_code == 0
    for name in ("red", "blue"):
        result = invoke(home, "index", "label", *(f"{name}{n}.png" for n in range(6)), name.title(), "--json")
        assert json.loads(result.stdout) == {"matched": 6, "changed": 6}
    return home


def test_images_are_labeled_by_key_file_or_filter(labeled: Path, tmp_path: Path) -> None:
    result = invoke(labeled, "index", "label", "--where", "label:Red", "rot", "--json")
    assert json.loads(result.stdout) == {"matched": 6, "changed": 6}
    (tmp_path / "keys").write_text("red0.png\nred1.png\n")
    assert (
        "2 images got the label 'ROT'" in invoke(labeled, "index", "label", "--keys", tmp_path / "keys", "ROT").stderr
    )
    warned = invoke(labeled, "index", "label", "red2.png", "rot").stderr
    assert "'ROT' and 'rot', which differ only by upper and lower case" in warned
    assert "1 images lost" in invoke(labeled, "index", "label", "--remove", "red0.png").stderr
    unknown = invoke(labeled, "index", "label", "red0.png", "unknown", "x")
    assert isinstance(unknown.exception, KeyNotFoundError)


@pytest.mark.parametrize("arguments", [[], ["x"], ["red0.png", " "], ["--where", "label:Red", "red0.png", "x"]])
def test_labels_without_images_and_images_without_labels_are_rejected(labeled: Path, arguments: list[str]) -> None:
    assert invoke(labeled, "index", "label", *arguments).exit_code == 2


def test_neighbors_classify(labeled: Path, photos: Path) -> None:
    result = invoke(labeled, "classify", photos / "red3.png", "--by", "neighbours", "--neighbours", "100", "--json")
    [answer] = json.loads(result.stdout)["results"]
    assert answer["predictions"][0]["label"] == "Red"
    assert answer["predictions"][0]["index"] is None
    assert len(answer["evidence"]) == 12
    assert answer["evidence"][0]["key"] == "red3.png"
    assert "red3.png (0.00)" in invoke(labeled, "classify", photos / "red3.png", "--by", "neighbours").stdout
    nothing = invoke(labeled, "classify", photos / "red3.png", "--by", "neighbours", "--field", "none")
    assert isinstance(nothing.exception, UnlabelledError)
    publish_tiny_model(labeled, "other", seed=1, activate=False)
    other = invoke(labeled, "classify", photos / "red3.png", "--by", "neighbours", "--model", "other")
    assert isinstance(other.exception, IndexModelError)


def test_a_head_is_fitted_and_activated(labeled: Path, photos: Path) -> None:
    result = invoke(labeled, "head", "fit", "--activate", "--force", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout[: result.stdout.rindex("}") + 1])
    assert (document["model"], document["classes"], document["images"]) == ("tiny:2", ["Blue", "Red"], 12)
    assert ModelStore(labeled).active_artifact().id == "tiny:2"
    answer = json.loads(invoke(labeled, "classify", photos / "red3.png", "--json").stdout)
    assert answer["results"][0]["predictions"][0]["label"] == "Red"
    found = json.loads(invoke(labeled, "search", photos / "red3.png", "--json").stdout)
    assert found["results"][0]["neighbours"][0]["key"] == "red3.png"  # the index did not change
    assert invoke(labeled, "models", "rollback").exit_code == 0


def test_a_weak_head_is_published_but_not_activated(labeled: Path) -> None:
    for number in range(6):
        invoke(labeled, "index", "label", f"red{number}.png", f"blue{number}.png", ("Red", "Blue")[number % 2])
    refused = invoke(labeled, "head", "fit", "--activate")
    assert isinstance(refused.exception, NoBetterThanBaselineError)
    assert ModelStore(labeled).active_artifact().id == "tiny:1"


def test_small_classes_are_named_or_left_out(labeled: Path) -> None:
    invoke(labeled, "index", "label", "red0.png", "Green")
    refused = invoke(labeled, "head", "fit")
    assert isinstance(refused.exception, TooFewLabelsError)
    assert "'Green' has 1 and needs 4 more" in str(refused.exception)
    fitted = invoke(labeled, "head", "fit", "--skip-small")
    assert "too few images: Green" in fitted.stderr
