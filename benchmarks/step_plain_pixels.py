"""The models in pixels that the plain loop of benchmarks/train_step.py trains."""

from dataclasses import dataclass
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
from step_loops import Clock
from step_pixels import DECODER_SCHEDULE, NUM_CONTEXT_TOKENS, SUPER_RES_SCHEDULE
from step_plain import EmbedImages, paint, random_steps, tokenise
from torch import Tensor
from torch.nn import Parameter
from torchvision.transforms.functional import gaussian_blur

VB_WEIGHT, NUM_STEPS = 0.001, 1000


@dataclass
class PlainDecoder:
    """Karlo's decoder and projection, with dense ST concatenated to the noisy image: L_simple and
    the variational bound of the learned variance."""

    unet: UNet2DConditionModel
    projection: UnCLIPTextProjModel
    text_encoder: Any
    tokenizer: Any
    embed_images: EmbedImages
    factor: int

    def __post_init__(self) -> None:
        self.scheduler = DDPMScheduler(**DECODER_SCHEDULE)

    def parameters(self) -> list[Parameter]:
        return [*self.unet.parameters(), *self.projection.parameters()]

    def prepare(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        tokens = tokenise(self.tokenizer, batch["caption"])
        used = {name: batch[name] for name in ("image", "crops", "ids")}
        return used | {"tokens": tokens.input_ids, "mask": tokens.attention_mask}

    def loss(self, batch: dict[str, Tensor], clock: Clock) -> Tensor:
        with torch.no_grad():
            x_0 = F.avg_pool2d(batch["image"], self.factor)
            text = self.text_encoder(batch["tokens"])
            image_embeds = self.embed_images((batch["image"] + 1) / 2)
            st = paint(batch, self.embed_images, x_0.shape[-2:])
        clock.lap("encoders")
        noise = torch.randn_like(x_0)
        t = random_steps(self.scheduler, x_0)
        noisy = self.scheduler.add_noise(x_0, noise, t)
        given = torch.cat([noisy, st.to(noisy)], dim=1)
        clock.lap("other")
        context, embedding = self.projection(
            image_embeddings=image_embeds,
            prompt_embeds=text.text_embeds,
            text_encoder_hidden_states=text.last_hidden_state,
            do_classifier_free_guidance=False,
        )
        mask = F.pad(batch["mask"], (NUM_CONTEXT_TOKENS, 0), value=1)
        prediction = self.unet(
            given, t, context, class_labels=embedding, attention_mask=mask, return_dict=False
        )[0]
        clock.lap("forward")
        mean, v = prediction.float().chunk(2, dim=1)
        simple = F.mse_loss(mean, noise)
        bound = plain_bound(mean.detach(), v, x_0, noisy, t, self.scheduler.alphas_cumprod)
        return simple + VB_WEIGHT * NUM_STEPS * bound


def plain_bound(
    epsilon: Tensor, v: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """Bits per dimension (Improved DDPM, eq. 4 to 7 and 15), written down as it stands there."""

    def at(values: Tensor) -> Tensor:
        return values.to(t.device)[t][:, None, None, None]

    previous = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
    beta = 1 - alphas_cumprod / previous
    variance = beta * (1 - previous) / (1 - alphas_cumprod)
    log_variance = at(torch.cat([variance[1:2], variance[1:]]).log())
    own_log_variance = (v + 1) / 2 * at(beta.log()) + (1 - v) / 2 * log_variance
    found = (x_t - at((1 - alphas_cumprod).sqrt()) * epsilon) / at(alphas_cumprod.sqrt())
    weight_0 = at(previous.sqrt() * beta / (1 - alphas_cumprod))
    weight_t = at((1 - beta).sqrt() * (1 - previous) / (1 - alphas_cumprod))
    mean, own_mean = weight_0 * x_0 + weight_t * x_t, weight_0 * found + weight_t * x_t

    ratio = log_variance - own_log_variance
    distance = (mean - own_mean).square() * torch.exp(-own_log_variance)
    kl = 0.5 * (ratio.exp() - ratio - 1 + distance)
    scale = torch.exp(-0.5 * own_log_variance)
    upper = torch.special.ndtr((x_0 - own_mean + 1 / 255) * scale)
    lower = torch.special.ndtr((x_0 - own_mean - 1 / 255) * scale)
    upper = torch.where(x_0 > 0.999, 1.0, upper)
    lower = torch.where(x_0 < -0.999, 0.0, lower)
    nll = -(upper - lower).clamp(min=1e-12).log()
    return torch.where(t[:, None, None, None] == 0, nll, kl).mean() / log(2)


@dataclass
class PlainUpsampler:
    """Karlo's network for super-resolution on random squares, without ST."""

    unet: UNet2DModel
    scale: int
    square: int
    blur_rate: float = 0.5
    noise_rate: float = 0.5
    noise_level: float = 0.1

    def __post_init__(self) -> None:
        self.scheduler = DDPMScheduler(**SUPER_RES_SCHEDULE)

    def parameters(self) -> list[Parameter]:
        return list(self.unet.parameters())

    def prepare(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, square = batch["image"], self.square
        height, width = image.shape[-2:]
        tops = torch.randint(0, height - square + 1, (len(image),)).tolist()
        lefts = torch.randint(0, width - square + 1, (len(image),)).tolist()
        places = zip(image, tops, lefts, strict=True)
        return {
            "image": torch.stack([one[:, i : i + square, j : j + square] for one, i, j in places])
        }

    def loss(self, batch: dict[str, Tensor], clock: Clock) -> Tensor:
        x_0 = batch["image"]
        low = F.avg_pool2d(x_0, self.scale)
        coins = torch.rand(3, len(x_0), 1, 1, 1, device=x_0.device)
        low = torch.where(coins[0] < self.blur_rate, gaussian_blur(low, [3, 3], [0.6, 0.6]), low)
        level = torch.where(coins[1] < self.noise_rate, self.noise_level * coins[2], 0.0)
        low = low + level * torch.randn_like(low)
        low = F.interpolate(low, x_0.shape[-2:], mode="bicubic", antialias=True)
        noise = torch.randn_like(x_0)
        t = random_steps(self.scheduler, x_0)
        noisy = self.scheduler.add_noise(x_0, noise, t)
        clock.lap("other")
        prediction = self.unet(torch.cat([noisy, low], dim=1), t, return_dict=False)[0]
        clock.lap("forward")
        return F.mse_loss(prediction.float(), noise)
