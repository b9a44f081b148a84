"""The components of a pipeline as the model that `generate` takes."""

from typing import Any

import torch
from diffusers import DDPMScheduler

from .modules.networks.clip import Clip
from .modules.networks.latent import LatentBackbone
from .modules.networks.priors import IdentityPrior
from .modules.spatext import LatentSpaText
from .pipeline_parts import ClipPart, PriorPart


class Assembled(LatentSpaText):
    """Over networks that it does not place: accelerate may move each when it is called."""

    def __init__(self, backbone: LatentBackbone, clip: Clip, prior: Any) -> None:
        super().__init__(
            backbone, clip, prior, optimizer=untrained, lr_scheduler=untrained, drop_rates={}
        )

    @property
    def device(self) -> torch.device:
        """That of the buffers: offloaded networks are elsewhere between their calls."""
        return self.backbone.alphas_cumprod.device

    def place_buffers(self, device: torch.device) -> None:
        for module, names in ((self.backbone, ["alphas_cumprod"]), (self.clip, ["mean", "std"])):
            for name in names:
                setattr(module, name, getattr(module, name).to(device))


def untrained(*_: Any) -> Any:
    raise RuntimeError("the model of a pipeline is not for training")


def assemble(
    *,
    unet: Any,
    vae: Any,
    text_encoder: Any,
    tokenizer: Any,
    scheduler: Any,
    clip: ClipPart,
    prior: PriorPart | None,
    **options: Any,
) -> Assembled:
    """`options` are those of `LatentBackbone`. Raises ValueError for a UNet that has not seen ST,
    whose first convolution would be widened at random, and for parts that do not fit."""
    channels, embedder = vae.config.latent_channels, clip.clip()
    if (found := unet.conv_in.in_channels) != channels + embedder.embed_dim:
        raise ValueError(
            f"unet: found {found} input channels, expected {channels} of the latents and "
            f"{embedder.embed_dim} of CLIP's embeddings"
        )
    backbone = LatentBackbone(  # type: ignore[abstract]
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=DDPMScheduler.from_config(scheduler.config),
        embed_dim=embedder.embed_dim,
        **options,
    )
    model = Assembled(backbone, embedder, IdentityPrior() if prior is None else prior.net)
    return model.eval().requires_grad_(False)
