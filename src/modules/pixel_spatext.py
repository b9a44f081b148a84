"""SpaText in pixels: an unCLIP or GLIDE decoder, and the upsamplers behind it."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from .functional.conditions import Conditions
from .functional.random import Purpose, derive_seeds
from .networks.clip import Clip
from .networks.frozen import Frozen
from .networks.pixel import PixelBackbone
from .networks.priors import Prior
from .networks.upsampler import UpsamplerNet
from .spatext import SpaText


class PixelSpaText(SpaText):
    """SpaText on a decoder in pixels (SpaText, section 3.3).

    Where the decoder sees a CLIP embedding of the whole image it is that of the training image, and
    at sampling what the prior draws for the prompt. Rate 0 of `drop_rates.image_embed` leaves the
    decoder's null embedding as it was loaded.

    `upsamplers` enlarge x_0 to the size of the images, one after the other; only sampling uses
    them, and they are not trained here. Without any x_0 is enlarged by interpolation.
    """

    sees_images = True

    def __init__(
        self,
        backbone: PixelBackbone,
        clip: Clip,
        prior: Prior,
        *,
        upsamplers: Sequence[UpsamplerNet] = (),
        **options: Any,
    ) -> None:
        if not isinstance(backbone, PixelBackbone):
            found = type(backbone).__name__
            raise ValueError(f"module.backbone: found a {found}, expected a PixelBackbone")
        super().__init__(backbone, clip, prior, **options)
        null = backbone.projection.learned_classifier_free_guidance_embeddings
        if null is not None:
            if len(null) != clip.embed_dim:
                raise ValueError(
                    f"module.clip: found embeddings of width {clip.embed_dim} of {clip.name!r}, "
                    f"expected {len(null)}, the width of the decoder's image embedding"
                )
            # Where no coin ever asks for it no gradient reaches it, and DDP must not wait for one.
            null.requires_grad_(self.drop_rates.get("image_embed", 0.0) > 0)
        self.use_upsamplers(upsamplers)

    @property
    def upsamplers(self) -> tuple[UpsamplerNet, ...]:
        """Held, not owned, as the prior is."""
        return tuple(self.held_upsamplers.net)

    def use_upsamplers(self, upsamplers: Sequence[UpsamplerNet]) -> None:
        """Enlarge by others from now on. Raises ValueError for scales that do not lead from x_0 to
        the image, and for one that was trained with embeddings of another width."""
        scales, factor = [upsampler.scale for upsampler in upsamplers], self.backbone.factor
        if scales and prod(scales) != factor:
            found = " x ".join(map(str, scales))
            raise ValueError(
                f"module.upsamplers: found scales {found}, expected a product of {factor}, which "
                "is module.backbone.factor"
            )
        for upsampler in upsamplers:
            if upsampler.embed_dim not in (0, self.clip.embed_dim):
                raise ValueError(
                    f"module.upsamplers: found one that takes embeddings of width "
                    f"{upsampler.embed_dim}, expected {self.clip.embed_dim}, as module.clip has "
                    "them, or 0"
                )
        self.held_upsamplers = Frozen(nn.ModuleList(upsamplers))

    def conditions(self, batch: dict[str, Any]) -> Conditions:
        """Captions, crops through CLIP and, for a decoder that sees it, the image through CLIP."""
        conditions = super().conditions(batch)
        if self.backbone.null_image_embed is None:
            return conditions
        pixels = (centre_square(batch["image"]) + 1) / 2
        return replace(conditions, image_embed=self.clip.embed_images(pixels))

    def null_conditions(self) -> Conditions:
        """The empty prompt, no segments, and the decoder's own null of the image embedding."""
        return replace(super().null_conditions(), image_embed=self.backbone.null_image_embed)

    def scene_conditions(
        self,
        prompts: Sequence[str],
        ids: UInt8[Tensor, "b h w"],
        texts: Sequence[Sequence[str]],
        seeds: Int64[Tensor, " b"],
    ) -> Conditions:
        """And the image embedding that the prior draws for the prompt, a function of it and of
        seeds[i]."""
        conditions = super().scene_conditions(prompts, ids, texts, seeds)
        if self.backbone.null_image_embed is None:
            return conditions
        own_seeds = derive_seeds(seeds.cpu(), Purpose.IMAGE_SEED, 1).flatten()
        return replace(conditions, image_embed=self.draw(prompts, own_seeds))


def centre_square(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
    """What CLIP's own preprocessing shows it of an image that is not square."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]
