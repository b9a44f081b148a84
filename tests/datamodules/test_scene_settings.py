"""What a scene says beyond prompt and regions: negative prompt, scales, background, variation."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scene_files import BALL, LAKE, PIXELS, SIZE, full_scene, load, rectangle
from spatext.datamodules.drawing import overlay
from spatext.datamodules.scenes import Region, load_scene


def test_every_setting_is_read(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    scene = load(
        tmp_path,
        seed=3,
        regions=[BALL | {"strength": 1.5}, LAKE | {"variation": 0.25}],
        negative_prompt="a blurry photo",
        scales={"segments": 4.5, "text": 2},
        background="photo.png",
        repaint=[2],
        variation_seed=7,
    )
    assert scene == full_scene("scene")
    assert isinstance(scene.scales["text"], float)
    np.testing.assert_array_equal(scene.background, PIXELS)


def test_nothing_is_set_unless_said(tmp_path):
    scene = load(tmp_path, regions=[BALL])
    assert (scene.negative_prompt, scene.scales, scene.background) == ("", None, None)
    assert (scene.repaint, scene.variation_seed) == (None, None)
    assert (scene.regions[0].strength, scene.regions[0].variation) == (1.0, 0.0)
    written = scene.to_dict()
    assert list(written) == ["prompt", "size", "seed", "regions"]
    assert written["regions"] == [{"text": "a ball", "mask": "scene.1.png"}]


@pytest.mark.parametrize("name", ["saved.yaml", "saved.json"])
def test_every_setting_is_saved(tmp_path, name):
    full_scene().save(tmp_path / name)
    assert load_scene(tmp_path / name) == full_scene("saved")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {name, "saved.1.png", "saved.2.png", "saved.background.png"}


def test_scenes_that_differ_in_one_setting_are_not_equal():
    scene = full_scene()
    ball, lake = scene.regions
    changes = [
        {"prompt": ""},
        {"seed": 4},
        {"negative_prompt": ""},
        {"scales": None},
        {"scales": {"text": 2.0, "segments": 4.0}},
        {"background": 255 - PIXELS},
        {"repaint": None},
        {"repaint": (1, 2)},
        {"variation_seed": 8},
        {"regions": (ball, replace(lake, variation=0.5))},
        {"regions": (replace(ball, strength=1.0), lake)},
        {"regions": (replace(ball, mask=rectangle(0, 12, 0, 7)), lake)},
    ]
    assert scene == full_scene()
    assert all(scene != replace(scene, **change) for change in changes)
    assert replace(scene, background=None, repaint=None) != scene


def test_repainted_are_the_regions_named_without_what_covers_them():
    scene = full_scene()
    ball, lake = rectangle(0, 12, 0, 8), rectangle(4, 12, 6, 16)
    np.testing.assert_array_equal(scene.repainted(), lake)
    np.testing.assert_array_equal(replace(scene, repaint=(1,)).repainted(), ball & ~lake)
    np.testing.assert_array_equal(replace(scene, repaint=None).repainted(), ball | lake)
    assert replace(scene, repaint=None, background=None).repainted().all()


def test_resize_smooths_the_background_and_keeps_the_settings():
    scene = full_scene()
    large = scene.resize((24, 48))
    expected = Image.fromarray(PIXELS).resize((48, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(large.background, np.asarray(expected))
    np.testing.assert_array_equal(large.ids(), scene.ids().repeat(2, axis=0).repeat(3, axis=1))
    names = ("prompt", "seed", "negative_prompt", "scales", "repaint", "variation_seed")
    assert all(getattr(large, name) == getattr(scene, name) for name in names)
    settings = [(region.strength, region.variation) for region in large.regions]
    assert settings == [(1.5, 0.0), (1.0, 0.25)]
    assert scene.resize(SIZE) == scene


def test_background_is_what_people_see(tmp_path):
    turned = Image.new("RGB", SIZE, (200, 40, 20))  # 12 wide and 16 high, to be turned
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "phone.jpg", exif=exif)
    scene = load(tmp_path, regions=[BALL], background="phone.jpg")
    assert scene.background.shape == (*SIZE, 3)
    Image.new("RGBA", SIZE[::-1], (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert (load(tmp_path, regions=[BALL], background="clear.png").background == 255).all()


def test_painted_regions_have_settings_too(tmp_path):
    pixels = np.full((*SIZE, 3), 255, dtype=np.uint8)
    pixels[:4], pixels[6:9] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    colours = {"#ff0000": {"text": "a sky", "strength": 2, "variation": 0.5}, "#0000FF": "a sea"}
    scene = load(tmp_path, painting="p.png", colours=colours, variation_seed=1)
    sky = Region("a sky", rectangle(0, 4, 0, 16), strength=2.0, variation=0.5)
    assert scene.regions == (sky, Region("a sea", rectangle(6, 9, 0, 16)))


def test_texts_of_any_script_work_and_draw(tmp_path):
    texts = [
        "\u732b\u306e\u7d75",
        "\u0642\u0637\u0629",
        "\U0001f98a fox",
        "\u00c4pfel & \u0421\u0430\u0434",
    ]
    regions = [{"text": text, "box": [4 * i, 0, 4 * i + 4, 12]} for i, text in enumerate(texts)]
    scene = load(tmp_path, prompt="\u5ead", regions=regions, negative_prompt="\u2014")
    assert scene.texts == tuple(texts)
    scene.save(tmp_path / "again.yaml")
    assert load_scene(tmp_path / "again.yaml") == replace(scene, name="again")
    assert texts[0] in (tmp_path / "again.yaml").read_text(encoding="utf-8")
    plain = overlay(None, scene.ids(), [""] * 4, legend=False)
    drawn = overlay(None, scene.ids(), scene.texts, prompt=scene.prompt)
    assert drawn.shape[0] > plain.shape[0]
    assert (drawn[: plain.shape[0]] != plain).any()
