"""Noise schedule and reverse process of a prior that predicts x_0, as Karlo has them."""

from collections.abc import Mapping
from typing import Any

import diffusers
from jaxtyping import Float
from torch import Tensor

SCHEDULE = "squaredcos_cap_v2"
KARLO = {
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "prediction_type": "sample",
    "clip_sample": True,
    "clip_sample_range": 5.0,
}
# What each scheduler is told beside the noise schedule; x_0 is clamped before it sees it.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "UnCLIPScheduler": {"variance_type": "fixed_small_log", "clip_sample": False},
    "DDIMScheduler": {"timestep_spacing": "trailing", "clip_sample": False},
    # The end of the cosine schedule is nearly pure noise, and too steep for a second order.
    "DPMSolverMultistepScheduler": {"timestep_spacing": "trailing", "lambda_min_clipped": -5.1},
}


def clamp(x_0: Float[Tensor, "n d"], limit: float | None) -> Float[Tensor, "n d"]:
    return x_0 if limit is None else x_0.clamp(-limit, limit)


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler on the noise schedule that the prior was trained with."""
    return getattr(diffusers, name)(
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        beta_schedule=SCHEDULE,
        prediction_type="sample",
        **SCHEDULERS[name],
    )


def check_options(
    scheduler: str, config: Mapping[str, Any], num_steps: int, num_candidates: int
) -> None:
    """Raises ValueError naming the option."""
    if scheduler not in SCHEDULERS:
        raise ValueError(
            f"prior.scheduler: found {scheduler!r}, expected one of {', '.join(SCHEDULERS)}"
        )
    if (found := config.get("prediction_type", "epsilon")) != "sample":  # diffusers' default
        raise ValueError(f"prior_scheduler.prediction_type: found {found!r}, expected 'sample'")
    if (found := config.get("beta_schedule", SCHEDULE)) != SCHEDULE:
        raise ValueError(f"prior_scheduler.beta_schedule: found {found!r}, expected {SCHEDULE!r}")
    if num_steps < 2:
        raise ValueError(f"prior.num_steps: found {num_steps}, expected at least 2")
    if num_candidates < 1:
        raise ValueError(f"prior.num_candidates: found {num_candidates}, expected at least 1")
