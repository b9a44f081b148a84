"""What a pixel backbone starts from, and what it writes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UnCLIPScheduler, UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.st import Segments
from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.upsampler import UpsamplerNet
from tiny import EMBED_DIM, LATENT_SIZE, MAX_LENGTH, TEXTS, WIDTH
from tiny_karlo import DECODER, FACTOR, LEARNED_RANGE, load_pixel_backbone

X_0 = (2, 3, LATENT_SIZE, LATENT_SIZE)
COSINE = LEARNED_RANGE | {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}


def test_a_constant_of_older_versions_is_no_weight(karlo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(karlo, tmp_path / "karlo")
    positions = {"text_model.embeddings.position_ids": torch.arange(MAX_LENGTH)[None]}
    path = folder / "text_encoder" / "model.safetensors"
    save_file(load_file(path) | positions, path, metadata={"format": "pt"})
    found, expected = load_pixel_backbone(folder), load_pixel_backbone(karlo)
    assert_close(found.embed_text(TEXTS), expected.embed_text(TEXTS), rtol=0, atol=0)


def test_the_published_schedule_needs_no_name(karlo: Path) -> None:
    """Karlo's files do not say it: UnCLIPScheduler knows no other."""
    for part in ("decoder_scheduler", "super_res_scheduler"):
        text = (karlo / part / "scheduler_config.json").read_text()
        assert "UnCLIPScheduler" in text
        assert "beta_schedule" not in text
    expected = UnCLIPScheduler().alphas_cumprod
    for net in (load_pixel_backbone(karlo), UpsamplerNet.from_pretrained(str(karlo), FACTOR)):
        assert_close(net.alphas_cumprod, expected, rtol=1e-4, atol=1e-7)
        assert net.scheduler_config["beta_schedule"] == "squaredcos_cap_v2"
        assert net.scheduler_config["timestep_spacing"] == "linspace"


def test_what_was_saved_loads_by_the_same_call(karlo: Path, tmp_path: Path) -> None:
    """Widened once, a decoder keeps what it has learned; the text encoder too where it was
    trained."""
    for train_text in (False, True):
        backbone = load_pixel_backbone(karlo, train_text=train_text)
        folder = shutil.copytree(karlo, tmp_path / f"saved_{train_text}")
        for part in ("decoder", "text_proj", "decoder_scheduler"):
            shutil.rmtree(folder / part)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter += 0.1
        backbone.save_pretrained(folder)
        again = load_pixel_backbone(folder, train_text=train_text)
        assert_close(dict(again.state_dict()), dict(backbone.state_dict()), rtol=0, atol=0)
        assert any(name.startswith("text_encoder.") for name in again.state_dict()) is train_text
        assert_close(again.alphas_cumprod, backbone.alphas_cumprod, rtol=0, atol=0)
        assert again.scheduler_config["variance_type"] == "learned_range"
        message = f"in_channels: found {3 + EMBED_DIM}, expected 3, of an image$"
        with pytest.raises(ValueError, match=message):
            load_pixel_backbone(folder, embed_dim=0)


def test_diffusers_loads_what_was_saved(karlo: Path, tmp_path: Path) -> None:
    load_pixel_backbone(karlo, embed_dim=0).save_pretrained(tmp_path)
    classes = {"decoder": UNet2DConditionModel, "text_proj": UnCLIPTextProjModel}
    for part, kind in classes.items():
        saved, info = kind.from_pretrained(tmp_path / part, output_loading_info=True)
        assert not any(info.values())
        published = kind.from_pretrained(karlo / part)
        assert_close(dict(saved.state_dict()), dict(published.state_dict()), rtol=0, atol=0)
    schedulers = [
        dict(UnCLIPScheduler.from_pretrained(folder / "decoder_scheduler").config)
        for folder in (tmp_path, karlo)
    ]
    for config in schedulers:
        for key in ("_name_or_path", "_use_default_values"):
            config.pop(key, None)
    assert schedulers[0] == schedulers[1]


@pytest.mark.parametrize("embed_dim", [0, EMBED_DIM, 5])
def test_a_new_decoder_beside_a_text_encoder(karlo: Path, tmp_path: Path, embed_dim: int) -> None:
    backbone = PixelBackbone.from_config(
        str(karlo), decoder=DECODER, scheduler=COSINE, embed_dim=embed_dim, num_context_tokens=3
    )
    assert backbone.null_image_embed is not None
    width = embed_dim or EMBED_DIM
    assert backbone.null_image_embed.shape == (1, width)
    assert backbone.projection.num_context_tokens == 3
    assert (len(backbone.alphas_cumprod), backbone.learned_variance) == (50, True)
    assert_denoises(backbone, torch.randn(2, width))
    shutil.copytree(karlo, tmp_path, dirs_exist_ok=True)
    backbone.save_pretrained(tmp_path)
    again = PixelBackbone.from_pretrained(str(tmp_path), embed_dim=embed_dim)
    assert_close(dict(again.state_dict()), dict(backbone.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["plain", "new"])
def test_a_decoder_in_the_manner_of_glide(
    karlo: Path, base: Path, tmp_path: Path, kind: str
) -> None:
    """Beside the text encoder of Stable Diffusion, which has no projection, or a new one."""
    text = {
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    own: dict[str, Any] = {"text_encoder": text, "train_text": True} if kind == "new" else {}
    folder = {"plain": base, "new": karlo}[kind]
    backbone = PixelBackbone.from_config(
        str(folder),
        decoder=DECODER,
        scheduler={"prediction_type": "v_prediction"},
        embed_dim=EMBED_DIM,
        image_embed=False,
        **own,
    )
    assert backbone.null_image_embed is None
    assert (backbone.learned_variance, backbone.prediction_type) == (False, "v_prediction")
    width = 12 if kind == "new" else WIDTH
    assert backbone.embed_text(TEXTS).shape == (len(TEXTS), 1 + MAX_LENGTH, width)
    # The pooled embedding is the state at the end of the text, which is the last one.
    packed = backbone.embed_text([""])[0]
    assert_close(packed[0], packed[2], rtol=1e-4, atol=1e-5)
    assert_denoises(backbone, None)
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(folder / part, tmp_path / part)
    backbone.save_pretrained(tmp_path)
    again = PixelBackbone.from_pretrained(
        str(tmp_path), embed_dim=EMBED_DIM, train_text=kind == "new"
    )
    assert_close(dict(again.state_dict()), dict(backbone.state_dict()), rtol=0, atol=0)
    assert_close(again.embed_text(TEXTS), backbone.embed_text(TEXTS), rtol=1e-4, atol=1e-5)
    assert again.prediction_type == "v_prediction"


def assert_denoises(backbone: PixelBackbone, image_embed: torch.Tensor | None) -> None:
    segments = Segments.null(2, 1, backbone.embed_dim, (1, 1))
    given = Conditions(backbone.embed_text(TEXTS[:2]), segments, image_embed)
    prediction = backbone.denoise(torch.randn(X_0), torch.tensor([0, 49]), given)
    assert prediction.shape == (2, 3 * (1 + backbone.learned_variance), *X_0[2:])
    assert prediction.std() > 1e-3


def test_a_new_text_encoder_is_trained(karlo: Path) -> None:
    options: dict[str, Any] = {"decoder": DECODER, "scheduler": COSINE, "embed_dim": EMBED_DIM}
    with pytest.raises(ValueError, match=r"^module.backbone.train_text: found false with a new "):
        PixelBackbone.from_config(str(karlo), **options, text_encoder={})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"decoder": {**DECODER, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}},
            "module.backbone.decoder: found CrossAttnUpBlock2D in up_block_types, expected the ",
        ),
        (
            {"scheduler": {**COSINE, "rescale_betas_zero_snr": True}},
            "zero_terminal_snr: found true for a network that predicts epsilon, expected false",
        ),
    ],
    ids=["blocks", "terminal snr"],
)
def test_what_could_not_be_trained_is_refused(
    karlo: Path, changed: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"decoder": DECODER, "scheduler": COSINE, "embed_dim": EMBED_DIM}
    with pytest.raises(ValueError, match=f"^{message}"):
        PixelBackbone.from_config(str(karlo), **(options | changed))
