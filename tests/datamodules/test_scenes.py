from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spatext.conf
from scene_files import SIZE, rectangle, region_mask, save_picture, scene_of, write
from spatext.datamodules.scenes import Region, Scene, load_scene, scene_from_ids

SCENES = sorted((Path(spatext.conf.__file__).parent / "scenes").glob("*.yaml"))


def test_box_is_end_exclusive_pixels_x_right_y_down(tmp_path):
    mask = region_mask(tmp_path, box=[3, 2, 10, 12])
    np.testing.assert_array_equal(mask, rectangle(2, 12, 3, 10))


def test_polygon_of_the_corners_equals_the_box(tmp_path):
    mask = region_mask(tmp_path, polygon=[[3, 2], [10, 2], [10, 12], [3, 12]])
    np.testing.assert_array_equal(mask, rectangle(2, 12, 3, 10))


def test_polygon_area_tends_to_the_analytic_one(tmp_path):
    triangle = [[10, 5], [110.5, 30], [40, 100]]
    (xa, ya), (xb, yb), (xc, yc) = triangle
    area = abs((xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)) / 2
    entry = {"text": "a triangle", "polygon": triangle}
    mask = scene_of(tmp_path, [entry], size=(128, 128)).regions[0].mask
    np.testing.assert_allclose(mask.sum(), area, rtol=0.005)
    rows, columns = np.nonzero(mask)
    np.testing.assert_allclose((columns + 0.5).mean(), (xa + xb + xc) / 3, atol=0.2)
    np.testing.assert_allclose((rows + 0.5).mean(), (ya + yb + yc) / 3, atol=0.2)


def test_polygon_may_leave_the_picture_and_be_concave(tmp_path):
    mask = region_mask(tmp_path, polygon=[[-5, -5], [4, -5], [4, 6], [30, 6], [30, 9], [-5, 9]])
    np.testing.assert_array_equal(mask, rectangle(0, 9, 0, 4) | rectangle(6, 9, 0, 16))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA", "LA", "I;16"])
def test_mask_of_any_mode_is_its_bright_half(tmp_path, mode):
    inside = rectangle(2, 7, 3, 9)
    level = np.where(inside, 128, 127).astype(np.uint8)
    if mode == "1":
        save_picture(tmp_path, inside)
    elif mode == "I;16":
        save_picture(tmp_path, np.where(inside, 2**15, 2**15 - 1).astype(np.uint16))
    else:
        save_picture(tmp_path, level, mode=mode)
    np.testing.assert_array_equal(region_mask(tmp_path, mask="mask.png"), inside)


def test_mask_with_transparency_is_its_opaque_half(tmp_path):
    inside = rectangle(2, 7, 3, 9)
    rgba = np.full((*SIZE, 4), 255, dtype=np.uint8)
    rgba[..., 3] = np.where(inside, 128, 127)
    save_picture(tmp_path, rgba)
    np.testing.assert_array_equal(region_mask(tmp_path, mask="mask.png"), inside)


def test_later_regions_win(tmp_path):
    first = {"text": "a", "box": [0, 0, 10, 10]}
    second = {"text": "b", "box": [5, 5, 15, 12]}
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[:10, :10], expected[5:12, 5:15] = 1, 2
    np.testing.assert_array_equal(scene_of(tmp_path, [first, second]).ids(), expected)
    swapped = scene_of(tmp_path, [second, first]).ids()
    assert (swapped[5:10, 5:10] == 2).all()


def test_painting_equals_its_masks(tmp_path):
    red, blue = rectangle(0, 5, 0, 16), rectangle(6, 12, 2, 9)
    pixels = np.full((*SIZE, 4), 255, dtype=np.uint8)
    pixels[10:, 10:] = (0, 0, 0, 255)
    pixels[5, :] = (9, 9, 9, 0)
    pixels[red], pixels[blue] = (255, 0, 0, 255), (0, 0, 255, 255)
    save_picture(tmp_path, pixels, "painting.png")
    head = "prompt: a garden\nsize: [12, 16]\nseed: 4\npainting: painting.png\n"
    table = 'colours: {"#0000FF": " a lake ", "#ff0000": a sky}\n'
    scene = load_scene(write(tmp_path, head + table))
    regions = (Region("a lake", blue), Region("a sky", red))
    assert scene == Scene("scene", "a garden", SIZE, 4, regions)
    white = load_scene(write(tmp_path, head + table.replace("{", '{"#ffffff": snow, ')))
    assert white.texts == ("snow", "a lake", "a sky")
    assert white.regions[0].mask.sum() == 12 * 16 - red.sum() - blue.sum() - 16 - 2 * 6


def test_json_equals_yaml(tmp_path):
    regions = '[{"text": "a", "box": [0, 0, 4, 4]}]'
    text = f'{{"prompt": "\u00e9", "size": 16, "seed": 3, "regions": {regions}}}'
    assert load_scene(write(tmp_path, text)) == load_scene(write(tmp_path, text, "scene.json"))


def test_scene_without_regions_is_plain_text_to_image(tmp_path):
    scene = scene_of(tmp_path, [])
    assert scene.full_prompt() == "a garden"
    assert not scene.ids().any()
    assert scene.seed == 0


def test_full_prompt_puts_the_global_text_first_and_skips_empty_ones():
    regions = (Region("a cat", rectangle(0, 2, 0, 2)), Region("a dog", rectangle(4, 6, 0, 2)))
    assert Scene("s", " a park ", SIZE, regions=regions).full_prompt() == "a park, a cat, a dog"
    assert Scene("s", " ", SIZE, regions=regions).full_prompt(" and ") == "a cat and a dog"
    assert Scene("s", "", SIZE).full_prompt() == ""


def test_resize_is_nearest():
    regions = (Region("a", rectangle(0, 6, 0, 8)), Region("b", rectangle(6, 12, 8, 16)))
    scene = Scene("s", "", SIZE, 5, regions)
    large = scene.resize((24, 48))
    np.testing.assert_array_equal(large.ids(), scene.ids().repeat(2, axis=0).repeat(3, axis=1))
    assert large.resize(SIZE) == scene
    small = np.asarray(Image.fromarray(scene.ids()).resize((5, 7), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(scene.resize((7, 5)).ids(), small)


def test_resize_that_loses_a_region_is_refused():
    scene = Scene("thin", "", SIZE, regions=(Region("a line", rectangle(0, 1, 0, 16)),))
    with pytest.raises(ValueError, match=r"^thin resized to 3x4 .*'a line'\): covers no pixel"):
        scene.resize((3, 4))


@pytest.mark.parametrize("name", ["saved.yaml", "saved.json"])
def test_saved_scene_loads_equal_and_leaves_no_temporary(tmp_path, name):
    regions = (
        Region("ein V\u00f6gelchen", rectangle(0, 9, 0, 8)),
        Region("no", rectangle(6, 12, 3, 16)),
    )
    scene = Scene("saved", "a: b # c", SIZE, 2**40, regions)
    scene.save(tmp_path / "new" / name)
    assert load_scene(tmp_path / "new" / name) == scene
    files = {path.name for path in (tmp_path / "new").iterdir()}
    assert files == {name, "saved.1.png", "saved.2.png"}


def test_scene_from_ids_inverts_ids_and_skips_padding():
    ids = np.zeros(SIZE, dtype=np.uint8)
    ids[:4], ids[6:, :5] = 1, 2
    scene = scene_from_ids(ids, ["a", "b", "", ""], prompt="p", seed=7, name="val")
    np.testing.assert_array_equal(scene.ids(), ids)
    assert (scene.name, scene.prompt, scene.seed, scene.texts) == ("val", "p", 7, ("a", "b"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], "val: found id 2, but only 1 texts"),
        (["a", " "], r"val: id 2 \(' '\) has no text"),
        (["a", "b", "c"], r"val: id 3 \('c'\) has no pixel"),
    ],
)
def test_scene_from_ids_refuses_texts_that_do_not_fit(texts, message):
    ids = np.zeros(SIZE, dtype=np.uint8)
    ids[:4], ids[6:] = 1, 2
    with pytest.raises(ValueError, match=f"^{message}$"):
        scene_from_ids(ids, texts, name="val")


def test_every_shipped_scene_loads_with_regions_worth_painting():
    assert len(SCENES) >= 6
    for path in SCENES:
        scene = load_scene(path)
        shares = np.bincount(scene.ids().ravel(), minlength=len(scene.texts) + 1)[1:] / 64**2
        assert scene.size == (64, 64), path
        assert scene.prompt, path
        assert shares.min() >= 0.05, (path, shares)
