"""Jobs: start, watch, stop, skipped entries, the plots, and snapshots."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Download, expect

from tests.e2e.helpers import PHOTOGRAPHS, Visit, photograph, upload, visiting
from tests.support.proxy import reverse_proxy
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model


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
    page = own_visit.open("#/map")
    expect(page.locator("#map .total")).to_have_text("36 pictures")
    page.keyboard.press("5")
    expect(page.locator("#job-list")).to_have_text("No jobs yet.")
    own_server.client.post("/v1/jobs?kind=map", json={"method": "pca"}).raise_for_status()
    expect(page.locator(".job .state")).to_have_text("done")
    with page.expect_request("**/v1/index/map?*"):  # the view does not keep the map before
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


def files_of(download: Download) -> list[str]:
    with tarfile.open(download.path()) as tar:
        return tar.getnames()


def test_a_snapshot_is_taken_downloaded_and_deleted(own_visit: Visit, own_server: ThreadServer) -> None:
    page = own_visit.open("#/jobs")
    section = page.get_by_role("region", name="Snapshots")
    expect(section.get_by_role("listitem")).to_have_text("No snapshots yet.")
    section.get_by_role("button", name="Take a snapshot").click()
    expect(section.get_by_role("listitem")).to_contain_text("36 pictures, ")
    [folder] = (own_server.state.settings.home / "snapshots").iterdir()
    expect(section.get_by_role("listitem").locator("code")).to_have_text(f"snapshots/{folder.name}")
    with page.expect_download() as download:
        section.get_by_role("button", name="Download the snapshot of").click()
    assert download.value.suggested_filename == f"{folder.name}.tar"
    assert files_of(download.value) == [f"{folder.name}/manifest.json", f"{folder.name}/catalog.db"]
    section.get_by_role("button", name="Delete the snapshot of").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert folder.exists()
    section.get_by_role("button", name="Delete the snapshot of").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(section.get_by_role("listitem")).to_have_text("No snapshots yet.")
    expect(section.get_by_role("button", name="Take a snapshot")).to_be_focused()
    assert not folder.exists()


def test_copies_are_downloaded_with_the_key_of_the_tab(browser: Browser, tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    keys = {scope: f"{scope}-0123456789abcdef" for scope in ("write", "admin")}
    with (
        thread_server(tmp_path, api_keys=",".join(f"{scope}:{key}" for scope, key in keys.items())) as server,
        reverse_proxy(server.url, "/pictures", strip=True) as address,
        visiting(browser, address) as visit,
    ):
        page = visit.open("#/jobs")
        page.get_by_label("This server requires an API key").fill(keys["write"])
        page.keyboard.press("Enter")
        section = page.get_by_role("region", name="Backups")
        expect(section).to_contain_text("Only keys with the scope admin can see and take backups.")
        expect(section.get_by_role("button")).to_have_count(0)
        page.get_by_role("button", name="Forget the key").click()
        page.get_by_label("This server requires an API key").fill(keys["admin"])
        page.keyboard.press("Enter")
        section.get_by_role("button", name="Take a backup").click()
        expect(page.locator(".job .state")).to_have_text("done")
        expect(page.locator(".job")).to_contain_text(re.compile(r"[\d.]+ MB of [\d.]+ MB"))
        entry = section.get_by_role("listitem")
        expect(entry).to_contain_text("0 pictures, 1 version, ")
        with page.expect_download() as download:
            entry.get_by_role("button", name="Download").click()
        assert [name for name in files_of(download.value) if name.endswith("backup.json")]
        [folder] = (tmp_path / "backups").iterdir()
        (folder / "home" / "active.json").unlink()
        entry.get_by_role("button", name="Download").click()
        expect(section.locator(".alarm")).to_contain_text("home/active.json")
        visit.expect_responses(401, 403, 409)
