"""Helpers for tests of the page in a real browser."""

from __future__ import annotations

import contextlib
import importlib.resources
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, ViewportSize, expect

# These photographs are in the public domain or CC0, according to scikit-image's data/README.txt and documentation.
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg", "moon.png", "brick.png", "grass.png")
ODD_KEY = "cats/Chelsea & friends 🐈 100%?.png"
DESKTOP = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=360, height=740)


def photograph(name: str) -> bytes:
    return (importlib.resources.files("skimage") / "data" / name).read_bytes()


def crops() -> Iterator[tuple[str, bytes]]:
    """Yield each photograph and its quarters as (key, bytes): 35 images of varying similarity."""
    for name in PHOTOGRAPHS:
        yield f"whole/{name}", photograph(name)
        with Image.open(io.BytesIO(photograph(name))) as whole:
            width, height = whole.size
            for i in range(4):
                x, y = i % 2 * width // 2, i // 2 * height // 2
                buffer = io.BytesIO()
                whole.crop((x, y, x + width // 2, y + height // 2)).convert("RGB").save(buffer, "JPEG")
                yield f"quarters/{i}/{name}", buffer.getvalue()


@dataclass
class Visit:
    """A page, with its requests to other servers, console messages and script errors."""

    page: Page
    address: str
    external: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("filechooser", lambda _: None)  # registered early: just before a key press can be too late
        self.page.on("request", self._requested)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))

    def open(self, fragment: str = "") -> Page:
        self.page.goto(f"{self.address}/{fragment}")
        return self.page

    def expect_responses(self, *statuses: int) -> None:
        """Wait for all results, then remove the browser's messages about the error responses that the test provoked."""
        expect(self.page.locator("#answer")).not_to_have_attribute("aria-busy", "true")  # several requests can fail
        starts = [f"Failed to load resource: the server responded with a status of {status}" for status in statuses]
        self.messages = [message for message in self.messages if not any(message.startswith(start) for start in starts)]

    def _requested(self, request: Request) -> None:
        if not request.url.startswith((self.address + "/", f"blob:{self.address}/", "data:")):
            self.external.append(request.url)

    def _console(self, message: ConsoleMessage) -> None:
        self.messages.append(message.text)


@contextlib.contextmanager
def visiting(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    visit = Visit(context.new_page(), address)
    visit.watch()
    yield visit
    context.close()
    assert visit.external == []
    assert visit.messages == []


def upload(page: Page, data: bytes, name: str = "coffee.png", kind: str = "image/png") -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose an image").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})


def bars(page: Page) -> list[tuple[str, float]]:
    """Return the label and the probability of each bar, once all have arrived."""
    expect(page.locator("#bars data[value]")).to_have_count(5)
    labels = page.locator("#bars .label").all_inner_texts()
    values = page.locator("#bars data").evaluate_all("all => all.map(data => Number(data.value))")
    return list(zip(labels, values, strict=True))


def neighbours(page: Page) -> list[tuple[str, float]]:
    """Return the key and the distance of each neighbour, once all have arrived with their thumbnails."""
    expect(page.locator("#neighbours img")).to_have_count(6)
    for image in page.locator("#neighbours img").all():
        expect(image).to_have_js_property("naturalWidth", 256)
    keys = page.locator("#neighbours .key").all_text_contents()
    values = page.locator("#neighbours data").evaluate_all("all => all.map(data => Number(data.value))")
    return list(zip(keys, values, strict=True))


def server_results(address: str, data: bytes) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the classes and the neighbours that the server returns, which the page must show."""
    classes = httpx.post(f"{address}/v1/classify", content=data).raise_for_status().json()["results"][0]["predictions"]
    nearest = httpx.post(f"{address}/v1/search", content=data).raise_for_status().json()["results"][0]["neighbours"]
    return [(c["label"], c["probability"]) for c in classes], [(n["key"], n["distance"]) for n in nearest]
