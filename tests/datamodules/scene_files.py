"""Scenes of two regions, and files of them."""

import numpy as np
import yaml
from PIL import Image

from spatext.datamodules.scenes import Region, Scene, load_scene

SIZE = (12, 16)
HEAD = {"prompt": "a garden", "size": [12, 16]}
BALL = {"text": "a ball", "box": [0, 0, 8, 12]}
LAKE = {"text": "a lake", "box": [6, 4, 16, 12]}
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


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


def write(folder, text, name="scene.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder, **document):
    text = yaml.safe_dump(HEAD | document, allow_unicode=True, sort_keys=False)
    return load_scene(write(folder, text))


def scene_of(folder, regions, size=(12, 16)):
    document = {"prompt": "a garden", "size": list(size), "regions": regions}
    return load_scene(write(folder, yaml.safe_dump(document)))


def region_mask(folder, **shape):
    return scene_of(folder, [{"text": "a ball", **shape}]).regions[0].mask


def save_picture(folder, array, name="mask.png", mode=None):
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(folder / name)
