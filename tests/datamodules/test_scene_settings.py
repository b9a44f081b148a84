"""What a scene says beyond prompt and regions: negative prompt, scales, background, variation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from spatext.datamodules.drawing import overlay
from spatext.datamodules.scenes import Region, Scene, load_scene, scene_from_dict

SIZE = (12, 16)
HEAD = {"prompt": "a garden", "size": [12, 16]}
BALL = {"text": "a ball", "box": [0, 0, 8, 12]}
LAKE = {"text": "a lake", "box": [6, 4, 16, 12]}
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def load(folder, **document):
    path = folder / "scene.yaml"
    path.write_text(
        yaml.safe_dump(HEAD | document, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    return load_scene(path)


def rectangle(y0, y1, x0, x1):
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def full_scene(name="full"):
    regions = (
        Region("a ball", rectangle(0, 12, 0, 8), strength=1.5),
        Region("a lake", rectangle(4, 12, 6, 16), variation=0.25),
    )
    return Scene(
        name,
        "a garden",
        SIZE,
        3,
        regions,
        negative_prompt="a blurry photo",
        scales={"text": 2.0, "segments": 4.5},
        background=PIXELS,
        repaint=(2,),
        variation_seed=7,
    )


# What it says.


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


# What it may not say.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"seed: expected a whole number from 0 to 2\^63 - 1, found -1"),
        ({"variation_seed": 2**63}, "variation_seed: expected a whole number .*"),
        ({"size": (0, 16)}, r"size: expected 1 to 8192 pixels a side, found \[0, 16\]"),
        ({"scales": {"text": 1.0}}, r"scales\.segments: missing"),
        (
            {"scales": {"text": 1.0, "segments": 2.0, "image": 1.0}},
            r"scales\.image: unknown key, expected one of text, segments",
        ),
        (
            {"scales": {"text": -1.0, "segments": 2.0}},
            r"scales\.text: expected a number of at least 0, found -1\.0",
        ),
        (
            {"scales": {"text": 1.0, "segments": float("inf")}},
            r"scales\.segments: expected a number of at least 0, found inf",
        ),
        (
            {"background": PIXELS[:, :-1]},
            r"background: found 12x15 \(height x width\), expected 12x16 \(height x width\)",
        ),
        (
            {"regions": (), "repaint": None},
            "background: found no regions, expected at least one .*",
        ),
        ({"background": None}, "repaint: found without background, expected together with it"),
        (
            {"repaint": ()},
            r"repaint: expected a list of regions from 1 to 2, each once, found \[\]",
        ),
        ({"repaint": (3,)}, r"repaint: expected .* from 1 to 2, each once, found \[3\]"),
        ({"repaint": (0,)}, r"repaint: expected .* from 1 to 2, each once, found \[0\]"),
        ({"repaint": (1, 1)}, r"repaint: expected .* from 1 to 2, each once, found \[1, 1\]"),
        (
            {"variation_seed": None},
            r"regions\[1\]\.variation: found 0\.25, expected variation_seed with it",
        ),
    ],
)
def test_scene_is_checked_by_construction(change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(full_scene(), **change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -0.5}, r"strength: expected a number of at least 0, found -0\.5"),
        ({"strength": float("nan")}, "strength: expected a number of at least 0, found nan"),
        ({"variation": 1.01}, r"variation: expected a number from 0 to 1, found 1\.01"),
        ({"variation": -0.01}, r"variation: expected a number from 0 to 1, found -0\.01"),
    ],
)
def test_region_is_checked_by_construction(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Region("a ball", rectangle(0, 2, 0, 2), **settings)
    assert Region("a ball", rectangle(0, 2, 0, 2), strength=0.0, variation=1.0).strength == 0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"negative_prompt": 3}, "negative_prompt: expected text, found 3"),
        (
            {"negative_prompts": ""},
            r"negative_prompts: unknown key, did you mean 'negative_prompt'\?",
        ),
        ({"variation_seed": 0.5}, r"variation_seed: expected a whole number .*, found 0\.5"),
        ({"variation_seed": None}, "variation_seed: expected a whole number .*, found None"),
        ({"scales": 3}, "scales: expected 'key: value' pairs, found 3"),
        ({"scales": {"text": 1, "local": 2}}, r"scales\.local: unknown key, expected one of .*"),
        (
            {"scales": {"text": 1, "segments": "high"}},
            r"scales\.segments: expected a number of at least 0, found 'high'",
        ),
        ({"scales": {"text": 10**400, "segments": 1}}, r"scales\.text: expected a number .*"),
        ({"background": 3}, "background: expected a file name, found 3"),
        (
            {"background": "small.png"},
            r"background: 'small\.png' is 4x5 \(height x width\), expected 12x16 \(.*\)",
        ),
        (
            {"background": "text.png"},
            r"background: 'text\.png' is unusable: not JPEG\|PNG\|WEBP",
        ),
        ({"background": "cut.png"}, r"background: 'cut\.png' is unusable: image truncated or .*"),
        ({"repaint": [1]}, "repaint: found without background, expected together with it"),
        ({"background": "photo.png", "repaint": 1}, r"repaint: expected a list of .*, found 1"),
        ({"background": "photo.png", "repaint": ["a"]}, r"repaint: expected .*, found \['a'\]"),
        ({"background": "photo.png", "repaint": []}, r"repaint: expected .*, found \[\]"),
        ({"background": "photo.png", "repaint": [2]}, r"repaint: .* from 1 to 1, .* found \[2\]"),
        (
            {"regions": [BALL | {"strength": "much"}]},
            r"regions\[0\]\.strength: expected a number of at least 0, found 'much'",
        ),
        (
            {"regions": [BALL, LAKE | {"variation": 2}]},
            r"regions\[1\]\.variation: expected a number from 0 to 1, found 2",
        ),
        (
            {"regions": [BALL | {"variation": 0.5}]},
            r"regions\[0\]\.variation: found 0\.5, expected variation_seed with it",
        ),
        (
            {"regions": [BALL | {"polygon": [[0, 0], [10**400, 0], [0, 5]]}]},
            r"regions\[0\]: expected exactly one of .*, found box and polygon",
        ),
        (
            {"regions": [{"text": "a", "polygon": [[0, 0], [10**400, 0], [0, 5]]}]},
            r"regions\[0\]\.polygon: expected three or more points .*",
        ),
        (
            {"size": 8192, "regions": [{"text": "a", "box": [i, 0, i + 1, 1]} for i in range(17)]},
            r"regions: found 17 of 8192x8192 \(.*\), expected a smaller size or fewer regions",
        ),
    ],
)
def test_mistake_in_a_setting_is_named(tmp_path, document, message):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    Image.fromarray(PIXELS[:4, :5]).save(tmp_path / "small.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=rf"^\S*scene\.yaml: {message}$"):
        load(tmp_path, **{"regions": [BALL]} | document)


def test_missing_background_is_named_with_its_folder(tmp_path):
    message = r"scene\.yaml: background: file 'no\.png' not found \(looked in /\S+\)$"
    with pytest.raises(FileNotFoundError, match=message):
        load(tmp_path, regions=[BALL], background="no.png")


def test_mask_with_a_damaged_chunk_is_named(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "m.png")
    data = bytearray((tmp_path / "m.png").read_bytes())
    data[data.index(b"IDAT") : data.index(b"IDAT") + 4] = b"\0\0\0\0"
    (tmp_path / "m.png").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"regions\[0\]\.mask: 'm\.png' is not a readable picture$"
    ):
        load(tmp_path, regions=[{"text": "a", "mask": "m.png"}])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"txt": "a"}, r"colours\.#ff0000\.txt: unknown key, did you mean 'text'\?"),
        ({"strength": 2}, r"colours\.#ff0000\.text: missing"),
        ({"text": " "}, r"colours\.#ff0000\.text: empty, .*"),
        ({"text": "a", "strength": -1}, r"colours\.#ff0000\.strength: expected a number .*"),
    ],
)
def test_mistake_in_a_colour_is_named(tmp_path, entry, message):
    Image.new("RGB", SIZE[::-1], (255, 0, 0)).save(tmp_path / "p.png")
    with pytest.raises(ValueError, match=rf"scene\.yaml: {message}$"):
        load(tmp_path, painting="p.png", colours={"#ff0000": entry})


def test_more_colours_than_ids_are_refused(tmp_path):
    colours = {f"#{i:06x}": "a" for i in range(1, 257)}
    with pytest.raises(ValueError, match=r"regions: found 256, expected at most 255$"):
        load(tmp_path, painting="absent.png", colours=colours)


def test_document_without_folder_may_name_no_file():
    document = HEAD | {"regions": [BALL, LAKE], "negative_prompt": "fog"}
    scene = scene_from_dict(document, "upload", None)
    assert (scene.name, scene.texts, scene.negative_prompt) == (
        "upload",
        ("a ball", "a lake"),
        "fog",
    )
    wanted = "found a file, expected only boxes and polygons here"
    here = str(Path(__file__))
    for change, key in (
        ({"background": here}, "background"),
        ({"painting": here, "colours": {}}, "painting"),
        ({"regions": [BALL, {"text": "a", "mask": here}]}, r"regions\[1\]\.mask"),
    ):
        with pytest.raises(ValueError, match=f"^{key}: {wanted}$"):
            scene_from_dict(HEAD | {"regions": []} | change, "upload", None)
