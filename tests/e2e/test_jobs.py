"""Jobs: start, watch, stop, skipped entries, the plots, and snapshots."""

from __future__ import annotations

import io
import re
import zipfile

import httpx
from playwright.sync_api import expect

from tests.e2e.helpers import PHOTOGRAPHS, Visit, photograph, upload
from tests.support.server import ThreadServer


def archive(*names: str) -> bytes:
    """Return a zip file with these photographs and a file that is not a picture."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(f"archive/{name}", photograph(name))
        made.writestr("archive/broken.jpg", b"not an image")
    return file.getvalue()


def test_an_archive_is_added_and_what_was_skipped_is_explained(own_visit: Visit) -> None:
    page = own_visit.open("#/jobs")
    expect(page.locator("#job-list")).to_have_text("No jobs yet.")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add an archive of pictures").click()
    data = archive(*PHOTOGRAPHS[:3])
    chooser.value.set_files({"name": "photographs.zip", "mimeType": "application/zip", "buffer": data})
    job = page.locator(".job")
    expect(job.locator(".state")).to_have_text("done")
    expect(job).to_contain_text("4 of 4 (100 %) · 3 added · 1 skipped")
    job.locator("summary").click()
    expect(job.locator(".skipped")).to_contain_text("archive/broken.jpg")
    page.wait_for_timeout(1500)  # the list is read again
    expect(job.locator(".skipped")).to_be_visible()
    assert httpx.get(f"{own_visit.address}/v1/index").json()["images"] == 39


def test_a_map_can_be_computed(own_visit: Visit, own_server: ThreadServer) -> None:
    own_server.client.post("/v1/jobs?kind=map", json={"method": "pca"}).raise_for_status()
    page = own_visit.open("#/jobs")
    expect(page.locator(".job .state")).to_have_text("done")
    page.get_by_role("link", name="Show the map").click()
    expect(page.locator("#map .total")).to_have_text("36 pictures")


def test_a_refused_job_is_explained(own_visit: Visit) -> None:
    for image in httpx.get(f"{own_visit.address}/v1/images?limit=1000").json()["images"]:
        if image["metadata"]:
            patch = {"keys": [image["key"]], "metadata": {"label": None}}
            httpx.patch(f"{own_visit.address}/v1/images", json=patch).raise_for_status()
    page = own_visit.open("#/jobs")
    page.get_by_role("button", name="Fit the last layer to the labels").click()
    expect(page.locator("#problems, .job .alarm").filter(has_text="label")).to_be_visible()
    own_visit.expect_responses(409, 422)


def test_the_plots_show_what_the_server_does(own_visit: Visit) -> None:
    page = own_visit.open("#/jobs")
    latency = page.locator(".sparkline").nth(1)
    expect(latency).to_contain_text("no answers yet")
    other = page.context.new_page()
    other.goto(f"{own_visit.address}/")
    upload(other, photograph("coffee.png"))
    expect(latency.locator(".now")).to_contain_text("ms")
    expect(latency.locator("path")).to_have_attribute("d", re.compile(r"^M[\d.]+ [\d.]+"))


def test_a_snapshot_is_taken(own_visit: Visit, own_server: ThreadServer) -> None:
    page = own_visit.open("#/jobs")
    page.get_by_role("button", name="Take a snapshot").click()
    expect(page.locator(".taken li")).to_contain_text("36 pictures")
    [folder] = (own_server.state.settings.home / "snapshots").iterdir()
    expect(page.locator(".taken code")).to_have_text(f"snapshots/{folder.name}")
