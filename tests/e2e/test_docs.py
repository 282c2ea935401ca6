"""The page /docs: examples, links to the errors, and sending requests with the key of the tab."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.e2e.helpers import PHONE, Visit, fits, visiting
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model

KEY = "a-key-that-only-reads"


def test_a_request_is_sent_and_its_answer_shown(visit: Visit) -> None:
    page = visit.open("docs")
    section = page.locator("#list_images")
    expect(section.locator("pre").first).to_contain_text(f"curl '{visit.address}/v1/images'")
    section.get_by_label("limit").fill("1")
    section.get_by_label("where").fill("label:coffee")
    section.get_by_role("button", name="Send").click()
    expect(section.locator(".result pre")).to_contain_text('"key": "whole/coffee.png"')
    thumbnail = page.locator("#get_thumbnail")
    thumbnail.get_by_role("textbox", name="key").fill("quarters/0/coffee.png")
    thumbnail.get_by_role("button", name="Send").click()
    expect(thumbnail.locator(".result img")).to_have_js_property("naturalWidth", 256)


def test_an_error_is_shown_and_explained_in_one_place(visit: Visit) -> None:
    page = visit.open("docs")
    section = page.locator("#get_image")
    section.get_by_role("textbox", name="key").fill("nothing")
    section.get_by_role("button", name="Send").click()
    expect(section.locator(".result")).to_contain_text("Image not found")
    visit.expect_responses(404)
    section.get_by_role("link", name="404").click()
    expect(page.locator("#error-404")).to_be_in_viewport()
    expect(page.locator("#errors")).to_contain_text("no-such-image")


def test_requests_have_the_key_of_the_tab(browser: Browser, tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    with thread_server(tmp_path, api_keys=f"read:{KEY}") as server, visiting(browser, server.url) as visit:
        page = visit.open("docs/")  # a trailing slash changes nothing
        section = page.locator("#list_models")
        section.get_by_role("button", name="Send").click()
        expect(section.locator(".result")).to_contain_text("API key required")
        visit.expect_responses(401)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        section.get_by_role("button", name="Send").click()
        expect(section.locator(".result pre")).to_contain_text('"name": "tiny"')
        page.get_by_role("link", name="Model", exact=True).click()
        expect(page.get_by_role("heading", name="tiny, version 1")).to_be_visible()


def test_it_fits_on_a_phone(browser: Browser, server: str) -> None:
    with visiting(browser, server, viewport=PHONE) as visit:
        assert fits(visit.open("docs"))
