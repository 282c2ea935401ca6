"""Map: the points, colors, zooming, and choosing pictures for Browse."""

from __future__ import annotations

import httpx
from playwright.sync_api import Page, expect

from tests.e2e.helpers import Visit, neighbours, photograph, upload


def colors(page: Page) -> int:
    """Return how many different opaque colors the canvas has."""
    return int(
        page.locator("#map-canvas").evaluate(
            """canvas => {
                const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                const pixels = new Uint32Array(data.buffer).filter((_, i) => data[4 * i + 3] === 255);
                return new Set(pixels).size;
            }"""
        )
    )


def lasso(page: Page) -> None:
    """Draw a line around the whole map."""
    box = page.locator("#map-canvas").bounding_box()
    assert box is not None
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def test_every_label_has_a_color_and_leads_to_its_pictures(visit: Visit) -> None:
    page = visit.open("#/map")
    expect(page.locator("#map .total")).to_have_text("36 pictures")
    expect(page.locator(".legend li")).to_have_count(8)
    expect(page.locator(".legend li").last).to_have_text("without label1")
    expect(page.locator("#map-canvas")).not_to_have_js_property("width", 300)  # of a canvas without a drawing
    assert colors(page) >= 7
    page.get_by_role("link", name="coffee 5").click()
    expect(page.locator("#where")).to_have_value("label:coffee")
    expect(page.locator("#browse .total")).to_have_text("5 pictures")


def test_the_field_of_the_colors_can_be_chosen(visit: Visit) -> None:
    page = visit.open("#/map")
    page.get_by_label("Color by").select_option("part")
    expect(page.locator(".legend li")).to_have_text(["quarters28", "whole7", "without part1"])


def test_encircled_pictures_are_shown_in_browse(visit: Visit) -> None:
    page = visit.open("#/map")
    expect(page.locator("#map .total")).to_have_text("36 pictures")
    page.get_by_role("radio", name="choose pictures").check()
    lasso(page)
    expect(page.locator("#map .selected-count")).to_have_text("36 chosen")
    page.get_by_role("button", name="Show in Browse").click()
    expect(page.locator("#browse .total")).to_have_text("36 pictures")
    expect(page.locator(".note")).to_contain_text("36 pictures chosen on the map.")
    expect(page.locator("#grid img").first).to_be_visible()
    page.get_by_role("button", name="Show all pictures").click()
    expect(page.locator(".note")).to_be_hidden()
    page.go_back()
    page.go_back()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#map .action-bar")).to_be_hidden()


def test_a_click_asks_about_a_picture_and_thumbnails_appear_when_zoomed(visit: Visit) -> None:
    page = visit.open("#/map")
    expect(page.locator("#map .total")).to_have_text("36 pictures")
    with page.expect_response("**/thumbnail"):  # 36 points are few enough
        page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Show all pictures").click()
    answer = httpx.get(f"{visit.address}/v1/index/map").json()
    box = page.locator("#map-canvas").bounding_box()
    assert box is not None
    xs, ys = answer["x"], answer["y"]
    scale = 0.9 * min(box["width"] / (max(xs) - min(xs)), box["height"] / (max(ys) - min(ys)))
    i = xs.index(max(xs))  # no other point is as far to the right
    x = box["width"] / 2 + scale * (xs[i] - (max(xs) + min(xs)) / 2)
    y = box["height"] / 2 - scale * (ys[i] - (max(ys) + min(ys)) / 2)
    page.mouse.move(box["x"] + x, box["y"] + y)
    expect(page.locator(".map-card .key")).to_have_attribute("title", answer["keys"][i])
    page.mouse.click(box["x"] + x, box["y"] + y)
    expect(page.locator("#caption strong")).to_have_text(answer["keys"][i])


def test_the_asked_picture_is_a_pin(visit: Visit) -> None:
    page = visit.open("#/map")
    expect(page.locator("#map .total")).to_have_text("36 pictures")
    page.get_by_role("link", name="Ask", exact=True).click()
    upload(page, photograph("coffee.png"))
    neighbours(page)
    page.get_by_role("link", name="Map").click()
    expect(page.locator("#map .total")).to_have_text("36 pictures")
    expect(page.locator("#map-canvas")).to_have_accessible_name(
        "Map of 36 pictures, with a pin at coffee.png. The list of labels has the same pictures. "
        "Arrow keys move, plus and minus zoom, 0 shows all."
    )
