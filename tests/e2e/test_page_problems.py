"""Rejected files, connection failures, API keys, path prefixes, and a server without a model."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.helpers import PHOTOGRAPHS, Visit, bars, neighbours, photograph, upload, visiting
from tests.support.proxy import reverse_proxy
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model

READ_KEY = "a-key-that-only-reads"
WRITE_KEY = "a-key-that-also-writes"


@pytest.mark.parametrize(
    ("name", "kind", "data", "words"),
    [
        ("notes.jpg", "image/jpeg", b"This is a text.\n" * 40, "Unreadable image"),
        ("empty.png", "image/png", b"", "Unreadable image"),
        ("huge.jpg", "image/jpeg", b"\xff\xd8\xff" + bytes(1_500_000), "Body too large"),
        ("drawing.svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "Image format not supported"),
    ],
)
def test_a_rejected_file_is_explained_once_in_the_servers_words(
    visit: Visit, name: str, kind: str, data: bytes, words: str
) -> None:
    page = visit.open()
    upload(page, data, name, kind)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(words)
    expect(page.locator("#answer")).not_to_have_attribute("aria-busy", "true")
    answer = httpx.post(f"{visit.address}/v1/classify", content=data, headers={"Content-Type": kind})
    detail = answer.json()["detail"]
    expect(alert).to_contain_text(detail)
    expect(alert.locator("section")).to_have_count(1)
    expect(page.locator(".classes")).to_be_hidden()
    visit.expect_responses(answer.status_code)
    upload(page, photograph("coffee.png"))
    assert len(bars(page)) == 5
    expect(alert.locator("section")).to_have_count(0)


def test_an_unreachable_server_is_reported_and_can_be_retried(visit: Visit) -> None:
    page = visit.open()
    expect(page.locator("#sample-list img")).to_have_count(7)
    page.context.set_offline(True)
    upload(page, photograph("coffee.png"))
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    assert len(bars(page)) == 5
    assert all("net::ERR_INTERNET_DISCONNECTED" in message for message in visit.messages)
    visit.messages.clear()


def test_a_server_with_keys_asks_for_one_and_receives_it(browser: Browser, tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    keys = f"read:{READ_KEY},write:{WRITE_KEY}"
    with thread_server(tmp_path, api_keys=keys) as server, visiting(browser, server.url) as visit:
        for name in PHOTOGRAPHS:
            httpx.put(
                f"{server.url}/v1/images/{name}",
                content=photograph(name),
                headers={"Authorization": f"Bearer {WRITE_KEY}"},
            ).raise_for_status()
        page = visit.open()
        field = page.get_by_label("This server requires an API key")
        expect(field).to_be_focused()
        field.fill("not the key of this server")
        page.keyboard.press("Enter")
        expect(page.locator("#key-help")).to_contain_text("without spaces")
        field.fill("not-the-key-of-this-server")
        page.keyboard.press("Enter")
        expect(page.locator("#key-help")).to_have_text("The server rejected this key.")
        expect(field).to_be_focused()
        visit.expect_responses(401)
        field.fill(READ_KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#sample-list img")).to_have_count(len(PHOTOGRAPHS))
        expect(page.locator("#key-form")).to_be_hidden()
        upload(page, photograph("coffee.png"))
        assert len(bars(page)) == 5
        assert neighbours(page)[0][0] == "coffee.png"
        page.reload()  # the key is still stored for this tab
        expect(page.locator("#sample-list img")).to_have_count(len(PHOTOGRAPHS))
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
            [READ_KEY],
            0,
            "",
        ]
        page.get_by_role("button", name="Forget the key").click()
        expect(field).to_be_visible()
        expect(page.locator("#sample-list img")).to_have_count(0)
        visit.expect_responses(401)


def test_a_server_without_a_model_explains_how_to_get_one(browser: Browser, tmp_path: Path) -> None:
    with contextlib.ExitStack() as later:
        with thread_server(tmp_path) as server:
            visit = later.enter_context(visiting(browser, server.url))
            page = visit.open()
            notice = page.locator("#not-ready")
            expect(notice).to_contain_text("The server is not ready yet")
            for reason in httpx.get(f"{server.url}/readyz").json()["reasons"]:
                expect(notice).to_contain_text(reason)
            expect(page.get_by_role("alert")).to_be_empty()
            upload(page, photograph("coffee.png"))
            expect(page.get_by_role("alert")).to_contain_text("No model")
        publish_tiny_model(tmp_path)
        with thread_server(tmp_path, port=server.port):
            expect(notice).to_be_hidden()
            assert len(bars(page)) == 5
            expect(page.locator("#neighbours")).to_have_text("No other pictures are indexed yet.")
            expect(page.get_by_role("alert")).to_be_empty()
            visit.expect_responses(503)
            visit.messages = [message for message in visit.messages if "net::ERR_" not in message]  # from the restart


@pytest.mark.parametrize("strip", [True, False], ids=["stripped", "kept"])
def test_the_views_work_below_a_path_prefix(browser: Browser, tmp_path: Path, strip: bool) -> None:
    publish_tiny_model(tmp_path)
    with (
        thread_server(tmp_path, root_path="/lab/fc7") as server,
        reverse_proxy(server.url, "/lab/fc7", strip=strip) as address,
        visiting(browser, address) as visit,
    ):
        httpx.put(f"{address}/v1/images/moon.png", content=photograph("moon.png")).raise_for_status()
        page = visit.open()
        upload(page, photograph("coffee.png"))
        assert len(bars(page)) == 5
        expect(page.locator("#neighbours img")).to_have_js_property("naturalWidth", 256)
        for name, selector in (("Browse", "#grid img"), ("Model", ".versions tbody tr")):
            page.get_by_role("link", name=name).click()
            expect(page.locator(selector)).to_have_count(1)
        page.get_by_role("link", name="API").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("API")
        page.get_by_role("link", name="Browse").click()
        expect(page.locator("#grid img")).to_have_count(1)


def test_a_key_that_only_reads_is_told_what_it_cannot_do(browser: Browser, tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    keys = f"read:{READ_KEY},write:{WRITE_KEY}"
    with thread_server(tmp_path, api_keys=keys) as server, visiting(browser, server.url) as visit:
        headers = {"Authorization": f"Bearer {WRITE_KEY}"}
        httpx.put(f"{server.url}/v1/images/moon.png", content=photograph("moon.png"), headers=headers)
        page = visit.open()
        page.get_by_label("This server requires an API key").fill(READ_KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#sample-list img")).to_have_count(1)
        page.get_by_role("link", name="Browse").click()
        page.locator("#grid .check").click()
        page.get_by_label("Label of the selected pictures").fill("moon")
        page.get_by_role("button", name="Set label").click()
        expect(page.locator("#problems")).to_contain_text("requires a key with the scope write")
        visit.expect_responses(401, 403)
