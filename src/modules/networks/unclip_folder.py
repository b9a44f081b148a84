"""Whether a folder or hub name in the layout of Karlo holds a decoder that SpaText can start from,
told from its small files before any weights are read; and loading parts of it as they are."""

from collections.abc import Mapping
from typing import Any

import torch

from .diffusers_folder import DiffusersFolder, Part, check_scheduler
from .text_image import PUBLISHED

TEXT_CLASSES = ("CLIPTextModelWithProjection", "CLIPTextModel")
UNCLIP_LAYOUT = {
    "decoder": Part(("UNet2DConditionModel",), weights="diffusion_pytorch_model"),
    "text_proj": Part((PUBLISHED, "TextImageProjection"), weights="diffusion_pytorch_model"),
    "text_encoder": Part(TEXT_CLASSES, weights="model"),
    "tokenizer": Part(("CLIPTokenizer", "CLIPTokenizerFast"), config="tokenizer_config.json"),
    "decoder_scheduler": Part((), config="scheduler_config.json"),
}
UNCLIP_PARTS = tuple(UNCLIP_LAYOUT)
TEXT_PARTS = ("text_encoder", "tokenizer")
PIXEL_CHANNELS = 3
# Inputs that other families of models have; absent or null means without.
FOREIGN_INPUTS = ("addition_embed_type", "num_class_embeds", "encoder_hid_dim_type")
OWN_BLOCKS = "the Simple kind of attention, as in Karlo, which takes the mask of the text"
DECODER, TEXT_PROJ, TEXT = (f"{p}/config.json" for p in ("decoder", "text_proj", "text_encoder"))


def check_decoder(folder: DiffusersFolder, embed_dim: int, prediction_type: str | None) -> None:
    """All parts fit together, and what is asked of them. Raises ValueError for the first that does
    not."""
    decoder, proj = folder.configs["decoder"], folder.configs["text_proj"]
    for key in FOREIGN_INPUTS:
        if (found := decoder.get(key)) is not None:
            raise folder.refuse(f"{DECODER}: {key}", found, "null, as in Karlo")
    if (found := decoder.get("class_embed_type")) != "identity":
        expected = "identity, as in Karlo: what text_proj adds to the time embedding"
        raise folder.refuse(f"{DECODER}: class_embed_type", found, expected)
    if (found := foreign_block(decoder)) is not None:
        raise folder.refuse(DECODER, found, OWN_BLOCKS)
    check_channels(folder, embed_dim)
    width = text_width(folder)
    image_width = proj.get("clip_embeddings_dim", 768)
    if (found := proj.get("text_embeddings_dim") or image_width) != width:
        key = "text_embeddings_dim" if proj.get("text_embeddings_dim") else "clip_embeddings_dim"
        expected = f"{width}, the hidden_size of the text_encoder"
        raise folder.refuse(f"{TEXT_PROJ}: {key}", found, expected)
    if proj.get("image_embed", True) and embed_dim not in (0, image_width):
        expected = f"{embed_dim}, as module.backbone.embed_dim says"
        raise folder.refuse(f"{TEXT_PROJ}: clip_embeddings_dim", image_width, expected)
    check_widths(folder)
    check_scheduler(folder, prediction_type, "decoder_scheduler")
    check_variance(folder)


def check_widths(folder: DiffusersFolder) -> None:
    """Of what the projection gives to the decoder."""
    decoder, proj = folder.configs["decoder"], folder.configs["text_proj"]
    first, *_ = decoder.get("block_out_channels", [320])
    widths = {
        "cross_attention_dim": decoder.get("cross_attention_dim", 1280),
        "time_embed_dim": decoder.get("time_embedding_dim") or 4 * first,
    }
    for key, expected in widths.items():
        if (found := proj.get(key)) != expected:
            raise folder.refuse(f"{TEXT_PROJ}: {key}", found, f"{expected}, that of the decoder")


def foreign_block(decoder: Mapping[str, Any]) -> str | None:
    """The first option of the decoder that makes attention of another kind than Karlo's.

    Of the blocks with cross-attention the Simple ones alone attend to text and cells at once.
    """
    blocks = {
        "down_block_types": decoder.get("down_block_types", ["CrossAttnDownBlock2D"]),
        "mid_block_type": [decoder.get("mid_block_type", "UNetMidBlock2DCrossAttn")],
        "up_block_types": decoder.get("up_block_types", ["CrossAttnUpBlock2D"]),
    }
    for option, names in blocks.items():
        for name in names:
            if name and "CrossAttn" in name and "SimpleCrossAttn" not in name:
                return f"{name} in {option}"
    return "only_cross_attention" if decoder.get("only_cross_attention") else None


def check_channels(folder: DiffusersFolder, embed_dim: int) -> None:
    config = folder.configs["decoder"]
    found, own = config.get("in_channels", 4), PIXEL_CHANNELS
    if found not in (own, own + embed_dim):
        wide = f", or {own + embed_dim} as it is with ST" if embed_dim else ""
        raise folder.refuse(f"{DECODER}: in_channels", found, f"{own}, of an image{wide}")
    if (found := config.get("out_channels", 4)) not in (own, 2 * own):
        expected = f"{own}, or {2 * own} with a learned variance"
        raise folder.refuse(f"{DECODER}: out_channels", found, expected)


def check_variance(folder: DiffusersFolder) -> None:
    config, outputs = folder.configs["decoder_scheduler"], folder.configs["decoder"]["out_channels"]
    found = config.get("variance_type", "fixed_small")
    learned = outputs == 2 * PIXEL_CHANNELS
    if learned != (found == "learned_range"):
        expected = "learned_range" if learned else "a fixed one"
        place = "decoder_scheduler/scheduler_config.json: variance_type"
        raise folder.refuse(place, found, f"{expected}, as the decoder has {outputs} outputs")


def text_width(folder: DiffusersFolder) -> int:
    """Of the text states and of the pooled embedding, which must agree. Raises ValueError."""
    config = folder.configs["text_encoder"]
    width = int(config.get("hidden_size", 512))
    if text_class(folder) == TEXT_CLASSES[0] and (found := config.get("projection_dim")) != width:
        expected = f"{width}, the hidden_size; a CLIPTextModel has no projection"
        raise folder.refuse(f"{TEXT}: projection_dim", found, expected)
    return width


def text_class(folder: DiffusersFolder) -> str:
    architectures = folder.configs["text_encoder"].get("architectures")
    return str(architectures[0]) if architectures else TEXT_CLASSES[0]


def load_whole(cls: Any, folder: DiffusersFolder, part: str) -> Any:
    """A network of exactly the weights in the folder, as float32.

    The libraries only warn of weights that are missing, which they draw at random, and of those
    that are left over. Raises ValueError naming the first of them.
    """
    try:
        net, info = cls.from_pretrained(
            folder.path,
            subfolder=part,
            use_safetensors=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError) as error:  # of another shape, or no safetensors at all
        found = " ".join(str(error).split())[:200]
        raise folder.refuse(f"{part}/", found, f"weights of a {cls.__name__}") from error
    # A constant that older versions wrote beside the weights.
    left_over = {key for key in info["unexpected_keys"] if not key.endswith("position_ids")}
    for problem, keys in (("no", info["missing_keys"]), ("a left-over", left_over)):
        if keys:
            expected = f"the weights of a {cls.__name__}, all of them and no others"
            raise folder.refuse(f"{part}/", f"{problem} {min(keys)}", expected)
    return net
