"""Mistakes in what a scene says beyond prompt and regions."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from scene_files import BALL, HEAD, LAKE, PIXELS, SIZE, full_scene, load, rectangle
from spatext.datamodules.scenes import Region, scene_from_dict


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
