"""Keyboard, names, contrast and small screens."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.helpers import PHONE, Visit, bars, neighbours, photograph, upload, visiting
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model


def test_everything_works_with_the_keyboard(visit: Visit) -> None:
    page = visit.open()
    expect(page.locator("#gallery button")).to_have_count(24)

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
    tab_to("#more")
    page.keyboard.press("Enter")
    expect(page.locator("#gallery button")).to_have_count(36)
    expect(page.locator("#gallery button").nth(24)).to_be_focused()
    expect(page.locator("#more")).to_be_hidden()


def test_every_control_and_image_has_an_accessible_name(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("coffee.png"))
    nearest = neighbours(page)
    for button in page.get_by_role("button").all():
        assert button.evaluate("node => node.ariaLabel || node.innerText || node.querySelector('img').alt").strip()
    first = page.locator("#neighbours").get_by_role("button").first
    expect(first).to_have_accessible_name(f"{nearest[0][0]}, distance 0")
    expect(page.get_by_role("img", name="Query image: coffee.png")).to_be_visible()
    assert page.locator("img:not([alt])").count() == 0


def test_a_phone_needs_no_horizontal_scrolling(browser: Browser, server: str) -> None:
    with visiting(browser, server, viewport=PHONE) as visit:
        page = visit.open()
        expect(page.locator("#gallery button")).to_have_count(24)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        upload(page, photograph("coffee.png"), "a-name-without-a-space-" * 5 + ".png")
        assert len(bars(page)) == len(neighbours(page)) - 1 == 5
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_sufficient_contrast(browser: Browser, server: str, scheme: str) -> None:
    with visiting(browser, server, color_scheme=scheme) as visit:
        page = visit.open()
        upload(page, b"not an image", "notes.jpg", "image/jpeg")
        expect(page.get_by_role("alert")).to_contain_text("Unreadable image")
        visit.expect_responses(400)
        ratios = page.evaluate(
            """() => {
                const channels = colour => colour.match(/[\\d.]+/g).map(Number);
                const light = colour => channels(colour).slice(0, 3).map(c => c / 255)
                    .map(c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
                    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
                const background = node => {
                    const colour = getComputedStyle(node).backgroundColor;
                    return channels(colour)[3] === 0 ? background(node.parentElement) : colour;
                };
                return [...document.querySelectorAll("body *")]
                    .filter(node => node.checkVisibility())
                    .filter(node => [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()))
                    .map(node => {
                        const colours = [getComputedStyle(node).color, background(node)];
                        const pair = colours.map(light).sort((a, b) => b - a);
                        return [node.outerHTML.slice(0, 80), (pair[0] + 0.05) / (pair[1] + 0.05)];
                    });
            }"""
        )
        assert len(ratios) > 5
        assert [(text, ratio) for text, ratio in ratios if ratio < 4.5] == []


def test_the_figures_of_the_model_are_a_table(browser: Browser, tmp_path: Path) -> None:
    metrics = {
        "top1_error": 0.341,
        "top1_error_interval": [0.3, 0.38],
        "majority_class_error": 0.54,
        "balanced_accuracy": 0.6,
        "macro_f1": 0.58,
        "expected_calibration_error": 0.0301,
        "images": 2099,
    }
    publish_tiny_model(tmp_path, metrics=metrics)
    with thread_server(tmp_path) as server, visiting(browser, server.url) as visit:
        page = visit.open()
        summary = page.get_by_text("Figures of the model", exact=True)
        summary.focus()
        page.keyboard.press("Enter")
        table = page.get_by_role("table", name="Figures of the model on its validation images")
        expect(table.get_by_role("row", name="Top-1 error 34.1 % (95 % interval 30.0 % to 38.0 %)")).to_be_visible()
        expect(table.get_by_role("rowheader")).to_have_count(6)
        expect(table.get_by_role("row", name="Validation images 2,099")).to_be_visible()
