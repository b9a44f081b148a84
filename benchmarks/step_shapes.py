"""Shapes of the networks that the benchmark of the training step is run with."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a batch, and of the CLIP that embeds its crops: `vision` as open_clip names it."""

    image_size: int
    crop_size: int  # of segments
    vision: dict[str, int] = field(default_factory=dict)
    embed_dim: int = 768


@dataclass(frozen=True, kw_only=True)
class LatentShape(Shape):
    """Widths as the configurations of diffusers and transformers name them."""

    unet_widths: tuple[int, ...]
    attended: int  # of the levels, from the finest
    heads: int
    vae_widths: tuple[int, ...]
    text_width: int
    text_layers: int
    layers: int = 1
    vae_layers: int = 1
    groups: int = 32
    vae_groups: int = 32

    @property
    def latent_size(self) -> int:
        return self.image_size // 2 ** (len(self.vae_widths) - 1)


@dataclass(frozen=True, kw_only=True)
class PixelShape(Shape):
    """A decoder of Karlo's kind, on images `factor` times smaller; its text is as wide as ST."""

    factor: int
    decoder: dict[str, Any]
    text_layers: int


@dataclass(frozen=True, kw_only=True)
class UpsamplerShape(Shape):
    """Of Karlo's kind, trained on squares of `square` pixels of the images. The embeddings are
    those of the rows in which it sees ST."""

    scale: int
    square: int
    unet: dict[str, Any]


def decoder(widths: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """Karlo's kinds of blocks: no attention at the finest level."""
    more = len(widths) - 1
    return {
        "block_out_channels": widths,
        "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * more),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * more, "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        **options,
    }


def super_res(widths: tuple[int, ...], **options: Any) -> dict[str, Any]:
    return {
        "block_out_channels": widths,
        "down_block_types": ("ResnetDownsampleBlock2D",) * len(widths),
        "up_block_types": ("ResnetUpsampleBlock2D",) * len(widths),
        "add_attention": False,
        **options,
    }


SMALL_VISION = {"image_size": 64, "patch_size": 32, "width": 64, "layers": 1}
TINY_VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
VIT_L14 = {"image_size": 224, "patch_size": 14, "width": 1024, "layers": 24}
KARLO = (320, 640, 960, 1280)

SHAPES: dict[str, Shape] = {
    "tiny": LatentShape(
        image_size=64, unet_widths=(32, 64), attended=1, heads=4, vae_widths=(8, 8, 8),
        text_width=32, text_layers=2, crop_size=32, groups=8, vae_groups=4, vision=TINY_VISION,
        embed_dim=64,
    ),
    "small": LatentShape(
        image_size=128, unet_widths=(128, 256, 256), attended=2, heads=8,
        vae_widths=(32, 32, 64, 64), text_width=128, text_layers=4, crop_size=64, vae_groups=16,
        vision=SMALL_VISION,
    ),
    "sd15": LatentShape(
        image_size=512, unet_widths=(320, 640, 1280, 1280), attended=3, heads=8,
        vae_widths=(128, 256, 512, 512), text_width=768, text_layers=12, crop_size=224,
        vision=VIT_L14, layers=2, vae_layers=2,
    ),
    "pixel_tiny": PixelShape(
        image_size=64, factor=2, text_layers=1, crop_size=32, vision=TINY_VISION, embed_dim=64,
        decoder=decoder((32, 64), sample_size=32, layers_per_block=1, attention_head_dim=16,
                        norm_num_groups=8, cross_attention_dim=64),
    ),
    "pixel_small": PixelShape(
        image_size=128, factor=4, text_layers=1, crop_size=64, vision=SMALL_VISION,
        decoder=decoder((64, 128, 192, 256), sample_size=32, layers_per_block=1,
                        attention_head_dim=32, cross_attention_dim=256),
    ),
    "karlo": PixelShape(
        image_size=256, factor=4, text_layers=12, crop_size=224, vision=VIT_L14,
        decoder=decoder(KARLO, sample_size=64, layers_per_block=3, attention_head_dim=64,
                        cross_attention_dim=1536),
    ),
    "sr_tiny": UpsamplerShape(
        image_size=64, scale=2, square=32, crop_size=32, vision=TINY_VISION, embed_dim=64,
        unet=super_res((32, 64), sample_size=64, layers_per_block=1, norm_num_groups=8),
    ),
    "sr_small": UpsamplerShape(
        image_size=128, scale=4, square=64, crop_size=64, vision=SMALL_VISION,
        unet=super_res((32, 64, 96, 128), sample_size=128, layers_per_block=1),
    ),
    "karlo_sr": UpsamplerShape(
        image_size=256, scale=4, square=64, crop_size=224, vision=VIT_L14,
        unet=super_res(KARLO, sample_size=256, layers_per_block=3),
    ),
}  # fmt: skip
