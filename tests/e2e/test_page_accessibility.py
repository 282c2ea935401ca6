"""Keyboard, names, small screens, and what axe finds in each state of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.e2e.helpers import DESKTOP, PHONE, Visit, bars, fits, neighbours, photograph, upload, upload_all, visiting


def _ask(page: Page) -> None:
    expect(page.locator("#sample-list img")).to_have_count(7)


def _answer(page: Page) -> None:
    upload_all(page, [(name, "image/png", photograph(name)) for name in ("coffee.png", "moon.png")])
    neighbours(page)
    page.locator("#neighbours button").nth(1).click()
    expect(page.locator("#trail")).to_be_visible()
    neighbours(page)


def _add(page: Page) -> None:
    upload(page, photograph("coffee.png"))
    neighbours(page)
    page.get_by_role("button", name="Add to the index").click()
    page.get_by_role("button", name="Python").click()


def _problem(page: Page) -> None:
    upload(page, b"not an image", "notes.jpg", "image/jpeg")
    expect(page.get_by_role("alert")).to_contain_text("Unreadable image")


def _browse(page: Page) -> None:
    expect(page.locator("#grid img").first).to_be_visible()
    page.locator("#grid .check").first.click()
    expect(page.locator("#browse .action-bar")).to_be_visible()


def _suggestions(page: Page) -> None:
    expect(page.locator(".note")).to_contain_text("1 picture has none")


def _no_match(page: Page) -> None:
    page.locator("#where").fill("label:nothing")
    page.keyboard.press("Enter")
    expect(page.locator("#browse .empty")).to_contain_text("No picture matches")


def _map(page: Page) -> None:
    expect(page.locator("#map .total")).to_have_text("36 pictures")


def _jobs(page: Page) -> None:
    expect(page.locator("#job-list")).to_have_text("No jobs yet.")


def _model(page: Page) -> None:
    expect(page.locator(".versions tbody tr")).to_have_count(1)


def _docs(page: Page) -> None:
    expect(page.get_by_role("navigation", name="Operations").get_by_role("link").first).to_be_visible()
    section = page.locator("#classify")
    section.get_by_label("Kind of body").select_option("JSON")
    section.get_by_role("button", name="Send").click()
    expect(section.get_by_role("status")).to_contain_text("200")


def _shortcuts(page: Page) -> None:
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()


STATES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "ask": ("", _ask),
    "answer": ("", _answer),
    "add": ("", _add),
    "problem": ("", _problem),
    "browse": ("#/browse", _browse),
    "no match": ("#/browse", _no_match),
    "suggestions": ("#/browse?order=suggested", _suggestions),
    "map": ("#/map", _map),
    "model": ("#/model", _model),
    "jobs": ("#/jobs", _jobs),
    "shortcuts": ("", _shortcuts),
    "docs": ("docs", _docs),
}
VIEWPORTS: list[tuple[Literal["light", "dark"], ViewportSize]] = [("light", DESKTOP), ("dark", PHONE)]


def findings(page: Page) -> list[tuple[Any, ...]]:
    """Return what axe finds, each with the first element that it concerns."""
    axe = Axe()
    violations = axe.run(page).response["violations"]
    return [(each["id"], each["help"], each["nodes"][0]["html"][:200]) for each in violations]


@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(browser: Browser, server: str, state: str) -> None:
    fragment, reach = STATES[state]
    with visiting(browser, server, reduced_motion="reduce") as visit:
        page = visit.open(fragment)
        reach(page)
        visit.expect_responses(400, 404)
        for scheme, size in VIEWPORTS:
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size(size)
            page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
            assert findings(page) == [], (scheme, size)
            assert fits(page), (scheme, size)


def test_everything_works_with_the_keyboard(visit: Visit) -> None:
    page = visit.open()
    expect(page.locator("#sample-list img")).to_have_count(7)

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                style = "getComputedStyle(document.activeElement)"
                assert page.evaluate(f"{style}.outlineStyle") == "solid"
                assert page.evaluate(f"parseFloat({style}.outlineWidth)") >= 2
                return
        pytest.fail(f"Tab does not reach {selector}")

    tab_to("#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "brick.png", "mimeType": "image/png", "buffer": photograph("brick.png")})
    nearest = neighbours(page)
    tab_to("#neighbours button")
    page.keyboard.press("Enter")
    expect(page.locator("#caption strong")).to_have_text(nearest[0][0])
    page.keyboard.press("Escape")
    expect(page.locator("#answer")).to_be_hidden()
    expect(page.locator("#choose")).to_be_focused()
    page.keyboard.press("2")
    expect(page.locator("#grid img").first).to_be_visible()
    page.keyboard.press("/")
    expect(page.locator("#where")).to_be_focused()
    page.keyboard.press("?")  # is written into the field
    expect(page.locator("#where")).to_have_value("?")


def test_every_control_and_image_has_an_accessible_name(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("coffee.png"))
    nearest = neighbours(page)
    for button in page.get_by_role("button").all():
        assert button.evaluate("node => node.ariaLabel || node.innerText || node.querySelector('img').alt").strip()
    first = page.locator("#neighbours").get_by_role("button").first
    expect(first).to_have_accessible_name(f"{nearest[0][0]}, distance 0, label coffee")
    expect(page.get_by_role("img", name="Query image: coffee.png")).to_be_visible()
    assert page.locator("img:not([alt])").count() == 0


def test_a_long_name_fits_on_a_phone(browser: Browser, server: str) -> None:
    with visiting(browser, server, viewport=PHONE) as visit:
        page = visit.open()
        upload(page, photograph("coffee.png"), "a-name-without-a-space-" * 5 + ".png")
        assert len(bars(page)) == len(neighbours(page)) - 1 == 5
        assert fits(page)


def test_the_theme_can_be_chosen_and_is_kept(visit: Visit) -> None:
    page = visit.open()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_label("Theme").select_option("Dark")
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark
    page.goto(f"{visit.address}/docs")
    assert page.evaluate(background) == dark
