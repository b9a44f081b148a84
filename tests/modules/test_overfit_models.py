"""Eight images can be learned by heart: loss, conditions and sampling speak of the same thing, and
in pixels so do mean and learned variance."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn.utils import clip_grad_norm_

import spatext.tools
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.sampling import initial_noise, sample
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.spatext import LatentSpaText, SpaText

SHIPPED = Path(spatext.tools.__file__).parent / "weights" / "shapes"
NUM = 8
UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
DECODER = {
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "resnet_time_scale_shift": "scale_shift",
}
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def make_latent(lr: float, num_steps: int) -> LatentSpaText:
    """A new UNet beside the encoders of the shipped model."""
    clip = Clip(f"local-dir:{SHIPPED / 'clip'}")
    backbone = LatentBackbone.from_config(
        str(SHIPPED),
        unet=UNET,
        scheduler=SCALED_LINEAR | {"prediction_type": "v_prediction"},
        embed_dim=clip.embed_dim,
        channels_last=False,  # slower on CPUs
    )
    return LatentSpaText(backbone, clip, IdentityPrior(), **options(lr, num_steps))


def make_pixel(lr: float, num_steps: int) -> PixelSpaText:
    """A new decoder beside the text encoder of the shipped model; x_0 is 8 x 8."""
    clip = Clip(f"local-dir:{SHIPPED / 'clip'}")
    backbone = PixelBackbone.from_config(
        str(SHIPPED),
        decoder=DECODER,
        scheduler={
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "sample",  # learned in the fewest steps
            "variance_type": "learned_range",
        },
        embed_dim=clip.embed_dim,
        factor=2,
        channels_last=False,
    )
    return PixelSpaText(backbone, clip, IdentityPrior(), **options(lr, num_steps))


def options(lr: float, num_steps: int) -> dict[str, Any]:
    return {
        "optimizer": partial(adamw, lr=lr, weight_decay=0.0, betas=(0.9, 0.99)),
        "lr_scheduler": partial(WarmupLR, warmup_steps=10, decay="cosine", num_steps=num_steps),
        "drop_rates": {},
    }


def read(shards: Path, size: int) -> dict[str, Any]:
    options: dict[str, Any] = {"image_size": size, "crop_size": size, "batch_size": NUM}
    data = PanopticDataModule(str(shards), str(shards), segmenter="stored", **options)
    data.setup("validate")
    return next(iter(data.val_dataloader()))


def losses(
    model: SpaText, batch: dict[str, Any], to: Conditions, n: int, seed: int
) -> dict[str, torch.Tensor]:
    """With the n-th noise of each image."""
    return model.losses({"image": batch["image"], "index": torch.arange(NUM) + NUM * n}, to, seed)


@torch.no_grad()
def measure(model: SpaText, batch: dict[str, Any], to: Conditions) -> dict[str, torch.Tensor]:
    rows = [losses(model, batch, to, n, 1) for n in range(16)]
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size", "lr", "num_steps", "names"),
    [
        (make_latent, 32, 4e-3, 300, ["loss"]),
        (make_pixel, 16, 5e-3, 100, ["simple", "vb"]),
    ],
    ids=["latent", "pixel"],
)
def test_eight_images_are_learned_by_heart(
    workspace: Path,
    make: Callable[[float, int], SpaText],
    size: int,
    lr: float,
    num_steps: int,
    names: list[str],
) -> None:
    model, batch = make(lr, num_steps), read(workspace / "val", size)
    backbone, conditions = model.backbone, model.conditions(batch)
    assert batch["valid"].any(dim=1).all()
    first = measure(model, batch, conditions)
    made: Any = model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for step in range(num_steps):
        losses(model, batch, conditions, step, 0)["loss"].backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    last = measure(model, batch, conditions)
    for name in names:
        assert last[name] < first[name] / 10, name

    x_0 = backbone.encode(batch["image"])
    config = {"clip_sample": False, **backbone.scheduler_config}
    scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing")
    x_T = initial_noise(torch.arange(NUM), tuple(x_0.shape[1:]))
    found = sample(lambda x, t: backbone.denoise(x, t, conditions), scheduler, x_T, 20)
    with torch.no_grad():
        error = backbone.decode(found)[:, None] - backbone.decode(x_0)
    psnr = 10 * torch.log10(4 / error.square().flatten(2).mean(dim=2))
    assert psnr.argmax(dim=1).tolist() == [*range(NUM)]
    assert psnr.diag().mean() > 20
