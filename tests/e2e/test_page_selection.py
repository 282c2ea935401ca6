"""Choosing images on the page: files, drops, pastes, neighbours, history."""

from __future__ import annotations

import base64
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Route, expect

from tests.e2e.helpers import ODD_KEY, Visit, bars, neighbours, photograph, server_results, upload


def test_a_chosen_file_is_shown_with_its_classes_and_neighbors(visit: Visit) -> None:
    page, data = visit.open(), photograph("coffee.png")
    upload(page, data)
    classes, nearest = server_results(visit.address, data)
    assert bars(page) == classes
    assert neighbours(page) == nearest
    probabilities = [value for _, value in bars(page)]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1.0001
    assert nearest[0][0] == "whole/coffee.png"
    assert nearest[0][1] < 0.01
    expect(page.locator("#frame img")).to_have_js_property("naturalWidth", 600)
    expect(page.locator("#caption")).to_contain_text("coffee.png")
    expect(page.locator("#model")).to_have_text("Model: tiny version 1")
    expect(page.locator("#announcement")).to_contain_text(classes[0][0])


def test_the_length_of_a_bar_is_its_probability(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("grass.png"))  # an image without a dominant class
    page.emulate_media(reduced_motion="reduce")
    probabilities = [value for _, value in bars(page)]
    lengths = page.locator("#bars .track").evaluate_all(
        "all => all.map(track => track.firstChild.getBoundingClientRect().width / track.clientWidth)"
    )
    assert lengths == pytest.approx(probabilities, abs=0.01)


def test_a_file_can_be_dropped_and_a_dropped_link_is_explained(visit: Visit) -> None:
    page, data = visit.open(), photograph("rocket.jpg")
    files = page.evaluate_handle(
        """encoded => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "rocket.jpg", { type: "image/jpeg" }));
            return transfer;
        }""",
        base64.b64encode(data).decode(),
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": files})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": files})
    expect(page.locator("#drop")).to_be_hidden()
    assert (bars(page), neighbours(page)) == server_results(visit.address, data)
    link = page.evaluate_handle(
        "() => { const t = new DataTransfer(); t.setData('text/uri-list', 'http://example.org/a.jpg'); return t; }"
    )
    page.dispatch_event("main", "drop", {"dataTransfer": link})
    expect(page.get_by_role("alert")).to_contain_text("This is not a file")


def test_an_image_can_be_pasted(visit: Visit) -> None:
    page, data = visit.open(), photograph("moon.png")
    page.evaluate(
        """encoded => {
            const clipboardData = new DataTransfer();
            const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
            clipboardData.items.add(new File([bytes], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        base64.b64encode(data).decode(),
    )
    assert neighbours(page)[0][0] == "whole/moon.png"


def test_a_neighbor_can_be_selected_and_back_returns_to_the_upload(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("coffee.png"))
    first = neighbours(page)
    page.locator("#neighbours button").nth(1).click()
    expect(page.locator("#caption strong")).to_have_text(first[1][0])
    expect(page.locator("#caption")).to_be_focused()
    similar = httpx.get(f"{visit.address}/v1/images/{quote(first[1][0], safe='')}/similar").json()["results"][0]
    assert neighbours(page) == [(n["key"], n["distance"]) for n in similar["neighbours"]]
    assert len(bars(page)) == 5
    page.go_back()
    expect(page.locator("#caption strong")).to_have_text("coffee.png")
    assert neighbours(page) == first


def test_a_key_with_special_characters_works_in_the_address(visit: Visit) -> None:
    page = visit.open("#" + quote(ODD_KEY, safe=""))
    assert neighbours(page)[0][0] == "whole/chelsea.png"
    expect(page.locator("#caption")).to_contain_text(f"{ODD_KEY} · 451 × 300")
    page.goto(f"{visit.address}/#no-such-image")
    expect(page.get_by_role("alert")).to_contain_text("Image not found")
    visit.expect_responses(404)


def test_a_later_selection_replaces_a_slower_earlier_one(visit: Visit) -> None:
    page = visit.open()
    held_routes: list[Route] = []

    def hold_first(route: Route) -> None:
        if held_routes:
            route.continue_()
        else:
            held_routes.append(route)

    page.route("**/v1/classify", hold_first)
    upload(page, photograph("coffee.png"))
    expect(page.locator("#neighbours img")).to_have_count(6)
    upload(page, photograph("rocket.jpg"), "rocket.jpg", "image/jpeg")
    classes, nearest = server_results(visit.address, photograph("rocket.jpg"))
    assert (bars(page), neighbours(page)) == (classes, nearest)
    held_routes[0].continue_()
    page.wait_for_timeout(300)  # enough time for the held response to arrive
    assert bars(page) == classes
    expect(page.locator("#caption strong")).to_have_text("rocket.jpg")
