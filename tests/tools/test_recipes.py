"""What is written into a picture, and what is read from one."""

import base64
import io
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from samples import rich_scene, sample_by, write_picture
from spatext.modules.sampling_options import Sampling
from spatext.tools.loading import load_model
from spatext.tools.recipes import (
    dump_recipe,
    find_recipe,
    fingerprint,
    make_origin,
    read_recipe,
    same_picture,
)
from tiny import unchecked


def origin(**changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"sampling": Sampling(), "model": "abc", "overrides": [], "step": 3}
    options |= {"precision": "32-true", "checkpoint": "last.ckpt"}
    return make_origin(**(options | changes))


def test_scene_and_sampling_come_back(tmp_path: Path) -> None:
    scene, sampling = rich_scene(), Sampling(form="full", scheduler_options={"x": [1, 2]})
    recipe = dump_recipe(scene, 9, {"text": 1.0, "segments": 0.0}, origin(sampling=sampling))
    found = read_recipe(str(write_picture(tmp_path / "a.png", recipe)))
    assert found["scene"] == scene
    assert isinstance(found["scene"].repaint, tuple)
    assert (found["seed"], found["scales"]) == (9, {"text": 1.0, "segments": 0.0})
    assert dump_recipe(scene, 9, found["scales"], origin(sampling=found["sampling"])) == recipe
    assert found["packages"]["torch"] == version("torch")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"checkpoint": "elsewhere/last.ckpt", "step": 4}, True),
        ({"model": "abd"}, False),
        ({"sampling": Sampling(rescale=0.5)}, False),
        ({"overrides": ["module.clip.scale=unit"]}, False),
        ({"precision": "bf16-mixed"}, False),
    ],
)
def test_what_makes_another_picture(change: dict[str, Any], same: bool) -> None:
    scene = rich_scene()
    recipe = dump_recipe(scene, 1, None, origin())
    assert same_picture(recipe, dump_recipe(scene, 1, None, origin(**change))) is same
    assert not same_picture(recipe, dump_recipe(scene, 2, None, origin()))
    assert not same_picture(recipe, dump_recipe(scene, 1, {"text": 1.0}, origin()))


def test_the_fingerprint_sees_every_weight(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    before = fingerprint(model)
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert fingerprint(load_model(checkpoint)) == before
    trained = model.backbone.unet.conv_out.bias
    frozen = next(model.backbone.vae.net.parameters())
    held = model.prior.bias  # a buffer of a held network, in no state_dict
    for value in (trained, frozen, held):
        value.data.flatten()[0] += 1e-3
        assert fingerprint(model) != before
        value.data.flatten()[0] -= 1e-3
    model.backbone.unet.to(memory_format=torch.contiguous_format)  # the same numbers


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("scene=x.yaml", "scene"),
        ("seed=3", "seed"),
        ("scale_grid.text=[1]", "scale_grid"),
        ("sampling.num_steps=7", "sampling"),
        ("sampling.guidance_interval=[0.0,0.5]", "sampling"),
    ],
)
def test_what_the_recipe_decides_is_not_given(tmp_path: Path, option: str, name: str) -> None:
    path = write_picture(tmp_path / "a.png", dump_recipe(rich_scene(), 1, None, origin()))
    with pytest.raises(ValueError, match=f"^{name}: given beside recipe={path}, which decides it"):
        sample_by(f"recipe={path}", f"out={tmp_path}/out", option)


def rename(recipe: dict[str, Any]) -> None:
    recipe["scene"]["name"] = "../evil"


def forget_text(recipe: dict[str, Any]) -> None:
    del recipe["scene"]["regions"][0]["text"]


def unknown_option(recipe: dict[str, Any]) -> None:
    recipe["sampling"]["magic"] = 1


def other_size(recipe: dict[str, Any]) -> None:
    recipe["scene"]["size"] = [16, 20]


def no_mask(recipe: dict[str, Any]) -> None:
    recipe["scene"]["regions"][0]["mask"] = "mask.png"


def broken_mask(recipe: dict[str, Any]) -> None:
    recipe["scene"]["regions"][0]["mask"]["png"] = "AAAA"


def huge_mask(recipe: dict[str, Any]) -> None:
    data = io.BytesIO()
    Image.new("1", (9000, 2)).save(data, format="PNG")
    recipe["scene"]["regions"][0]["mask"]["png"] = base64.b64encode(data.getvalue()).decode()


def later_format(recipe: dict[str, Any]) -> None:
    recipe["format"] = 2


def lacks_seed(recipe: dict[str, Any]) -> None:
    del recipe["seed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "scene.name: found '../evil'"),
        (forget_text, "text"),
        (unknown_option, "magic"),
        (other_size, "expected 16x20"),
        (no_mask, "cannot be read"),
        (broken_mask, "cannot identify"),
        (huge_mask, r"found a PNG of \(9000, 2\)"),
        (later_format, "has format 2, expected 1"),
        (lacks_seed, "found no recipe in it"),
    ],
)
def test_foreign_recipes(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """A picture comes from anywhere; it is read like a file of a stranger."""
    recipe = json.loads(dump_recipe(rich_scene(), 1, None, origin()))
    change(recipe)
    path = write_picture(tmp_path / "a.png", json.dumps(recipe))
    with unchecked(), pytest.raises(ValueError, match=f"^recipe={path}: .*{message}"):
        sample_by(f"recipe={path}", f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"recipe=none\.png: no such file, expected"):
        sample_by("recipe=none.png")
    for name, content in (("a.png", b"x"), ("b.png", None)):
        path = tmp_path / name
        path.write_bytes(content) if content else write_picture(path, "{}")
        assert find_recipe(path) is None
        with pytest.raises(ValueError, match=f"recipe={path}: found no recipe in it, expected"):
            sample_by(f"recipe={path}")
