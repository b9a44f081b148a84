"""From the decoder's small images to large ones: the upsamplers, one stage after another."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import lcm
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .functional.blending import Background, free_cells
from .functional.conditions import Conditions
from .functional.random import Purpose, derive_seeds
from .functional.resampling import downsample
from .functional.sampling import OnStep, initial_noise, sample
from .functional.st import Segments
from .networks.upsampler import UpsamplerNet
from .pixel_spatext import PixelSpaText
from .sampling_options import (
    Sampling,
    count_upsampler_steps,
    make_scheduler,
    make_upsampler_scheduler,
)
from .spatext import SpaText


@dataclass(frozen=True)
class Kept:
    """Images in [-1, 1] of the final size, whose pixels stay where `repaint` is False."""

    image: Float[Tensor, "b 3 h w"]
    repaint: Bool[Tensor, "b h w"]

    def at(self, x_T: Float[Tensor, "b 3 i j"]) -> Background:
        """Behind the images of a stage, as behind the decoder's."""
        size = (x_T.shape[2], x_T.shape[3])
        image = downsample(self.image.to(x_T), self.image.shape[2] // size[0])
        return Background(image, x_T, free_cells(self.repaint.to(x_T.device), size))


def upsamplers(model: SpaText) -> tuple[UpsamplerNet, ...]:
    """In the order of their use; none for a model that decodes without."""
    return tuple(model.upsamplers) if isinstance(model, PixelSpaText) else ()


def upsample(
    model: SpaText,
    x_0: Float[Tensor, "b 3 i j"],
    conditions: Conditions,
    seeds: Int64[Tensor, " b"],
    sampling: Sampling,
    *,
    kept: Kept | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """The images that the upsamplers make of x_0, in [-1, 1].

    Stage s of image i starts from noise of its own seed, and draws by it: a function of (seeds[i],
    s), whatever else is in the batch and however many stages follow. It is given the image before
    it, clamped to [-1, 1] as in Karlo, and no text: there is no guidance, as in GLIDE and Karlo.
    ST goes to the upsamplers that were trained with it.

    `on_step` gets the number of the step, counted from 0 through all stages, and x_t and x_0_hat as
    images of the stage's size.
    """
    nets = upsamplers(model)
    stage_seeds = derive_seeds(seeds.to(x_0.device), Purpose.STAGE_SEED, len(nets)).unbind(1)
    image, first = x_0, 0
    for stage, (net, own_seeds) in enumerate(zip(nets, stage_seeds, strict=True)):
        scheduler, num_steps = stage_scheduler(sampling, net, stage)
        low = image.clamp(-1, 1)
        if sampling.quantise:
            low = ((low + 1) * 127.5).round() / 127.5 - 1
        size = (net.scale * low.shape[2], net.scale * low.shape[3])
        x_T = initial_noise(own_seeds, (net.channels, *size))
        num_calls = count_timesteps(scheduler, num_steps)
        image = sample(
            stage_denoiser(net, low, conditions.segments, num_calls),
            scheduler,
            x_T,
            num_steps,
            generators=generators(own_seeds, x_T.device),
            background=None if kept is None else kept.at(x_T),
            on_step=later(on_step, first),
        )
        first += num_calls
    return image.clamp(-1, 1)


def stage_denoiser(
    net: UpsamplerNet, low: Float[Tensor, "b 3 i j"], segments: Segments, num_calls: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """For `sample`, which calls it `num_calls` times: the last time, in Karlo's layout, another
    network answers. Its predictions are float32."""
    dtype = next(net.parameters()).dtype
    painted = segments.to(dtype=dtype) if net.embed_dim > 0 else None
    calls = count(1)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        last = next(calls) == num_calls
        return net.denoise(x_t.to(dtype), t, low, painted, last=last).float()

    return denoise


def stage_scheduler(sampling: Sampling, net: UpsamplerNet, stage: int) -> tuple[Any, int]:
    """The scheduler of a stage, and its number of steps."""
    scheduler = make_upsampler_scheduler(sampling, net.scheduler_config, stage)
    return scheduler, count_upsampler_steps(sampling, stage)


def count_steps(model: SpaText, sampling: Sampling, *, latent: bool = False) -> int:
    """How often `generate` calls `on_step`: the steps of the decoder and of all upsamplers."""
    scheduler = make_scheduler(sampling, model.backbone.scheduler_config)
    num = count_timesteps(scheduler, sampling.num_steps)
    stages = [] if latent else upsamplers(model)
    return num + sum(
        count_timesteps(*stage_scheduler(sampling, net, stage)) for stage, net in enumerate(stages)
    )


def size_multiple(model: SpaText) -> int:
    """Of which the sides of images must be multiples: what the networks halve them by."""
    multiple, rest = model.backbone.multiple, model.backbone.factor
    for net in upsamplers(model):
        rest //= net.scale
        multiple = lcm(multiple, rest * net.multiple)
    return multiple


def compile_unets(model: SpaText) -> None:
    """That of the backbone and those of all upsamplers."""
    backbone: Any = model.backbone
    stages = [unet for net in upsamplers(model) for unet in (net.unet, net.last)]
    for unet in (backbone.unet, *stages):
        if unet is not None:
            unet.compile()


def count_timesteps(scheduler: Any, num_steps: int) -> int:
    """Some schedulers take more than they are told."""
    scheduler.set_timesteps(num_steps)
    return len(scheduler.timesteps)


def generators(seeds: Int64[Tensor, " b"], device: torch.device) -> list[torch.Generator]:
    """One per image."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]


def later(on_step: OnStep | None, first: int) -> OnStep | None:
    """`on_step`, told that `first` steps were before."""
    if on_step is None or first == 0:
        return on_step
    return lambda step, x_t, x_0_hat: on_step(first + step, x_t, x_0_hat)
