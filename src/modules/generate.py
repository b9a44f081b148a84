"""Scenes in, images out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import diffusers
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from .functional.guidance import fast_guidance, full_guidance
from .functional.sampling import initial_noise, sample
from .spatext import SpaText

Form = Literal["fast", "full"]


@dataclass(frozen=True)
class Sampling:
    """How to sample; the defaults are those of the paper where it is known to have one.

    form "fast" is eq. 6 of SpaText with one `scale` (3 in the paper, as recalled), two network
    calls a step; "full" is eq. 5 with `scales`, one per condition, N + 1 calls. `append_texts`
    appends the local texts to the global prompt, as the paper does at inference. Scheduler and
    `num_steps` are not known from the paper: DDIM with 50 steps is our choice.
    """

    scheduler: str = "DDIMScheduler"
    num_steps: int = 50
    form: Form = "fast"
    scale: float = 3.0
    scales: Mapping[str, float] = field(default_factory=lambda: {"text": 3.0, "segments": 3.0})
    rescale: float = 0.0
    append_texts: bool = True
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(
                f"sampling.form: found {self.form!r}, expected one of {get_args(Form)}"
            )
        if self.num_steps < 1:
            raise ValueError(f"sampling.num_steps: found {self.num_steps}, expected at least 1")


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


@torch.inference_mode()
def generate(
    model: SpaText,
    prompts: Sequence[str],
    ids: UInt8[Tensor, "b h w"],
    texts: Sequence[Sequence[str]],
    seeds: Int64[Tensor, " b"],
    sampling: Sampling,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "b 3 h w"]:
    """Sample one image per scene, in [-1, 1].

    `texts[i][k - 1]` is the local text of the pixels of scene i with id k; 0 is unpainted. Image i
    is a function of its own scene and seed, whatever else is in the batch.
    """
    backbone = model.backbone
    full_prompts = [
        ", ".join(part for part in [prompt, *(local if sampling.append_texts else ())] if part)
        for prompt, local in zip(prompts, texts, strict=True)
    ]
    conditions = model.scene_conditions(full_prompts, ids, texts)
    null = model.null_conditions()
    if sampling.form == "fast":
        denoise = fast_guidance(
            backbone.denoise, conditions, null, sampling.scale, rescale=sampling.rescale
        )
    else:
        denoise = full_guidance(
            backbone.denoise, conditions, null, sampling.scales, rescale=sampling.rescale
        )
    height, width = (side // backbone.factor for side in ids.shape[-2:])
    x_T = initial_noise(seeds.to(model.device), (backbone.channels, height, width))
    generators = [torch.Generator(model.device).manual_seed(int(seed)) for seed in seeds]
    scheduler = make_scheduler(sampling, backbone.scheduler_config)
    x_0 = sample(
        denoise, scheduler, x_T, sampling.num_steps, generators=generators, on_step=on_step
    )
    return backbone.decode(x_0)


def to_pixels(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b h w 3"]:
    """[-1, 1] to 0 .. 255, rounded to the nearest, on the CPU."""
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(1, -1).cpu()
