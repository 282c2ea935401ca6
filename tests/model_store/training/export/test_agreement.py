"""Comparing bf16 with f32 on photographs: how many are needed, and which of them are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.artifact import Artifact
from model_store.image import views
from model_store.runtime.openvino_engine import bf16_support
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.evaluate import SplitImages
from model_store.training.export import agreement
from model_store.training.export.agreement import measure_bf16
from model_store.training.export.served_graph import write_served_graph
from tests.support.tiny_model import tiny_draft
from tests.support.training.run_folder import small_architecture, small_net, write_pictures

pytestmark = pytest.mark.skipif(bf16_support() == "none", reason="OpenVINO cannot compute in bf16 on this CPU")


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = ModelStore(tmp_path_factory.mktemp("home"))
    with store.staging("small") as staged:
        write_served_graph(small_net(small_architecture()), np.full((256, 256, 3), 120, np.float32), staged)
        return store.publish(staged, tiny_draft("small", classes=("blue", "green", "red")))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> SplitImages:
    """Return 105 photographs, 35 of each class."""
    folder = tmp_path_factory.mktemp("photographs")
    write_pictures(folder, images=35, side=64)
    return SplitImages(folder, "val")


def measure(version: Artifact, images: SplitImages) -> dict[str, Any] | None:
    return measure_bf16(version, images, lambda _done, _total: None)


def test_few_photographs_are_compared_in_ten_views(version: Artifact, photographs: SplitImages) -> None:
    measured = measure(version, photographs)
    assert measured is not None
    assert (measured["images"], measured["views"]) == (105, 10)
    inputs = views(np.stack([pixels for pixels, _ in photographs]), 10)
    f32, bf16 = (
        Runner(version, RunnerOptions(device="cpu", engine="openvino", arithmetic=arithmetic)).run(inputs)
        for arithmetic in ("f32", "bf16")
    )
    same = f32.probabilities.argmax(axis=1) == bf16.probabilities.argmax(axis=1)
    assert measured["top1_agreement"] == same.mean()
    norms = np.linalg.norm(f32.fc7, axis=1) * np.linalg.norm(bf16.fc7, axis=1)
    assert measured["fc7_cosine"] == pytest.approx(((f32.fc7 * bf16.fc7).sum(axis=1) / norms).mean(), abs=1e-6)
    centers, others = f32.fc7[4::10].astype(np.float64), bf16.fc7[4::10].astype(np.float64)
    distances = np.linalg.norm(centers[:, None] - others[None], axis=2)
    own = np.diag(distances).copy()
    np.fill_diagonal(distances, np.inf)
    assert measured["fc7_distance"] == pytest.approx(np.median(own / distances.min(axis=1)), rel=1e-2)


def test_too_few_photographs_show_nothing(version: Artifact, photographs: SplitImages, tmp_path: Path) -> None:
    assert measure(version, photographs.only(photographs.files[:99])) is None
    write_pictures(tmp_path, images=33, side=64)
    (tmp_path / "val" / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert measure(version, SplitImages(tmp_path, "val")) is None, "99 of the 100 can be read"


def test_a_cpu_that_cannot_emulate_bf16_measures_nothing(
    version: Artifact, photographs: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "bf16_support", lambda: "none")
    assert measure(version, photographs) is None


def test_many_photographs_are_compared_once_and_all_classes_are_among_them(
    version: Artifact, photographs: SplitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    batches = SplitImages.batches

    def watched(self: SplitImages, size: int) -> Any:
        for pixels, labels in batches(self, size):
            seen.extend(labels)
            yield pixels, labels

    monkeypatch.setattr(SplitImages, "batches", watched)
    monkeypatch.setattr(agreement, "MIN_VIEWS", 32)
    monkeypatch.setattr(agreement, "_MOST", 48)
    measured = measure(version, photographs)
    assert measured is not None
    assert (measured["images"], measured["views"]) == (48, 1)
    assert min(seen.count(name) for name in ("blue", "green", "red")) > 8
    monkeypatch.setattr(agreement, "_SECONDS", -1.0)
    measured = measure(version, photographs)
    assert measured is not None
    assert measured["images"] == 32, "the time is over, but there must be enough images"
