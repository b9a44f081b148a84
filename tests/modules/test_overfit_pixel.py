"""Eight images can be learned by heart in pixels, too: mean, learned variance, conditions and
sampling speak of the same thing."""

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
from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.pixel_spatext import PixelSpaText

SHIPPED = Path(spatext.tools.__file__).parent / "weights" / "shapes"
NUM, NUM_STEPS, SIZE = 8, 100, 16
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
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",  # learned in the fewest steps
    "variance_type": "learned_range",
}


def make_model() -> PixelSpaText:
    """A new decoder beside the text encoder of the shipped model; x_0 is 8 x 8."""
    clip = Clip(f"local-dir:{SHIPPED / 'clip'}")
    return PixelSpaText(
        PixelBackbone.from_config(
            str(SHIPPED),
            decoder=DECODER,
            scheduler=SCHEDULER,
            embed_dim=clip.embed_dim,
            factor=2,
        ),
        clip,
        IdentityPrior(),
        optimizer=partial(adamw, lr=5e-3, weight_decay=0.0, betas=(0.9, 0.99)),
        lr_scheduler=partial(WarmupLR, warmup_steps=10, decay="cosine", num_steps=NUM_STEPS),
        drop_rates={},
    )


def read(shards: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"image_size": SIZE, "crop_size": SIZE, "batch_size": NUM}
    data = PanopticDataModule(str(shards), str(shards), segmenter="stored", **options)
    data.setup("validate")
    return next(iter(data.val_dataloader()))


def losses(
    model: PixelSpaText, batch: dict[str, Any], to: Conditions, n: int, seed: int
) -> dict[str, torch.Tensor]:
    """With the n-th noise of each image."""
    return model.losses({"image": batch["image"], "index": torch.arange(NUM) + NUM * n}, to, seed)


@torch.no_grad()
def measure(
    model: PixelSpaText, batch: dict[str, Any], conditions: Conditions
) -> dict[str, torch.Tensor]:
    rows = [losses(model, batch, conditions, n, 1) for n in range(16)]
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(workspace: Path) -> None:
    model, batch = make_model(), read(workspace / "val")
    backbone, conditions = model.backbone, model.conditions(batch)
    assert conditions.image_embed is not None
    first = measure(model, batch, conditions)
    made: Any = model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for step in range(NUM_STEPS):
        losses(model, batch, conditions, step, 0)["loss"].backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    last = measure(model, batch, conditions)
    assert last["simple"] < first["simple"] / 10
    assert last["vb"] < first["vb"] / 10

    x_0 = backbone.encode(batch["image"])
    scheduler = DDIMScheduler.from_config(backbone.scheduler_config, timestep_spacing="trailing")
    x_T = initial_noise(torch.arange(NUM), tuple(x_0.shape[1:]))
    found = sample(lambda x, t: backbone.denoise(x, t, conditions), scheduler, x_T, 20)
    error = found[:, None] - x_0
    psnr = 10 * torch.log10(4 / error.square().flatten(2).mean(dim=2))
    assert psnr.argmax(dim=1).tolist() == [*range(NUM)]
    assert psnr.diag().mean() > 20
