"""How to sample: the options, and the scheduler that they ask for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, get_args

import diffusers

Form = Literal["fast", "full"]


@dataclass(frozen=True)
class Sampling:
    """How to sample; the defaults are those of the paper where it is known to have one.

    form "fast" is eq. 6 of SpaText with one `scale` (3 in the paper, as recalled), two network
    calls a step; "full" is eq. 5 with `scales`, one per condition, N + 1 calls. `append_texts`
    appends the local texts to the global prompt, as the paper does at inference. Scheduler and
    `num_steps` are not known from the paper: DDIM with 50 steps is our choice.

    Guidance is on while t / num_train_timesteps lies in `guidance_interval`; elsewhere all
    conditions speak together without it, in one branch. `vae_tiling` decodes one image and one
    tile at a time, for sizes that do not fit otherwise; where tiles meet, images differ a little.
    `compile` compiles the UNet at the first call, which pays off over many of one size.
    """

    scheduler: str = "DDIMScheduler"
    num_steps: int = 50
    form: Form = "fast"
    scale: float = 3.0
    scales: Mapping[str, float] = field(default_factory=lambda: {"text": 3.0, "segments": 3.0})
    rescale: float = 0.0
    guidance_interval: Sequence[float] = (0.0, 1.0)
    append_texts: bool = True
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    vae_tiling: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(
                f"sampling.form: found {self.form!r}, expected one of {get_args(Form)}"
            )
        if not isinstance(self.num_steps, Integral) or self.num_steps < 1:
            raise ValueError(f"sampling.num_steps: found {self.num_steps!r}, expected at least 1")
        for name, value in (("scale", self.scale), ("rescale", self.rescale)):
            if not is_number(value):
                raise ValueError(f"sampling.{name}: found {value!r}, expected a number")
        scales = self.scales.values() if isinstance(self.scales, Mapping) else [None]
        if not all(is_number(value) for value in scales):
            raise ValueError(
                f"sampling.scales: found {self.scales!r}, expected a number for each name"
            )
        interval = self.guidance_interval
        pair = isinstance(interval, Sequence) and len(interval) == 2
        if not (pair and all(map(is_number, interval)) and 0 <= interval[0] <= interval[1] <= 1):
            raise ValueError(
                f"sampling.guidance_interval: found {interval!r}, expected [lo, hi] with 0 <= lo "
                "<= hi <= 1, in fractions of the training steps"
            )


def is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def make_scheduler(sampling: Sampling, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler by class name, on the noise schedule that the model was trained with.

    Raises ValueError for a name that is no scheduler of diffusers.
    """
    cls: Any = getattr(diffusers, sampling.scheduler, None)
    if not hasattr(cls, "set_timesteps"):
        raise ValueError(
            f"sampling.scheduler: found {sampling.scheduler!r}, expected the name of a diffusers "
            "scheduler such as DDIMScheduler or DPMSolverMultistepScheduler"
        )
    # Clipping x_0 to [-1, 1] is for pixels; latents are not bounded.
    defaults = {"clip_sample": False, "timestep_spacing": "trailing"}
    return cls.from_config(dict(config), **defaults | dict(sampling.scheduler_options))
