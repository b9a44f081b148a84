"""spatext-sample and the page on a pixel model: prior, decoder and upsampler by one command."""

import re
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from one_scene import paint_scene
from pages import serving, submit, watch
from pixel_runs import save_pixel, save_upsampler
from samples import SQUARE, pixels, recipe_of, sample, sample_by, write_scenes
from spatext.callbacks.remarks import remarks
from spatext.datamodules.scenes import load_scene
from spatext.modules.sampling_options import Sampling
from spatext.tools.loading import load_model
from spatext.tools.recipes import fingerprint
from spatext.tools.upsamplers import use_upsamplers
from tiny import load_spatext

KARLO = ("sampling.scheduler=UnCLIPScheduler", "sampling.upsampler_scheduler=UnCLIPScheduler")
STEPS = "sampling.upsampler_steps=2"


@pytest.fixture(scope="module")
def model(workspace: Path, karlo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its configuration names Karlo's prior and upsampler."""
    return save_pixel(workspace, karlo, tmp_path_factory.mktemp("pixel") / "last.ckpt")


@pytest.fixture(scope="module")
def upsampler(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_upsampler(workspace, tmp_path_factory.mktemp("upsampler") / "last.ckpt")


def test_scenes_become_pictures_and_pictures_come_again(
    model: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = sample(model, scenes, tmp_path / "out", *KARLO, STEPS, "num_images=2")
    assert [pixels(path).shape for path in written] == [(16, 16, 3)] * 2 + [(8, 24, 3)] * 2
    assert all(pixels(path).std() > 1 for path in written)
    assert "4.0/4 images" in capsys.readouterr().err  # the steps of both stages fill the bar
    sampling = Sampling("UnCLIPScheduler", 2, upsampler_scheduler="UnCLIPScheduler")
    scene, options = load_scene(scenes / "square.yaml"), {**vars(sampling), "upsampler_steps": 2}
    expected = paint_scene(load_model(model), scene, torch.tensor([5, 6]), Sampling(**options))
    found = np.stack([pixels(path) for path in written[:2]])
    np.testing.assert_array_equal(found, expected)
    (again,) = sample_by(f"recipe={written[1]}", f"out={tmp_path}/again", "device=cpu")
    assert again.read_bytes() == written[1].read_bytes()
    assert "upsamplers" not in recipe_of(again)["made"]


def test_upsamplers_may_be_named(
    model: Path,
    upsampler: Path,
    karlo: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def paint(name: str, *options: str) -> Path:
        (path,) = sample(model, scenes / "square.yaml", tmp_path / name, STEPS, *options)
        return path

    own, named = paint("own"), paint("folder", f"upsamplers=[{karlo}]")
    np.testing.assert_array_equal(pixels(named), pixels(own))
    assert recipe_of(named)["made"]["upsamplers"] == [str(karlo)]
    none, trained = paint("none", "upsamplers=[]"), paint("trained", f"upsamplers=[{upsampler}]")
    for first, second in ((own, none), (own, trained), (none, trained)):
        assert np.abs(pixels(first) - pixels(second)).mean() > 1
        assert recipe_of(first)["model"] != recipe_of(second)["model"]

    capsys.readouterr()
    for path in (none, trained):  # the recipe says with which
        out = f"out={tmp_path}/again"
        (again,) = sample_by(f"recipe={path}", out, "device=cpu")
        assert again.read_bytes() == path.read_bytes()
    assert "weights are not" not in capsys.readouterr().err
    (other,) = sample_by(f"recipe={trained}", out, "device=cpu", f"upsamplers=[{karlo}]")
    assert "their weights are not those that made" in capsys.readouterr().err
    np.testing.assert_array_equal(pixels(other), pixels(own))


def test_the_fingerprint_covers_every_network_of_the_upsampler(model: Path) -> None:
    painter = load_model(model)
    (net,) = painter.upsamplers
    found = {fingerprint(painter)}
    for part in (net.unet, net.last):
        next(part.parameters()).data += 1
        found.add(fingerprint(painter))
    assert len(found) == 3


def test_a_grid_of_scales_has_the_embedding_of_the_prompt_with_the_text(
    model: Path, tmp_path: Path
) -> None:
    scenes = write_scenes(tmp_path / "scenes", square=SQUARE)
    grid = ("scale_grid={text:[0,2],segments:[1.5]}", "batch_size=1", STEPS)
    first, second = sample(model, scenes, tmp_path / "out", *grid)
    assert second.name == "square-5-text2-segments1.5.png"
    assert np.abs(pixels(first) - pixels(second)).mean() > 1


def test_what_the_prior_does_not_read_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join(["a red circle"] * 8) + " at the very end"
    scenes = write_scenes(tmp_path / "scenes", long=f"{{prompt: {words}, size: 16, regions: []}}")
    sample(model, scenes, tmp_path / "out", STEPS)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cut off" in line]
    assert line.startswith("warning: scene long: prompt: ")
    assert "the text encoder reads 12; cut off" in line  # and CLIP no more, of the same tokens
    painter = load_model(model)
    painter.backbone.tokenizer.model_max_length = 99
    (line,) = remarks(painter, [load_scene(scenes / "long.yaml")], Sampling())
    assert "the prior's CLIP reads 12; cut off" in line
    assert line.endswith('the very end"')


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/none", "upsamplers: found '/none', expected a list of folders or checkpoints"),
        ("[/none]", "upsamplers=/none: no such folder; expected super_res_first, super_res_sch"),
        ("[none.ckpt]", "upsamplers=none.ckpt: no such file, expected a .ckpt of spatext-train"),
        ("[{base}]", "upsamplers={base}: missing super_res_first, super_res_scheduler; expected"),
        ("[{model}]", "upsamplers={model}: found a PixelSpaText, expected a checkpoint of an Ups"),
    ],
)
def test_wrong_upsamplers(
    workspace: Path, model: Path, scenes: Path, tmp_path: Path, value: str, message: str
) -> None:
    """Before the model's checkpoint is looked at, which is missing here."""
    places = {"base": workspace / "base", "model": model}
    expected, option = message.format(**places), f"upsamplers={value.format(**places)}"
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{re.escape(expected)}"):
        sample(tmp_path / "none.ckpt", scenes, tmp_path / "out", option)


def test_upsamplers_that_do_not_fit(
    workspace: Path, model: Path, upsampler: Path, karlo: Path
) -> None:
    latent, pixel = load_spatext(workspace / "base"), load_model(model)
    use_upsamplers(latent, [])
    with pytest.raises(ValueError, match=r"^upsamplers: found with a LatentSpaText, expected a"):
        use_upsamplers(latent, [str(karlo)])
    with pytest.raises(ValueError, match=r"^upsamplers: found 2 folders for a factor of 2, exp"):
        use_upsamplers(pixel, [str(karlo)] * 2)
    with pytest.raises(ValueError, match=r"^upsamplers: found 2 x 1 folders for a factor of 2"):
        use_upsamplers(pixel, [str(upsampler), str(karlo)])
    with pytest.raises(ValueError, match=r"^module.upsamplers: found scales 2 x 2, expected a p"):
        use_upsamplers(pixel, [str(upsampler)] * 2)


def test_the_page_counts_the_steps_of_all_stages(model: Path, upsampler: Path) -> None:
    options = ("sampling.upsampler_steps=3", f"upsamplers=[{upsampler}]")
    with serving(model, *options) as address:
        with httpx.Client(base_url=address, timeout=30) as client:
            job = submit(client, form="full", scales={"text": 2.0, "segments": 4.0})
            events = list(watch(client, job["id"]))
    last = events[-1]
    assert last["state"] == "done"
    assert (last["num_steps"], last["total_steps"], last["step"]) == (4, 7, 7)
    assert any("preview" in event for event in events)
