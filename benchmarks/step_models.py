"""Latent models with random weights for the benchmark of the training step, and batches."""

from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from open_clip.model import set_model_preprocess_cfg
from small_model import THINGS
from step_shapes import LatentShape, Shape
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from spatext.modules.networks.clip import Clip
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.networks.text_tower import train_tokenizer
from spatext.modules.spatext import LatentSpaText
from spatext.modules.text_to_image import TextToImage

NUM_SEGMENTS, MAX_LENGTH, LATENT_CHANNELS = 3, 77, 4
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ATTENDED, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
DROP_RATES = {"text": 0.1, "segments": 0.1}


def make_unet(shape: LatentShape, in_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    levels = len(shape.unet_widths)
    down = (ATTENDED,) * shape.attended + (PLAIN,) * (levels - shape.attended)
    return UNet2DConditionModel(
        sample_size=shape.latent_size,
        in_channels=in_channels,
        block_out_channels=shape.unet_widths,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        layers_per_block=shape.layers,
        attention_head_dim=shape.heads,
        norm_num_groups=shape.groups,
        cross_attention_dim=shape.text_width,
    )


def make_vae(shape: LatentShape) -> AutoencoderKL:
    levels = len(shape.vae_widths)
    return AutoencoderKL(
        sample_size=shape.image_size,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.vae_widths,
        layers_per_block=shape.vae_layers,
        norm_num_groups=shape.vae_groups,
    )


def make_tokenizer() -> CLIPTokenizer:
    return train_tokenizer(THINGS, vocab_size=560, max_length=MAX_LENGTH)


def text_config(tokenizer: CLIPTokenizer, width: int, num_layers: int) -> CLIPTextConfig:
    num = len(tokenizer)
    return CLIPTextConfig(
        vocab_size=num,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=num - 2,
        eos_token_id=num - 1,
        pad_token_id=num - 1,
    )


def make_clip(shape: Shape) -> Clip:
    """The text tower is not used by a training step."""
    text = {"context_length": MAX_LENGTH, "vocab_size": 560, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.CLIP(shape.embed_dim, vision_cfg=shape.vision, text_cfg=text)
    size = shape.vision["image_size"]
    set_model_preprocess_cfg(model, {"size": size, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    return Clip("random", loaded=(model, None))


def make_module(
    shape: LatentShape, *, segments: bool, channels_last: bool = False, **options: Any
) -> TextToImage:
    """SpaText, or text to image without segments; `options` are those of TextToImage."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    backbone = LatentBackbone(
        unet=make_unet(shape),
        vae=make_vae(shape),
        text_encoder=CLIPTextModel(text_config(tokenizer, shape.text_width, shape.text_layers)),
        tokenizer=tokenizer,
        scheduler=DDPMScheduler(**SCHEDULE),
        embed_dim=shape.embed_dim if segments else 0,
        channels_last=channels_last,
        compile="auto",
    )
    if segments:
        clip = make_clip(shape)
        return LatentSpaText(backbone, clip, IdentityPrior(), drop_rates=DROP_RATES, **options)
    return TextToImage(backbone, drop_rates={"text": DROP_RATES["text"]}, **options)


class Batches(Dataset[dict[str, Any]]):
    """Some batches over and over: nothing is decoded, so that the step alone is measured.

    `cached`: with what a latent model's encoders would make of them, in half precision, and then
    images and crops are black.
    """

    num_kept = 4

    def __init__(self, shape: Shape, batch_size: int, num: int, *, cached: bool = False) -> None:
        self.num, self.batch_size = num, batch_size
        self.kept = [make_batch(shape, batch_size, i) for i in range(self.num_kept)]
        if cached:
            assert isinstance(shape, LatentShape)
            self.kept = [batch | make_encodings(shape, batch) for batch in self.kept]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = number * self.batch_size + torch.arange(self.batch_size)
        return self.kept[number % self.num_kept] | {"index": index}

    def loader(self, device: str) -> DataLoader[dict[str, Any]]:
        return DataLoader(self, batch_size=None, pin_memory=device == "cuda")


def make_batch(shape: Shape, batch_size: int, number: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(number)
    size, crop = shape.image_size, shape.crop_size
    ids = torch.zeros(batch_size, size, size, dtype=torch.uint8)
    for k in range(1, NUM_SEGMENTS + 1):  # diagonal squares of 9 % of the image each
        part = slice(size * k // 5, size * k // 5 + size * 3 // 10)
        ids[:, part, part] = k
    crops = torch.randint(0, 256, (batch_size, NUM_SEGMENTS, 3, crop, crop), generator=draw)
    return {
        "image": torch.rand(batch_size, 3, size, size, generator=draw) * 2 - 1,
        "caption": [f"{THINGS[(number + i) % len(THINGS)]} {i}" for i in range(batch_size)],
        "ids": ids,
        "valid": torch.ones(batch_size, NUM_SEGMENTS, dtype=torch.bool),
        "crops": crops.to(torch.uint8),
    }


def make_encodings(shape: LatentShape, batch: dict[str, Any]) -> dict[str, Any]:
    num, side = len(batch["image"]), shape.latent_size
    sizes = {
        "moments": (num, 2, LATENT_CHANNELS, side, side),
        "text": (num, MAX_LENGTH, shape.text_width),
        "embeds": (num, NUM_SEGMENTS, shape.embed_dim),
    }
    made = {name: torch.randn(size).half() for name, size in sizes.items()}
    return made | {name: torch.zeros_like(batch[name]) for name in ("image", "crops")}
