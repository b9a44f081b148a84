"""Folders and hub names that are not what SpaText can start from, told before any weights load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from spatext.modules.networks.latent import LatentBackbone
from tiny import CHANNELS, EMBED_DIM, WIDTH, load_backbone, write_scheduler

UNET, WEIGHTS = "unet/config.json", "diffusion_pytorch_model.safetensors"


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        config = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(config | changes))

    return apply


def pickled(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def half(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.rename(path.with_suffix(".fp16.safetensors"))


def cut_index(folder: Path) -> None:
    weight_map = {"conv_in.weight": "diffusion_pytorch_model-00001-of-00001.safetensors"}
    name = f"{WEIGHTS}.index.json"
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / name).write_text(json.dumps({"weight_map": weight_map}))


def no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def flow(folder: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")


def no_json(folder: Path) -> None:
    (folder / UNET).write_text("{")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "inpainting": (
        edit(UNET, in_channels=9),
        f"{UNET}: in_channels: found 9, expected 4, .* latent_channels: an inpainting model?",
    ),
    "another spatext": (edit(UNET, in_channels=CHANNELS + 5), "in_channels: found 9, expected 4"),
    "learned variance": (edit(UNET, out_channels=8), f"{UNET}: out_channels: found 8, expected 4"),
    "sdxl": (
        edit(UNET, addition_embed_type="text_time"),
        f"{UNET}: addition_embed_type: found text_time, expected null",
    ),
    "text width": (
        edit(UNET, cross_attention_dim=1024),
        f"{UNET}: cross_attention_dim: found 1024, expected {WIDTH}, the hidden_size",
    ),
    "class": (edit(UNET, _class_name="UNet2DModel"), "class: found UNet2DModel, expected UNet2DC"),
    "vae class": (edit("vae/config.json", _class_name="VQModel"), "VQModel, expected Autoencod"),
    "shifted vae": (edit("vae/config.json", shift_factor=0.1), "shift_factor: found 0.1, expect"),
    "text class": (
        edit("text_encoder/config.json", architectures=["T5EncoderModel"]),
        "text_encoder/config.json: class: found T5EncoderModel, expected CLIPTextModel",
    ),
    "index": (
        edit("model_index.json", unet=["diffusers", "FlaxUNet2DConditionModel"]),
        "model_index.json: unet: found FlaxUNet2DConditionModel, expected UNet2DConditionModel",
    ),
    "pickle": (
        pickled,
        f"unet/: found diffusion_pytorch_model.bin, expected {WEIGHTS}; only safetensors are read",
    ),
    "fp16 alone": (half, "text_encoder/: found model.fp16.safetensors, expected model.safetensors"),
    "part of it": (cut_index, "unet/: found .*index.json, expected .*-00001-of-00001.safetensors"),
    "no vocabulary": (no_vocabulary, "tokenizer/: found no vocabulary, expected tokenizer.json"),
    "flow": (flow, "scheduler_config.json: found FlowMatchEulerDiscreteScheduler, expected a sch"),
    "no json": (no_json, f"{UNET}: found no JSON"),
    "no config": (lambda folder: (folder / UNET).unlink(), f"missing .*/{UNET}; expected the lay"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named(base: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    change, message = REFUSED[name]
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(folder)
    assert str(caught.value).startswith("backbone.path")
    assert "\n" not in str(caught.value)


def test_the_prediction_type_is_that_of_the_experiment(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    message = "scheduler_config.json: prediction_type: found epsilon, expected v_prediction, as mod"
    with pytest.raises(ValueError, match=message):
        load_backbone(folder, prediction_type="v_prediction")
    write_scheduler(folder, "v_prediction")
    backbone = load_backbone(folder, prediction_type="v_prediction")
    assert backbone.prediction_type == "v_prediction"


def test_without_a_signal_there_is_no_epsilon(base: Path, tmp_path: Path) -> None:
    message = "^zero_terminal_snr: found true for a network that predicts epsilon, expected false"
    with pytest.raises(ValueError, match=message):
        load_backbone(base, zero_terminal_snr=True)
    folder = shutil.copytree(base, tmp_path / "base")
    config = dict(DDIMScheduler.from_pretrained(base, subfolder="scheduler").config)
    DDIMScheduler(**config | {"rescale_betas_zero_snr": True}).save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match=message):
        load_backbone(folder)


def test_weights_in_several_files_are_loaded(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    path = folder / "unet" / WEIGHTS
    weights = load_file(path)
    path.unlink()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {key: names[i % 2] for i, key in enumerate(weights)}
    for name in names:
        part = {key: weights[key] for key, place in places.items() if place == name}
        save_file(part, path.with_name(name), metadata={"format": "pt"})
    size = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    path.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    found = load_backbone(folder).unet.conv_out.weight
    assert_close(found, weights["conv_out.weight"])


def test_what_was_saved_loads_by_the_same_call(base: Path, tmp_path: Path) -> None:
    """Widened once, a UNet keeps what it has learned."""
    backbone = load_backbone(base)
    folder = shutil.copytree(base, tmp_path / "base", ignore=shutil.ignore_patterns("unet"))
    backbone.save_pretrained(folder)
    assert json.loads((folder / UNET).read_text())["in_channels"] == CHANNELS + EMBED_DIM
    again = load_backbone(folder)
    assert_close(dict(again.state_dict()), dict(backbone.state_dict()), rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"found {CHANNELS + EMBED_DIM}, expected {CHANNELS}, as"):
        LatentBackbone.from_pretrained(str(folder), embed_dim=EMBED_DIM + 1)


@pytest.fixture
def hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub, without a network, with the model org/tiny in it; returns its files."""
    repo = tmp_path / "models--org--tiny"
    files = repo / "snapshots" / ("0" * 40)
    shutil.copytree(base, files)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return files


def load_from_hub(name: str) -> LatentBackbone:
    return LatentBackbone.from_pretrained(name, embed_dim=EMBED_DIM)


def test_a_model_of_the_hub_is_loaded_and_checked(base: Path, hub: Path) -> None:
    weight = load_from_hub("org/tiny").unet.conv_out.weight
    assert torch.equal(weight, load_backbone(base).unet.conv_out.weight)
    edit(UNET, in_channels=9)(hub)
    with pytest.raises(ValueError, match=r"^backbone.path=org/tiny: unet/config.json: in_channels"):
        load_from_hub("org/tiny")
    shutil.rmtree(hub / "vae")
    with pytest.raises(ValueError, match=r"^backbone.path=org/tiny: missing vae; expected unet, "):
        load_from_hub("org/tiny")


def test_a_model_that_cannot_be_had_is_one_line(hub: Path) -> None:
    (hub / "unet" / WEIGHTS).unlink()
    for name in ("org/tiny", "org/other"):
        with pytest.raises(ValueError, match=f"^backbone.path={name}: .*; expected a folder, or"):
            load_from_hub(name)
