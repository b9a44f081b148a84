"""Models in pixels with random weights for the benchmark of the training step."""

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
from step_models import DROP_RATES, make_clip, make_tokenizer, text_config
from step_shapes import PixelShape, UpsamplerShape
from transformers import CLIPTextModelWithProjection

from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.networks.text_image import TextImageProjection
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.upsampler import Upsampler

CHANNELS, NUM_CONTEXT_TOKENS = 3, 4  # of the image embedding, as in Karlo
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
DECODER_SCHEDULE = COSINE | {"variance_type": "learned_range"}
SUPER_RES_SCHEDULE = COSINE | {"variance_type": "fixed_small_log"}


def make_decoder(shape: PixelShape, in_channels: int = CHANNELS) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=2 * CHANNELS,
        class_embed_type="identity",
        **shape.decoder,
    )


def projection_options(shape: PixelShape) -> dict[str, int]:
    """Those of diffusers' class and of ours."""
    return {
        "clip_extra_context_tokens": NUM_CONTEXT_TOKENS,
        "clip_embeddings_dim": shape.embed_dim,
        "time_embed_dim": 4 * shape.decoder["block_out_channels"][0],
        "cross_attention_dim": shape.decoder["cross_attention_dim"],
    }


def make_text(shape: PixelShape) -> dict[str, Any]:
    """text_encoder and tokenizer."""
    tokenizer = make_tokenizer()
    config = text_config(tokenizer, shape.embed_dim, shape.text_layers)
    return {"text_encoder": CLIPTextModelWithProjection(config), "tokenizer": tokenizer}


def make_pixel_module(
    shape: PixelShape, *, channels_last: bool = False, **options: Any
) -> PixelSpaText:
    """`options` are those of TextToImage."""
    torch.manual_seed(0)
    backbone = PixelBackbone(
        decoder=make_decoder(shape),
        projection=TextImageProjection(**projection_options(shape)),
        scheduler=DDPMScheduler(**DECODER_SCHEDULE),
        embed_dim=shape.embed_dim,
        factor=shape.factor,
        channels_last=channels_last,
        compile="auto",
        **make_text(shape),
    )
    rates = DROP_RATES | {"image_embed": 0.1}
    return PixelSpaText(backbone, make_clip(shape), IdentityPrior(), drop_rates=rates, **options)


def make_super_res(shape: UpsamplerShape) -> UNet2DModel:
    return UNet2DModel(in_channels=2 * CHANNELS, out_channels=CHANNELS, **shape.unet)


def make_upsampler(
    shape: UpsamplerShape, *, segments: bool, channels_last: bool = False, **options: Any
) -> Upsampler:
    """With ST or, as in the paper, without; `options` are the optimizer's and the schedule's."""
    torch.manual_seed(0)
    net = UpsamplerNet(
        unet=make_super_res(shape),
        scheduler=DDPMScheduler(**SUPER_RES_SCHEDULE),
        scale=shape.scale,
        embed_dim=shape.embed_dim if segments else 0,
        channels_last=channels_last,
        compile="auto",
    )
    clip = make_clip(shape) if segments else None
    return Upsampler(net, crop=shape.square, clip=clip, **options)
