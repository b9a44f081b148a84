import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch.testing import assert_close
from transformers import CLIPTextModel

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.st import Segments
from spatext.modules.networks.backbone import Backbone
from spatext.modules.networks.folders import require_parts
from spatext.modules.networks.latent import PARTS, LatentBackbone
from tiny import (
    CHANNELS,
    EMBED_DIM,
    LATENT_SIZE,
    MAX_LENGTH,
    SIZE,
    TEXTS,
    WIDTH,
    load_backbone,
    make_unet,
    write_scheduler,
)

LATENTS = (2, CHANNELS, LATENT_SIZE, LATENT_SIZE)


def images(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, SIZE, SIZE) * 2 - 1


def vae_of(base: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(base, subfolder="vae")


def test_a_folder_loads_with_its_own_weights(base: Path) -> None:
    backbone = load_backbone(base)
    assert isinstance(backbone, Backbone)
    assert (backbone.learned_variance, backbone.null_image_embed) == (False, None)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").state_dict()
    old = backbone.unet.state_dict()
    old["conv_in.weight"] = old["conv_in.weight"][:, :CHANNELS]
    assert_close(dict(old), dict(unet), rtol=0, atol=0)
    vae = backbone.vae.net.state_dict()
    assert_close(dict(vae), dict(vae_of(base).state_dict()), rtol=0, atol=0)
    encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder").state_dict()
    assert_close(dict(backbone.text_encoder.net.state_dict()), dict(encoder), rtol=0, atol=0)
    scheduler = DDIMScheduler.from_pretrained(base, subfolder="scheduler")
    assert_close(backbone.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-5, atol=0)
    assert backbone.scheduler_config["steps_offset"] == 1
    assert backbone.scheduler_config["set_alpha_to_one"] is False


def test_half_files_are_loaded_as_float32(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    loaded = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for part, kind in loaded.items():
        kind.from_pretrained(base, subfolder=part).half().save_pretrained(folder / part)
    backbone, full = load_backbone(folder), load_backbone(base)
    for part in (backbone.unet, backbone.vae.net, backbone.text_encoder.net):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    image = images()
    assert_close(backbone.encode(image), full.encode(image), rtol=0.02, atol=0.02)
    assert not torch.equal(backbone.encode(image), full.encode(image))


def test_without_embeddings_it_is_the_base_model(base: Path) -> None:
    backbone = LatentBackbone.from_pretrained(str(base), embed_dim=0, channels_last=False)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    assert_close(dict(backbone.unet.state_dict()), dict(unet.state_dict()), rtol=0, atol=0)
    x_t, t, text = torch.randn(LATENTS), torch.tensor([3, 700]), torch.randn(2, MAX_LENGTH, WIDTH)
    found = backbone.denoise(x_t, t, Conditions(text, Segments.null(2, 1, 0, (1, 1))))
    assert torch.equal(found, unet(x_t, t, text).sample)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_prediction_type_is_that_of_the_scheduler(
    base: Path, tmp_path: Path, prediction_type: str
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    write_scheduler(folder, prediction_type)
    assert load_backbone(folder).prediction_type == prediction_type


def test_a_new_unet_beside_pretrained_encoders(base: Path) -> None:
    unet = {key: make_unet().config[key] for key in ("block_out_channels", "layers_per_block")}
    blocks = {key: make_unet().config[key] for key in ("down_block_types", "up_block_types")}
    backbone = LatentBackbone.from_config(
        str(base),
        unet=unet | blocks | {"norm_num_groups": 4, "attention_head_dim": 2},
        scheduler={"num_train_timesteps": 50, "prediction_type": "sample"},
        embed_dim=EMBED_DIM,
    )
    assert backbone.prediction_type == "sample"
    assert len(backbone.alphas_cumprod) == 50
    conditions = Conditions(backbone.embed_text(TEXTS[:2]), Segments.null(2, 1, EMBED_DIM, (1, 1)))
    prediction = backbone.denoise(torch.randn(LATENTS), torch.tensor([0, 49]), conditions)
    assert prediction.shape == LATENTS
    vae = backbone.vae.net.state_dict()
    assert_close(dict(vae), dict(vae_of(base).state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(base: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=f"^backbone.path={folder}: missing {part}; expected .*$"):
        load_backbone(folder)


@pytest.mark.parametrize("path", ["/no/such", "./no/such", "~/no/such"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"^backbone.path={path}: no such folder; expected .*$"):
        LatentBackbone.from_pretrained(path, embed_dim=EMBED_DIM)


def test_hub_names_are_no_folders_unless_they_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert require_parts("org/model", PARTS, "backbone.path") == "org/model"
    Path("org/model/unet").mkdir(parents=True)
    with pytest.raises(ValueError, match="missing vae, text_encoder, tokenizer, scheduler"):
        require_parts("org/model", PARTS, "backbone.path")


def test_the_home_folder_is_found(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    loaded = LatentBackbone.from_pretrained(f"~/{base.name}", embed_dim=EMBED_DIM)
    assert loaded.channels == CHANNELS
