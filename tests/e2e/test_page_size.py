"""How much script the page loads, and when."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, Response, expect

import service
from tests.e2e.helpers import Visit
from tests.support.server import ThreadServer, wait_until

WEB = Path(service.__file__).parent / "web"
FIRST = 60 * 1024  # bytes, without compression
EACH = 120 * 1024
ALL = 150 * 1024
VIEWS = ("Browse", "Map", "Model", "Jobs")


@pytest.fixture
def loaded(visit: Visit) -> dict[str, int]:
    """The unpacked size of each script that the page has loaded, by its path."""
    sizes: dict[str, int] = {}

    def add(response: Response) -> None:
        path = response.url.removeprefix(f"{visit.address}/web/")
        if path.endswith(".js"):
            sizes[path] = (WEB / path).stat().st_size

    visit.page.on("response", add)
    return sizes


def test_the_first_view_loads_only_its_own_scripts(visit: Visit, loaded: dict[str, int]) -> None:
    page = visit.open()
    expect(page.locator("#sample-list img")).to_have_count(7)
    assert {path.partition("/")[0] for path in loaded} == {"app.js", "theme.js", "ask", "common"}
    assert sum(loaded.values()) <= FIRST


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_opened_by_its_address_loads_no_other_view(visit: Visit, loaded: dict[str, int], name: str) -> None:
    page = visit.open(f"#/{name.lower()}")
    expect(page.get_by_role("region", name=name, exact=True)).to_be_visible()
    page.wait_for_load_state("networkidle")
    others = {view.lower() for view in VIEWS} - {name.lower()}
    if name == "Map":
        others.remove("browse")  # its filter line writes the links of the legend
    assert {path.partition("/")[0] for path in loaded} & others == set()
    assert sum(loaded.values()) <= EACH


def test_all_views_together_stay_below_the_limit(visit: Visit, loaded: dict[str, int]) -> None:
    page = visit.open()
    for name in VIEWS:
        page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()
        expect(page.get_by_role("region", name=name, exact=True)).to_be_visible()
    assert set(loaded) == {path.relative_to(WEB).as_posix() for path in WEB.rglob("*.js")} - {"docs.js"}
    assert sum(loaded.values()) <= ALL


def shift(page: Page) -> float:
    """Return how far parts of the page moved without an input (Cumulative Layout Shift)."""
    return float(
        page.evaluate(
            """() => new Promise((done) => {
                let sum = 0;
                new PerformanceObserver((list) => {
                    for (const { value, hadRecentInput } of list.getEntries()) sum += hadRecentInput ? 0 : value;
                }).observe({ type: "layout-shift", buffered: true });
                setTimeout(() => done(sum), 500);
            })"""
        )
    )


@pytest.mark.parametrize("fragment", ["#/browse", "#/map", "#/model", "#/jobs"])
def test_opening_a_view_that_is_not_loaded_yet_moves_nothing(visit: Visit, fragment: str) -> None:
    page = visit.open()
    expect(page.locator("#sample-list img")).to_have_count(7)
    page.evaluate("fragment => { location.hash = fragment; }", fragment)
    expect(page.locator("#ask")).to_be_hidden()
    assert shift(page) < 0.05


def test_the_list_of_jobs_moves_nothing_on_a_narrow_screen(own_visit: Visit, own_server: ThreadServer) -> None:
    for _ in range(3):
        own_server.client.post("/v1/jobs?kind=map", json={"method": "pca"}).raise_for_status()
        wait_until(lambda: all(job["state"] == "done" for job in own_server.client.get("/v1/jobs").json()["jobs"]))
    own_visit.page.set_viewport_size({"width": 360, "height": 900})
    page = own_visit.open("#/jobs")
    expect(page.locator(".job")).to_have_count(3)
    expect(page.get_by_role("heading", name="Health")).to_be_visible()
    assert shift(page) < 0.05


def test_a_view_that_cannot_be_loaded_is_reported_and_can_be_tried_again(visit: Visit) -> None:
    visit.page.route("**/web/jobs/jobs.js", lambda route: route.abort())
    page = visit.open()
    expect(page.locator("#sample-list img")).to_have_count(7)
    page.keyboard.press("5")
    expect(page.get_by_role("alert")).to_contain_text("This part of the page could not be loaded")
    expect(page.locator("#ask")).to_be_visible()
    page.unroute("**/web/jobs/jobs.js")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    assert all("net::ERR_FAILED" in message for message in visit.messages)
    visit.messages.clear()
