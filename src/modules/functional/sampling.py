"""The reverse process: a loop over (denoise, scheduler), with randomness addressed per image."""

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from .random import Purpose, normal


def initial_noise(
    seeds: Int64[Tensor, " b"], shape: tuple[int, ...]
) -> Float32[Tensor, " b *shape"]:
    """Standard normal x_T of each image, a function of that image's own seed."""
    return normal(0, Purpose.INITIAL_NOISE, seeds, shape)


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    x_T: Float[Tensor, " b *shape"],
    num_steps: int,
    *,
    generators: list[torch.Generator] | None = None,
    eta: float = 0.0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, " b *shape"]:
    """x_0 from standard normal x_T by any diffusers scheduler; the caller's is left as it was.

    `denoise` gets x_t as the scheduler scales it, and t as a tensor [b] (int64, or float for the
    schedulers over sigma). `generators`, one per image, feed schedulers that draw noise. `eta` is
    DDIM's (Song et al. 2021, eq. 16). `on_step` gets the step's number and x after it.

    Raises ValueError where `generators` are not one per image or the scheduler knows no `eta`.
    """
    if generators is not None and len(generators) != len(x_T):
        raise ValueError(f"generators: expected one per image ({len(x_T)}), got {len(generators)}")
    scheduler = copy.deepcopy(scheduler)
    known = signature(scheduler.step).parameters
    options: dict[str, Any] = {}
    if "generator" in known:
        options["generator"] = generators
    if eta:
        if "eta" not in known:
            raise ValueError(f"eta: {type(scheduler).__name__} has none, expected 0, got {eta}")
        options["eta"] = eta
    scheduler.set_timesteps(num_steps, device=x_T.device)
    timesteps = scheduler.timesteps
    x = x_T * scheduler.init_noise_sigma
    for step, t in enumerate(timesteps):
        if "prev_timestep" in known:  # unCLIP's scheduler assumes t - 1 unless it is told
            options["prev_timestep"] = timesteps[step + 1] if step + 1 < len(timesteps) else None
        prediction = denoise(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(prediction, t, x, **options).prev_sample
        if on_step is not None:
            on_step(step, x)
    return x
