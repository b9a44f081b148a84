"""The components of a pipeline as the model that `generate` takes."""

from typing import Any

import torch

from .modules.networks.clip import Clip
from .modules.networks.latent import LatentBackbone
from .modules.networks.pixel import PixelBackbone
from .modules.networks.priors import IdentityPrior
from .modules.pixel_spatext import PixelSpaText
from .modules.spatext import LatentSpaText, SpaText
from .pipeline_parts import ClipPart, PriorPart, UpsamplerPart


class Assembled(SpaText):
    """Over networks that it does not place: accelerate may move each when it is called."""

    @property
    def device(self) -> torch.device:
        """That of the buffers: offloaded networks are elsewhere between their calls."""
        return self.backbone.alphas_cumprod.device

    def place_buffers(self, device: torch.device) -> None:
        for module, names in ((self.backbone, ["alphas_cumprod"]), (self.clip, ["mean", "std"])):
            for name in names:
                setattr(module, name, getattr(module, name).to(device))


class AssembledLatent(Assembled, LatentSpaText):
    pass


class AssembledPixel(Assembled, PixelSpaText):
    pass


def assemble_latent(
    *,
    unet: Any,
    vae: Any,
    clip: ClipPart,
    prior: PriorPart | None,
    **options: Any,
) -> Assembled:
    """`options` are those of `LatentBackbone`. Raises ValueError for a UNet that has not seen ST,
    whose first convolution would be widened at random, and for parts that do not fit."""
    embedder = clip.clip()
    check_width("unet", unet, vae.config.latent_channels, "latents", embedder)
    backbone = LatentBackbone(unet=unet, vae=vae, embed_dim=embedder.embed_dim, **options)
    return finished(AssembledLatent, backbone, embedder, prior)


def assemble_pixel(
    *,
    decoder: Any,
    text_proj: Any,
    clip: ClipPart,
    prior: PriorPart | None,
    upsampler_1: UpsamplerPart | None,
    upsampler_2: UpsamplerPart | None,
    **options: Any,
) -> Assembled:
    """As `assemble_latent`; `options` are those of `PixelBackbone`."""
    embedder = clip.clip()
    check_width("decoder", decoder, 3, "image", embedder)
    backbone = PixelBackbone(
        decoder=decoder, projection=text_proj, embed_dim=embedder.embed_dim, **options
    )
    upsamplers = [part for part in (upsampler_1, upsampler_2) if part is not None]
    return finished(AssembledPixel, backbone, embedder, prior, upsamplers=upsamplers)


def check_width(name: str, unet: Any, channels: int, what: str, clip: Clip) -> None:
    if (found := unet.conv_in.in_channels) != channels + clip.embed_dim:
        raise ValueError(
            f"{name}: found {found} input channels, expected {channels} of the {what} and "
            f"{clip.embed_dim} of CLIP's embeddings"
        )


def finished(
    made: type[Assembled], backbone: Any, clip: Clip, prior: PriorPart | None, **options: Any
) -> Assembled:
    painter: Any = IdentityPrior() if prior is None else prior.net
    model = made(
        backbone,
        clip,
        painter,
        optimizer=untrained,
        lr_scheduler=untrained,
        drop_rates={},
        **options,
    )
    return model.eval().requires_grad_(False)


def untrained(*_: Any) -> Any:
    raise RuntimeError("the model of a pipeline is not for training")
