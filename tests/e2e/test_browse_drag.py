"""Browse: pictures are selected by dragging a rectangle over the grid."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.e2e.helpers import PHONE, Visit, visiting

ALL = 36


def opened(visit: Visit, size: int = 200) -> Page:
    """Open Browse and return it when its first pictures are there: 1280 pixels have room for five of 200."""
    page = visit.open("#/browse")
    page.locator("#size").fill(str(size))
    expect(options(page).first).to_have_accessible_name("whole/chelsea.png, chelsea")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    return page


def options(page: Page) -> Locator:
    return page.locator("#grid [role=option]")


def middle(page: Page, i: int) -> tuple[float, float]:
    box = page.locator(f"#indexed-{i}").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def columns(page: Page) -> int:
    """Return the number of pictures in the first row."""
    tops = options(page).evaluate_all("all => all.map((one) => one.getBoundingClientRect().top)")
    return int(tops.count(tops[0]))


def press(page: Page, first: int, last: int) -> None:
    """Drag from the middle of a picture to that of another, without releasing the button."""
    page.mouse.move(*middle(page, first))
    page.mouse.down()
    page.mouse.move(*middle(page, last), steps=5)


def drag(page: Page, first: int, last: int) -> None:
    press(page, first, last)
    page.mouse.up()


def selected(page: Page) -> set[int]:
    found = page.locator("#grid [aria-selected=true]")
    return set(found.evaluate_all("all => all.map(({ dataset }) => Number(dataset.index))"))


def test_a_drag_selects_the_pictures_inside_the_rectangle(visit: Visit) -> None:
    page = opened(visit)
    width = columns(page)
    press(page, 0, width + 1)
    expect(page.locator(".rectangle")).to_be_visible()
    expect(page.locator("#selected-count")).to_have_text("4 selected")  # while it is drawn
    page.mouse.up()
    expect(page.locator(".rectangle")).to_have_count(0)
    expect(page.locator("#browse")).to_be_visible()  # the click at the end opened no picture
    assert selected(page) == {0, 1, width, width + 1}
    drag(page, width + 1, width + 2)
    assert selected(page) == {width + 1, width + 2}


@pytest.mark.parametrize("key", ["Control", "Shift"])
def test_a_drag_with_a_key_adds_to_the_selection(visit: Visit, key: str) -> None:
    page = opened(visit)
    drag(page, 0, 1)
    page.keyboard.down(key)
    drag(page, 3, 2)
    page.keyboard.up(key)
    assert selected(page) == {0, 1, 2, 3}
    expect(page.locator("#selected-count")).to_have_text("4 selected")


def test_escape_cancels_a_drag_and_keeps_the_selection(visit: Visit) -> None:
    page = opened(visit)
    options(page).nth(3).locator(".check").click()
    press(page, 0, 1)
    expect(page.locator("#selected-count")).to_have_text("2 selected")
    page.keyboard.press("Escape")
    expect(page.locator(".rectangle")).to_have_count(0)
    assert selected(page) == {3}
    page.mouse.move(*middle(page, 2))
    page.mouse.up()
    assert selected(page) == {3}
    page.keyboard.press("Escape")
    expect(page.locator("#browse .action-bar")).to_be_hidden()


def test_clicks_and_keys_continue_from_a_drag(visit: Visit) -> None:
    page = opened(visit)
    drag(page, 1, 2)
    options(page).nth(4).click(modifiers=["Shift"])
    assert selected(page) == {1, 2, 3, 4}
    page.keyboard.press("Escape")
    page.locator("#grid").press("Space")
    assert selected(page) == {4}
    page.keyboard.press("Escape")
    options(page).first.click()
    expect(page.locator("#caption strong")).to_have_text("whole/chelsea.png")


def test_a_drag_to_the_edge_scrolls_and_selects_pictures_that_were_not_in_the_document(visit: Visit) -> None:
    page = opened(visit, 320)
    expect(page.locator(f"#indexed-{ALL - 1}")).to_have_count(0)
    page.mouse.move(*middle(page, 0))
    page.mouse.down()
    page.mouse.move(1270, 895, steps=5)
    expect(page.locator("#selected-count")).to_have_text(f"{ALL} selected")
    page.mouse.up()
    assert page.evaluate("scrollY") > 1000


def test_a_pen_selects(visit: Visit) -> None:
    page = opened(visit)
    session = page.context.new_cdp_session(page)
    (x, y), (to_x, to_y) = middle(page, 0), middle(page, 1)
    pen: dict[str, Any] = {"pointerType": "pen", "button": "left", "buttons": 1, "clickCount": 1}
    session.send("Input.dispatchMouseEvent", {**pen, "type": "mousePressed", "x": x, "y": y})
    session.send("Input.dispatchMouseEvent", {**pen, "type": "mouseMoved", "x": to_x, "y": to_y})
    session.send("Input.dispatchMouseEvent", {**pen, "type": "mouseReleased", "x": to_x, "y": to_y, "buttons": 0})
    expect(page.locator("#selected-count")).to_have_text("2 selected")


def test_a_finger_scrolls_and_selects_nothing(browser: Browser, server: str) -> None:
    with visiting(browser, server, viewport=PHONE, has_touch=True) as visit:
        page = visit.open("#/browse")
        expect(options(page).first).to_have_accessible_name("whole/chelsea.png, chelsea")
        session = page.context.new_cdp_session(page)
        for kind, y in [("touchStart", 600), *(("touchMove", 600 - 20 * i) for i in range(1, 20)), ("touchEnd", None)]:
            points = [] if y is None else [{"x": 180, "y": y}]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_function("scrollY > 200")
        expect(page.locator("#browse .action-bar")).to_be_hidden()
        expect(page.locator("#browse")).to_be_visible()
