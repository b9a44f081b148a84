"""A picture holds all that it takes to paint it again."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from samples import (
    SQUARE,
    pixels,
    recipe_of,
    rich_scene,
    sample,
    sample_by,
    write_picture,
    write_scenes,
)
from spatext.callbacks.checkpoint_files import read
from spatext.callbacks.checkpoint_writer import write as write_checkpoint
from spatext.datamodules.scenes import load_scene
from spatext.tools.recipes import read_recipe


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
    write_picture(other, json.dumps(changed))
    with pytest.raises(ValueError, match=message):
        sample_by(f"recipe={other}", f"out={tmp_path}/third", "device=cpu")
    assert not (tmp_path / "third").exists()


def test_other_versions_are_told(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(picture)
    recipe["packages"]["diffusers"] = "0.1"
    write_picture(picture, json.dumps(recipe))
    sample_by(f"recipe={picture}", f"out={tmp_path}/again", "device=cpu")
    told = capsys.readouterr().err
    assert re.search(
        rf"warning: {picture} was made with diffusers 0.1 \(now [\d.]+\): pixels", told
    )
