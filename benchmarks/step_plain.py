"""The plain training loop that benchmarks/train_step.py compares ours with, for latent models."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from step_loops import DECAY, LR, MAX_NORM, WARMUP, WEIGHT_DECAY, Clock, Measured
from step_models import MAX_LENGTH, SCHEDULE, Batches
from torch import Tensor
from torch.nn import Parameter
from tqdm import tqdm

from spatext.callbacks.flops import StepFlops

EmbedImages = Callable[[Tensor], Tensor]


class PlainModel(Protocol):
    """What the loop trains: networks as their libraries make them."""

    def parameters(self) -> list[Parameter]:
        """That are trained."""

    def prepare(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What of a batch goes to the device; captions become tokens here."""

    def loss(self, batch: dict[str, Tensor], clock: Clock) -> Tensor:
        """Under autocast, if there is any."""


def plain(model: PlainModel, data: Batches, clock: Clock, *, precision: str) -> Measured:
    """A training loop in the manner of the text-to-image example of diffusers: autocast, AdamW and
    the average of diffusers with their defaults, captions made tokens in the loader, the loss read
    at each step."""
    device, loader = torch.device(clock.device), data.loader(clock.device)
    parameters = model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = get_scheduler("constant", optimizer)
    ema = EMAModel(parameters, decay=DECAY)
    bar = tqdm(total=len(loader), file=io.StringIO())
    mixed = precision.startswith("bf16")
    flops = 0.0
    iterator = iter(loader)
    for number in range(WARMUP + clock.num_steps):
        batch = {k: v.to(device) for k, v in model.prepare(next(iterator)).items()}
        clock.lap("data")
        counter = StepFlops() if number == 1 else None
        with counter or contextlib.nullcontext():
            with torch.autocast(clock.device, torch.bfloat16, enabled=mixed):
                loss = model.loss(batch, clock)
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


@dataclass
class PlainLatent:
    """With `embed_images` ST is built on the latent grid and concatenated to the noisy latent;
    None: text to image. A batch with cached encodings needs none of the frozen networks."""

    unet: UNet2DConditionModel
    vae: Any
    text_encoder: Any
    tokenizer: Any
    embed_images: EmbedImages | None

    def __post_init__(self) -> None:
        self.scheduler = DDPMScheduler(**SCHEDULE)

    def parameters(self) -> list[Parameter]:
        return list(self.unet.parameters())

    def prepare(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        if "moments" in batch:
            return {name: batch[name] for name in ("moments", "text", "embeds", "ids")}
        used = {name: batch[name] for name in ("image", "crops", "ids")}
        return used | {"tokens": tokenise(self.tokenizer, batch["caption"]).input_ids}

    def loss(self, batch: dict[str, Tensor], clock: Clock) -> Tensor:
        with torch.no_grad():
            if "moments" in batch:
                mean, log_variance = batch["moments"].float().unbind(1)
                latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
                text = batch["text"].float()
            else:
                image = batch["image"].to(self.vae.dtype)
                latents = self.vae.encode(image).latent_dist.sample()
                text = self.text_encoder(batch["tokens"], return_dict=False)[0]
            latents = latents * self.vae.config.scaling_factor
            st = None
            if self.embed_images is not None:
                st = paint(batch, self.embed_images, latents.shape[-2:])
        clock.lap("encoders")
        noise = torch.randn_like(latents)
        t = random_steps(self.scheduler, latents)
        noisy = self.scheduler.add_noise(latents, noise, t)
        given = noisy if st is None else torch.cat([noisy, st.to(noisy)], dim=1)
        clock.lap("other")
        prediction = self.unet(given, t, text, return_dict=False)[0]
        clock.lap("forward")
        return F.mse_loss(prediction.float(), noise.float())


def tokenise(tokenizer: Any, captions: list[str]) -> Any:
    options = {"padding": "max_length", "truncation": True, "max_length": MAX_LENGTH}
    return tokenizer(captions, return_tensors="pt", **options)


def random_steps(scheduler: DDPMScheduler, x_0: Tensor) -> Tensor:
    return torch.randint(0, scheduler.config.num_train_timesteps, (len(x_0),)).to(x_0.device)


def paint(batch: dict[str, Tensor], embed_images: EmbedImages, size: tuple[int, ...]) -> Tensor:
    """Dense ST on a grid of `size`, each cell of the segment at its corner."""
    if "embeds" in batch:
        embeds = batch["embeds"].float()
    else:
        crops = batch["crops"]
        embeds = embed_images(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
    ids = F.interpolate(batch["ids"][:, None].float(), size)[:, 0].long()
    masks = F.one_hot(ids, embeds.shape[1] + 1)[..., 1:].to(embeds.dtype)
    return torch.einsum("bhwk,bkd->bdhw", masks, embeds)
