import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from runs import compose_config, load_last
from spatext.callbacks.images import paint_scene
from spatext.datamodules.scenes import load_scene
from spatext.modules.generate import Sampling
from spatext.tools.loading import load_model
from spatext.tools.sample import sample_scenes

SQUARE = """
prompt: a sandy beach
size: 16
seed: 5
regions:
  - {text: a red circle, box: [1, 2, 8, 12]}
  - {text: a blue square, box: [9, 4, 15, 12]}
"""
WIDE = "{prompt: a dusk sky, size: [8, 24], regions: []}"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "square.yaml").write_text(SQUARE)
    (folder / "wide.yaml").write_text(WIDE)
    return folder


def sample(checkpoint: Path, scene: Path, out: Path, *overrides: str) -> list[Path]:
    options = [f"checkpoint={checkpoint}", f"scene={scene}", f"out={out}", "device=cpu"]
    options += ["sampling.num_steps=2", "num_images=1", *overrides]
    return sample_scenes(compose_config("sample", options))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_folder_of_scenes_becomes_pictures(
    checkpoint: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    written = sample(checkpoint, scenes, out, "num_images=2")
    names = ["square-5.png", "square-6.png", "wide-0.png", "wide-1.png"]
    assert [path.name for path in written] == names
    rows = [f"{scene}{end}.png" for scene in ("square", "wide") for end in ("", "-layout")]
    assert {path.name for path in out.iterdir()} == {*names, *rows, "grid.png"}
    assert f"4 images in {out}" in capsys.readouterr().out
    assert [pixels(path).shape for path in written] == [(16, 16, 3)] * 2 + [(8, 24, 3)] * 2
    assert all(pixels(path).std() > 1 for path in written)  # no flat colour
    # A row is the layout and an enlarged copy of each sample, and the grid is all rows.
    row, layout = pixels(out / "square.png"), pixels(out / "square-layout.png")
    height, width = layout.shape[:2]
    np.testing.assert_array_equal(row[8 : 8 + height, 8 : 8 + width], layout)
    left, times = 16 + width, width // 16
    enlarged = pixels(written[0]).repeat(times, axis=0).repeat(times, axis=1)
    np.testing.assert_array_equal(row[8 : 8 + 16 * times, left : left + 16 * times], enlarged)
    whole, below = pixels(out / "grid.png"), pixels(out / "wide-layout.png")
    np.testing.assert_array_equal(whole[8 : 8 + height, 8 : 8 + width], layout)
    top, size = row.shape[0], below.shape[:2]
    np.testing.assert_array_equal(whole[top : top + size[0], 8 : 8 + size[1]], below)


def test_a_picture_holds_its_recipe(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    options = ("seed=40", "sampling.scale=2.5", "sampling.scheduler=DPMSolverMultistepScheduler")
    (path,) = sample(checkpoint, scenes / "square.yaml", tmp_path / "out", *options)
    text = Image.open(path).text  # type: ignore[attr-defined]
    assert (text["scene"], text["prompt"], text["seed"]) == ("square", "a sandy beach", "40")
    assert json.loads(text["texts"]) == ["a red circle", "a blue square"]
    expected = Sampling(scheduler="DPMSolverMultistepScheduler", num_steps=2, scale=2.5)
    assert text["sampling"] == str(expected)
    # The recipe is enough: the same picture comes from what it says.
    again = paint_scene(
        load_model(checkpoint),
        load_scene(scenes / "square.yaml"),
        torch.tensor([int(text["seed"])]),
        expected,
    )
    assert np.abs(again[0] - pixels(path)).max() <= 1


def test_a_seed_is_a_picture(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    """The same again, whatever else is sampled beside it; another seed is another picture."""
    scene = scenes / "square.yaml"
    (alone,) = sample(checkpoint, scene, tmp_path / "alone")
    (again,) = sample(checkpoint, scene, tmp_path / "again", "seed=5")
    first, second, third = sample(checkpoint, scene, tmp_path / "three", "num_images=3")
    np.testing.assert_array_equal(pixels(again), pixels(alone))
    assert alone.name == first.name == "square-5.png"
    assert np.abs(pixels(first) - pixels(alone)).max() <= 1  # another batch may round otherwise
    assert np.abs(pixels(second) - pixels(first)).mean() > 2
    assert np.abs(pixels(third) - pixels(second)).mean() > 2


def test_the_averaged_weights_are_loaded(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    state = load_last(checkpoint.parents[1])
    assert_close(dict(model.state_dict()), dict(state["state_dict"]), rtol=0, atol=0)
    name = "backbone.unet.conv_out.weight"
    assert not torch.equal(state["state_dict"][name], state["current_model_state"][name])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_overrides_find_a_base_that_has_moved(
    workspace: Path, checkpoint: Path, scenes: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(workspace / "base", here)
    config = load_last(checkpoint.parents[1])
    moved = torch.load(checkpoint, weights_only=True)
    moved["config"]["module"]["backbone"]["path"] = str(here)
    moved["config"]["module"]["clip"]["name"] = f"local-dir:{here}/clip"
    moved["config"]["module"]["prior"]["path"] = f"{here}/clip/linear_prior.safetensors"
    assert config["config"] != moved["config"]
    torch.save(moved, tmp_path / "moved.ckpt")
    scene = scenes / "square.yaml"
    (before,) = sample(tmp_path / "moved.ckpt", scene, tmp_path / "before")

    here.rename(there)
    with pytest.raises(Exception, match=f"{here}: no such folder"):
        sample(tmp_path / "moved.ckpt", scene, tmp_path / "after")
    places = [
        f"module.backbone.path={there}",
        f"module.clip.name=local-dir:{there}/clip",
        f"module.prior.path={there}/clip/linear_prior.safetensors",
    ]
    option = f"overrides={json.dumps(places)}"  # the form that conf/sample.yaml shows
    (after,) = sample(tmp_path / "moved.ckpt", scene, tmp_path / "after", option)
    np.testing.assert_array_equal(pixels(after), pixels(before))


def test_a_size_that_the_model_cannot_halve_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    scene = tmp_path / "odd.yaml"
    scene.write_text("{prompt: a dusk sky, size: [16, 18], regions: []}")
    message = "scene odd: size 16x18, expected multiples of 4 for this model"
    with pytest.raises(ValueError, match=message):
        sample(checkpoint, scene, tmp_path / "out")
    assert not (tmp_path / "out").exists()
