"""Browse: the grid, the filter, selecting, labeling, and deleting with undo."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from tests.e2e.helpers import ODD_KEY, Visit, add_photographs, photograph, visiting
from tests.support.novelty import publish_with_reference
from tests.support.server import thread_server

ALL = 36


def options(page: Page) -> Locator:
    return page.locator("#grid [role=option]")


def indexed(visit: Visit, where: str = "") -> int:
    parameters = {"limit": "1000"} | ({"where": where} if where else {})
    return len(httpx.get(f"{visit.address}/v1/images", params=parameters).raise_for_status().json()["images"])


def test_the_grid_shows_the_count_and_all_pictures(visit: Visit) -> None:
    page = visit.open("#/browse")
    expect(page.locator("#browse .total")).to_have_text(f"{ALL} pictures")
    page.locator("#size").fill("64")
    expect(options(page)).to_have_count(ALL)
    expect(page.locator("#grid img")).to_have_count(ALL)
    for image in page.locator("#grid img").all()[:5]:
        expect(image).to_have_js_property("naturalWidth", 256)


def test_a_facet_and_the_filter_line_and_the_address_agree(visit: Visit) -> None:
    page = visit.open("#/browse")
    page.get_by_role("checkbox", name="coffee 5").check()
    expect(page.locator("#where")).to_have_value("label:coffee")
    expect(page.locator("#browse .total")).to_have_text("5 pictures")
    expect(page.get_by_role("checkbox", name="coffee 5")).to_be_focused()
    page.get_by_role("checkbox", name="moon 5").check()
    expect(page.locator("#where")).to_have_value("label:coffee,moon")
    expect(page.locator("#browse .total")).to_have_text("10 pictures")
    page.reload()
    expect(page.locator("#browse .total")).to_have_text("10 pictures")
    page.locator("#where").fill("label:coffee and part:whole")
    page.keyboard.press("Enter")
    expect(page.locator("#browse .total")).to_have_text("1 picture")
    expect(options(page)).to_have_accessible_name("whole/coffee.png, coffee")
    page.go_back()
    expect(page.locator("#where")).to_have_value("label:coffee,moon")
    expect(page.locator("#browse .total")).to_have_text("10 pictures")


def test_two_facets_can_be_chosen_before_the_first_has_loaded(visit: Visit) -> None:
    page = visit.open("#/browse")
    expect(page.get_by_role("checkbox", name="coffee 5")).to_be_visible()
    click = "all => all.filter(({dataset}) => /coffee|moon/.test(dataset.facet)).forEach(box => box.click())"
    page.locator("[data-facet]").evaluate_all(click)
    expect(page.locator("#where")).to_have_value("label:coffee,moon")


def test_a_filter_that_is_not_valid_is_explained_and_one_without_matches_leads_back(visit: Visit) -> None:
    page = visit.open("#/browse")
    page.locator("#where").fill("lable:coffee")
    page.keyboard.press("Enter")
    expect(page.locator("#where-problem")).to_contain_text("lable")
    visit.expect_responses(422)
    page.locator("#where").fill("label:nothing")
    page.keyboard.press("Enter")
    expect(page.locator("#browse .empty")).to_contain_text("No picture matches this filter.")
    page.get_by_role("button", name="Show all pictures").click()
    expect(page.locator("#browse .total")).to_have_text(f"{ALL} pictures")


def test_the_order_can_be_chosen(visit: Visit) -> None:
    page = visit.open("#/browse")
    expect(options(page).first).to_have_accessible_name("whole/chelsea.png, chelsea")
    page.get_by_label("Order").select_option("by name")
    expect(options(page).first).to_have_accessible_name(ODD_KEY)
    expect(page).to_have_url(f"{visit.address}/#/browse?order=key")


def test_the_keyboard_moves_selects_and_opens(visit: Visit) -> None:
    page = visit.open("#/browse")
    expect(options(page).first).to_have_accessible_name("whole/chelsea.png, chelsea")
    page.locator("#grid").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect(page.locator("#browse .selected-count")).to_have_text("1 selected")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+Space")
    expect(page.locator("#browse .selected-count")).to_have_text("3 selected")
    page.keyboard.press("Escape")
    expect(page.locator("#browse .action-bar")).to_be_hidden()
    page.keyboard.press("End")
    active = page.locator(f"#{page.locator('#grid').get_attribute('aria-activedescendant')}")
    expect(active).to_have_accessible_name(ODD_KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#caption strong")).to_have_text(ODD_KEY)


def test_a_click_on_a_picture_asks_about_it_and_back_returns(visit: Visit) -> None:
    page = visit.open("#/browse")
    options(page).nth(2).click()
    expect(page.locator("#caption strong")).to_have_text("quarters/1/chelsea.png")
    page.go_back()
    expect(options(page).first).to_be_visible()


def test_selected_pictures_get_a_label_which_can_be_undone(own_visit: Visit) -> None:
    page = own_visit.open("#/browse?where=label:coffee,moon")
    expect(options(page)).to_have_count(10)
    options(page).first.locator(".check").click()
    options(page).nth(6).click(modifiers=["Shift"])
    expect(page.locator("#browse .selected-count")).to_have_text("7 selected")
    page.get_by_label("Label of the selected pictures").fill("cup")
    page.get_by_role("button", name="Set label").click()
    expect(page.locator(".undo")).to_contain_text("7 pictures have the label cup.")
    assert indexed(own_visit, "label:cup") == 7
    page.get_by_role("button", name="Undo").click()
    expect(options(page).first).to_have_accessible_name("whole/coffee.png, coffee")
    expect(page.get_by_role("checkbox", name="coffee 5")).to_be_visible()
    assert (indexed(own_visit, "label:coffee"), indexed(own_visit, "label:moon")) == (5, 5)


def test_deleting_can_be_undone_and_is_done_when_the_view_is_left(own_visit: Visit) -> None:
    page = own_visit.open("#/browse")
    first = options(page).first
    expect(first).to_have_accessible_name("whole/chelsea.png, chelsea")
    first.locator(".check").click()
    options(page).nth(2).click(modifiers=["Shift"])
    page.keyboard.press("Delete")
    expect(page.locator("#browse .total")).to_have_text(f"{ALL - 3} pictures")
    expect(first).to_have_accessible_name("quarters/2/chelsea.png, chelsea")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#browse .total")).to_have_text(f"{ALL} pictures")
    expect(first).to_have_accessible_name("whole/chelsea.png, chelsea")
    assert indexed(own_visit) == ALL
    first.locator(".check").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#browse .total")).to_have_text(f"{ALL - 1} pictures")
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.get_by_role("link", name="Model").click()
    assert indexed(own_visit) == ALL - 1


def test_suggestions_are_labeled_and_asked_for_again(own_visit: Visit) -> None:
    patch = {"metadata": {"label": None}}
    httpx.patch(f"{own_visit.address}/v1/images", params={"where": "label:coffee,moon"}, json=patch).raise_for_status()
    page = own_visit.open("#/browse")
    page.get_by_label("Order").select_option("label next")
    expect(page.locator(".note")).to_contain_text("25 pictures have a label, 11 pictures have none.")
    expect(options(page)).to_have_count(11)
    first = options(page).first
    suggested = httpx.get(f"{own_visit.address}/v1/images/suggestions").json()["suggestions"]
    expect(first).to_have_accessible_name(f"{suggested[0]['key']}, {suggested[0]['text']}")
    first.locator(".check").click()
    expect(page.get_by_label("Label of the selected pictures")).to_have_value(suggested[0]["labels"][0]["label"])
    page.get_by_label("Label of the selected pictures").fill("cup")
    page.get_by_role("button", name="Set label").click()
    expect(first.locator(".caption")).to_have_text("cup")
    page.get_by_role("button", name="Suggest again").click()
    expect(page.locator(".note")).to_contain_text("26 pictures have a label, 10 pictures have none.")
    expect(options(page)).to_have_count(10)


def test_near_duplicates_are_shown_side_by_side_and_deleted(own_visit: Visit) -> None:
    page = own_visit.open("#/browse")
    page.get_by_label("Order").select_option("near-duplicates")
    group = page.locator(".groups > li")
    expect(group).to_have_count(1)  # Chelsea is indexed under two keys
    expect(group.locator(".tile").nth(0)).to_contain_text("✓ kept")
    expect(group.locator(".tile").nth(1)).to_contain_text("distance 0")
    expect(group.locator("img")).to_have_count(2)
    expect(page.locator("#grid")).to_be_hidden()
    assert Axe().run(page).response["violations"] == []
    kept, other = group.locator("a").all_inner_texts()
    group.get_by_role("button", name="Delete the near-duplicates").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert indexed(own_visit) == ALL
    group.get_by_role("button", name="Delete the near-duplicates").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(group).to_have_count(0)
    expect(page.locator("#browse .total")).to_have_text(f"{ALL - 1} pictures")
    assert indexed(own_visit) == ALL - 1
    assert httpx.get(f"{own_visit.address}/v1/images/{quote(kept, safe='')}").status_code == 200
    assert httpx.get(f"{own_visit.address}/v1/images/{quote(other, safe='')}").status_code == 404
    page.get_by_label("Order").select_option("by name")
    expect(page.locator("#grid")).to_be_visible()
    expect(page.locator(".groups")).to_be_hidden()


COVER = """() => {
    const late = Object.assign(document.createElement("p"), { id: "late", className: "drop" });
    late.style.pointerEvents = "auto";
    document.body.append(late);
}"""


def drop(page: Page, *paths: Path) -> None:
    """Drop files or folders, as from the desktop, on a page that changes under the pointer just before the drop."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        if kind == "drop":
            page.evaluate(COVER)
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 640, "y": 400, "data": data})
    page.evaluate("document.getElementById('late').remove()")


def test_a_dropped_folder_and_an_archive_are_added(own_visit: Visit, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    (folder / "cups & more").mkdir(parents=True)
    (folder / "cups & more" / "a.png").write_bytes(photograph("coffee.png"))
    (folder / "b.png").write_bytes(photograph("moon.png"))
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("text", encoding="utf-8")
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("c.png", photograph("brick.png"))
    page = own_visit.open("#/browse")
    expect(page.locator("#browse .total")).to_have_text(f"{ALL} pictures")
    drop(page, folder, archive)
    expect(page.locator("#adding")).to_contain_text("2 pictures added.")
    expect(page.locator("#adding")).to_contain_text("new/broken.jpg: ")
    expect(page.locator("#adding")).to_contain_text("new/notes.txt is not a picture.")
    own_visit.expect_responses(400, 415)
    keys = {image["key"] for image in httpx.get(f"{own_visit.address}/v1/images?prefix=new/").json()["images"]}
    assert keys == {"new/cups & more/a.png", "new/b.png"}
    page.locator("#adding").get_by_role("link", name="Jobs").click()
    expect(page.locator("#job-list")).to_contain_text("Add an archive")


def test_an_empty_index_says_how_to_fill_it(own_visit: Visit) -> None:
    for image in httpx.get(f"{own_visit.address}/v1/images?limit=1000").json()["images"]:
        httpx.delete(f"{own_visit.address}/v1/images/{quote(image['key'], safe='')}").raise_for_status()
    page = own_visit.open("#/browse")
    expect(page.locator("#browse .empty")).to_contain_text("No pictures are indexed yet.")
    expect(page.locator("#browse .empty code")).to_have_text("fc7 index build FOLDER")
    expect(page.locator("#grid")).to_be_hidden()


def select_three(page: Page) -> None:
    expect(options(page).first).to_have_accessible_name("whole/chelsea.png, chelsea")
    options(page).first.locator(".check").click()
    options(page).nth(2).click(modifiers=["Shift"])
    expect(page.locator("#selected-count")).to_have_text("3 selected")


def test_tags_are_added_and_removed_and_undone_and_filter(own_visit: Visit) -> None:
    tagged = {"keys": ["whole/chelsea.png"], "add": {"tags": ["night", "wet"]}}
    httpx.patch(f"{own_visit.address}/v1/images", json=tagged).raise_for_status()
    page = own_visit.open("#/browse")
    select_three(page)
    page.get_by_label("Change", exact=True).select_option("add a tag")
    page.get_by_label("Tag to add").fill("night")
    later = {"keys": ["quarters/0/chelsea.png"], "add": {"tags": ["dry"]}}  # after the page was loaded
    httpx.patch(f"{own_visit.address}/v1/images", json=later).raise_for_status()
    page.get_by_role("button", name="Add tag").click()
    expect(page.locator(".undo")).to_contain_text("3 pictures have the tag night.")
    assert indexed(own_visit, "tags:night") == 3
    assert (indexed(own_visit, "tags:wet"), indexed(own_visit, "tags:dry")) == (1, 1)
    page.get_by_role("checkbox", name="night 3").check()
    expect(page.locator("#where")).to_have_value("tags:night")
    expect(options(page)).to_have_count(3)
    page.get_by_role("checkbox", name="night 3").uncheck()
    select_three(page)
    page.get_by_label("Change", exact=True).select_option("remove a tag")
    page.get_by_label("Tag to remove").fill("night")
    page.get_by_role("button", name="Remove tag").click()
    expect(page.locator(".undo")).to_contain_text("3 pictures no longer have the tag night.")
    assert indexed(own_visit, "tags:night") == 0
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("checkbox", name="night 3")).to_be_visible()
    assert (indexed(own_visit, "tags:night"), indexed(own_visit, "tags:wet")) == (3, 1)


def test_undoing_a_tag_leaves_it_where_it_was_before(own_visit: Visit) -> None:
    tagged = {"keys": ["whole/chelsea.png"], "add": {"tags": ["night"]}}
    httpx.patch(f"{own_visit.address}/v1/images", json=tagged).raise_for_status()
    page = own_visit.open("#/browse")
    select_three(page)
    page.get_by_label("Change", exact=True).select_option("add a tag")
    page.get_by_label("Tag to add").fill("night")
    page.get_by_role("button", name="Add tag").click()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("checkbox", name="night 1")).to_be_visible()
    assert indexed(own_visit, "tags:night") == 1


def test_any_field_can_be_set_and_removed_and_undone(own_visit: Visit) -> None:
    old = {"keys": ["whole/chelsea.png"], "metadata": {"camera": {"iso": 100, "model": "K"}}}
    httpx.patch(f"{own_visit.address}/v1/images", json=old).raise_for_status()
    page = own_visit.open("#/browse")
    select_three(page)
    page.get_by_label("Change", exact=True).select_option("another field")
    page.get_by_label("Name of the field").fill("camera.iso")
    page.get_by_label("Value, or nothing").fill("400")
    page.get_by_role("button", name="Set field").click()
    expect(page.locator(".undo")).to_contain_text("3 pictures have camera.iso 400.")
    assert (indexed(own_visit, "camera.iso>300"), indexed(own_visit, "camera.model:K")) == (3, 1)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("checkbox", name="100 1")).to_be_visible()
    assert (indexed(own_visit, "camera.iso>=0"), indexed(own_visit, "camera.iso:100")) == (1, 1)
    select_three(page)
    page.get_by_label("Value, or nothing").fill("")
    page.get_by_role("button", name="Set field").click()
    expect(page.locator(".undo")).to_contain_text("3 pictures no longer have camera.iso.")
    assert (indexed(own_visit, "camera.model:K"), len(fields(own_visit, "camera.iso"))) == (1, 0)


def test_a_change_of_pictures_from_the_map_can_be_undone(own_visit: Visit) -> None:
    page = own_visit.open("#/map")
    expect(page.locator("#map .total")).to_have_text(f"{ALL} pictures")
    page.locator("#map-tools").get_by_text("choose pictures").click()
    box = page.locator("#map-canvas").bounding_box()
    assert box is not None
    x, y, width, height = box["x"], box["y"], box["width"], box["height"]
    page.mouse.move(x + 2, y + 2)
    page.mouse.down()
    for right, down in ((width - 2, 2), (width - 2, height - 2), (2, height - 2), (2, 2)):
        page.mouse.move(x + right, y + down, steps=3)
    page.mouse.up()
    page.get_by_role("button", name="Show in Browse").click()
    options(page).first.locator(".check").click()
    page.keyboard.press("End")
    page.locator("#grid").press("Shift+Space")
    page.get_by_label("Change", exact=True).select_option("another field")
    page.get_by_label("Name of the field").fill("part")  # the map does not know the values of this field
    page.get_by_label("Value, or nothing").fill("all")
    page.get_by_role("button", name="Set field").click()
    expect(page.locator(".undo")).to_contain_text("have part all.")
    assert indexed(own_visit, "part:all") > 30
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#announcement")).to_have_text("Undone.")
    assert (indexed(own_visit, "part:whole"), indexed(own_visit, "part:quarters")) == (7, 28)


def fields(visit: Visit, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{visit.address}/v1/index/fields", params={"field": name}).json()["fields"]
    return found


def test_the_most_unusual_pictures_can_be_listed_first_if_the_model_has_a_reference(
    browser: Browser, visit: Visit, tmp_path: Path
) -> None:
    page = visit.open("#/browse")
    page.get_by_label("Order").select_option("most unusual")
    expect(page.get_by_role("alert").first).to_contain_text("was published without a reference for novelty")
    expect(page.locator("#grid")).to_be_hidden()
    visit.expect_responses(409)
    page.get_by_label("Order").select_option("by name")
    expect(options(page).first).to_be_visible()
    publish_with_reference(tmp_path)
    with thread_server(tmp_path) as server, visiting(browser, server.url) as other:
        add_photographs(server.url)
        listed = httpx.get(f"{server.url}/v1/images?order=-novelty").json()["images"]
        page = other.open("#/browse?order=-novelty")
        expect(page.get_by_label("Order")).to_have_value("-novelty")
        page.locator("#size").fill("64")
        expect(options(page)).to_have_count(ALL)
        shown = page.locator("#grid .option").evaluate_all("all => all.map(({ title }) => title)")
        assert shown == [image["key"] for image in listed]


def test_without_metadata_fields_the_grid_has_the_whole_width(browser: Browser, tmp_path: Path) -> None:
    publish_with_reference(tmp_path)
    with thread_server(tmp_path) as server, visiting(browser, server.url) as visit:
        server.client.put("/v1/images/a.png", content=photograph("coffee.png")).raise_for_status()
        page = visit.open("#/browse")
        expect(options(page)).to_have_count(1)
        expect(page.locator("#facet-panel")).to_be_hidden()
        assert page.locator("#grid").evaluate("grid => grid.clientWidth > 0.8 * document.body.clientWidth")
