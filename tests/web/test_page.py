"""The page as a person uses it, in Chromium: every picture here was painted by a real model."""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

from gestures import (
    DONE,
    at,
    canvas,
    choose,
    download,
    drag,
    generate,
    ids,
    looks,
    paint_two,
    say,
)
from spatext.datamodules.scenes import load_scene
from spatext.tools.recipes import RECIPE


def test_paint_two_regions_say_what_they_are_and_see_the_picture(
    page: Page, shots: Path, tmp_path: Path
) -> None:
    empty = canvas(page)
    page.screenshot(path=shots / "1-empty.png")
    paint_two(page)
    full = canvas(page)
    assert looks(at(full, 0.2, 0.45), "#e69f00")
    assert looks(at(full, 0.75, 0.45), "#0072b2")
    assert at(full, 0.5, 0.1) == at(empty, 0.5, 0.1)
    page.screenshot(path=shots / "2-painted.png")

    assert page.locator("#picture").is_hidden()
    first = generate(page)
    assert first.shape == (16, 16, 3)
    assert page.locator("#picture").evaluate("image => image.naturalWidth") == 16
    page.screenshot(path=shots / "3-picture.png")

    say(page, 2, "a yellow star")
    changed = generate(page).astype(int)
    assert np.abs(changed - first).mean() > 1
    assert page.locator("#history li").count() == 2

    image = Image.open(io.BytesIO(download(page, "#download")))
    np.testing.assert_array_equal(np.asarray(image), changed)
    assert json.loads(image.info[RECIPE])["scene"]["prompt"] == "a sandy beach"
    with zipfile.ZipFile(io.BytesIO(download(page, "#download-scene"))) as archive:
        archive.extractall(tmp_path)
    scene = load_scene(tmp_path / "scene.yaml")
    assert scene.texts == ("a red circle", "a yellow star")
    found = scene.ids()
    assert (found[6, 3], found[6, 12], found[0, 8]) == (1, 2, 0)


def test_every_tool_paints_what_it_is_for(page: Page) -> None:
    say(page, 1, "a star")
    page.fill("#brush-size", "30")
    choose(page, "brush")
    drag(page, (0.1, 0.1), (0.9, 0.1))
    line = ids(page)
    assert (line[1, 2:14] == 1).all()
    assert not line[4:].any()
    choose(page, "blob")
    drag(page, (0.2, 0.4), (0.8, 0.4), (0.5, 0.95))
    triangle = ids(page)
    assert (triangle[7, 8], triangle[13, 8], triangle[13, 3], triangle[13, 13]) == (1, 1, 0, 0)
    choose(page, "eraser")
    drag(page, (0.5, 0.5), (0.5, 0.51))
    assert ids(page)[8, 8] == 0
    page.click("#undo")
    np.testing.assert_array_equal(ids(page), triangle)
    page.click("#undo")
    np.testing.assert_array_equal(ids(page), line)
    page.click("#redo")
    np.testing.assert_array_equal(ids(page), triangle)
    page.click("#add-region")
    say(page, 2, "the sky")
    choose(page, "fill")
    drag(page, (0.02, 0.6), (0.02, 0.6))
    np.testing.assert_array_equal(ids(page), np.where(triangle == 0, 2, triangle))
    page.get_by_label("Remove region 1").click()
    assert set(np.unique(ids(page))) == {0, 1}  # region 2 is the only one left
    page.click("#clear")
    page.fill("#prompt", "a sea")
    assert not ids(page).any()


def test_keys_are_enough(page: Page) -> None:
    page.locator("#canvas").focus()
    for key in ("r", *["ArrowLeft"] * 8, "Space", *["ArrowRight"] * 8, "ArrowDown", "Space"):
        page.keyboard.press(key)
    page.keyboard.press("Tab")
    say(page, 1, "a star")
    drawn = ids(page)
    assert drawn.sum() == 9 * 2
    assert drawn[8:10, :9].all()
    page.locator("#canvas").focus()
    page.keyboard.press("Control+z")
    page.fill("#prompt", "a sea")
    assert not ids(page).any()
    with page.expect_response("**/api/jobs"):
        page.keyboard.press("Control+Enter")
    page.wait_for_selector(DONE)


def test_a_painted_region_without_words_is_told_at_the_region(page: Page, shots: Path) -> None:
    choose(page, "rectangle")
    drag(page, (0.1, 0.1), (0.4, 0.4))
    page.click("#add-region")
    drag(page, (0.6, 0.6), (0.9, 0.9))
    say(page, 2, "a star")
    page.click("#generate")
    text = page.get_by_label("Region 1: what belongs here")
    assert text.get_attribute("aria-invalid") == "true"
    assert text.evaluate("field => field === document.activeElement")
    assert page.locator("#error").inner_text() == "Region 1 is painted but has no words yet."
    assert page.locator("#region-message-1").inner_text() == "Say what belongs here"
    page.screenshot(path=shots / "4-no-words.png")
    text.fill("\u6d77")
    assert page.locator("#region-message-1").is_hidden()
    generate(page)
    assert page.locator("#error").is_hidden()


def test_the_queue_shows_places_and_can_be_left(page: Page, shots: Path) -> None:
    page.fill("#prompt", "a sea")
    page.evaluate("document.getElementById('num-steps').value = 250")
    for seed in range(4):
        page.fill("#seed", str(seed))
        with page.expect_response("**/api/jobs"):
            page.click("#generate")
    assert page.locator("#status").inner_text() == "In the queue, 3 before it"
    page.screenshot(path=shots / "5-queue.png")
    page.fill("#seed", "4")
    page.click("#generate")
    page.wait_for_selector("#error:not([hidden])")
    assert "3 pictures wait already" in page.locator("#error").inner_text()
    page.click("#cancel")  # the fourth, which is shown
    page.wait_for_selector("#stage[data-state=cancelled]")
    page.locator("#history button").last.click()  # the first, which is painted
    page.wait_for_selector("#stage[data-state=running] #picture:not([hidden])")
    expect(page.locator("#status")).to_have_text(re.compile("^Step"))
    page.click("#cancel")
    page.wait_for_selector("#stage[data-state=cancelled]")
    for tile in (1, 2):
        page.locator("#history button").nth(tile).click()
        page.click("#cancel")
        page.wait_for_selector("#stage[data-state=cancelled]")


def test_fast_has_one_strength_and_full_has_two(page: Page) -> None:
    def visible() -> list[str]:
        labels = page.locator(".settings label.slider:visible").all_inner_texts()
        return [label.split("\n")[0] for label in labels]

    assert visible() == ["Guidance", "Steps"]
    page.get_by_text("Full", exact=True).click()
    assert visible() == ["Whole picture", "Regions", "Steps"]
    page.fill("#prompt", "a sea")
    page.fill("#scale-text", "5")
    with page.expect_request("**/api/jobs") as request:
        page.click("#generate")
    order: Any = request.value.post_data_json
    assert (order["form"], order["scales"]) == ("full", {"text": 5, "segments": 3})
    page.wait_for_selector(DONE)
    assert page.locator("#status").inner_text() == "Full 5 and 3 \u00b7 4 steps \u00b7 seed 0"


def test_a_large_image_is_scaled_and_kept_outside_the_regions(
    page: Page, tmp_path: Path, shots: Path
) -> None:
    left, right = (200, 40, 40), (40, 40, 200)
    large = Image.new("RGB", (3648, 2736), left)
    large.paste(right, (1824, 0, 3648, 2736))
    large.save(tmp_path / "photo.png")
    page.set_input_files("#photo", tmp_path / "photo.png")
    page.wait_for_selector("#photo-options:not([hidden])")
    assert looks(at(canvas(page), 0.1, 0.5), "#c82828")
    choose(page, "rectangle")
    drag(page, (0.55, 0.3), (0.9, 0.9))
    say(page, 1, "a red circle")
    page.screenshot(path=shots / "6-image.png")
    result = generate(page)
    np.testing.assert_array_equal(result[:, :7], np.broadcast_to(left, (16, 7, 3)))
    assert np.abs(result[6:14, 10:14].astype(int) - right).mean() > 5
    page.click("#paint-over")  # the picture becomes the image
    expect(page.locator(".region .text")).to_have_value("")
    drag(page, (0.05, 0.05), (0.3, 0.3))
    say(page, 1, "a star")
    again = generate(page)
    np.testing.assert_array_equal(again[6:], result[6:])
    assert (again[1:4, 1:4] != result[1:4, 1:4]).any()
