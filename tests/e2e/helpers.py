"""Helpers for tests of the page in a real browser."""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, FilePayload, Page, Request, ViewportSize, expect

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


def add_photographs(address: str) -> None:
    """Add the photographs and their quarters, each with the name of its photograph as the label, and one odd key."""
    for key, data in [*crops(), (ODD_KEY, photograph("chelsea.png"))]:
        metadata = {"label": PurePosixPath(key).stem, "part": key.partition("/")[0]} if key != ODD_KEY else {}
        parts: dict[str, Any] = {"file": data, "metadata": (None, json.dumps(metadata))}
        httpx.put(f"{address}/v1/images/{quote(key, safe='')}", files=parts).raise_for_status()


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
        expect(self.page.locator("#answer[aria-busy=true]")).to_have_count(0)  # several requests can fail
        starts = [f"Failed to load resource: the server responded with a status of {status}" for status in statuses]
        self.messages = [message for message in self.messages if not any(message.startswith(start) for start in starts)]

    def _requested(self, request: Request) -> None:
        origin = "/".join(self.address.split("/")[:3])
        if not request.url.startswith((self.address + "/", f"blob:{origin}/", "data:")):
            self.external.append(request.url)

    def _console(self, message: ConsoleMessage) -> None:
        if "net::ERR_NETWORK_CHANGED" not in message.text:  # of the test machine's own interfaces
            self.messages.append(message.text)


@contextlib.contextmanager
def visiting(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    visit = Visit(context.new_page(), address)
    visit.watch()
    yield visit
    context.close()
    assert (visit.external, visit.messages) == ([], []), f"{visit.external} {visit.messages}"


def upload(page: Page, data: bytes, name: str = "coffee.png", kind: str = "image/png") -> None:
    upload_all(page, [(name, kind, data)])


def upload_all(page: Page, files: Sequence[tuple[str, str, bytes]]) -> None:
    """Choose files, each given as (name, media type, bytes)."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose pictures").click()
    payloads = [FilePayload(name=name, mimeType=kind, buffer=data) for name, kind, data in files]
    chooser.value.set_files(payloads)


def fits(page: Page) -> bool:
    """Return whether the page needs no horizontal scrolling."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


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
    path = f"{address}/v1/search?k=6&include=classes,novelty"
    result = httpx.post(path, content=data).raise_for_status().json()["results"][0]
    classes = [(each["label"], each["probability"]) for each in result["predictions"]]
    return classes, [(each["key"], each["distance"]) for each in result["neighbours"]]
