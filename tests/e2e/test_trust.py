"""Ask: pictures that the model does not know, and heat maps."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.e2e.helpers import bars, photograph, upload, upload_all, visiting
from tests.support.novelty import FOREIGN, OWN, publish_with_reference
from tests.support.server import thread_server
from tests.support.training.explainable_model import LABELS, publish_explainable_model


def test_a_picture_that_is_unlike_the_training_pictures_is_announced(browser: Browser, tmp_path: Path) -> None:
    publish_with_reference(tmp_path)
    with thread_server(tmp_path) as server, visiting(browser, server.url) as visit:
        page = visit.open()
        upload_all(page, [("foreign.jpg", "image/jpeg", FOREIGN), ("own.jpg", "image/jpeg", OWN)])
        expect(page.locator("#sentence")).to_contain_text("Unlike anything this model knows.")
        expect(page.locator("#announcement")).to_contain_text("Unlike anything this model knows.")
        expect(page.locator("#remark")).to_contain_text("Do not rely on the class")
        expect(page.locator("#strip .verdict").first).to_contain_text("unknown")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#sentence")).to_contain_text("%")
        expect(page.locator("#sentence")).not_to_contain_text("Unlike")
        expect(page.locator("#strip .verdict").last).not_to_contain_text("unknown")


def test_the_heat_map_is_computed_when_it_is_switched_on(browser: Browser, tmp_path: Path) -> None:
    publish_explainable_model(tmp_path)
    with thread_server(tmp_path) as server, visiting(browser, server.url) as visit:
        page, requests = visit.open(), []
        page.on("request", lambda request: requests.append(request.url) if "/explain" in request.url else None)
        upload(page, photograph("coffee.png"))
        expect(page.locator("#bars data[value]")).to_have_count(len(LABELS))
        assert requests == []
        page.get_by_role("switch", name="Heat map").check()
        heat = page.get_by_role("img", name="Heat map of")
        expect(heat).to_have_js_property("naturalWidth", 224)
        expect(page.get_by_role("img", name="Query image: coffee.png")).to_be_hidden()
        page.get_by_role("switch", name="Heat map").uncheck()
        expect(heat).to_have_count(0)
        page.get_by_role("switch", name="Heat map").check()
        expect(heat).to_be_visible()
        assert len(requests) == 1


def test_a_version_that_cannot_be_explained_says_so(browser: Browser, server: str) -> None:
    with visiting(browser, server) as visit:
        page = visit.open()
        upload(page, photograph("coffee.png"))
        assert len(bars(page)) == 5
        page.get_by_role("switch", name="Heat map").check()
        expect(page.locator("#heat-status")).to_contain_text("fc7 models add-explanations")
        expect(page.get_by_role("img", name="Query image: coffee.png")).to_be_visible()
        visit.expect_responses(409)
