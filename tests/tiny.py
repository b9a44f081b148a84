"""Tiny real models: the classes that users load, with random weights, written as users have them.

A base folder holds unet/, vae/, text_encoder/, tokenizer/ and scheduler/ in the diffusers layout,
clip/ in open_clip's, and clip/linear_prior.safetensors. Images are 16 x 16, latents 4 x 8 x 8.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import jaxtyping
import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PriorTransformer, UNet2DConditionModel
from open_clip.model import set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from spatext.modules.networks.clip import Clip, TextFeatures
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.priors import LinearPrior, save_linear_prior
from spatext.modules.networks.text_tower import train_tokenizer
from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.spatext import LatentSpaText

TEXTS = ("a red circle", "a blue sea", "a yellow star above a green square", "two dogs")
SIZE, CHANNELS, LATENT_SIZE, EMBED_DIM, NUM_SEGMENTS = 16, 4, 8, 8, 3
WIDTH, MAX_LENGTH = 16, 12
PREPROCESS = {"mean": (0.1, 0.2, 0.3), "std": (0.7, 0.8, 0.9)}  # not those of OpenAI

OPTIMIZER, LR_SCHEDULER = partial(adamw, lr=1e-2), partial(WarmupLR, warmup_steps=2)


def write_base(folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = train_tokenizer(TEXTS, vocab_size=560, max_length=MAX_LENGTH)
        tokenizer.save_pretrained(folder / "tokenizer")
        make_unet().save_pretrained(folder / "unet")
        make_vae().save_pretrained(folder / "vae")
        make_text_encoder(len(tokenizer)).save_pretrained(folder / "text_encoder")
        write_scheduler(folder)
        write_clip(folder / "clip", tokenizer)
    return folder


def write_clip(folder: Path, tokenizer: CLIPTokenizer) -> None:
    config = clip_config(len(tokenizer))
    clip = open_clip.CLIP(**config)
    set_model_preprocess_cfg(clip, PREPROCESS)
    save_for_hf(clip, tokenizer, config, folder, True)
    prior = {"weight": torch.randn(EMBED_DIM, EMBED_DIM), "bias": torch.randn(EMBED_DIM)}
    save_linear_prior(folder / "linear_prior.safetensors", prior)


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=CHANNELS,
        norm_num_groups=4,
        scaling_factor=1.7,
    )


def make_text_encoder(vocab_size: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    return CLIPTextModel(config)


def clip_config(vocab_size: int) -> dict[str, Any]:
    text = {"context_length": MAX_LENGTH, "vocab_size": vocab_size, "hf_tokenizer_name": "."}
    return {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "image_size": SIZE,
            "patch_size": 8,
            "width": WIDTH,
            "layers": 1,
            "head_width": 8,
        },
        "text_cfg": text | {"width": WIDTH, "heads": 2, "layers": 2},
    }


PRIOR = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "embedding_dim": EMBED_DIM,
    "num_embeddings": MAX_LENGTH,
}


def make_prior_transformer(**config: Any) -> PriorTransformer:
    """With weights that all matter, and statistics as a trained one has them."""
    transformer = PriorTransformer(**(PRIOR | config))
    for name, parameter in transformer.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        if name == "clip_std":
            parameter.data = 0.5 + torch.rand_like(parameter)
    return transformer


def write_scheduler(folder: Path, prediction_type: str = "epsilon") -> None:
    """As Stable Diffusion has it: not the class that trains, with options of its own."""
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")


def load_backbone(base: Path, **options: Any) -> LatentBackbone:
    return LatentBackbone.from_pretrained(str(base), embed_dim=EMBED_DIM, **options)


def load_spatext(base: Path, *, scale: Any = "raw", **options: Any) -> LatentSpaText:
    """Options of the backbone by their names, the rest are those of SpaText."""
    names = [name for name in signature(LatentBackbone).parameters if name in options]
    backbone = load_backbone(base, **{name: options.pop(name) for name in names})
    defaults: dict[str, Any] = {
        "optimizer": OPTIMIZER,
        "lr_scheduler": LR_SCHEDULER,
        "drop_rates": {"text": 0.1, "segments": 0.1},
    }
    return LatentSpaText(
        backbone,
        Clip(f"local-dir:{base / 'clip'}", scale=scale),
        options.pop("prior", None) or LinearPrior(base / "clip" / "linear_prior.safetensors"),
        **(defaults | options),
    )


def load_loud(base: Path) -> LatentSpaText:
    """Its UNet is loud enough for the conditions to matter."""
    model = load_spatext(base).eval()
    with torch.no_grad():
        model.backbone.unet.conv_out.weight *= 4
    return model


def as_text(embeds: Tensor, length: int = 0) -> TextFeatures:
    """Text embeddings, with states and masks drawn for them: the end is anywhere."""
    states = torch.randn(len(embeds), length, embeds.shape[-1], dtype=embeds.dtype)
    ends = torch.randint(max(length, 1), (len(embeds), 1))
    return TextFeatures(embeds, states, torch.arange(length) <= ends)


def no_seeds(num: int) -> Tensor:
    """For priors that draw nothing."""
    return torch.zeros(num, dtype=torch.int64)


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the checker of types, which sees a wrong option before the code that users run."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
