"""What the page keeps and opens again."""

from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from gestures import (
    DONE,
    download,
    generate,
    ids,
    paint_two,
    shown,
)


def test_what_is_no_image_or_no_scene_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("hello")
    page.set_input_files("#photo", tmp_path / "photo.png")
    page.wait_for_selector("#error:not([hidden])")
    message = "photo.png is no image that this browser can read."
    assert page.locator("#error").inner_text() == message
    scene = "{prompt: a, size: 16, painting: /etc/hostname, colours: {}}"
    (tmp_path / "scene.yaml").write_text(scene)
    page.set_input_files("#open", tmp_path / "scene.yaml")
    expect(page.locator("#error")).to_contain_text("'/etc/hostname' is not in the zip")


def test_scenes_are_saved_and_opened_again(page: Page, tmp_path: Path) -> None:
    paint_two(page)
    page.get_by_label("Options of region 2").click()
    page.locator(".region.active .strength").fill("2")
    page.get_by_text("Full", exact=True).click()
    page.fill("#scale-segments", "7")
    painted = ids(page)
    (tmp_path / "scene.zip").write_bytes(download(page, "#save"))
    page.click("#clear")
    page.get_by_label("Remove region 2").click()
    page.get_by_text("Fast", exact=True).click()
    page.set_input_files("#open", tmp_path / "scene.zip")
    expect(page.locator(".region")).to_have_count(2)
    np.testing.assert_array_equal(ids(page), painted)
    assert page.input_value("#prompt") == "a sandy beach"
    assert page.input_value("#scale-segments") == "7"
    texts = page.locator(".region .text")
    assert [texts.nth(k).input_value() for k in (0, 1)] == ["a red circle", "a blue sea"]
    assert page.locator(".strength").nth(1).input_value() == "2"


def test_a_reload_keeps_the_painting_and_the_history(page: Page) -> None:
    paint_two(page)
    painted = ids(page)
    first = generate(page)
    page.wait_for_timeout(500)  # the draft is saved a moment after the last change
    page.reload()
    page.wait_for_selector("body.ready")
    np.testing.assert_array_equal(ids(page), painted)
    page.wait_for_selector(DONE)
    np.testing.assert_array_equal(shown(page), first)
    page.click("#clear")
    page.click("#edit")
    page.wait_for_selector("#canvas-hint", state="hidden")
    np.testing.assert_array_equal(ids(page), painted)
