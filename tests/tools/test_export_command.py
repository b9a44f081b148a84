"""spatext-export: from a checkpoint to a folder that paints what spatext-sample paints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from pixel_runs import save_pixel, save_upsampler
from runs import load_last
from samples import GARDEN, SQUARE, pixels, sample, write_scenes
from spatext.callbacks.checkpoint_writer import write
from spatext.pipeline import SpaTextPipeline, load_pipeline
from spatext.tools.export import main
from spatext.tools.export_record import make_record
from spatext.tools.loading import load_model

# What a user has who was given a folder: diffusers and this package, nothing of the training.
FRESH = """
import json
import sys
from diffusers import UNet2DConditionModel
from spatext.pipeline import SpaTextPipeline, load_pipeline

folder, pixel, scene, out = sys.argv[1:]
pipeline = SpaTextPipeline.from_pretrained(folder)
for i, image in enumerate(pipeline(scene, num_images=2, num_steps=2).images):
    image.save(f"{out}/{i}.png")
options = {"form": "full", "scales": {"text": 2.0, "segments": 4.0}, "num_steps": 2}
(image,) = pipeline(scene, seed=9, scheduler="DPMSolverMultistepScheduler", **options).images
image.save(f"{out}/full.png")
pipeline.save_pretrained(f"{out}/again")
again = SpaTextPipeline.from_pretrained(f"{out}/again")
again(scene, num_steps=2).images[0].save(f"{out}/again.png")
load_pipeline(pixel)(scene, num_steps=2).images[0].save(f"{out}/pixel.png")
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
foreign = [name for name in sys.modules if name.split(".")[0] in ("hydra", "omegaconf")]
tools = [name for name in sys.modules if name.startswith(("spatext.tools", "spatext.conf"))]
print(json.dumps({"inputs": unet.conv_in.in_channels, "foreign": foreign, "tools": tools}))
"""


@pytest.fixture(scope="module")
def folder(workspace: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported from a base that has moved, and that is gone."""
    place = tmp_path_factory.mktemp("exported")
    base = shutil.copytree(workspace / "base", place / "base")
    moved = [
        f"module.backbone.path={base}",
        f"module.clip.name=local-dir:{base}/clip",
        f"module.prior.path={base}/clip/linear_prior.safetensors",
    ]
    main([str(checkpoint), str(place / "model"), f"overrides={json.dumps(moved)}"])
    shutil.rmtree(base)
    return place / "model"


@pytest.fixture(scope="module")
def pixel(workspace: Path, karlo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a pixel model."""
    return save_pixel(workspace, karlo, tmp_path_factory.mktemp("pixel") / "last.ckpt")


@pytest.fixture(scope="module")
def upsampler(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another than the one that the pixel model's configuration names."""
    path = tmp_path_factory.mktemp("upsampler") / "last.ckpt"
    return f"upsamplers=[{save_upsampler(workspace, path)}]"


@pytest.fixture(scope="module")
def stages(pixel: Path, upsampler: str) -> Path:
    """The pixel model, exported with that upsampler."""
    out = pixel.parent / "model"
    main([str(pixel), str(out), upsampler, "sampling.upsampler_steps=2"])
    return out


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", square=SQUARE) / "square.yaml"


def as_pixels(images: list[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in images]


def test_images_are_those_of_spatext_sample(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """All scenes of a folder, in the same batches."""
    scenes = write_scenes(tmp_path / "scenes", square=SQUARE, garden=GARDEN)
    written = sample(checkpoint, scenes, tmp_path / "out", "num_images=2")
    pipeline = SpaTextPipeline.from_pretrained(folder)
    images = pipeline(scenes, num_images=2, num_steps=2).images
    for path, image in zip(written, as_pixels(images), strict=True):
        np.testing.assert_array_equal(image, pixels(path))


def test_a_pixel_model_has_its_stages(
    pixel: Path, upsampler: str, stages: Path, scene: Path, tmp_path: Path
) -> None:
    """Those that the command names, or else those of the run."""
    index = json.loads((stages / "model_index.json").read_text())
    assert index["_class_name"] == "SpaTextPixelPipeline"
    text = (stages / "README.md").read_text()
    assert "| upsampler_1 | 2 times, to 16 x 16 px |\n" in text
    assert "| upsamplers | .../last.ckpt |\n" in text
    main([str(pixel), str(tmp_path / "own"), "half=true"])
    text = (tmp_path / "own" / "README.md").read_text()
    assert "to 16 x 16 px, another network in the last step |\n" in text
    main([str(pixel), str(tmp_path / "none"), "upsamplers=[]"])
    steps = "sampling.upsampler_steps=2"
    expected = {
        name: sample(pixel, scene, tmp_path / f"{name}-sampled", steps, *options)
        for name, options in (("own", ()), ("none", ("upsamplers=[]",)))
    }
    for name, (path,) in expected.items():
        pipeline = load_pipeline(tmp_path / name)
        (found,) = as_pixels(pipeline(scene, num_steps=2, upsampler_steps=2).images)
        assert np.abs(found - pixels(path)).mean() <= (1 if name == "own" else 0)  # half
    assert np.abs(pixels(expected["own"][0]) - pixels(expected["none"][0])).mean() > 1


@pytest.mark.slow
def test_a_fresh_process_needs_the_folder_alone(
    checkpoint: Path,
    folder: Path,
    pixel: Path,
    upsampler: str,
    stages: Path,
    scene: Path,
    tmp_path: Path,
) -> None:
    expected = sample(checkpoint, scene, tmp_path / "out", "num_images=2")
    options = ("sampling.form=full", "sampling.scales={text:2.0,segments:4.0}", "seed=9")
    named = "sampling.scheduler=DPMSolverMultistepScheduler"
    expected += sample(checkpoint, scene, tmp_path / "full", *options, named)
    options = (upsampler, "sampling.upsampler_steps=2")
    expected += sample(pixel, scene, tmp_path / "stages", *options)
    moved = [shutil.copytree(path, tmp_path / path.parent.name) for path in (folder, stages)]
    command = [sys.executable, "-c", FRESH, *map(str, moved), str(scene), str(tmp_path)]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr, result.stderr
    for path in (
        *folder.rglob("*"),
        *stages.rglob("*"),
    ):  # nothing tells of the machine that exported
        assert path.is_dir() or str(tmp_path.parent).encode() not in path.read_bytes(), path
    told = json.loads(result.stdout.splitlines()[-1])
    assert told == {"inputs": 12, "foreign": [], "tools": []}
    for name, path in zip(("0.png", "1.png", "full.png", "pixel.png"), expected, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / name), pixels(path))
    again = pixels(tmp_path / "again.png")  # alone in its batch, where rounding may differ
    assert np.abs(again - pixels(expected[0])).max() <= 1


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_averaged_and_raw_weights(checkpoint: Path, tmp_path: Path, weights: Any) -> None:
    state = load_last(checkpoint.parents[1])
    key = {"ema": "state_dict", "raw": "current_model_state"}[weights]
    expected = {name: state[key][f"backbone.unet.{name}"] for name in ("conv_in.weight",)}
    model = load_model(checkpoint, weights=weights)
    assert_close(model.backbone.unet.conv_in.weight.data, expected["conv_in.weight"])  # type: ignore[attr-defined]
    main([str(checkpoint), str(tmp_path / "model"), f"weights={weights}", "half=true"])
    found = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert_close(found["conv_in.weight"], expected["conv_in.weight"].half(), rtol=0, atol=0)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| weights | {weights} |" in card
    assert "| files | float16 |" in card


def test_the_card_tells_of_the_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parents[1], run, symlinks=True)
    (run / "result.json").write_text(json.dumps({"metrics": {"val/loss": 0.25, "x": None}}))
    (run / "checkpoints" / "last.ckpt" / "scores.json").write_text('{"val/fid": 12.5}')
    out = tmp_path / "model"
    main([str(run / "checkpoints" / "last.ckpt"), str(out), "sampling.num_steps=7"])
    assert capsys.readouterr().out.startswith(f"{out}: ")
    text = (out / "README.md").read_text()
    facts = json.loads((run / "provenance.json").read_text())
    for line in (
        "| checkpoint | step-2.ckpt |",
        "| step | 2 |",
        "| weights | ema |",
        f"| commit | {facts['commit']} |",
        f"| diffusers | {facts['packages']['diffusers']} |",
        "| val/loss | 0.25 |",
        "| val/fid | 12.5 |",
    ):
        assert line in text.splitlines(), line
    assert "| x |" not in text
    sampling, config = (
        yaml.safe_load(part.partition("```")[0]) for part in text.split("```yaml\n")[1:]
    )
    assert sampling["num_steps"] == 7
    expected = load_last(run)["config"]
    assert config.keys() == expected.keys()
    assert config["module"]["optimizer"] == expected["module"]["optimizer"]
    assert config["datamodule"]["shards"] == ".../train"
    assert config["module"]["clip"]["name"] == "local-dir:.../clip"


def test_a_record_without_its_run_folder_has_no_secrets(checkpoint: Path, tmp_path: Path) -> None:
    state = load_last(checkpoint.parents[1])
    del state["current_model_state"]
    write(state, tmp_path / "a" / "alone.ckpt")
    shards = {"shards": ["s3://me:word@host/x", "~/a/b", "data/c", "/srv/me/{0..9}.tar"]}
    config = OmegaConf.create({"hf_token": "abc", "datamodule": shards})
    record = make_record(tmp_path / "a" / "alone.ckpt", state, config, "ema")
    assert record["weights"] == "raw (the run kept no average)"
    assert record["commit"] == "not recorded"
    assert record["packages"]["torch"]
    assert record["config"]["hf_token"] == "***"
    found = record["config"]["datamodule"]["shards"]
    assert found == ["s3://***@host/x", ".../b", "data/c", ".../{0..9}.tar"]
    assert "metrics" not in record
