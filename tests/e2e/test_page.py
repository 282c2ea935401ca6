"""The page in a real browser (Debian's chromium) against a real server with a tiny model and indexed photographs.

Every test fails on a request to anywhere but the server, on a script error and on an unexpected console message.
Does not: judge looks, or try other browsers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.resources
import io
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, ViewportSize, expect, sync_playwright

from service.app import create_app
from service.server import bind, serve_until_stopped
from service.settings import Settings, load_settings
from tests.support.tiny_model import publish_tiny_model

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# CC0 or in the public domain, says scikit-image's data/README.txt and its documentation.
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg", "moon.png", "brick.png", "grass.png")
ODD_KEY = "cats/Chelsea & friends 🐈 100%?.png"
READ_KEY = "a-key-that-only-reads"
WRITE_KEY = "a-key-that-also-writes"
DESKTOP = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=360, height=740)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium (.ci/run installs it)")


def photograph(name: str) -> bytes:
    return (importlib.resources.files("skimage") / "data" / name).read_bytes()


def crops() -> Iterator[tuple[str, bytes]]:
    """Yield each photograph and its quarters, as (key, bytes): 35 pictures that look more or less alike."""
    for name in PHOTOGRAPHS:
        yield f"whole/{name}", photograph(name)
        with Image.open(io.BytesIO(photograph(name))) as whole:
            width, height = whole.size
            for i in range(4):
                x, y = i % 2 * width // 2, i // 2 * height // 2
                buffer = io.BytesIO()
                whole.crop((x, y, x + width // 2, y + height // 2)).convert("RGB").save(buffer, "JPEG")
                yield f"quarters/{i}/{name}", buffer.getvalue()


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[str]:
    """Serve in a thread until the block ends; yield the address."""
    app, listener = create_app(settings), bind(settings)
    thread = threading.Thread(target=lambda: asyncio.run(serve_until_stopped(app, settings, listener)))
    thread.start()
    try:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:  # refused until the lifespan is open
            client.get(f"{address}/livez").raise_for_status()
        yield address
    finally:
        app.state.fc7.drain()
        thread.join(timeout=30)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    publish_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[str]:
    with running(load_settings(home=home, port=0, log_level="error", max_body_bytes=1_000_000)) as address:
        for key, data in [*crops(), (ODD_KEY, photograph("chelsea.png"))]:
            httpx.put(f"{address}/v1/images/{quote(key, safe='')}", content=data).raise_for_status()
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=20_000)  # a busy machine is no failure
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """A page of its own and what it did: requests that went elsewhere, console messages, script errors."""

    page: Page
    address: str
    elsewhere: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("filechooser", lambda _: None)  # early: switched on just before a key, it can come too late
        self.page.on("request", self._requested)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def open(self, fragment: str = "") -> Page:
        self.page.goto(f"{self.address}/{fragment}")
        return self.page

    def forgive(self, *statuses: int) -> None:
        """Take back what the browser itself says of the refusals that a test asked for."""
        starts = [f"Failed to load resource: the server responded with a status of {status}" for status in statuses]
        self.said = [words for words in self.said if not any(words.startswith(start) for start in starts)]

    def _requested(self, request: Request) -> None:
        if not request.url.startswith((self.address + "/", f"blob:{self.address}/", "data:")):
            self.elsewhere.append(request.url)

    def _console(self, message: ConsoleMessage) -> None:
        self.said.append(message.text)


@contextlib.contextmanager
def visiting(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    visit = Visit(context.new_page(), address)
    visit.watch()
    yield visit
    context.close()
    assert visit.elsewhere == []
    assert visit.said == []


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Visit]:
    with visiting(browser, server) as a_visit:
        yield a_visit


def upload(page: Page, data: bytes, name: str = "coffee.png", kind: str = "image/png") -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})


def bars(page: Page) -> list[tuple[str, float]]:
    """Return label and probability of each bar, once all have come."""
    expect(page.locator("#bars data[value]")).to_have_count(5)
    labels = page.locator("#bars .label").all_inner_texts()
    values = page.locator("#bars data").evaluate_all("all => all.map(data => Number(data.value))")
    return list(zip(labels, values, strict=True))


def neighbours(page: Page) -> list[tuple[str, float]]:
    """Return key and distance of each neighbour, once all have come with their pictures."""
    expect(page.locator("#neighbours img")).to_have_count(6)
    for image in page.locator("#neighbours img").all():
        expect(image).to_have_js_property("naturalWidth", 256)
    keys = page.locator("#neighbours .key").all_text_contents()
    values = page.locator("#neighbours data").evaluate_all("all => all.map(data => Number(data.value))")
    return list(zip(keys, values, strict=True))


def answers(address: str, data: bytes) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Ask the server itself: what the page has to show."""
    classes = httpx.post(f"{address}/v1/classify", content=data).raise_for_status().json()["results"][0]["predictions"]
    nearest = httpx.post(f"{address}/v1/search", content=data).raise_for_status().json()["results"][0]["neighbours"]
    return [(c["label"], c["probability"]) for c in classes], [(n["key"], n["distance"]) for n in nearest]


def test_a_chosen_file_is_shown_with_the_servers_classes_and_neighbours(visit: Visit) -> None:
    page, data = visit.open(), photograph("coffee.png")
    upload(page, data)
    classes, nearest = answers(visit.address, data)
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
    expect(page.locator("#spoken")).to_contain_text(classes[0][0])


def test_the_length_of_a_bar_is_its_probability(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("grass.png"))  # no class is certain
    page.emulate_media(reduced_motion="reduce")
    probabilities = [value for _, value in bars(page)]
    lengths = page.locator("#bars .track").evaluate_all(
        "all => all.map(track => track.firstChild.getBoundingClientRect().width / track.clientWidth)"
    )
    assert lengths == pytest.approx(probabilities, abs=0.01)


def test_a_dropped_file_is_taken_and_a_dropped_link_is_refused_in_words(visit: Visit) -> None:
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
    assert (bars(page), neighbours(page)) == answers(visit.address, data)
    link = page.evaluate_handle(
        "() => { const t = new DataTransfer(); t.setData('text/uri-list', 'http://example.org/a.jpg'); return t; }"
    )
    page.dispatch_event("main", "drop", {"dataTransfer": link})
    expect(page.get_by_role("alert")).to_contain_text("That was not a file")


def test_a_pasted_picture_is_taken(visit: Visit) -> None:
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


def test_a_neighbour_is_searched_from_and_back_returns_to_the_upload(visit: Visit) -> None:
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


def test_a_key_with_slashes_signs_and_emoji_is_found_by_its_address(visit: Visit) -> None:
    page = visit.open("#" + quote(ODD_KEY, safe=""))
    assert neighbours(page)[0][0] == "whole/chelsea.png"
    expect(page.locator("#caption")).to_contain_text(f"{ODD_KEY} · 451 × 300")
    page.goto(f"{visit.address}/#no-such-picture")
    expect(page.get_by_role("alert")).to_contain_text("No such image")
    visit.forgive(404)


def test_all_of_it_works_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.open()
    expect(page.locator("#shelf button")).to_have_count(24)

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
    expect(page.locator("#shelf button")).to_have_count(36)
    expect(page.locator("#shelf button").nth(24)).to_be_focused()
    expect(page.locator("#more")).to_be_hidden()


def test_every_control_and_picture_has_a_name(visit: Visit) -> None:
    page = visit.open()
    upload(page, photograph("coffee.png"))
    nearest = neighbours(page)
    for button in page.get_by_role("button").all():
        assert button.evaluate("node => node.ariaLabel || node.innerText || node.querySelector('img').alt").strip()
    first = page.locator("#neighbours").get_by_role("button").first
    expect(first).to_have_accessible_name(f"{nearest[0][0]}, distance 0")
    expect(page.get_by_role("img", name="The picture asked about: coffee.png")).to_be_visible()
    assert page.locator("img:not([alt])").count() == 0


@pytest.mark.parametrize(
    ("name", "kind", "data", "words"),
    [
        ("notes.jpg", "image/jpeg", b"This is a text.\n" * 40, "Not a readable image"),
        ("empty.png", "image/png", b"", "Not a readable image"),
        ("huge.jpg", "image/jpeg", b"\xff\xd8\xff" + bytes(1_500_000), "Too many bytes"),
        ("drawing.svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "Image format not taken"),
    ],
)
def test_a_refused_file_is_explained_once_in_the_servers_words(
    visit: Visit, name: str, kind: str, data: bytes, words: str
) -> None:
    page = visit.open()
    upload(page, data, name, kind)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(words)
    expect(page.locator("#answer")).not_to_have_attribute("aria-busy", "true")
    answer = httpx.post(f"{visit.address}/v1/classify", content=data, headers={"Content-Type": kind})
    detail = answer.json()["detail"]
    expect(alert).to_contain_text(detail[1:])
    expect(alert.locator("section")).to_have_count(1)
    expect(page.locator(".classes")).to_be_hidden()
    visit.forgive(answer.status_code)
    upload(page, photograph("coffee.png"))
    assert len(bars(page)) == 5
    expect(alert.locator("section")).to_have_count(0)


def test_a_later_choice_wins_over_an_earlier_one_that_answers_last(visit: Visit) -> None:
    page = visit.open()
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/v1/classify", hold_the_first)
    upload(page, photograph("coffee.png"))
    expect(page.locator("#neighbours img")).to_have_count(6)
    upload(page, photograph("rocket.jpg"), "rocket.jpg", "image/jpeg")
    classes, nearest = answers(visit.address, photograph("rocket.jpg"))
    assert (bars(page), neighbours(page)) == (classes, nearest)
    held[0].continue_()
    page.wait_for_timeout(300)  # time enough for the held answer to do harm
    assert bars(page) == classes
    expect(page.locator("#caption strong")).to_have_text("rocket.jpg")


def test_a_server_that_cannot_be_reached_is_said_and_tried_again(visit: Visit) -> None:
    page = visit.open()
    expect(page.locator("#shelf button")).to_have_count(24)
    page.context.set_offline(True)
    upload(page, photograph("coffee.png"))
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    assert len(bars(page)) == 5
    assert all("net::ERR_INTERNET_DISCONNECTED" in words for words in visit.said)
    visit.said.clear()


def test_a_phones_width_needs_no_sideways_scrolling(browser: Browser, server: str) -> None:
    with visiting(browser, server, viewport=PHONE) as visit:
        page = visit.open()
        expect(page.locator("#shelf button")).to_have_count(24)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        upload(page, photograph("coffee.png"), "a-name-without-a-space-" * 5 + ".png")
        assert len(bars(page)) == len(neighbours(page)) - 1 == 5
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, server: str, scheme: str) -> None:
    with visiting(browser, server, color_scheme=scheme) as visit:
        page = visit.open()
        upload(page, b"no picture", "notes.jpg", "image/jpeg")
        expect(page.get_by_role("alert")).to_contain_text("Not a readable image")
        visit.forgive(400)
        ratios = page.evaluate(
            """() => {
                const channels = colour => colour.match(/[\\d.]+/g).map(Number);
                const light = colour => channels(colour).slice(0, 3).map(c => c / 255)
                    .map(c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
                    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
                const behind = node => {
                    const colour = getComputedStyle(node).backgroundColor;
                    return channels(colour)[3] === 0 ? behind(node.parentElement) : colour;
                };
                return [...document.querySelectorAll("body *")]
                    .filter(node => node.checkVisibility())
                    .filter(node => [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()))
                    .map(node => {
                        const pair = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
                        return [node.outerHTML.slice(0, 80), (pair[0] + 0.05) / (pair[1] + 0.05)];
                    });
            }"""
        )
        assert len(ratios) > 5
        assert [(text, ratio) for text, ratio in ratios if ratio < 4.5] == []


def test_a_server_with_keys_asks_for_one_and_is_sent_it(browser: Browser, tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    keys = f"read:{READ_KEY},write:{WRITE_KEY}"
    settings = load_settings(home=tmp_path, port=0, log_level="error", api_keys=keys)
    with running(settings) as address, visiting(browser, address) as visit:
        for name in PHOTOGRAPHS:
            httpx.put(
                f"{address}/v1/images/{name}",
                content=photograph(name),
                headers={"Authorization": f"Bearer {WRITE_KEY}"},
            ).raise_for_status()
        page = visit.open()
        field = page.get_by_label("This server asks for an API key")
        expect(field).to_be_focused()
        field.fill("not the key of this server")
        page.keyboard.press("Enter")
        expect(page.locator("#key-help")).to_contain_text("without spaces")
        field.fill("not-the-key-of-this-server")
        page.keyboard.press("Enter")
        expect(page.locator("#key-help")).to_have_text("The server did not take that key.")
        expect(field).to_be_focused()
        visit.forgive(401)
        field.fill(READ_KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#shelf img")).to_have_count(len(PHOTOGRAPHS))
        expect(page.locator("#key-form")).to_be_hidden()
        upload(page, photograph("coffee.png"))
        assert len(bars(page)) == 5
        assert neighbours(page)[0][0] == "coffee.png"
        page.reload()  # the tab still has it
        expect(page.locator("#shelf img")).to_have_count(len(PHOTOGRAPHS))
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
            [READ_KEY],
            0,
            "",
        ]
        page.get_by_role("button", name="Forget the key").click()
        expect(field).to_be_visible()
        expect(page.locator("#shelf img")).to_have_count(0)
        visit.forgive(401)


def test_a_server_without_a_model_says_how_to_get_one_until_it_has_one(browser: Browser, tmp_path: Path) -> None:
    with contextlib.ExitStack() as later:
        with running(load_settings(home=tmp_path, port=0, log_level="error")) as address:
            visit = later.enter_context(visiting(browser, address))
            page = visit.open()
            notice = page.locator("#not-ready")
            expect(notice).to_contain_text("The server is not ready yet")
            for reason in httpx.get(f"{address}/readyz").json()["reasons"]:
                expect(notice).to_contain_text(reason[1:])
            expect(page.get_by_role("alert")).to_be_empty()
            upload(page, photograph("coffee.png"))
            expect(page.get_by_role("alert")).to_contain_text("No model")
        publish_tiny_model(tmp_path)
        with running(load_settings(home=tmp_path, port=int(address.rpartition(":")[2]), log_level="error")):
            expect(notice).to_be_hidden()
            assert len(bars(page)) == 5
            expect(page.locator("#neighbours")).to_have_text("Nothing else is indexed yet.")
            expect(page.locator("#shelf-empty")).to_be_visible()
            expect(page.get_by_role("alert")).to_be_empty()
            visit.forgive(503)
            visit.said = [words for words in visit.said if "net::ERR_" not in words]  # of the restart
