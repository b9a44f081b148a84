"""Eight images can be learned by heart: loss, conditions and sampling speak of the same thing."""

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
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.spatext import LatentSpaText

SHIPPED = Path(spatext.tools.__file__).parent / "weights" / "shapes"
NUM, NUM_STEPS, SIZE = 8, 300, 32
UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def make_model() -> LatentSpaText:
    """A new UNet beside the encoders of the shipped model."""
    clip = Clip(f"local-dir:{SHIPPED / 'clip'}")
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return LatentSpaText(
        LatentBackbone.from_config(
            str(SHIPPED),
            unet=UNET,
            scheduler=scheduler | {"prediction_type": "v_prediction"},
            embed_dim=clip.embed_dim,
        ),
        clip,
        IdentityPrior(),
        optimizer=partial(adamw, lr=4e-3, weight_decay=0.0, betas=(0.9, 0.99)),
        lr_scheduler=partial(WarmupLR, warmup_steps=10, decay="cosine", num_steps=NUM_STEPS),
        drop_rates={},
    )


def read(shards: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"image_size": SIZE, "crop_size": SIZE, "batch_size": NUM}
    data = PanopticDataModule(str(shards), str(shards), segmenter="stored", **options)
    data.setup("validate")
    return next(iter(data.val_dataloader()))


def loss(model: LatentSpaText, batch: dict[str, Any], to: Conditions, n: int, seed: int) -> Any:
    """With the n-th noise of each image."""
    return model.loss({"image": batch["image"], "index": torch.arange(NUM) + NUM * n}, to, seed)


@torch.no_grad()
def measure(model: LatentSpaText, batch: dict[str, Any], conditions: Conditions) -> float:
    return sum(loss(model, batch, conditions, n, 1).item() for n in range(16)) / 16


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(workspace: Path) -> None:
    model, batch = make_model(), read(workspace / "val")
    backbone, conditions = model.backbone, model.conditions(batch)
    assert batch["valid"].any(dim=1).all()
    first = measure(model, batch, conditions)
    made: Any = model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for step in range(NUM_STEPS):
        loss(model, batch, conditions, step, 0).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert measure(model, batch, conditions) < first / 10

    x_0 = backbone.encode(batch["image"])
    options = {"clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler.from_config(backbone.scheduler_config, **options)
    x_T = initial_noise(torch.arange(NUM), tuple(x_0.shape[1:]))
    found = sample(lambda x, t: backbone.denoise(x, t, conditions), scheduler, x_T, 20)
    error = backbone.decode(found)[:, None] - backbone.decode(x_0)
    psnr = 10 * torch.log10(4 / error.square().flatten(2).mean(dim=2))
    assert psnr.argmax(dim=1).tolist() == [*range(NUM)]
    assert psnr.diag().mean() > 20
