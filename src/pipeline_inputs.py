"""What a pipeline takes, scenes in several forms and options by two names, and what it gives."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from glob import has_magic
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from .datamodules.documents import SUFFIXES, brief, check_keys
from .datamodules.scenes import Region, Scene, find_scenes, load_scene, scene_from_dict
from .datamodules.settings import check_size
from .modules.functional.sampling import takes_variance
from .modules.sampling_options import Sampling, make_scheduler

SceneLike = str | Path | Scene | Mapping[str, Any]
OutputType = Literal["pil", "np", "pt", "latent"]
# What other pipelines of diffusers call the same.
ALIASES = {"num_inference_steps": "num_steps", "guidance_scale": "scale"}
# And what has another form here.
ELSEWHERE = {
    "generator": "seed",
    "height": "size",
    "width": "size",
    "num_images_per_prompt": "num_images",
    "callback_on_step_end": "on_step",
}
BOUNDS = ("clip_sample", "thresholding")  # of x_0, in a scheduler's options
OPTIONS = [field.name for field in fields(Sampling)]


def merge_sampling(
    defaults: Mapping[str, Any],
    scheduler: Any,
    schedule: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[Sampling, dict[str, Any]]:
    """`options` of a call over the folder's defaults, and the noise schedule for it: that of the
    pipeline's own `scheduler`, or of the training where the options name another.

    Raises ValueError for an unknown name, and what `Sampling` and `make_scheduler` refuse.
    """
    given: dict[str, Any] = {}
    for name, value in options.items():
        known = ALIASES.get(name, name)
        if known not in OPTIONS:
            near = [ELSEWHERE.get(name), *difflib.get_close_matches(name, OPTIONS, n=1)]
            found = next(filter(None, near), None)
            hint = f"did you mean {found!r}?" if found else f"expected one of {', '.join(OPTIONS)}"
            raise ValueError(f"{name}: unknown option, {hint}")
        if known in given:
            raise ValueError(f"{name}: found with another name of the same, expected one of them")
        given[known] = value
    if "scheduler" not in given:
        training, schedule = schedule, scheduler.config
        kept_names = ["timestep_spacing", "clip_sample"]  # `make_scheduler` would replace them
        if takes_variance(scheduler) and schedule.get("timestep_spacing") == "trailing":
            kept_names.remove("timestep_spacing")  # of the sampler that it took the place of
        if "thresholding" in given:  # where "auto" is as the training says
            kept_names.remove("clip_sample")
            bounds = {name: training[name] for name in BOUNDS if name in training}
            schedule = {**schedule, **bounds}
        kept = {name: schedule[name] for name in kept_names if name in schedule}
        given["scheduler"] = type(scheduler).__name__
        given["scheduler_options"] = kept | dict(given.get("scheduler_options", {}))
    sampling = replace(Sampling(**defaults), **given)
    make_scheduler(sampling, schedule)
    return sampling, dict(schedule)


def plain_sampling(sampling: Sampling) -> dict[str, Any]:
    """But for the scheduler, which is a component."""
    values = asdict(sampling)
    values |= {name: [*value] for name, value in values.items() if isinstance(value, tuple)}
    return {key: values[key] for key in values if key not in ("scheduler", "scheduler_options")}


def read_scenes(
    scene: SceneLike | Sequence[SceneLike] | None,
    prompt: str,
    negative_prompt: str,
    regions: Sequence[Any],
    size: int | Sequence[int] | None,
    default_size: int,
) -> list[Scene]:
    """Those of `scene`, or the one of prompt and regions, whose size is, where it is not given,
    that of the first mask. ValueError for both, and for mistakes."""
    for key, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if not isinstance(text, str):
            raise ValueError(f"{key}: found {brief(text)}, expected one text; more are scenes")
    if scene is None:
        if size is None:
            masks = [region_mask(region) for region in regions]
            size = next((mask.shape for mask in masks if mask is not None), default_size)
        area = check_size([*size] if isinstance(size, Sequence) else size)
        drawn = [read_region(i, region, area) for i, region in enumerate(regions)]
        return [Scene("scene", prompt, area, regions=(*drawn,), negative_prompt=negative_prompt)]
    if prompt or negative_prompt or regions or size is not None:
        raise ValueError("scene: found with prompt, regions or size, expected them in the scene")
    given = [scene] if isinstance(scene, str | Path | Scene | Mapping) else scene
    scenes = [read for one in given for read in read_scene(one)]
    if not scenes:
        raise ValueError("scene: found an empty list, expected scenes")
    return scenes


def read_scene(scene: SceneLike) -> list[Scene]:
    """A folder or glob holds several."""
    if isinstance(scene, Scene):
        return [scene]
    if isinstance(scene, Mapping):
        return [scene_from_dict(dict(scene), "scene", Path())]
    named = not isinstance(scene, str) or scene.endswith(SUFFIXES) or has_magic(scene)
    if not named and not Path(scene).is_dir():
        raise ValueError(f"scene: found {brief(scene)}, expected a file; a text is prompt=TEXT")
    return [load_scene(path) for path in find_scenes(scene)]


def read_region(number: int, region: Any, size: tuple[int, int]) -> Region:
    """A `Region`, or what scene files have: text with box, polygon or mask, here also an array or
    picture of the mask, where more than half of the range is inside."""
    if isinstance(region, Region):
        return region
    if (mask := region_mask(region)) is not None:
        keys = ("text", "mask")
        check_keys(f"regions[{number}]", region, (*keys, "strength", "variation"), required=keys)
        return Region(**{**region, "mask": mask})
    document = {"prompt": "", "size": list(size), "regions": [region]}
    try:
        return scene_from_dict(document, "scene", Path()).regions[0]
    except ValueError as error:
        raise ValueError(str(error).replace("regions[0]", f"regions[{number}]", 1)) from None


def region_mask(region: Any) -> np.ndarray | None:
    """None where it has no array or picture."""
    if isinstance(region, Region):
        return region.mask
    mask = region.get("mask") if isinstance(region, Mapping) else None
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"))
    if not isinstance(mask, np.ndarray):
        return None
    return mask > 127 if mask.dtype == np.uint8 else mask.astype(bool)


def check_output(output_type: Any, scenes: Sequence[Scene]) -> None:
    if output_type not in (expected := get_args(OutputType)):
        raise ValueError(
            f"output_type: found {output_type!r}, expected one of {', '.join(expected)}"
        )
    if output_type != "pil" and len({scene.size for scene in scenes}) > 1:
        raise ValueError(f"output_type={output_type!r}: found scenes of several sizes")


def as_output(painted: Sequence[Any], output_type: OutputType) -> Any:
    """Of the pixels of each image, or with "latent" of its latents."""
    if output_type == "latent":
        return torch.stack([*painted])
    if output_type == "pil":
        return [Image.fromarray(pixels) for pixels in painted]
    values = np.stack(painted) / np.float32(255)
    return values if output_type == "np" else torch.from_numpy(values).movedim(-1, 1)
