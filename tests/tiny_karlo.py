"""A tiny unCLIP model: diffusers' own classes with random weights, written as Karlo is published.

A folder holds prior/, decoder/, text_proj/, text_encoder/, tokenizer/, super_res_first/,
super_res_last/ and their three schedulers, as `UnCLIPPipeline` saves them, and clip/ as in tiny.py.
Images are 16 x 16, x_0 is 3 x 8 x 8, and the upsampler enlarges it twice.
"""

import json
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip import UnCLIPPipeline, UnCLIPTextProjModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from spatext.modules.networks.clip import Clip
from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.priors import LinearPrior
from spatext.modules.networks.text_tower import train_tokenizer
from spatext.modules.pixel_spatext import PixelSpaText
from tiny import (
    EMBED_DIM,
    LATENT_SIZE,
    LR_SCHEDULER,
    MAX_LENGTH,
    OPTIMIZER,
    SIZE,
    TEXTS,
    WIDTH,
    make_prior_transformer,
    write_clip,
)

FACTOR, NUM_CONTEXT_TOKENS = SIZE // LATENT_SIZE, 2
LEARNED_RANGE = {"variance_type": "learned_range", "prediction_type": "epsilon"}
DECODER: dict[str, Any] = {  # of UNet2DConditionModel: Karlo's types of blocks
    "sample_size": LATENT_SIZE,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "resnet_time_scale_shift": "scale_shift",
}


def write_karlo(folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        make_pipeline(tokenizer).save_pretrained(folder)
        # As the published index has it.
        index = json.loads((folder / "model_index.json").read_text())
        index["text_proj"] = ["unclip", "UnCLIPTextProjModel"]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2))
        for path in folder.glob("*/scheduler_config.json"):
            config = json.loads(path.read_text())
            del config["beta_schedule"]  # an option that is younger than Karlo
            path.write_text(json.dumps(config, indent=2))
        write_clip(folder / "clip", tokenizer)
    return folder


def make_tokenizer() -> CLIPTokenizer:
    """Padded with "!", which has the number 0, as in Karlo."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=560, max_length=MAX_LENGTH)
    tokenizer.pad_token = "!"
    assert tokenizer.pad_token_id == 0
    return tokenizer


def make_pipeline(tokenizer: CLIPTokenizer) -> UnCLIPPipeline:
    return UnCLIPPipeline(
        prior=make_prior_transformer(),
        decoder=shaken(make_decoder()),
        text_encoder=shaken(make_text_encoder(len(tokenizer))),
        tokenizer=tokenizer,
        text_proj=shaken(make_text_proj()),
        super_res_first=shaken(make_super_res()),
        super_res_last=shaken(make_super_res()),
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(**LEARNED_RANGE),
        super_res_scheduler=UnCLIPScheduler(),
    )


def make_decoder(**config: Any) -> UNet2DConditionModel:
    own = {"in_channels": 3, "out_channels": 6, "class_embed_type": "identity"}
    return UNet2DConditionModel(**(DECODER | own | config))


def make_text_encoder(vocab_size: int) -> CLIPTextModelWithProjection:
    """As wide as its projection, as in ViT-L/14."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=EMBED_DIM,
        projection_dim=EMBED_DIM,
        intermediate_size=2 * EMBED_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=0,
    )
    return CLIPTextModelWithProjection(config)


def make_text_proj() -> UnCLIPTextProjModel:
    """Its learned null is zero when it is new."""
    return UnCLIPTextProjModel(
        clip_extra_context_tokens=NUM_CONTEXT_TOKENS,
        clip_embeddings_dim=EMBED_DIM,
        time_embed_dim=4 * DECODER["block_out_channels"][0],
        cross_attention_dim=DECODER["cross_attention_dim"],
    )


def make_super_res(**config: Any) -> UNet2DModel:
    own: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": 6,
        "out_channels": 3,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "add_attention": False,
    }
    return UNet2DModel(**(own | config))


def shaken(net: Any) -> Any:
    """With no weights at zero, so that the outputs depend on every input."""
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def load_pipeline(folder: Path) -> UnCLIPPipeline:
    """By its parts: diffusers no longer finds `text_proj` by the published index."""
    classes: dict[str, Any] = {
        "prior": PriorTransformer,
        "decoder": UNet2DConditionModel,
        "text_encoder": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "text_proj": UnCLIPTextProjModel,
        "super_res_first": UNet2DModel,
        "super_res_last": UNet2DModel,
        "prior_scheduler": UnCLIPScheduler,
        "decoder_scheduler": UnCLIPScheduler,
        "super_res_scheduler": UnCLIPScheduler,
    }
    parts = {name: made.from_pretrained(folder / name) for name, made in classes.items()}
    pipeline = UnCLIPPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pixel_backbone(folder: Path, **options: Any) -> PixelBackbone:
    options = {"embed_dim": EMBED_DIM, "factor": FACTOR} | options
    return PixelBackbone.from_pretrained(str(folder), **options)


def make_pixel_model(folder: Path, *, scale: Any = "raw", **options: Any) -> PixelSpaText:
    """Options of the backbone by their names, the rest are those of PixelSpaText."""
    names = [name for name in signature(PixelBackbone).parameters if name in options]
    backbone = load_pixel_backbone(folder, **{name: options.pop(name) for name in names})
    defaults: dict[str, Any] = {
        "optimizer": OPTIMIZER,
        "lr_scheduler": LR_SCHEDULER,
        "drop_rates": {"text": 0.1, "segments": 0.1, "image_embed": 0.1},
    }
    return PixelSpaText(
        backbone,
        Clip(f"local-dir:{folder / 'clip'}", scale=scale),
        options.pop("prior", None) or LinearPrior(folder / "clip" / "linear_prior.safetensors"),
        **(defaults | options),
    )
