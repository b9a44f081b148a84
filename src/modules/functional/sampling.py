"""The reverse process: a loop over (denoise, scheduler), with randomness addressed per image."""

import copy
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from .blending import Background
from .diffusion import to_x_0
from .random import Purpose, normal

OnStep = Callable[[int, Tensor, Tensor], None]
# The schedulers of diffusers that draw with a variance of the network. Others that have an option
# `variance_type` cut the variance off, some of them only for epsilon or three channels.
LEARNED_VARIANCE = ("DDPMScheduler", "DDPMParallelScheduler", "UnCLIPScheduler")


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
    background: Background | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, " b *shape"]:
    """x_0 from standard normal x_T by any diffusers scheduler; the caller's is left as it was.

    `denoise` gets x_t as the scheduler scales it, and t as a tensor [b] (int64, or float for the
    schedulers over sigma); channels of its output beyond those of x are a learned variance, which
    only schedulers that draw with it get (`takes_variance`). `generators`, one per image, feed
    schedulers that draw noise. `eta` is DDIM's (Song et al. 2021, eq. 16). Where DDIM bounds x_0,
    its direction is that of the bounded one, as in the code of Dhariwal and Nichol 2021.
    `background` is put behind x before every step and at the end. `on_step` gets the step's number,
    x after it, and the x_0 that the network saw in it; what it raises ends the sampling.

    Raises ValueError where `generators` are not one per image or the scheduler knows no `eta`.
    """
    if generators is not None and len(generators) != len(x_T):
        raise ValueError(f"generators: expected one per image ({len(x_T)}), got {len(generators)}")
    scheduler = copy.deepcopy(scheduler)
    options = step_options(scheduler, generators, eta)
    with_variance = takes_variance(scheduler)
    scheduler.set_timesteps(num_steps, device=x_T.device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or `add_noise` would look a level up by its t
    timesteps = scheduler.timesteps
    x = x_T * scheduler.init_noise_sigma
    if background is not None:
        x = background.put_behind(x, scheduler, 0)
    for step, t in enumerate(timesteps):
        if "prev_timestep" in options:
            options["prev_timestep"] = timesteps[step + 1] if step + 1 < len(timesteps) else None
        x_t = scheduler.scale_model_input(x, t)
        prediction = denoise(x_t, t.expand(len(x)))
        if not with_variance:
            prediction = prediction[:, : x.shape[1]]
        output = scheduler.step(prediction, t, x, **options)
        x = output.prev_sample
        if background is not None:
            x = background.put_behind(x, scheduler, step + 1)
        if on_step is not None:
            x_0_hat = getattr(output, "pred_original_sample", None)
            if x_0_hat is None:
                x_0_hat = predict_x_0(scheduler, prediction, x_t, step)
            if background is not None:
                x_0_hat = background.over(background.x_0, x_0_hat)
            on_step(step, x, x_0_hat)
    return x


def step_options(
    scheduler: Any, generators: list[torch.Generator] | None, eta: float
) -> dict[str, Any]:
    """What this scheduler's step is told at every t, by the names that it knows."""
    known = signature(scheduler.step).parameters
    if eta and "eta" not in known:
        raise ValueError(f"eta: {type(scheduler).__name__} has none, expected 0, got {eta}")
    wanted = {
        "generator": generators,
        "use_clipped_model_output": bounds_x_0(scheduler),
        "prev_timestep": None,  # unCLIP's scheduler assumes t - 1 unless it is told
    }
    options = {name: value for name, value in wanted.items() if name in known}
    return options | ({"eta": eta} if eta else {})  # TCD has a default of its own


def takes_variance(scheduler: Any) -> bool:
    """Whether its step draws with the variance channels of the network."""
    known = any(cls.__name__ in LEARNED_VARIANCE for cls in type(scheduler).__mro__)
    return known and scheduler.config.variance_type in ("learned", "learned_range")


def bounds_x_0(scheduler: Any) -> bool:
    """Whether its options bound x_0 at each step."""
    config = scheduler.config
    return bool(config.get("clip_sample") or config.get("thresholding"))


def predict_x_0(
    scheduler: Any,
    prediction: Float[Tensor, " b d *shape"],
    x_t: Float[Tensor, " b c *shape"],
    step: int,
) -> Float[Tensor, " b c *shape"]:
    """x_0 as the network saw it, for schedulers that do not tell.

    `x_t` is what the network was given: it has unit variance, so that sigma means
    a_t = 1 / (1 + sigma^2) also where the scheduler itself adds noise to an unscaled x_0.
    """
    if hasattr(scheduler, "sigmas"):
        a_t = 1 / (1 + scheduler.sigmas[step].double().square())
    else:
        a_t = scheduler.alphas_cumprod[int(scheduler.timesteps[step])]
    mean = prediction[:, : x_t.shape[1]]  # the rest is a learned variance
    a_t = a_t.to(x_t.device).float().expand(len(x_t))
    return to_x_0(mean, x_t, a_t, scheduler.config.prediction_type)
