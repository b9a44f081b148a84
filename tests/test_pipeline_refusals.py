"""Folders that are not whole, and other formats, are refused before any weights are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from piped import assert_refused, quiet
from spatext.pipeline import SpaTextPipeline
from tiny import load_spatext


@pytest.fixture(scope="module")
def pipeline(base: Path) -> SpaTextPipeline:
    return quiet(load_spatext(base))


@pytest.fixture(scope="module")
def folder(pipeline: SpaTextPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "folder"
    pipeline.save_pretrained(folder)
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder: Path) -> None:
    """Two files by an index, the second missing."""
    part = folder / "unet"
    weights = load_file(part / "diffusion_pytorch_model.safetensors")
    (part / "diffusion_pytorch_model.safetensors").unlink()
    save_file(weights, part / "diffusion_pytorch_model-00001-of-00002.safetensors")
    first, second = (f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))
    index = {"weight_map": {"a": first, "b": second}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def remove(name: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return call


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (remove("model_index.json"), "missing model_index.json; expected a folder of"),
        (remove("vae"), "missing vae; expected unet, vae"),
        (remove("clip"), "missing clip; expected"),
        (remove("prior"), "missing prior; expected"),
        (remove("clip/open_clip_model.safetensors"), "missing clip/open_clip_model.safetensors"),
        (remove("clip/embeddings.json"), "missing clip/embeddings.json"),
        (remove("prior/linear_prior.safetensors"), "missing prior/linear_prior.safetensors"),
        (remove("unet/diffusion_pytorch_model.safetensors"), "unet/: found no weights"),
        (shard, "unet/: found .*, expected diffusion_pytorch_model-00002-of-00002.safetensors"),
        (
            lambda folder: edit(folder / "unet" / "config.json", in_channels=4),
            "unet/config.json: in_channels: found 4, expected 12: the latents' and 8 of CLIP's",
        ),
        (
            lambda folder: edit(folder / "prior" / "prior.json", **{"class": "os.system"}),
            "prior/prior.json: class: found os.system, expected one of LinearPrior, MLPPrior",
        ),
        (
            lambda folder: edit(folder / "model_index.json", _class_name="FluxPipeline"),
            "model_index.json: found a FluxPipeline, expected a SpaTextPipeline",
        ),
    ],
)
def test_a_broken_folder_is_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], None],
    message: str,
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    break_it(broken)
    assert_refused(SpaTextPipeline, broken, message, capsys)


def test_no_folder_and_other_formats_are_refused(
    pipeline: SpaTextPipeline, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="pipeline=/nowhere: no such folder"):
        SpaTextPipeline.from_pretrained("/nowhere")
    with pytest.raises(ValueError, match=r"^pipeline=me/nothing: .*; expected a folder, or a name"):
        SpaTextPipeline.from_pretrained("me/nothing", cache_dir=tmp_path, local_files_only=True)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "clip" / "embeddings.json").write_text("{")
    with pytest.raises(ValueError, match=r"^pipeline: .*embeddings.json: found no JSON"):
        SpaTextPipeline.from_pretrained(broken)
    with pytest.raises(ValueError, match="variant: found 'fp16', expected none"):
        SpaTextPipeline.from_pretrained(folder, variant="fp16")
    with pytest.raises(ValueError, match="use_safetensors: found False, expected safetensors"):
        SpaTextPipeline.from_pretrained(folder, use_safetensors=False)
    with pytest.raises(ValueError, match="push_to_hub: found True, expected False"):
        pipeline.save_pretrained(tmp_path / "out", push_to_hub=True)
    with pytest.raises(ValueError, match="expected safetensors, and no variant"):
        pipeline.save_pretrained(tmp_path / "out", safe_serialization=False)
    assert not (tmp_path / "out").exists()
