"""What images may be asked for beyond their scenes, and what it means for the sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from .functional.blending import Background, free_cells, region_map, vary
from .functional.conditions import Conditions
from .functional.sampling import initial_noise
from .spatext import SpaText


@dataclass(frozen=True)
class Controls:
    """Row i belongs to image i, column k - 1 to its region k; None asks for nothing.

    negative_prompts: what guidance leads away from, in place of the empty prompt.
    scales: in place of those of `Sampling`: one number per image for form "fast", one per image
        and name for "full".
    strength: >= 0, factor on the guidance inside the region. 1 outside of all regions (our choice).
    variation: v in [0, 1]; inside the region the initial noise is
        sqrt(1 - v^2) x_T(seed) + v x_T(variation_seed) (our choice).
    background: in [-1, 1]; its pixels are kept where `repaint` is False.
    """

    negative_prompts: Sequence[str] | None = None
    scales: Float[Tensor, " b"] | Mapping[str, Float[Tensor, " b"]] | None = None
    strength: Float[Tensor, "b k"] | None = None
    variation: Float[Tensor, "b k"] | None = None
    variation_seeds: Int64[Tensor, " b"] | None = None
    background: Float[Tensor, "b 3 h w"] | None = None
    repaint: Bool[Tensor, "b h w"] | None = None

    def __post_init__(self) -> None:
        if self.strength is not None and not (self.strength >= 0).all():
            raise ValueError(f"strength: found {self.strength.min():g}, expected at least 0")
        if self.variation is not None:
            low, high = self.variation.min(), self.variation.max()
            if not (low >= 0 and high <= 1):
                raise ValueError(f"variation: found {low:g} to {high:g}, expected 0 to 1")
        for one, other in (("variation", "variation_seeds"), ("background", "repaint")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one}, {other}: found one of the two, expected both or none")


def network_dtype(model: SpaText) -> torch.dtype:
    """That of the weights, in which the networks want what they are given."""
    return next(model.parameters()).dtype


def null_conditions(model: SpaText, negative_prompts: Sequence[str] | None) -> Conditions:
    """The model's null, its text replaced by that of each image's negative prompt. The null of a
    global image embedding stays: no prior draws one for what is not wanted (our choice)."""
    null = model.null_conditions()
    if negative_prompts is None or not any(negative_prompts):
        return null
    image_embed = null.image_embed
    if image_embed is not None:
        image_embed = image_embed.expand(len(negative_prompts), -1)
    text = model.backbone.embed_text(negative_prompts)
    return replace(null, text=text, image_embed=image_embed)


def strength_map(
    controls: Controls, ids: UInt8[Tensor, "b h w"]
) -> Float[Tensor, "b 1 h w"] | None:
    """None where it is 1 for every region; `ids` are those of the latent grid."""
    if controls.strength is None or (controls.strength == 1).all():
        return None
    return region_map(ids, controls.strength.to(ids.device), elsewhere=1.0)


def start_noise(
    controls: Controls,
    ids: UInt8[Tensor, "b h w"],
    seeds: Int64[Tensor, " b"],
    num_channels: int,
) -> Float[Tensor, "b c h w"]:
    """x_T of each image, varied inside the regions that ask for it; `ids` as above."""
    shape = (num_channels, *ids.shape[1:])
    x_T = initial_noise(seeds.to(ids.device), shape)
    if controls.variation is None or controls.variation_seeds is None:
        return x_T
    other = initial_noise(controls.variation_seeds.to(ids.device), shape)
    return vary(x_T, other, region_map(ids, controls.variation.to(ids.device), elsewhere=0.0))


def latent_background(
    model: SpaText, controls: Controls, x_T: Float[Tensor, "b c h w"]
) -> Background | None:
    """The background's latents, noised by the image's own x_T.

    A cell is free if any of its pixels is repainted, so that all of these are the model's.
    """
    if controls.background is None or controls.repaint is None:
        return None
    repaint = controls.repaint.to(x_T.device)
    x_0 = model.backbone.encode(controls.background.to(x_T.device, network_dtype(model)))
    return Background(x_0.to(x_T), x_T, free_cells(repaint, (x_T.shape[2], x_T.shape[3])))


def paste(images: Float[Tensor, "b 3 h w"], controls: Controls) -> Float[Tensor, "b 3 h w"]:
    """The background's own pixels where nothing is repainted: exact, without a soft edge (our
    choice), since the latents on both sides have been sampled together."""
    if controls.background is None or controls.repaint is None:
        return images
    repaint = controls.repaint.to(images.device)[:, None]
    return torch.where(repaint, images, controls.background.to(images))
