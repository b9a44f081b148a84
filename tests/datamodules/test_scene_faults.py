"""Mistakes in scenes: the key, what was found and what was expected."""

import json

import numpy as np
import pytest

from scene_files import SIZE, save_picture, scene_of, write
from spatext.datamodules.scenes import load_scene


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
