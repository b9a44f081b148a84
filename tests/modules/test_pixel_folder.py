"""Folders and hub names that are not what a decoder in pixels can start from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.unclip_folder import UNCLIP_PARTS
from spatext.modules.networks.upsampler import UpsamplerNet
from tiny import EMBED_DIM, WIDTH
from tiny_karlo import DECODER, FACTOR, load_pixel_backbone

UNET, PROJ, SCHEDULE = "decoder/config.json", "text_proj/config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def reweigh(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / name)
        change(weights)
        save_file(weights, folder / name, metadata={"format": "pt"})

    return apply


def pickled(folder: Path) -> None:
    path = folder / "text_proj" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "latent": (edit(UNET, in_channels=4), f"{UNET}: in_channels: found 4, expected 3, of an image"),
    "outputs": (edit(UNET, out_channels=4), f"{UNET}: out_channels: found 4, expected 3, or 6 wi"),
    "no embedding": (edit(UNET, class_embed_type=None), "class_embed_type: found None, expected i"),
    "if": (edit(UNET, addition_embed_type="text"), "addition_embed_type: found text, expected nul"),
    "blocks": (
        edit(UNET, mid_block_type="UNetMidBlock2DCrossAttn"),
        f"{UNET}: found UNetMidBlock2DCrossAttn in mid_block_type, expected the Simple kind of att",
    ),
    "attention": (edit(UNET, only_cross_attention=True), f"{UNET}: found only_cross_attention, ex"),
    "context": (
        edit(UNET, cross_attention_dim=12),
        f"{PROJ}: cross_attention_dim: found {WIDTH}, expected 12, that of the decoder",
    ),
    "time": (edit(PROJ, time_embed_dim=64), "time_embed_dim: found 64, expected 32, that of the d"),
    "text width": (
        edit("text_encoder/config.json", hidden_size=16, projection_dim=16),
        f"{PROJ}: clip_embeddings_dim: found {EMBED_DIM}, expected 16, the hidden_size of the text",
    ),
    "text projection": (
        edit("text_encoder/config.json", projection_dim=16),
        f"text_encoder/config.json: projection_dim: found 16, expected {EMBED_DIM}, the hidden_si",
    ),
    "end": (
        edit("text_encoder/config.json", eos_token_id=7),
        "text_encoder/config.json: eos_token_id: found 7, expected [0-9]+, that of the tokenizer",
    ),
    "fixed variance": (
        edit(f"decoder_scheduler/{SCHEDULE}", variance_type="fixed_small_log"),
        "variance_type: found fixed_small_log, expected learned_range, as the decoder has 6 outp",
    ),
    "learned variance": (
        edit(UNET, out_channels=3),
        "variance_type: found learned_range, expected a fixed one, as the decoder has 3 outputs",
    ),
    "class": (edit(PROJ, _class_name="ImageProjModel"), "class: found ImageProjModel, expected Un"),
    "index": (
        edit("model_index.json", decoder=["diffusers", "UNet2DModel"]),
        "model_index.json: decoder: found UNet2DModel, expected UNet2DConditionModel",
    ),
    "pickle": (pickled, f"text_proj/: found diffusion_pytorch_model.bin, expected {WEIGHTS}; only"),
    "missing": (
        reweigh(f"decoder/{WEIGHTS}", lambda weights: weights.pop("conv_out.bias")),
        "decoder/: found no conv_out.bias, expected the weights of a UNet2DConditionModel, all",
    ),
    "left over": (
        reweigh(f"text_proj/{WEIGHTS}", lambda weights: weights.update(more=torch.ones(1))),
        "text_proj/: found a left-over more, expected the weights of a TextImageProjection, all",
    ),
    "missing text": (
        reweigh("text_encoder/model.safetensors", lambda w: w.pop("text_projection.weight")),
        "text_encoder/: found no text_projection.weight, expected the weights of a CLIPTextModelW",
    ),
    "shape": (
        reweigh(f"decoder/{WEIGHTS}", lambda w: w.update({"conv_out.bias": torch.ones(5)})),
        "decoder/: found .*conv_out.bias.*, expected weights of a UNet2DConditionModel",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named(karlo: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(karlo, tmp_path / "karlo")
    change, message = REFUSED[name]
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_pixel_backbone(folder)
    assert str(caught.value).startswith(f"backbone.path={folder}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", UNCLIP_PARTS)
def test_a_missing_part_is_named(karlo: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(karlo, tmp_path / "karlo")
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=f"^backbone.path={folder}: missing {part}; expected .*$"):
        load_pixel_backbone(folder)


def test_a_folder_of_the_other_family_is_named(karlo: Path, base: Path) -> None:
    message = r"missing decoder; found unet, as a latent diffusion model \(module=latent\) has it, "
    with pytest.raises(ValueError, match=f"^backbone.path={base}: {message}expected an unCLIP or"):
        load_pixel_backbone(base)
    message = r"missing unet; found decoder, as an unCLIP or GLIDE decoder \(module=pixel\) has it"
    with pytest.raises(ValueError, match=f"^backbone.path={karlo}: {message}, expected a latent "):
        LatentBackbone.from_pretrained(str(karlo), embed_dim=EMBED_DIM)


def test_what_is_asked_for_is_compared(karlo: Path) -> None:
    message = "prediction_type: found epsilon, expected sample, as module.backbone.prediction_type"
    with pytest.raises(ValueError, match=message):
        load_pixel_backbone(karlo, prediction_type="sample")
    message = f"clip_embeddings_dim: found {EMBED_DIM}, expected 5, as module.backbone.embed_dim"
    with pytest.raises(ValueError, match=message):
        load_pixel_backbone(karlo, embed_dim=5)
    with pytest.raises(ValueError, match=r"^module.backbone.factor: found 0, expected at least 1"):
        load_pixel_backbone(karlo, factor=0)


def test_a_model_of_the_hub_is_loaded_and_checked(
    karlo: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cache of the hub, without a network."""
    files = {}
    for name, folder in (("karlo", karlo), ("base", base)):
        repo = tmp_path / f"models--org--{name}"
        files[name] = repo / "snapshots" / ("0" * 40)
        shutil.copytree(folder, files[name])
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    loaded = PixelBackbone.from_pretrained("org/karlo", embed_dim=EMBED_DIM)
    weight = load_pixel_backbone(karlo).unet.conv_out.weight
    assert torch.equal(loaded.unet.conv_out.weight, weight)
    assert UpsamplerNet.from_pretrained("org/karlo", FACTOR).last is not None
    with pytest.raises(ValueError, match=r"^backbone.path=org/base: missing decoder; found unet"):
        PixelBackbone.from_pretrained("org/base", embed_dim=EMBED_DIM)
    with pytest.raises(ValueError, match=r"^upsampler.path=org/base: missing super_res_first, sup"):
        UpsamplerNet.from_pretrained("org/base", FACTOR)
    new: dict[str, Any] = {"text_encoder": {}, "train_text": True, "embed_dim": EMBED_DIM}
    with pytest.raises(ValueError, match=r"^backbone.path=org/none: .* the hub, with tokenizer$"):
        PixelBackbone.from_config("org/none", decoder=DECODER, scheduler={}, **new)
    edit(UNET, class_embed_type="timestep")(files["karlo"])
    with pytest.raises(ValueError, match=r"^backbone.path=org/karlo: decoder/config.json: class_e"):
        PixelBackbone.from_pretrained("org/karlo", embed_dim=EMBED_DIM)
