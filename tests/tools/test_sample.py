"""Pictures of scenes: which files, what in them, and that they depend on nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from one_scene import paint_scene
from runs import load_last
from samples import GARDEN, SQUARE, WIDE, pixels, recipe_of, sample, write_scenes
from spatext.callbacks.checkpoint_files import read
from spatext.callbacks.checkpoint_writer import write
from spatext.callbacks.jobs import Job, make_batches
from spatext.datamodules.scenes import load_scene
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.sampling_options import Sampling
from spatext.tools.loading import load_model


def test_a_folder_of_scenes_becomes_pictures(
    checkpoint: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    written = sample(checkpoint, scenes, out, "num_images=2")
    names = ["square-5.png", "square-6.png", "wide-0.png", "wide-1.png"]
    assert [path.name for path in written] == names
    layouts = {"square-layout.png", "wide-layout.png"}
    assert {path.name for path in out.iterdir()} == {*names, *layouts, "grid.png", "index.html"}
    told = capsys.readouterr()
    assert told.out == f"4 images in {out}; see {out}/index.html\n"
    assert "4.0/4 images" in told.err  # one bar, to its end
    assert [pixels(path).shape for path in written] == [(16, 16, 3)] * 2 + [(8, 24, 3)] * 2
    assert all(pixels(path).std() > 1 for path in written)  # no flat colour
    # A row of the grid is the layout and an enlarged copy of each picture.
    whole, layout = pixels(out / "grid.png"), pixels(out / "square-layout.png")
    below = pixels(out / "wide-layout.png")
    height, width = layout.shape[:2]
    np.testing.assert_array_equal(whole[8 : 8 + height, 8 : 8 + width], layout)
    left, times = 16 + below.shape[1], width // 16  # its column is as wide as the wider layout
    enlarged = pixels(written[0]).repeat(times, axis=0).repeat(times, axis=1)
    np.testing.assert_array_equal(whole[8 : 8 + 16 * times, left : left + 16 * times], enlarged)
    top, size = 16 + height, below.shape[:2]
    np.testing.assert_array_equal(whole[top : top + size[0], 8 : 8 + size[1]], below)


def test_scenes_of_a_glob_and_of_a_list(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    names = [path.name for path in sample(checkpoint, f"{scenes}/*u*.yaml", tmp_path / "glob")]
    assert names == ["square-5.png"]
    files = f"[{scenes}/wide.yaml,{scenes}/square.yaml]"
    names = [path.name for path in sample(checkpoint, files, tmp_path / "list")]
    assert names == ["wide-0.png", "square-5.png"]


def test_a_picture_is_that_of_the_model_called_by_hand(
    checkpoint: Path, scenes: Path, tmp_path: Path
) -> None:
    options = ("seed=40", "sampling.scale=2.5", "sampling.scheduler=DPMSolverMultistepScheduler")
    (path,) = sample(checkpoint, scenes / "square.yaml", tmp_path / "out", *options)
    sampling = Sampling(scheduler="DPMSolverMultistepScheduler", num_steps=2, scale=2.5)
    scene = load_scene(scenes / "square.yaml")
    expected = paint_scene(load_model(checkpoint), scene, torch.tensor([40]), sampling)
    np.testing.assert_array_equal(pixels(path), expected[0])


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


def test_batches_and_order_change_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Three scenes, two of one size, by three seeds: 9 jobs in batches of 1, 3 and 8."""
    scenes = write_scenes(tmp_path / "scenes", square=SQUARE, garden=GARDEN, wide=WIDE)
    found = {}
    for size in (1, 3, 8):
        out = tmp_path / f"by-{size}"
        found[size] = sample(checkpoint, scenes, out, "num_images=3", f"batch_size={size}")
    files = ",".join(str(scenes / f"{name}.yaml") for name in ("wide", "square", "garden"))
    found[0] = sample(checkpoint, f"[{files}]", tmp_path / "order", "num_images=3", "batch_size=3")
    assert [path.name for path in found[0]] != [path.name for path in found[1]]
    for size in (3, 8, 0):
        for path in found[size]:
            alone = pixels(tmp_path / "by-1" / path.name)
            assert np.abs(pixels(path) - alone).max() <= 1, path  # of 255: the last place
            assert recipe_of(path) == recipe_of(tmp_path / "by-1" / path.name)


def jobs_of(scenes: Path, num: int) -> list[Job]:
    paths = sorted(scenes.glob("*.yaml"))
    return [Job(load_scene(path), seed) for path in paths for seed in range(num)]


def test_jobs_of_one_size_share_batches(tmp_path: Path) -> None:
    jobs = jobs_of(write_scenes(tmp_path, a=SQUARE, b=WIDE, c=GARDEN), 3)
    batches = make_batches(jobs, [False] * 9, 4)
    squares, wide = [*jobs[:3], *jobs[6:]], jobs[3:6]
    assert batches == [squares[:4], squares[4:], wide]
    # What is done leaves the batches of the others as they were.
    done = [job in squares[:4] or job == wide[1] for job in jobs]
    assert make_batches(jobs, done, 4) == [squares[4:], [wide[0], wide[2]]]
    assert make_batches(jobs, [True] * 9, 4) == []


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
    moved = read(checkpoint)
    moved["config"]["module"]["backbone"]["path"] = str(here)
    moved["config"]["module"]["clip"]["name"] = f"local-dir:{here}/clip"
    moved["config"]["module"]["prior"]["path"] = f"{here}/clip/linear_prior.safetensors"
    assert config["config"] != moved["config"]
    write(moved, tmp_path / "moved.ckpt")
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


def test_an_override_may_put_another_component_in_place(checkpoint: Path) -> None:
    identity = "module.prior={_target_: spatext.modules.networks.priors.IdentityPrior}"
    model = load_model(checkpoint, overrides=[identity])
    assert isinstance(model.prior, IdentityPrior)  # the linear one's path is gone with it
