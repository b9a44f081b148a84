import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import spatext.conf
from spatext.datamodules.scenes import Region, Scene, load_scene, scene_from_ids

SCENES = sorted((Path(spatext.conf.__file__).parent / "scenes").glob("*.yaml"))
SIZE = (12, 16)


def write(folder, text, name="scene.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def scene_of(folder, regions, size=(12, 16)):
    document = {"prompt": "a garden", "size": list(size), "regions": regions}
    return load_scene(write(folder, yaml.safe_dump(document)))


def region_mask(folder, **shape):
    return scene_of(folder, [{"text": "a ball", **shape}]).regions[0].mask


def save_picture(folder, array, name="mask.png", mode=None):
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(folder / name)


def rectangle(y0, y1, x0, x1):
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


# What a scene says.


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


# What a scene may not say. In each case: the region or document, and the one line after the path.


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text": "a"}, r"regions\[0\]: expected exactly one of mask, box, polygon, found none"),
        (
            {"text": "a", "mask": "m.png", "box": [0, 0, 1, 1]},
            r"regions\[0\]: expected exactly one of mask, box, polygon, found mask and box",
        ),
        ({"box": [0, 0, 1, 1]}, r"regions\[0\]\.text: missing"),
        ({"text": " ", "box": [0, 0, 1, 1]}, r"regions\[0\]\.text: empty, expected words .*"),
        ({"text": True, "box": [0, 0, 1, 1]}, r"regions\[0\]\.text: expected text, found True"),
        (
            {"text": "a", "polygn": []},
            r"regions\[0\]\.polygn: unknown key, did you mean 'polygon'\?",
        ),
        (
            {"text": "a", "zzz": 1},
            r"regions\[0\]\.zzz: unknown key, expected one of text, mask, box, polygon, .*",
        ),
        ("a ball", r"regions\[0\]: expected 'key: value' pairs, found 'a ball'"),
        (
            {"text": "a", "box": [0, 0, 0.5, 0.5]},
            r"regions\[0\]\.box: expected whole pixels \[x0, .*\], found \[0, 0, 0\.5, 0\.5\]",
        ),
        ({"text": "a", "box": [0, 0, 4]}, r"regions\[0\]\.box: expected whole pixels .*"),
        (
            {"text": "a", "box": [4, 0, 4, 5]},
            r"regions\[0\]\.box: expected x0 < x1 and y0 < y1, found \[4, 0, 4, 5\]",
        ),
        (
            {"text": "a", "box": [0, 0, 12, 16]},
            r"regions\[0\]\.box: \[0, 0, 12, 16\] is not inside \[0, 0, 16, 12\]",
        ),
        ({"text": "a", "box": [-1, 0, 5, 5]}, r"regions\[0\]\.box: .* is not inside .*"),
        (
            {"text": "a", "polygon": [[0, 0], [4, 4]]},
            r"regions\[0\]\.polygon: expected three or more points \[x, y\], found .*",
        ),
        ({"text": "a", "polygon": [[0, 0], [4, 4], [1]]}, r"regions\[0\]\.polygon: expected .*"),
        (
            {"text": "a", "polygon": [[0, 0], [4, 4], [1, float("nan")]]},
            r"regions\[0\]\.polygon: expected three or more points .*",
        ),
        (
            {"text": "a", "polygon": [[1, 1], [1.2, 1], [1, 1.2]]},
            r"regions\[0\]\.polygon: holds no pixel centre of the 12x16 \(height x width\) picture",
        ),
        ({"text": "a", "mask": 3}, r"regions\[0\]\.mask: expected a file name, found 3"),
        (
            {"text": "a", "mask": "small.png"},
            r"regions\[0\]\.mask: 'small\.png' is 4x5 \(height x width\), expected 12x16 \(.*\)",
        ),
        (
            {"text": "a", "mask": "dark.png"},
            r"regions\[0\]\.mask: 'dark\.png' is empty, its highest level is 1, inside is >= 128",
        ),
        (
            {"text": "a", "mask": "broken.png"},
            r"regions\[0\]\.mask: 'broken\.png' is not a readable picture",
        ),
    ],
)
def test_mistake_in_a_region_is_named(tmp_path, entry, message):
    save_picture(tmp_path, np.full((4, 5), 255, np.uint8), "small.png")
    save_picture(tmp_path, np.ones(SIZE, np.uint8), "dark.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "dark.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"^\S*scene\.yaml: {message}$"):
        scene_of(tmp_path, [entry])


def test_missing_mask_is_named_with_its_folder(tmp_path):
    entries = [{"text": "a", "box": [0, 0, 1, 1]}, {"text": "b", "mask": "b.png"}]
    message = r"scene\.yaml: regions\[1\]\.mask: file 'b\.png' not found \(looked in /\S+\)$"
    with pytest.raises(FileNotFoundError, match=message):
        scene_of(tmp_path, entries)


def test_covered_region_is_named(tmp_path):
    entries = [
        {"text": "a red ball", "box": [2, 2, 6, 6]},
        {"text": "b", "box": [0, 0, 4, 12]},
        {"text": "c", "box": [4, 0, 16, 12]},
    ]
    message = r"scene\.yaml: regions\[0\] \('a red ball'\): fully covered by later regions"
    with pytest.raises(ValueError, match=message):
        scene_of(tmp_path, entries)


def test_more_regions_than_ids_are_refused(tmp_path):
    entries = [{"text": "a", "box": [i, 0, i + 1, 1]} for i in range(256)]
    with pytest.raises(ValueError, match=r"scene\.yaml: regions: found 256, expected at most 255$"):
        scene_of(tmp_path, entries, size=(1, 256))
    assert scene_of(tmp_path, entries[:255], size=(1, 256)).ids().max() == 255


HEAD = "prompt: p\nsize: 16\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: 16\nregions: []", "prompt: missing"),
        ("prompt: p\nregions: []", "size: missing"),
        (HEAD, "regions: expected either regions or painting, found neither"),
        (
            f"{HEAD}regions: []\npainting: a.png\ncolours: {{}}",
            "regions: expected either regions or painting, found both",
        ),
        (f"{HEAD}painting: a.png", "colours: expected together with painting, found only one .*"),
        (f"{HEAD}regions: []\ncolours: {{}}", "colours: expected together with painting, .*"),
        (f"{HEAD}regions: {{}}", r"regions: expected a list, found \{\}"),
        (f"{HEAD}region: []", r"region: unknown key, did you mean 'regions'\?"),
        ("", "scene: expected 'key: value' pairs, found None"),
        ("prompt: 3\nsize: 16\nregions: []", "prompt: expected text, found 3"),
        (f"{HEAD}seed: 1.5\nregions: []", "seed: expected a whole number .*, found 1.5"),
        (f"{HEAD}seed: -1\nregions: []", "seed: expected a whole number .*, found -1"),
        (f"{HEAD}seed: true\nregions: []", "seed: expected a whole number .*, found True"),
        ("prompt: p\nsize: 0\nregions: []", "size: expected 1 to 8192 pixels a side, found 0"),
        ("prompt: p\nsize: [4, 9000]\nregions: []", "size: expected 1 to 8192 pixels a side, .*"),
        ("prompt: p\nsize: [4]\nregions: []", r"size: expected a whole number or .*, found \[4\]"),
        ("prompt: p\nsize: 16.0\nregions: []", "size: expected a whole number or .*, found 16.0"),
        (f"{HEAD}regions: [", "line 3: .+"),
        ("prompt: a: b\nsize: 16", "line 1: mapping values are not allowed here"),
        (f"{HEAD}size: 8\nregions: []", "line 3: key 'size' given twice"),
        (f"{HEAD}regions: []\nprompt2: \x01", "unacceptable character .+"),
    ],
)
def test_mistake_in_the_document_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"^\S*scene\.yaml: {message}$"):
        load_scene(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p",\n "size": }', "line 2: Expecting value"),
        (json.dumps({"prompt": 1})[:-1] + ', "prompt": 2}', "key 'prompt' given twice"),
    ],
)
def test_mistake_in_json_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"^\S*scene\.json: {message}$"):
        load_scene(write(tmp_path, text, "scene.json"))


def test_scene_file_itself_is_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml: no such scene file$"):
        load_scene(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match=r"scene\.txt: expected one of .*, found suffix '\.txt'$"):
        load_scene(write(tmp_path, HEAD, "scene.txt"))
    (tmp_path / "latin.yaml").write_bytes(b"prompt: caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.yaml: 'utf-8' codec can't decode"):
        load_scene(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        (
            '{"#ff0000": a}',
            r"painting: colour #0000ff \(3 pixels\) of 'p.png' .*\(2 such colours.*",
        ),
        (
            '{"#ff0000": a, "#0000ff": b, "#00ff00": c, "#123456": d}',
            "colours.#123456: no pixel of 'p.png' has this colour",
        ),
        ("{red: a}", "colours: expected a quoted '#rrggbb', found 'red'"),
        ("{1: a}", "colours: expected a quoted '#rrggbb', found 1"),
        ('{"#ff0000": ""}', "colours.#ff0000: empty, expected words .*"),
        ('{"#ff0000": a, "#FF0000": b}', "colours.#FF0000: given twice"),
        ("[]", r"colours: expected '#rrggbb': text pairs, found \[\]"),
        ("{}", r"colours: expected '#rrggbb': text pairs, found \{\}"),
    ],
)
def test_mistake_in_a_painting_is_named(tmp_path, colours, message):
    pixels = np.full((16, 16, 3), 255, dtype=np.uint8)
    pixels[:5], pixels[6, :3], pixels[7, :2] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    save_picture(tmp_path, pixels, "p.png")
    text = f"{HEAD}painting: p.png\ncolours: {colours}"
    with pytest.raises(ValueError, match=rf"^\S*scene\.yaml: {message}$"):
        load_scene(write(tmp_path, text))
