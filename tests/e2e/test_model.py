"""Model: the card, the report, and the versions to activate."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, expect

from model_store.store import ModelStore
from tests.e2e.helpers import Visit, photograph, visiting
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


WORST = (
    "image,class,its probability,predicted class,its probability\n"
    '"cat/a, b.png",cat,0.01,dog,0.91\ncat/gone.png,cat,0.02,dog,0.90\n'
)


def publish_with_report(home: Path, errors: str | None = None) -> None:
    """Publish and activate a version with two pictures and tables in its report. errors: of errors.csv."""
    store = ModelStore(home)
    with store.staging("tiny") as folder:
        write_tiny_graph(folder)
        (folder / "report").mkdir()
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), (20, 90, 160)).save(picture, "PNG")
        for name in ("confusion.png", "conv1.png"):
            (folder / "report" / name).write_bytes(picture.getvalue())
        (folder / "report" / "per_class.csv").write_text("class,recall\ncat,0.25\n", encoding="utf-8")
        counts = [[9 * int(i == j) for j in range(len(CLASSES))] for i in range(len(CLASSES))]
        counts[0][1] = 3 if errors is None else 30
        rows = [f"{label},{','.join(map(str, row))}\n" for label, row in zip(CLASSES, counts, strict=True)]
        table = f"true class,{','.join(CLASSES)}\n" + "".join(rows)
        (folder / "report" / "confusion.csv").write_text(table, encoding="utf-8")
        (folder / "report" / "worst_errors.csv").write_text(WORST, encoding="utf-8")
        if errors is not None:
            (folder / "report" / "errors.csv").write_text(errors, encoding="utf-8")
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


def test_a_cell_of_the_confusion_matrix_opens_the_confused_pictures(visit_model: Visit) -> None:
    parts: dict[str, Any] = {"file": photograph("coffee.png"), "metadata": (None, '{"label": "cat"}')}
    httpx.put(f"{visit_model.address}/v1/images/{quote('cat/a, b.png', safe='')}", files=parts).raise_for_status()
    page = visit_model.open("#/model")
    matrix = page.get_by_role("table", name="Confusion matrix")
    expect(matrix.get_by_role("row", name="heron 0").get_by_role("cell")).to_have_text(["0", "0", "9", "0", "0", "0"])
    matrix.get_by_role("button", name="3 pictures of cat answered as dog").click()
    confused = page.locator(".confused")
    expect(confused).to_contain_text(
        "The report names 2 of them, among its worst errors. Versions that a newer release"
    )
    expect(confused).to_contain_text("Not indexed, so that they cannot be shown: cat/gone.png.")
    expect(confused.locator("img")).to_have_js_property("naturalWidth", 256)
    confused.get_by_role("link", name="Browse the indexed pictures with the label cat").click()
    expect(page.locator("#browse .total")).to_have_text("1 picture")
    page.go_back()
    page.get_by_role("button", name="3 pictures of cat answered as dog").click()
    page.locator(".confused").get_by_role("button", name="cat/a, b.png").click()
    expect(page.locator("#caption strong")).to_have_text("cat/a, b.png")


def test_all_confused_pictures_are_shown_some_at_a_time_and_opened_in_browse(browser: Browser, tmp_path: Path) -> None:
    header = WORST.partition("\n")[0]
    names = [f"cat/{n:02}.png" for n in range(30)]
    rows = [f"{name},cat,0.01,dog,0.9" for name in names] + ["dog/x.png,dog,0.1,cat,0.8"]
    publish_with_report(tmp_path, "\n".join([header, *rows, ""]))
    with thread_server(tmp_path) as server, visiting(browser, server.url) as visit:
        for name in [*names[:20], *(f"val/{name}" for name in names[20:27])]:
            data: dict[str, Any] = {
                "file": photograph("coffee.png"),
                "metadata": (None, '{"label": "cat", "site": "A"}'),
            }
            httpx.put(f"{server.url}/v1/images/{quote(name, safe='')}", files=data).raise_for_status()
        page = visit.open("#/model")
        page.get_by_role("button", name="30 pictures of cat answered as dog").click()
        confused = page.locator(".confused")
        expect(confused.locator(".tile")).to_have_count(24)
        expect(confused).to_contain_text("30 pictures of cat answered as dog. The report names all of them.")
        confused.get_by_role("button", name="Show 6 more").click()
        expect(confused.locator(".tile")).to_have_count(27)
        expect(confused).to_contain_text(f"Not indexed, so that they cannot be shown: {', '.join(names[27:])}.")
        expect(confused.get_by_role("button", name="more")).to_have_count(0)
        assert Axe().run(page).response["violations"] == []
        confused.get_by_role("button", name="Show these in Browse").click()
        expect(page.locator("#browse .note")).to_contain_text("27 pictures chosen in the confusion matrix.")
        expect(page.locator("#grid [role=option]").first).to_have_accessible_name("cat/00.png, cat")


def test_two_versions_are_compared_side_by_side(visit_model: Visit) -> None:
    page = visit_model.open("#/model")
    page.get_by_label("Compare tiny:2 with").focus()
    page.get_by_label("Compare tiny:2 with").select_option("tiny:1")
    figures = page.get_by_role("table", name="Figures of both versions")
    expect(figures.get_by_role("row", name="Wrong best class").get_by_role("cell")).to_have_text(
        ["34.1\xa0%", "42.0\xa0%"]
    )
    expect(figures.get_by_role("row", name="Macro F1").get_by_role("cell")).to_have_text(["0.58", "–"])
    expect(page.get_by_label("Compare tiny:2 with")).to_be_focused()
    assert Axe().run(page).response["violations"] == []
    page.reload()
    expect(page.get_by_role("table", name="Recall of each class").get_by_role("row", name="cat")).to_contain_text(
        "25.0"
    )
