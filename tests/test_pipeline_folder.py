"""Folders of the pipeline: written, read again, from a hub's cache, and refused if not whole."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from spatext.callbacks.export import halve, whole_folder
from spatext.datamodules.scenes import Scene, scene_from_dict
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.prior_schedulers import KARLO
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.networks.regression import MLPPrior
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from spatext.pipeline import SpaTextPipeline
from tiny import (
    EMBED_DIM,
    SIZE,
    load_loud,
    load_spatext,
    make_prior_transformer,
)

QUICK = Sampling(num_steps=2, scale=4.0, scheduler="DPMSolverMultistepScheduler")
REGIONS = [{"text": "a red circle", "box": [1, 2, 8, 12]}]
SCENE = scene_from_dict({"prompt": "a sea", "size": SIZE, "regions": REGIONS}, "scene", None)


@pytest.fixture(scope="module")
def model(base: Path) -> SpaText:
    return load_loud(base)


@pytest.fixture(scope="module")
def pipeline(model: SpaText) -> SpaTextPipeline:
    record = {"step": 2, "commit": "abc", "packages": {"torch": "1"}, "config": {"seed": 0}}
    return SpaTextPipeline.from_model(model, sampling=QUICK, record=record)


@pytest.fixture(scope="module")
def folder(pipeline: SpaTextPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "folder"
    pipeline.save_pretrained(folder)
    return folder


def pixels(pipeline: SpaTextPipeline, scene: Scene = SCENE) -> np.ndarray:
    return np.stack([np.asarray(image) for image in pipeline(scene, num_images=2).images])


def networks(pipeline: SpaTextPipeline) -> Iterator[tuple[str, nn.Module]]:
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            yield name, part


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_round_trip(pipeline: SpaTextPipeline, folder: Path, tmp_path: Path) -> None:
    """Of a folder that was written, read and written again."""
    again = SpaTextPipeline.from_pretrained(folder, use_safetensors=True)
    for name, part in networks(pipeline):
        assert_close(part.state_dict(), getattr(again, name).state_dict(), rtol=0, atol=0)
        assert not getattr(again, name).training
    np.testing.assert_array_equal(pixels(again), pixels(pipeline))
    assert again.scheduler.to_json_string() == pipeline.scheduler.to_json_string()
    assert again.parameters == pipeline.parameters
    assert again.config.sampling["scale"] == 4.0
    assert again.clip.fingerprint == {"clip": "local-dir:clip", "scale": "raw", "embed_dim": 8}
    again.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    for name in files(folder):
        content = (tmp_path / "again" / name).read_bytes()
        if not name.endswith("tokenizer.json"):  # it notes how it was called last
            assert content == (folder / name).read_bytes(), name
        assert str(tmp_path.parent).encode() not in content  # where the parts were read from


def test_weights_are_safetensors_alone(folder: Path) -> None:
    suffixes = {Path(name).suffix for name in files(folder)}
    assert suffixes == {".safetensors", ".json", ".md"}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "SpaTextPipeline"
    assert index["clip"] == ["spatext.pipeline_parts", "ClipPart"]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]


def test_parts_load_by_their_own_classes(folder: Path, model: SpaText) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    assert unet.conv_in.in_channels == unet.config.in_channels == 4 + EMBED_DIM
    expected = model.backbone.unet.state_dict()  # type: ignore[attr-defined]
    assert_close(unet.state_dict(), dict(expected), rtol=0, atol=0)
    clip = Clip(f"local-dir:{folder / 'clip'}")
    assert_close(clip.embed_texts(["two dogs"]), model.clip.embed_texts(["two dogs"]))


def test_training_goes_on_from_a_folder(folder: Path, model: SpaText) -> None:
    """It is a base like another, whose map is not drawn anew."""
    shutil.copy(folder / "prior" / "linear_prior.safetensors", folder / "clip")
    other = load_spatext(folder)
    (folder / "clip" / "linear_prior.safetensors").unlink()
    assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def mlp() -> MLPPrior:
    prior = MLPPrior(embed_dim=EMBED_DIM, width=16, num_blocks=1)
    prior.set_statistics(torch.randn(EMBED_DIM), torch.ones(EMBED_DIM))
    return prior


def diffusion() -> DiffusionPrior:
    options = {"num_steps": 3, "guidance_scale": 2.0, "num_candidates": 3}
    return DiffusionPrior(make_prior_transformer(), KARLO, **options)


@pytest.mark.parametrize("make", [IdentityPrior, mlp, diffusion])
def test_every_prior_makes_the_round_trip(
    base: Path, tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    pipeline = SpaTextPipeline.from_model(load_spatext(base, prior=make()), sampling=QUICK)
    pipeline.save_pretrained(tmp_path)
    again = SpaTextPipeline.from_pretrained(tmp_path)
    assert (again.prior is None) == (make is IdentityPrior)
    assert type(again.model.prior) is type(pipeline.model.prior)
    np.testing.assert_array_equal(pixels(again), pixels(pipeline))
    if isinstance(again.model.prior, DiffusionPrior):
        assert (again.model.prior.num_candidates, again.model.prior.guidance_scale) == (3, 2.0)


def test_half_files_are_read_as_float32(folder: Path, tmp_path: Path) -> None:
    small = shutil.copytree(folder, tmp_path / "small")
    halve(small)
    weights = load_file(small / "text_encoder" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    pipeline = SpaTextPipeline.from_pretrained(small)
    assert {part.dtype for _, part in networks(pipeline)} == {torch.float32}
    expected = pixels(SpaTextPipeline.from_pretrained(folder)).astype(int)
    assert np.abs(pixels(pipeline) - expected).mean() < 1
    half = SpaTextPipeline.from_pretrained(small, torch_dtype=torch.bfloat16)
    assert {part.dtype for name, part in networks(half)} == {torch.bfloat16}


def test_a_name_on_the_hub(folder: Path, tmp_path: Path) -> None:
    """From its cache: there is no network."""
    repository = tmp_path / "models--me--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    options = {"cache_dir": tmp_path, "local_files_only": True}
    pipeline = SpaTextPipeline.from_pretrained("me/model", **options)
    expected = pixels(SpaTextPipeline.from_pretrained(folder))
    np.testing.assert_array_equal(pixels(pipeline), expected)


def test_the_card(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert (front["library_name"], front["license"]) == ("diffusers", "other")
    assert "<fill in" in front["license_name"]
    assert "| step | 2 |\n" in body
    assert "| commit | abc |\n" in body
    assert "| torch | 1 |\n" in body
    blocks = [yaml.safe_load(part.partition("```")[0]) for part in body.split("```yaml\n")[1:]]
    assert blocks[0]["num_steps"] == 2
    assert blocks[1:] == [{"seed": 0}]
    code = body.split("```python\n")[1].partition("```")[0]
    compile(code, "README.md", "exec")
    assert code.startswith("from spatext.pipeline import SpaTextPipeline\n")


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    def write(text: str, *, fail: bool = False) -> None:
        with whole_folder(tmp_path / "out") as temporary:
            (temporary / text).write_text(text)
            if fail:
                raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        write("first", fail=True)
    assert list(tmp_path.iterdir()) == []
    write("second")
    with pytest.raises(RuntimeError, match="full disk"):
        write("third", fail=True)
    assert files(tmp_path) == ["out/second"]
    write("fourth")
    assert files(tmp_path) == ["out/fourth"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    old = f".out@{socket.gethostname()}@{os.getpid()}.old"  # killed between the two renames
    (tmp_path / "out").rename(tmp_path / old)
    with pytest.raises(RuntimeError, match="full disk"):
        write("fifth", fail=True)
    assert files(tmp_path) == ["out/fourth"]
    (tmp_path / "link").symlink_to("out")
    with whole_folder(tmp_path / "link") as temporary:
        (temporary / "sixth").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]
    assert files(tmp_path / "out") == ["sixth"]
