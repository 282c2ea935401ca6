"""Model: the card, the report, and the versions to activate."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from model_store.store import ModelStore
from tests.e2e.helpers import Visit, visiting
from tests.support.server import thread_server
from tests.support.tiny_model import CLASSES, publish_tiny_model, tiny_draft, write_tiny_graph

METRICS = {
    "top1_error": 0.341,
    "top1_error_interval": [0.3, 0.38],
    "majority_class_error": 0.54,
    "better_than_baseline": True,
    "balanced_accuracy": 0.6,
    "macro_f1": 0.58,
    "expected_calibration_error": 0.0301,
    "images": 2099,
    "per_class": [{"label": label, "images": 350, "precision": 0.5, "recall": 0.25} for label in CLASSES],
}


def publish_with_report(home: Path) -> None:
    """Publish and activate a version with two pictures and a table in its report."""
    store = ModelStore(home)
    with store.staging("tiny") as folder:
        write_tiny_graph(folder)
        (folder / "report").mkdir()
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), (20, 90, 160)).save(picture, "PNG")
        for name in ("confusion.png", "conv1.png"):
            (folder / "report" / name).write_bytes(picture.getvalue())
        (folder / "report" / "per_class.csv").write_text("class,recall\ncat,0.25\n", encoding="utf-8")
        draft = tiny_draft()
        artifact = store.publish(folder, draft.model_copy(update={"metrics": draft.metrics | METRICS}))
    store.activate(artifact.name, artifact.version)


@pytest.fixture
def visit_model(browser: Browser, tmp_path: Path) -> Iterator[Visit]:
    publish_tiny_model(tmp_path, seed=1, metrics={"top1_error": 0.42})
    publish_with_report(tmp_path)
    with thread_server(tmp_path) as server, visiting(browser, server.url) as visit:
        yield visit


def test_the_card_has_the_figures_beside_the_baseline(visit_model: Visit) -> None:
    page = visit_model.open("#/model")
    expect(page.get_by_role("heading", name="tiny, version 2")).to_be_visible()
    expect(page.locator(".card .sentence")).to_have_text(
        "It names the right class for 65.9\xa0% of the validation pictures; "
        "always answering the most frequent class would be right for 46.0\xa0%."
    )
    figures = page.get_by_role("table", name="Figures on the validation pictures")
    expect(figures.get_by_role("row", name="Wrong best class")).to_contain_text("34.1\xa0%")
    expect(figures.get_by_role("row", name="Wrong best class")).to_contain_text("30.0\xa0% to 38.0\xa0%")
    expect(figures.get_by_role("row", name="Validation pictures")).to_contain_text("2,099")
    classes = page.get_by_role("table", name="Figures of each class")
    expect(classes.get_by_role("row", name="heron")).to_contain_text("25.0\xa0%")


def test_the_report_shows_its_pictures_and_offers_its_tables(visit_model: Visit) -> None:
    page = visit_model.open("#/model")
    expect(page.locator(".plot img")).to_have_count(2)
    for image in page.locator(".plot img").all():
        expect(image).to_have_js_property("naturalWidth", 64)
    expect(page.locator(".figures h3").first).to_have_text("What the first layer looks for")
    page.get_by_role("button", name="Enlarge: Which classes are confused").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="per_class.csv").click()
    assert download.value.path().read_text(encoding="utf-8") == "class,recall\ncat,0.25\n"


def test_a_version_can_be_activated_and_rolled_back(visit_model: Visit) -> None:
    page = visit_model.open("#/model")
    expect(page.locator(".versions tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Activate tiny:1").click()
    page.get_by_role("dialog").get_by_role("button", name="Activate").click()
    expect(page.locator("#model")).to_have_text("Model: tiny version 1")
    expect(page.get_by_role("row", name="tiny:1")).to_contain_text("answers now")
    page.get_by_role("button", name="Roll back to the previous version").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.locator("#model")).to_have_text("Model: tiny version 2")


def test_another_version_has_an_address(visit_model: Visit) -> None:
    page = visit_model.open("#/model")
    page.get_by_role("link", name="tiny:1").click()
    expect(page.get_by_role("heading", name="tiny, version 1")).to_be_visible()
    expect(page.locator(".report")).to_contain_text("This version has no report.")
    page.reload()
    expect(page.get_by_role("heading", name="tiny, version 1")).to_be_visible()
