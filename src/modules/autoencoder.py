"""Training a small autoencoder of one's own: the first stage of a latent diffusion model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from .functional.random import Purpose, normal
from .training import MakeOptimizer, MakeScheduler, TrainedModule


class Autoencoder(TrainedModule):
    """diffusers' `AutoencoderKL` on L1 + L2 + a slight pull of the posterior to N(0, 1).

    No perceptual or adversarial term: those need weights or a second network, and this is for
    small worlds. `kl_weight` 1e-4 per element is our choice.

    With `decoder_of`, a folder in the diffusers layout, the decoder of its autoencoder is trained
    further and the latents stay what they are, so a diffusion model on them does not notice.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        *,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler,
        kl_weight: float = 1e-4,
        decoder_of: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.fixed_latents = decoder_of is not None
        if decoder_of is None:
            self.model = AutoencoderKL(**model)
        else:
            self.model = AutoencoderKL.from_pretrained(
                decoder_of, subfolder="vae", torch_dtype=torch.float32
            )
            self.model.requires_grad_(False).decoder.requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)
        self.kl_weight, self.seed = kl_weight, seed

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        posterior = self.model.encode(image).latent_dist
        shape = tuple(posterior.mean.shape[1:])
        noise = normal(self.seed, Purpose.POSTERIOR, batch["index"], shape)
        output = self.model.decode(posterior.mean + posterior.std * noise).sample
        error = F.l1_loss(output, image) + F.mse_loss(output, image)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        size = len(batch["index"])
        self.log_dict({"train/error": error, "train/kl": kl}, prog_bar=True, batch_size=size)
        return error + self.kl_weight * kl

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Peak signal-to-noise ratio of the reconstruction, in dB, for a range of 2."""
        mean = self.model.encode(batch["image"]).latent_dist.mean
        output = self.model.decode(mean).sample.clamp(-1, 1)
        error = (output - batch["image"]).square().mean(dim=(1, 2, 3))
        psnr = (10 * torch.log10(4 / error)).mean()
        self.log("val/psnr", psnr, prog_bar=True, sync_dist=True, batch_size=len(output))
        return psnr

    @torch.no_grad()
    def save_pretrained(self, folder: Path, batches: list[dict[str, Any]]) -> None:
        """Write vae/ in the diffusers layout, with latents of unit deviation over `batches`."""
        if not self.fixed_latents:
            latents = [self.model.encode(batch["image"]).latent_dist.sample() for batch in batches]
            scale = 1 / torch.cat(latents).float().std().item()
            self.model.register_to_config(scaling_factor=scale)
        self.model.save_pretrained(folder / "vae")
