import copy
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextModel, CLIPTokenizer

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.st import Segments, st_map
from spatext.modules.networks.latent import LatentBackbone
from tiny import (
    CHANNELS,
    EMBED_DIM,
    LATENT_SIZE,
    MAX_LENGTH,
    SIZE,
    TEXTS,
    WIDTH,
    load_backbone,
    make_text_encoder,
    make_unet,
    write_scheduler,
)

LATENTS = (2, CHANNELS, LATENT_SIZE, LATENT_SIZE)
LONG = " ".join(["red"] * 2 * MAX_LENGTH)


def images(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, SIZE, SIZE) * 2 - 1


def vae_of(base: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(base, subfolder="vae")


def test_encode_is_the_scaled_posterior(base: Path) -> None:
    backbone, image, noise = load_backbone(base), images(), torch.randn(LATENTS)
    posterior = vae_of(base).encode(image).latent_dist
    assert_close(backbone.encode(image), posterior.mean * 1.7, rtol=1e-4, atol=1e-4)
    expected = (posterior.mean + posterior.std * noise) * 1.7
    assert_close(backbone.encode(image, noise), expected, rtol=1e-4, atol=1e-4)
    assert (posterior.std * noise).abs().mean() > 0.1


def test_decode_undoes_the_scale_and_clamps(base: Path) -> None:
    backbone, x_0 = load_backbone(base), torch.randn(LATENTS)
    expected = vae_of(base).decode(x_0 / 1.7).sample
    assert_close(backbone.decode(x_0), expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        backbone.vae.net.decoder.conv_out.bias += 1
    loud = backbone.decode(x_0)
    assert_close(loud, (expected + 1).clamp(-1, 1), rtol=1e-4, atol=1e-4)
    assert loud.max() == 1 < (expected + 1).max()


def test_decode_has_the_shape_of_what_was_encoded(base: Path) -> None:
    backbone, image = load_backbone(base), torch.rand(2, 3, 8, 24) * 2 - 1
    x_0 = backbone.encode(image)
    assert x_0.shape == (2, CHANNELS, 4, 12)
    assert backbone.decode(x_0).shape == image.shape


def test_text_states_are_those_of_transformers(base: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder").eval()
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = []
    for text in (TEXTS[0], LONG, ""):
        ids = tokenizer(text, add_special_tokens=False).input_ids[: MAX_LENGTH - 2]
        rows.append([start, *ids, *[end] * (MAX_LENGTH - 1 - len(ids))])
    expected = encoder(torch.tensor(rows)).last_hidden_state
    assert expected.shape == (3, MAX_LENGTH, WIDTH)
    backbone = load_backbone(base)
    assert_close(backbone.embed_text([TEXTS[0], LONG, ""]), expected, rtol=1e-4, atol=1e-4)
    # A short text alone is padded too: attention sees the padding.
    assert_close(backbone.embed_text([""]), expected[2:], rtol=1e-4, atol=1e-4)


def test_only_the_unet_is_owned(base: Path) -> None:
    backbone = load_backbone(base)
    owned = {f"unet.{name}" for name in backbone.unet.state_dict()}
    assert set(backbone.state_dict()) == owned
    assert {name for name, _ in backbone.named_parameters()} <= owned
    assert set(backbone.parameters()) == set(backbone.unet.parameters())
    frozen = [*backbone.vae.net.parameters(), *backbone.text_encoder.net.parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert backbone.unet.training
    backbone.train()
    assert not backbone.vae.net.training
    assert not backbone.text_encoder.net.training


def test_moves_reach_the_frozen_networks(base: Path) -> None:
    backbone = load_backbone(base)
    backbone.to(torch.float64)
    assert backbone.embed_text([""]).dtype == torch.float64
    assert backbone.encode(images().double()).dtype == torch.float64
    backbone.to("meta")
    frozen = [*backbone.vae.net.parameters(), *backbone.text_encoder.net.parameters()]
    assert all(p.is_meta for p in frozen)


def test_a_copy_shares_the_frozen_networks(base: Path) -> None:
    backbone = load_backbone(base)
    other = copy.deepcopy(backbone)
    assert other.vae.net is backbone.vae.net
    assert other.text_encoder.net is backbone.text_encoder.net
    with torch.no_grad():
        other.unet.conv_in.weight.zero_()
    assert backbone.unet.conv_in.weight.abs().min() > 0


def test_factor_and_multiple(base: Path) -> None:
    backbone = load_backbone(base)
    assert (backbone.factor, backbone.multiple, backbone.channels) == (2, 4, CHANNELS)
    deep = AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=CHANNELS,
        norm_num_groups=2,
    )
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    backbone = LatentBackbone(
        unet=make_unet(),
        vae=deep,
        text_encoder=make_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=DDPMScheduler(),
        embed_dim=EMBED_DIM,
    )
    assert (backbone.factor, backbone.multiple) == (8, 16)
    assert backbone.encode(images()).shape == (2, CHANNELS, SIZE // 8, SIZE // 8)


def test_zero_terminal_snr(base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(base, tmp_path / "base")
    write_scheduler(base, "v_prediction")
    plain, backbone = load_backbone(base), load_backbone(base, zero_terminal_snr=True)
    betas = DDIMScheduler.from_pretrained(base, subfolder="scheduler").betas
    expected = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    assert backbone.alphas_cumprod[-1] == 0 < plain.alphas_cumprod[-1]
    assert_close(backbone.alphas_cumprod, expected, rtol=1e-4, atol=1e-6)
    # Sampling sees the same schedule.
    sampled = DDIMScheduler.from_config(backbone.scheduler_config)
    assert_close(backbone.alphas_cumprod, sampled.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert not plain.scheduler_config["rescale_betas_zero_snr"]


def test_first_layer_std(base: Path) -> None:
    backbone, x_t = load_backbone(base), torch.randn(LATENTS)
    ids = torch.randint(0, 3, (2, SIZE, SIZE), dtype=torch.uint8)
    segments = Segments(ids, torch.randn(2, 2, EMBED_DIM), torch.ones(2, 2, dtype=torch.bool))
    conv = backbone.unet.conv_in
    old, new = conv.weight.split([CHANNELS, EMBED_DIM], dim=1)
    st = st_map(segments, (LATENT_SIZE, LATENT_SIZE), "area")
    base_std, st_std = backbone.first_layer_std(x_t, segments)
    expected = [
        nn.functional.conv2d(x_t, old, conv.bias, padding=1).std(),
        nn.functional.conv2d(st, new, padding=1).std(),
    ]
    assert_close([base_std, st_std], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_do_not_depend_on_layout_and_checkpointing(
    base: Path, gradient_checkpointing: bool
) -> None:
    gradients = []
    ids = torch.randint(0, 3, (2, SIZE, SIZE), dtype=torch.uint8)
    embeds, valid = torch.randn(2, 2, EMBED_DIM), torch.ones(2, 2, dtype=torch.bool)
    text, x_t = torch.randn(2, MAX_LENGTH, WIDTH), torch.randn(LATENTS)
    options = {"channels_last": True, "gradient_checkpointing": gradient_checkpointing}
    for given in ({"channels_last": False}, options):
        torch.manual_seed(0)
        backbone = load_backbone(base, **given).train()
        weight = backbone.unet.conv_out.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is given["channels_last"]
        conditions = Conditions(text, Segments(ids, embeds, valid))
        backbone.denoise(x_t, torch.tensor([3, 700]), conditions).square().mean().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters()})
    assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    assert gradients[0]["unet.conv_in.weight"][:, CHANNELS:].abs().max() > 1e-4
