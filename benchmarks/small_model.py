"""A small latent model with random weights, of the classes that users load."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from open_clip.model import set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from transformers import CLIPTextConfig, CLIPTextModel

from spatext.modules.networks.text_tower import train_tokenizer

THINGS = ("a red circle", "a blue sea", "a yellow star", "two dogs", "a lighthouse", "black rocks")
EMBED_DIM, MAX_LENGTH = 768, 77


def write_base(folder: Path) -> Path:
    """Real classes, small: 23 M weights in the UNet, images of 128 pixels, latents of 16."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(THINGS, vocab_size=560, max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder / "tokenizer")
    UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(128, 256, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=128,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        sample_size=128,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        latent_channels=4,
        norm_num_groups=16,
    ).save_pretrained(folder / "vae")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(folder / "scheduler")
    return folder


def write_clip(folder: Path) -> Path:
    tokenizer = train_tokenizer(THINGS, vocab_size=560, max_length=MAX_LENGTH)
    config: dict[str, Any] = {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {"image_size": 64, "patch_size": 32, "width": 64, "layers": 1},
        "text_cfg": {
            "context_length": MAX_LENGTH,
            "vocab_size": len(tokenizer),
            "hf_tokenizer_name": ".",
            "width": 128,
            "heads": 2,
            "layers": 4,
        },
    }
    clip = open_clip.CLIP(**config)
    set_model_preprocess_cfg(clip, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    save_for_hf(clip, tokenizer, config, folder, True)
    return folder
