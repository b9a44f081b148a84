"""The parts of a base model, trained from scratch, and SpaText that starts from them."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPTextModel

from runs import latent, load_last, run, shared
from spatext.modules.networks.clip import Clip
from tiny import CHANNELS, LATENT_SIZE


@pytest.fixture(scope="module")
def scratch(workspace: Path) -> Path:
    """The three parts of a base model, trained for three steps each into one folder."""
    folder = workspace / "scratch"

    def part(experiment: str, *overrides: str) -> None:
        run(
            [
                f"experiment={experiment}",
                *shared(workspace, workspace / experiment),
                f"callbacks.export.folder={folder}",
                "trainer.max_steps=3",
                *overrides,
            ]
        )

    tokenizer = workspace / "base" / "tokenizer"
    part("shapes_clip", f"module.tokenizer.pretrained_model_name_or_path={tokenizer}")
    part(
        "shapes_autoencoder",
        "module.model.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
        "module.model.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]",
        "module.model.block_out_channels=[8,16]",
    )
    part(
        "shapes_text_to_image",
        "trainer=cpu",  # one process
        f"module.backbone.path={folder}",
        "module.backbone.unet.block_out_channels=[16,16,32]",
    )
    return folder


def averaged(workspace: Path, experiment: str, prefix: str) -> dict[str, Tensor]:
    """The averaged weights of a run, which after three steps are not the current ones."""
    checkpoint = load_last(workspace / experiment)
    assert checkpoint["global_step"] == 3
    assert any(
        not torch.equal(value, checkpoint["current_model_state"][name])
        for name, value in checkpoint["state_dict"].items()
    )
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if prefix in k}


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As exported weights are stored."""
    return {name: value.half().contiguous() for name, value in state.items()}


def test_clip_is_exported(workspace: Path, scratch: Path) -> None:
    weights = averaged(workspace, "shapes_clip", "model.")
    clip = Clip(f"local-dir:{scratch / 'clip'}")
    exported = dict(clip.model.net.named_parameters())
    assert_close(halved(exported), halved(weights), rtol=0, atol=0)
    assert clip.embed_dim == 64
    prior = load_file(scratch / "clip" / "linear_prior.safetensors")
    assert (prior["weight"].shape, prior["bias"].shape) == ((64, 64), (64,))
    text_encoder = CLIPTextModel.from_pretrained(scratch, subfolder="text_encoder")
    found = text_encoder.get_input_embeddings().weight.data
    assert_close(found, weights["token_embedding.weight"], rtol=1e-3, atol=1e-5)


def test_autoencoder_is_exported(workspace: Path, scratch: Path) -> None:
    vae = AutoencoderKL.from_pretrained(scratch, subfolder="vae")
    weights = averaged(workspace, "shapes_autoencoder", "model.")
    assert_close(halved(vae.state_dict()), halved(weights), rtol=0, atol=0)
    assert vae.config.scaling_factor != 0.18215  # its own, not Stable Diffusion's


def test_text_to_image_is_exported(workspace: Path, scratch: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(scratch, subfolder="unet")
    weights = averaged(workspace, "shapes_text_to_image", "backbone.unet.")
    assert_close(halved(unet.state_dict()), halved(weights), rtol=0, atol=0)
    assert unet.config.in_channels == CHANNELS
    scheduler = json.loads((scratch / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"


def test_spatext_starts_from_the_exported_model(
    workspace: Path, scratch: Path, tmp_path: Path
) -> None:
    """Channels of the base keep their trained weights in the widened convolution."""
    options = ("trainer.max_steps=1", "module.optimizer.lr=0.0", "module.backbone.embed_dim=64")
    results = run(latent(workspace, tmp_path, f"base={scratch}", *options))
    unet = UNet2DConditionModel.from_pretrained(scratch, subfolder="unet")
    started = results["module"].backbone.unet.state_dict()
    assert_close(started["conv_in.weight"][:, :CHANNELS], unet.conv_in.weight.data)
    assert started["conv_in.weight"].shape[1] == CHANNELS + 64
    rest = {k: v for k, v in unet.state_dict().items() if k != "conv_in.weight"}
    assert_close(halved({k: started[k] for k in rest}), halved(rest), rtol=0, atol=0)
    x_0 = results["module"].backbone.encode(torch.zeros(1, 3, 2 * LATENT_SIZE, 2 * LATENT_SIZE))
    assert x_0.shape == (1, CHANNELS, LATENT_SIZE, LATENT_SIZE)
