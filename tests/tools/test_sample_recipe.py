"""A picture holds all that it takes to paint it again."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from samples import SQUARE, pixels, recipe_of, sample, sample_by, write_scenes
from spatext.callbacks.checkpoint_files import read
from spatext.callbacks.checkpoint_writer import write as write_checkpoint
from spatext.datamodules.drawing import save_png
from spatext.datamodules.scenes import Region, Scene, load_scene
from spatext.modules.generate import Sampling
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


def rich_scene() -> Scene:
    """Everything that a scene can say, in more than ASCII; the masks overlap."""
    mask = np.zeros((16, 16), dtype=np.bool_)
    mask[2:9, 3:12] = True
    background = np.arange(16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    return Scene(
        name="rich & \N{GREEK SMALL LETTER ALPHA} #1",
        prompt='a "garden" \N{SUN BEHIND CLOUD}',
        size=(16, 16),
        seed=7,
        regions=(
            Region("a red circle", mask, strength=1.5),
            Region("zw\N{LATIN SMALL LETTER O WITH DIAERESIS}lf\nboats", mask.T, variation=0.25),
        ),
        negative_prompt="two dogs",
        scales={"text": 2.0, "segments": 4.5},
        background=background,
        repaint=(2,),
        variation_seed=2**63 - 1,
    )


def origin(**changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"sampling": Sampling(), "model": "abc", "overrides": [], "step": 3}
    options |= {"precision": "32-true", "checkpoint": "last.ckpt"}
    return make_origin(**(options | changes))


def write(path: Path, recipe: str) -> Path:
    save_png(path, np.zeros((4, 4, 3), dtype=np.uint8), {"recipe": recipe})
    return path


def test_scene_and_sampling_come_back(tmp_path: Path) -> None:
    scene, sampling = rich_scene(), Sampling(form="full", scheduler_options={"x": [1, 2]})
    recipe = dump_recipe(scene, 9, {"text": 1.0, "segments": 0.0}, origin(sampling=sampling))
    found = read_recipe(str(write(tmp_path / "a.png", recipe)))
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


def test_a_picture_is_painted_again_from_itself(
    workspace: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, metadata included, when neither the scene's files nor its options are left."""
    path = tmp_path / "scenes" / "rich.yaml"
    rich_scene().save(path)
    options = ("seed=3", "sampling.form=full", "sampling.scheduler=EulerDiscreteScheduler")
    options += ("sampling.guidance_interval=[0.1,0.9]", "trainer.precision=bf16-mixed")
    (picture,) = sample(checkpoint, path, tmp_path / "out", *options)
    scene = load_scene(path)
    shutil.rmtree(path.parent)

    (again,) = sample_by(f"recipe={picture}", f"out={tmp_path}/again", "device=cpu")
    assert again.name == picture.name == "rich-3.png"
    assert again.read_bytes() == picture.read_bytes()
    assert read_recipe(str(again))["scene"] == scene
    recipe = recipe_of(again)
    assert (recipe["seed"], recipe["precision"]) == (3, "bf16-mixed")
    assert recipe["made"]["checkpoint"] == str(checkpoint)
    assert recipe["made"]["step"] == 2
    assert (again.parent / "index.html").is_file()


def test_scales_of_the_grid_are_in_the_recipe(checkpoint: Path, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", square=SQUARE)
    grid = ("scale_grid={text:[0,2],segments:[1.5]}", "batch_size=1")
    written = sample(checkpoint, scenes, tmp_path / "out", *grid)
    assert written[1].name == "square-5-text2-segments1.5.png"
    (again,) = sample_by(f"recipe={written[1]}", f"out={tmp_path}/again", "device=cpu")
    assert again.name == written[1].name
    assert again.read_bytes() == written[1].read_bytes()


@pytest.fixture
def picture(checkpoint: Path, tmp_path: Path) -> Path:
    scenes = write_scenes(tmp_path / "scenes", square=SQUARE)
    (path,) = sample(checkpoint, scenes, tmp_path / "out")
    return path


def changed_weights(checkpoint: Path, path: Path) -> Path:
    state = read(checkpoint)
    state["state_dict"]["backbone.unet.conv_out.bias"] += 1
    write_checkpoint(state, path)
    return path


def test_other_weights_are_refused_unless_asked_for(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "moved.ckpt"
    shutil.copytree(checkpoint, path)
    options = (f"recipe={picture}", f"out={tmp_path}/again", "device=cpu")
    (again,) = sample_by(*options, f"checkpoint={path}")  # another place, the same weights
    np.testing.assert_array_equal(pixels(again), pixels(picture))
    assert "warning: checkpoint" not in capsys.readouterr().err

    changed_weights(checkpoint, path)
    (other,) = sample_by(*options, f"checkpoint={path}")
    assert np.abs(pixels(other) - pixels(picture)).max() > 2
    told = capsys.readouterr().err
    assert f"warning: checkpoint={path}: its weights are not those that made {picture}\n" in told

    message = f"checkpoint={path}: its weights are not those that made {other}, expected"
    changed = recipe_of(other) | {"model": "0" * 64}
    write(other, json.dumps(changed))
    with pytest.raises(ValueError, match=message):
        sample_by(f"recipe={other}", f"out={tmp_path}/third", "device=cpu")
    assert not (tmp_path / "third").exists()


def test_other_versions_are_told(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(picture)
    recipe["packages"]["diffusers"] = "0.1"
    write(picture, json.dumps(recipe))
    sample_by(f"recipe={picture}", f"out={tmp_path}/again", "device=cpu")
    told = capsys.readouterr().err
    assert re.search(
        rf"warning: {picture} was made with diffusers 0.1 \(now [\d.]+\): pixels", told
    )


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
    path = write(tmp_path / "a.png", dump_recipe(rich_scene(), 1, None, origin()))
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
    path = write(tmp_path / "a.png", json.dumps(recipe))
    with unchecked(), pytest.raises(ValueError, match=f"^recipe={path}: .*{message}"):
        sample_by(f"recipe={path}", f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"recipe=none\.png: no such file, expected"):
        sample_by("recipe=none.png")
    for name, content in (("a.png", b"x"), ("b.png", None)):
        path = tmp_path / name
        path.write_bytes(content) if content else write(path, "{}")
        assert find_recipe(path) is None
        with pytest.raises(ValueError, match=f"recipe={path}: found no recipe in it, expected"):
            sample_by(f"recipe={path}")
