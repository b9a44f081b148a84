"""How to sample: the options, and the scheduler that they ask for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from numbers import Integral, Real
from typing import Any, Literal, get_args

import diffusers

from .functional.sampling import takes_variance

Form = Literal["fast", "full"]
Thresholding = Literal["auto", "none", "static", "dynamic"]
# Schedulers of diffusers that have these options and do nothing with them.
DEAF = ("TCDScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
# What the noise of training was: told to a scheduler even where the config has it by default, as
# another class may have another default.
NOISE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas")


@dataclass(frozen=True)
class Sampling:
    """How to sample; the defaults are those of the paper where it is known to have one.

    form "fast" is eq. 6 of SpaText with one `scale` (3 in the paper, as recalled), two network
    calls a step; "full" is eq. 5 with `scales`, one per condition, N + 1 calls; unCLIP's global
    image embedding, where it is not named, goes with the text. `append_texts` appends the local
    texts to the global prompt, as the paper does at inference. Scheduler and `num_steps` are not
    known from the paper: DDIM with 50 steps is our choice.

    Guidance is on while t / num_train_timesteps lies in `guidance_interval`; elsewhere all
    conditions speak together without it, in one branch. `vae_tiling` decodes one image and one
    tile at a time, for sizes that do not fit otherwise; where tiles meet, images differ a little.
    `compile` compiles the UNet at the first call, which pays off over many of one size.

    `thresholding` bounds x_0 at each step (Imagen, sec. 2.3). static: to [-1, 1]. dynamic: to
    [-s, s], divided by s, which is the `dynamic_ratio` quantile of |x_0| in each image within
    [1, dynamic_max]; Imagen has no maximum, 1.5 is our choice. auto: as the model says in its
    scheduler's config, static with clip_sample (pixels), none without (latents).

    Upsamplers behind a pixel decoder have a scheduler and steps of their own, DDIM with 27 as in
    unCLIP, and the same thresholding; `scheduler_options` are not theirs. Several may have a number
    of steps each (unCLIP: [27, 15]). `quantise` rounds what they enlarge to 8 bits, as GLIDE does.
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
    thresholding: Thresholding = "auto"
    dynamic_ratio: float = 0.995
    dynamic_max: float = 1.5
    upsampler_scheduler: str = "DDIMScheduler"
    upsampler_steps: int | Sequence[int] = 27
    quantise: bool = False

    def __post_init__(self) -> None:
        _check_choice("form", self.form, get_args(Form))
        _check_choice("thresholding", self.thresholding, get_args(Thresholding))
        several = self.upsampler_steps
        each = [*several] if isinstance(several, Sequence) and several else [several]
        counts = [("num_steps", self.num_steps), *(("upsampler_steps", steps) for steps in each)]
        for name, steps in counts:
            if not isinstance(steps, Integral) or steps < 1:
                raise ValueError(f"sampling.{name}: found {steps!r}, expected at least 1")
        if not (is_number(self.dynamic_ratio) and 0 < self.dynamic_ratio <= 1):
            raise ValueError(
                f"sampling.dynamic_ratio: found {self.dynamic_ratio!r}, expected more than 0 and "
                "at most 1"
            )
        if not (is_number(self.dynamic_max) and self.dynamic_max >= 1):
            raise ValueError(
                f"sampling.dynamic_max: found {self.dynamic_max!r}, expected at least 1"
            )
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

    Raises ValueError for a name that is no scheduler of diffusers, for the upsamplers' too, and for
    a scheduler that cannot do the thresholding or the number of steps.
    """
    _scheduler_class("upsampler_scheduler", sampling.upsampler_scheduler)
    _check_steps(sampling.scheduler, "num_steps", sampling.num_steps)
    return _build("scheduler", sampling.scheduler, sampling, config, sampling.scheduler_options)


def make_upsampler_scheduler(sampling: Sampling, config: Mapping[str, Any], stage: int = 0) -> Any:
    """As `make_scheduler`, of an upsampler that was trained with the noise schedule of `config`."""
    name = sampling.upsampler_scheduler
    _check_steps(name, "upsampler_steps", count_upsampler_steps(sampling, stage))
    return _build("upsampler_scheduler", name, sampling, config, {})


def count_upsampler_steps(sampling: Sampling, stage: int) -> int:
    """Those of the upsampler of this number. ValueError where the options say none for it."""
    steps = sampling.upsampler_steps
    if not isinstance(steps, Sequence):
        return steps
    if stage >= len(steps):
        raise ValueError(
            f"sampling.upsampler_steps: found {[*steps]}, expected a number for each of the "
            "upsamplers, or one for all"
        )
    return steps[stage]


def _build(
    option: str,
    name: str,
    sampling: Sampling,
    config: Mapping[str, Any],
    scheduler_options: Mapping[str, Any],
) -> Any:
    cls = _scheduler_class(option, name)
    options: dict[str, Any] = {key: config[key] for key in NOISE if key in config}
    options |= {"timestep_spacing": "trailing"} | _thresholding(option, cls, sampling, config)
    made = cls.from_config(dict(config), **options | dict(scheduler_options))
    if takes_variance(made) and "timestep_spacing" not in scheduler_options:
        # The last step must be t = 0, at which none is drawn: a learned variance is not 0 there.
        made.register_to_config(timestep_spacing="linspace")
    return made


def _thresholding(
    option: str, cls: Any, sampling: Sampling, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of `cls` that bound x_0 as asked. `from_config` ignores what a scheduler does not
    know, so that it is compared with the constructor."""
    kind, auto = sampling.thresholding, sampling.thresholding == "auto"
    if auto:
        kind = "static" if config.get("clip_sample") else "none"
    known = () if cls.__name__ in DEAF else tuple(signature(cls).parameters)
    off = {"clip_sample": False}
    if "thresholding" in known and not auto:  # else as the model's config says
        off["thresholding"] = False
    if kind == "none":
        return off
    if kind == "static" and "clip_sample" in known:
        return off | {"clip_sample": True, "clip_sample_range": 1.0}
    if kind == "static" and "thresholding" in known:  # s is 1 wherever it is at most 1
        return off | {"thresholding": True, "sample_max_value": 1.0}
    if kind == "dynamic" and "thresholding" in known:
        ratio, maximum = sampling.dynamic_ratio, sampling.dynamic_max
        options = {"dynamic_thresholding_ratio": ratio, "sample_max_value": maximum}
        return off | {"thresholding": True, **options}
    asked = "auto, which is static for pixels" if auto else kind
    raise ValueError(
        f"sampling.thresholding: found {asked}, which sampling.{option} {cls.__name__} cannot do; "
        "expected none, or another scheduler"
    )


def _scheduler_class(option: str, name: str) -> Any:
    cls: Any = getattr(diffusers, name, None)
    if not hasattr(cls, "set_timesteps"):
        raise ValueError(
            f"sampling.{option}: found {name!r}, expected the name of a diffusers "
            "scheduler such as DDIMScheduler or DPMSolverMultistepScheduler"
        )
    return cls


def _check_steps(scheduler: str, option: str, num_steps: int) -> None:
    if scheduler == "UnCLIPScheduler" and num_steps < 2:
        raise ValueError(
            f"sampling.{option}: found {num_steps}, expected at least 2 of UnCLIPScheduler, which "
            "begins at the last timestep and ends at the first"
        )


def _check_choice(name: str, found: str, expected: Sequence[str]) -> None:
    if found not in expected:
        raise ValueError(f"sampling.{name}: found {found!r}, expected one of {expected}")
