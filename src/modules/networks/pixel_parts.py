"""The parts that a pixel backbone is put together from: loaded whole, or with new weights."""

from collections.abc import Mapping
from typing import Any

import transformers
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .diffusers_folder import DiffusersFolder, named_errors, open_folder
from .text_image import TextImageProjection
from .unclip_folder import (
    OWN_BLOCKS,
    PIXEL_CHANNELS,
    TEXT_PARTS,
    UNCLIP_LAYOUT,
    UNCLIP_PARTS,
    check_decoder,
    foreign_block,
    load_whole,
    text_class,
    text_width,
)
from .unclip_schedule import load_scheduler, make_scheduler, with_own_schedule

OPTION = "backbone.path"


def load_parts(path: str, embed_dim: int, prediction_type: str | None) -> dict[str, Any]:
    """Decoder, projection, text encoder, tokenizer and scheduler in the layout of Karlo, checked;
    see `PixelBackbone.from_pretrained` for the errors."""
    folder = open_folder(path, UNCLIP_PARTS, OPTION, UNCLIP_LAYOUT)
    folder = with_own_schedule(folder, "decoder_scheduler")
    check_decoder(folder, embed_dim, prediction_type)
    with named_errors(path, OPTION, UNCLIP_PARTS):
        tokenizer = load_tokenizer(folder)
        check_end(folder, tokenizer)
        return {
            "decoder": load_whole(UNet2DConditionModel, folder, "decoder"),
            "projection": load_whole(TextImageProjection, folder, "text_proj"),
            "text_encoder": load_text_encoder(folder),
            "tokenizer": tokenizer,
            "scheduler": load_scheduler(folder, "decoder_scheduler"),
        }


def make_parts(
    path: str,
    *,
    decoder: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    embed_dim: int,
    image_embed: bool,
    num_context_tokens: int,
    text_encoder: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The same parts, of which tokenizer and, unless there are options of a new one, text encoder
    are those of the folder at `path`; see `PixelBackbone.from_config`."""
    if (found := foreign_block(decoder)) is not None:
        raise ValueError(f"module.backbone.decoder: found {found}, expected {OWN_BLOCKS}")
    needed = TEXT_PARTS if text_encoder is None else TEXT_PARTS[1:]
    folder = open_folder(path, needed, OPTION, UNCLIP_LAYOUT)
    with named_errors(path, OPTION, needed):
        tokenizer = load_tokenizer(folder)
        if text_encoder is None:
            check_end(folder, tokenizer)
            width, text = text_width(folder), load_text_encoder(folder)
        else:
            text = make_text_encoder(tokenizer, text_encoder)
            width = text.config.hidden_size
    schedule = make_scheduler(scheduler, "module.backbone.scheduler")
    learned = schedule.config.variance_type == "learned_range"
    unet = UNet2DConditionModel(
        in_channels=PIXEL_CHANNELS,
        out_channels=(1 + learned) * PIXEL_CHANNELS,
        class_embed_type="identity",
        **decoder,
    )
    image_width = (embed_dim or width) if image_embed else width
    projection = TextImageProjection(
        clip_extra_context_tokens=num_context_tokens,
        clip_embeddings_dim=image_width,
        time_embed_dim=unet.time_embedding.linear_2.out_features,
        cross_attention_dim=unet.config.cross_attention_dim,
        image_embed=image_embed,
        text_embeddings_dim=None if image_width == width else width,
    )
    return {
        "decoder": unet,
        "projection": projection,
        "text_encoder": text,
        "tokenizer": tokenizer,
        "scheduler": schedule,
    }


def load_text_encoder(folder: DiffusersFolder) -> Any:
    return load_whole(getattr(transformers, text_class(folder)), folder, "text_encoder")


def load_tokenizer(folder: DiffusersFolder) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder.path, subfolder="tokenizer")


def check_end(folder: DiffusersFolder, tokenizer: CLIPTokenizer) -> None:
    """The encoder pools the text where it ends by the tokenizer. Raises ValueError.

    2, which configurations of CLIP have from before anything read it, means the highest token.
    """
    found = folder.configs["text_encoder"].get("eos_token_id", 49407)
    if found not in (2, tokenizer.eos_token_id):
        expected = f"{tokenizer.eos_token_id}, that of the tokenizer"
        raise folder.refuse("text_encoder/config.json: eos_token_id", found, expected)


def make_text_encoder(tokenizer: CLIPTokenizer, options: Mapping[str, Any]) -> CLIPTextModel:
    """With random weights, for this tokenizer."""
    own = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextModel(CLIPTextConfig(**(own | dict(options))))
