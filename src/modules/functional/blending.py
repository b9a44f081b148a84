"""Regions on the latent grid: numbers per region, varied noise, and a background that is kept."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


def region_map(
    ids: UInt8[Tensor, "b h w"], values: Float[Tensor, "b k"], elsewhere: float
) -> Float[Tensor, "b 1 h w"]:
    """values[i, k - 1] where the id is k, `elsewhere` where it is 0."""
    table = F.pad(values, (1, 0), value=elsewhere)
    return table.gather(1, ids.flatten(1).long()).view_as(ids)[:, None]


def vary(
    x_T: Float[Tensor, "b c h w"],
    other: Float[Tensor, "b c h w"],
    share: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, "b c h w"]:
    """sqrt(1 - v^2) x_T + v other: standard normal for every v in [0, 1] (our choice)."""
    return (1 - share.square()).sqrt() * x_T + share * other


def free_cells(
    repaint: Bool[Tensor, "b h w"], size: tuple[int, int]
) -> Bool[Tensor, "b 1 h_out w_out"]:
    """The cells of a smaller grid with at least one pixel of `repaint`."""
    return F.adaptive_max_pool2d(repaint[:, None].float(), size) > 0


@dataclass(frozen=True)
class Background:
    """Latents that are kept where `free` is False, on the path that `noise` leads them.

    The same noise at every level, as in the inpainting of blended latent diffusion (Avrahami et
    al. 2023): the kept part moves as the samples of an ordinary run do.
    """

    x_0: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    free: Bool[Tensor, "b 1 h w"]

    def put_behind(
        self, x: Float[Tensor, "b c h w"], scheduler: Any, step: int
    ) -> Float[Tensor, "b c h w"]:
        """x, with the background at the level that x has before `step`.

        The level is the scheduler's own, whether it counts in alphas_cumprod or in sigma; after the
        last step it is x_0 itself. `scheduler` is one that has made `step` steps from index 0.
        """
        kept = self.x_0
        if step < len(scheduler.timesteps):
            t = scheduler.timesteps[step].expand(len(x))
            kept = scheduler.add_noise(self.x_0, self.noise, t)
        return self.over(kept, x)

    def over(
        self, kept: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        return torch.where(self.free, x, kept.to(x))
