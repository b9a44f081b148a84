"""The plain training loop that benchmarks/train_step.py compares ours with."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from step_loops import DECAY, LR, MAX_NORM, WARMUP, WEIGHT_DECAY, Clock, Measured
from step_models import MAX_LENGTH, SCHEDULE, Batches
from torch import Tensor
from tqdm import tqdm

from spatext.callbacks.flops import StepFlops


@dataclass
class Networks:
    """What the plain loop uses: all of them as their libraries make them."""

    unet: UNet2DConditionModel
    vae: Any
    text_encoder: Any
    tokenizer: Any
    embed_crops: Callable[[Tensor], Tensor] | None  # None: text to image, without ST


def plain(nets: Networks, data: Batches, clock: Clock, *, precision: str) -> Measured:
    """A training loop in the manner of the text-to-image example of diffusers: autocast, AdamW and
    the average of diffusers with their defaults, the loss read at each step.

    Captions become tokens in the loader, as there. With `embed_crops` ST is built on the latent
    grid and concatenated to the noisy latent.
    """
    device, loader = torch.device(clock.device), data.loader(clock.device)
    scheduler = DDPMScheduler(**SCHEDULE)
    parameters = list(nets.unet.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = get_scheduler("constant", optimizer)
    ema = EMAModel(parameters, decay=DECAY)
    bar = tqdm(total=len(loader), file=io.StringIO())
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    flops = 0.0
    iterator = iter(loader)
    for number in range(WARMUP + clock.num_steps):
        batch = next(iterator)
        tokens = nets.tokenizer(
            batch["caption"],
            padding="max_length",
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        ).input_ids
        batch = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor)}
        tokens = tokens.to(device)
        clock.lap("data")
        counter = StepFlops() if number == 1 else None
        with counter or contextlib.nullcontext():
            loss = plain_loss(nets, batch, tokens, scheduler, clock, dtype)
            clock.lap("other")
            if counter:
                counter.backward()
            loss.backward()
            clock.lap("backward")
        flops = counter.model if counter else flops
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.lap("optimizer")
        ema.step(parameters)
        clock.lap("ema")
        bar.update(1)
        bar.set_postfix(step_loss=loss.detach().item(), lr=schedule.get_last_lr()[0])
        clock.step_end()
    return clock.measured(flops)


def plain_loss(
    nets: Networks,
    batch: dict[str, Tensor],
    tokens: Tensor,
    scheduler: DDPMScheduler,
    clock: Clock,
    dtype: torch.dtype,
) -> Tensor:
    with torch.autocast(clock.device, dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            latents = nets.vae.encode(batch["image"].to(dtype)).latent_dist.sample()
            latents = latents * nets.vae.config.scaling_factor
            text = nets.text_encoder(tokens, return_dict=False)[0]
            st = None
            if nets.embed_crops is not None:
                crops = batch["crops"]
                embeds = nets.embed_crops(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
                ids = F.interpolate(batch["ids"][:, None].float(), latents.shape[-2:])[:, 0].long()
                masks = F.one_hot(ids, crops.shape[1] + 1)[..., 1:].to(embeds.dtype)
                st = torch.einsum("bhwk,bkd->bdhw", masks, embeds)
        clock.lap("encoders")
        noise = torch.randn_like(latents)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
        t = t.to(latents.device)
        noisy = scheduler.add_noise(latents, noise, t)
        given = noisy if st is None else torch.cat([noisy, st.to(noisy)], dim=1)
        clock.lap("other")
        prediction = nets.unet(given, t, text, return_dict=False)[0]
        clock.lap("forward")
        return F.mse_loss(prediction.float(), noise.float())
