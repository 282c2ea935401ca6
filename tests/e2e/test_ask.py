"""Ask: files, drops, pastes, the answer, similar pictures and the trail, several pictures, adding to the index."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Route, expect

from tests.e2e.helpers import (
    ODD_KEY,
    PHONE,
    Visit,
    bars,
    neighbours,
    photograph,
    server_results,
    upload,
    upload_all,
    visiting,
)


def test_a_chosen_file_is_shown_with_its_classes_and_neighbors(visit: Visit) -> None:
    page, data = visit.open(), photograph("coffee.png")
    upload(page, data)
    classes, nearest = server_results(visit.address, data)
    assert bars(page) == classes
    assert neighbours(page) == nearest
    assert nearest[0][0] == "whole/coffee.png"
    assert nearest[0][1] < 0.01
    expect(page.locator("#frame img")).to_have_js_property("naturalWidth", 600)
    expect(page.locator("#caption")).to_contain_text("coffee.png")
    expect(page.locator("#model")).to_have_text("Model: tiny version 1")
    sentence = f"{classes[0][0]}, {min(99, round(100 * classes[0][1]))}\xa0%"  # never 100 %
    expect(page.locator("#sentence")).to_contain_text(sentence)
    expect(page.locator("#announcement")).to_contain_text(sentence)
    expect(page.locator("#timing")).to_contain_text("decode")


def test_a_picture_is_uploaded_and_run_once(visit: Visit) -> None:
    page, posts = visit.open(), []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    upload(page, photograph("coffee.png"))
    assert len(neighbours(page)) == 6
    page.get_by_role("radio", name="24").check()
    expect(page.locator("#neighbours img")).to_have_count(24)
    assert len(posts) == 1


def test_the_length_of_a_bar_is_its_probability(visit: Visit) -> None:
    page = visit.open()
    page.emulate_media(reduced_motion="reduce")
    upload(page, photograph("grass.png"))  # an image without a dominant class
    probabilities = [value for _, value in bars(page)]
    lengths = page.locator("#bars .track").evaluate_all(
        "all => all.map(track => track.firstChild.getBoundingClientRect().width / track.clientWidth)"
    )
    assert lengths == pytest.approx(probabilities, abs=0.01)
    page.get_by_role("button", name="Show all classes").click()
    expect(page.locator("#bars li")).to_have_count(6)
    values = page.locator("#bars data").evaluate_all("all => all.map(data => Number(data.value))")
    assert sum(values) == pytest.approx(1)


def test_labels_of_neighbors_that_agree_are_marked_and_counted(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("coffee.png"))
    neighbours(page)
    expect(page.locator("#neighbours .chip").first).to_have_text("coffee")
    expect(page.locator("#neighbours .chip.agrees")).to_have_count(0)
    expect(page.locator("#sentence")).to_contain_text(re.compile("; 0 of [56] nearest agree"))


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


def test_the_trail_leads_back_from_neighbors_to_the_upload(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("coffee.png"))
    first = neighbours(page)
    page.locator("#neighbours button").nth(1).click()
    expect(page.locator("#caption strong")).to_have_text(first[1][0])
    expect(page.locator("#caption")).to_be_focused()
    similar = httpx.get(f"{visit.address}/v1/images/{quote(first[1][0], safe='')}/similar?k=6").json()["results"][0]
    assert neighbours(page) == [(each["key"], each["distance"]) for each in similar["neighbours"]]
    assert len(bars(page)) == 5
    page.locator("#neighbours button").nth(2).click()
    expect(page.locator("#trail li")).to_have_count(3)
    page.get_by_role("navigation", name="Trail").get_by_role("button", name="coffee.png").first.click()
    expect(page.locator("#caption strong")).to_have_text("coffee.png")
    assert neighbours(page) == first
    expect(page.locator("#trail")).to_be_hidden()


def test_a_key_with_special_characters_works_in_the_address(visit: Visit) -> None:
    page = visit.open("#" + quote(ODD_KEY, safe=""))
    assert neighbours(page)[0][0] == "whole/chelsea.png"
    expect(page.locator("#caption")).to_contain_text(f"{ODD_KEY} · 451 × 300")
    page.goto(f"{visit.address}/#no-such-image")
    expect(page.get_by_role("alert")).to_contain_text("Image not found")
    visit.expect_responses(404)


def test_a_picture_of_each_class_can_be_tried(visit: Visit) -> None:
    page = visit.open()
    samples = page.locator("#sample-list button")
    expect(samples).to_have_count(7)
    assert page.locator("#sample-list .caption").all_text_contents() == sorted(
        ["astronaut", "brick", "chelsea", "coffee", "grass", "moon", "rocket"]
    )
    samples.nth(3).click()
    expect(page.locator("#caption")).to_contain_text("coffee")
    assert len(neighbours(page)) == 6


def test_several_files_become_a_strip_with_an_entry_for_each(visit: Visit) -> None:
    page = visit.open()
    names = ["coffee.png", "moon.png", "rocket.jpg"]
    files = [(name, "image/png", photograph(name)) for name in names]
    upload_all(page, [*files, ("notes.txt.jpg", "image/jpeg", b"not an image")])
    options = page.locator("#strip [role=option]")
    expect(options).to_have_count(4)
    for i, (_, _, data) in enumerate(files):
        best = server_results(visit.address, data)[0][0]
        expect(options.nth(i).locator(".verdict")).to_contain_text(best[0])
    expect(options.nth(3).locator(".verdict")).to_have_text("Unreadable image")
    assert neighbours(page)[0][0] == "whole/coffee.png"
    page.keyboard.press("ArrowRight")
    expect(page.locator("#caption strong")).to_have_text("moon.png")
    assert neighbours(page)[0][0] == "whole/moon.png"
    expect(options.nth(1)).to_have_attribute("aria-selected", "true")
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#answer")).to_be_hidden()
    expect(page.locator("#strip-section")).to_be_hidden()
    visit.expect_responses(400)


def test_a_picture_can_be_added_with_a_key_and_a_label(own_visit: Visit) -> None:
    page, data = own_visit.open(), photograph("camera.png")
    upload(page, data, "camera.png")
    neighbours(page)
    page.get_by_role("button", name="Add to the index").click()
    expect(page.get_by_label("Key, its name in the index")).to_be_focused()
    page.get_by_label("Key, its name in the index").fill("whole/coffee.png")
    page.get_by_label("Label (optional)").fill("tripod")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#add")).to_contain_text("already has a picture with this key")
    page.get_by_label("Key, its name in the index").fill("mine/camera.png")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#add")).to_contain_text("Added to the index as mine/camera.png")
    record = httpx.get(f"{own_visit.address}/v1/images/mine%2Fcamera.png").raise_for_status().json()
    assert record["metadata"] == {"label": "tripod"}
    own_visit.expect_responses(404)  # whether the key is free


def test_a_later_selection_replaces_a_slower_earlier_one(visit: Visit) -> None:
    page = visit.open()
    held_routes: list[Route] = []

    def hold_first(route: Route) -> None:
        if held_routes:
            route.continue_()
        else:
            held_routes.append(route)

    page.route("**/v1/search?*", hold_first)
    upload(page, photograph("coffee.png"))
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
    upload(page, photograph("rocket.jpg"), "rocket.jpg", "image/jpeg")
    classes, nearest = server_results(visit.address, photograph("rocket.jpg"))
    assert (bars(page), neighbours(page)) == (classes, nearest)
    held_routes[0].continue_()
    expect(page.locator("#strip .verdict").first).to_contain_text("%")  # the held response has arrived
    assert bars(page) == classes
    expect(page.locator("#caption strong")).to_have_text("rocket.jpg")


def test_a_similar_picture_is_shown_beside_the_asked_one(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("coffee.png"))
    keys = [key for key, _ in neighbours(page)]
    height = page.locator("#frame").evaluate("node => node.offsetHeight")
    tiles = page.locator("#neighbours").get_by_role("button")
    tiles.nth(1).hover()
    expect(page.locator("#beside img")).to_have_js_property("naturalWidth", 256)
    expect(page.locator("#beside")).to_have_attribute("data-key", keys[1])
    assert page.locator("#frame").evaluate("node => node.offsetHeight") == height
    page.mouse.move(5, 5)
    expect(page.locator("#beside")).to_be_hidden()
    tiles.nth(2).focus()
    expect(page.locator("#beside")).to_have_attribute("data-key", keys[2])
    expect(page.locator("#beside")).to_be_visible()
    tiles.nth(2).click()
    expect(page.locator("#caption strong")).to_have_text(keys[2])


def test_a_phone_can_take_a_picture(browser: Browser, server: str) -> None:
    with visiting(browser, server, viewport=PHONE, has_touch=True, is_mobile=True) as visit:
        page = visit.open()
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take a picture").click()
        assert chooser.value.element.get_attribute("capture") == "environment"
        chooser.value.set_files(FilePayload(name="photo.jpg", mimeType="image/jpeg", buffer=photograph("rocket.jpg")))
        assert len(bars(page)) == 5


def test_computers_are_not_asked_for_a_camera(visit: Visit) -> None:
    expect(visit.open().get_by_role("button", name="Take a picture")).to_be_hidden()
