"""The page /docs: examples, links to the errors, and sending requests with the key of the tab."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import Browser, FilePayload, expect

from tests.e2e.helpers import PHONE, Visit, fits, photograph, visiting
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

KEY = "a-key-that-only-reads"


def test_a_request_is_sent_and_its_answer_shown(visit: Visit) -> None:
    page = visit.open("docs")
    section = page.locator("#list_images")
    expect(section.locator("pre").first).to_contain_text(f"curl '{visit.address}/v1/images'")
    section.get_by_label("limit").fill("1")
    section.get_by_label("where").fill("label:coffee")
    section.get_by_role("button", name="Send").click()
    expect(section.locator(".result > pre")).to_contain_text('"key": "whole/coffee.png"')
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
    expect(section.get_by_role("status")).to_contain_text("404 Not Found")
    section.get_by_role("link", name="What 404 means").click()
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
        expect(section.locator(".result > pre")).to_contain_text('"name": "tiny"')
        page.get_by_role("link", name="Model", exact=True).click()
        expect(page.get_by_role("heading", name="tiny, version 1")).to_be_visible()


def test_a_picture_is_sent_as_a_file_or_in_json(visit: Visit) -> None:
    page = visit.open("docs")
    section = page.locator("#classify")
    expect(section.get_by_label("Body as JSON")).to_be_hidden()
    section.get_by_label("Picture file").set_input_files(
        [FilePayload(name=name, mimeType="image/png", buffer=photograph(name)) for name in ("coffee.png", "moon.png")]
    )
    section.get_by_role("button", name="Send").click()
    expect(section.get_by_role("status")).to_contain_text(re.compile(r"200 OK, \d+ ms"))
    assert len(json.loads(section.locator(".result > pre").inner_text())["results"]) == 2
    section.get_by_text("Headers of the answer").click()
    expect(section.locator("details pre")).to_contain_text("server-timing: decode")
    section.get_by_label("Kind of body").select_option("JSON")
    section.get_by_role("button", name="Send").click()
    expect(section.get_by_role("status")).to_contain_text("200 OK")
    assert len(json.loads(section.locator(".result > pre").inner_text())["results"]) == 1
    section.get_by_label("Body as JSON").fill("{")
    section.get_by_role("button", name="Send").click()
    expect(section.get_by_role("status")).to_contain_text("400 Bad Request")
    visit.expect_responses(400)


def test_a_request_that_deletes_is_sent_after_a_question(own_visit: Visit, own_server: ThreadServer) -> None:
    page = own_visit.open("docs")
    change = page.locator("#patch_image")
    change.get_by_role("textbox", name="key").fill("whole/coffee.png")
    change.get_by_label("Body as JSON").fill('{"metadata": {"label": "cup"}}')
    change.get_by_role("button", name="Send").click()
    expect(change.locator(".result > pre")).to_contain_text('"label": "cup"')
    delete = page.locator("#delete_image")
    delete.get_by_role("textbox", name="key").fill("whole/coffee.png")
    for answer, left in (("Cancel", 36), ("Send", 35)):
        delete.get_by_role("button", name="Send").click()
        dialog = page.get_by_role("dialog", name="Send DELETE /v1/images/whole%2Fcoffee.png?")
        dialog.get_by_role("button", name=answer).click()
        expect(dialog).to_have_count(0)
        if answer == "Send":
            expect(delete.get_by_role("status")).to_contain_text("204 No Content")
        assert own_server.client.get("/v1/index").json()["images"] == left


def test_pictures_are_added_and_a_snapshot_is_not_read_into_memory(own_visit: Visit, own_server: ThreadServer) -> None:
    page = own_visit.open("docs")
    add = page.locator("#add_images")
    add.get_by_label("Picture file").set_input_files(
        [FilePayload(name="new.png", mimeType="image/png", buffer=photograph("coffee.png"))]
    )
    add.get_by_role("button", name="Send").click()
    expect(add.locator(".result > pre")).to_contain_text('"key": "new.png"')
    page.locator("#take_snapshot").get_by_role("button", name="Send").click()
    expect(page.locator("#take_snapshot").get_by_role("status")).to_contain_text("201 Created")
    [folder] = (own_server.state.settings.home / "snapshots").iterdir()
    download = page.locator("#download_snapshot")
    download.get_by_role("textbox", name="name").fill(folder.name)
    download.get_by_role("button", name="Send").click()
    expect(download.locator(".result")).to_contain_text(re.compile(r"The answer is a file of [\d.]+ [KM]B"))


def test_it_fits_on_a_phone(browser: Browser, server: str) -> None:
    with visiting(browser, server, viewport=PHONE) as visit:
        assert fits(visit.open("docs"))
