"""Pictures of scenes: what the sampler is asked for, and its pixels."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..datamodules.scenes import Region, Scene
from ..modules.functional.resampling import upsample
from ..modules.functional.sampling import OnStep
from ..modules.generate import generate, to_pixels
from ..modules.painting import Controls, network_dtype
from ..modules.sampling_options import Sampling
from ..modules.spatext import SpaText


def paint_scenes(
    model: SpaText,
    scenes: Sequence[Scene],
    seeds: Int64[Tensor, " n"],
    sampling: Sampling,
    *,
    scales: Sequence[Mapping[str, float]] | None = None,
    on_step: OnStep | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """The pixels of `sample_scenes`, upsampled where the model has upsamplers."""
    images = sample_scenes(model, scenes, seeds, sampling, scales=scales, on_step=on_step)
    return to_pixels(images).numpy()


def sample_scenes(
    model: SpaText,
    scenes: Sequence[Scene],
    seeds: Int64[Tensor, " n"],
    sampling: Sampling,
    *,
    scales: Sequence[Mapping[str, float]] | None = None,
    on_step: OnStep | None = None,
    latent: bool = False,
) -> Float[Tensor, "n c i j"]:
    """One image of each scene, in one batch, or with `latent` its x_0: image i is a function of
    scenes[i], seeds[i] and scales[i] alone.

    `scales`, for form "full", go before those of the scene, and these before those of `sampling`.
    `on_step` is that of `generate`: (step, x_t, x_0_hat); what it raises ends the painting. Raises
    ValueError for scenes of several sizes.
    """
    assert len(scenes) == len(seeds)
    for scene in scenes:
        if scene.size != scenes[0].size:
            raise ValueError(
                f"scene {scene.name}: size {scene.size[0]}x{scene.size[1]}, expected "
                f"{scenes[0].size[0]}x{scenes[0].size[1]} as the others of its batch"
            )
    return generate(
        model,
        [scene.prompt for scene in scenes],
        torch.from_numpy(np.stack([scene.ids() for scene in scenes])),
        [scene.texts for scene in scenes],
        seeds,
        sampling,
        on_step,
        controls=scene_controls(scenes, merge_scales(scenes, sampling, scales)),
        latent=latent,
    )


def scene_controls(
    scenes: Sequence[Scene], scales: Mapping[str, Float[Tensor, " n"]] | None
) -> Controls:
    """What the scenes ask for; nothing is set that none of them does."""
    varied = any(region.variation for scene in scenes for region in scene.regions)
    kept = any(scene.background is not None for scene in scenes)
    return Controls(
        negative_prompts=[scene.negative_prompt for scene in scenes],
        scales=scales,
        strength=region_table(scenes, "strength"),
        variation=region_table(scenes, "variation") if varied else None,
        variation_seeds=torch.tensor([s.variation_seed or 0 for s in scenes]) if varied else None,
        background=stack_backgrounds(scenes) if kept else None,
        repaint=torch.from_numpy(np.stack([s.repainted() for s in scenes])) if kept else None,
    )


def region_table(scenes: Sequence[Scene], name: str) -> Float[Tensor, "n k"]:
    """A number of each region; slots without a region have the default."""
    num = max(1, *(len(scene.regions) for scene in scenes))
    rows = [[getattr(region, name) for region in scene.regions] for scene in scenes]
    return torch.tensor([[*row, *[getattr(Region, name)] * (num - len(row))] for row in rows])


def stack_backgrounds(scenes: Sequence[Scene]) -> Float[Tensor, "n 3 h w"]:
    """In [-1, 1]; of scenes without one, gray that is painted over."""
    gray = np.full((*scenes[0].size, 3), 128, dtype=np.uint8)
    pixels = np.stack([gray if s.background is None else s.background for s in scenes])
    return torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1


def merge_scales(
    scenes: Sequence[Scene], sampling: Sampling, scales: Sequence[Mapping[str, float]] | None
) -> dict[str, Float[Tensor, " n"]] | None:
    """By name, for each image; None where the sampling's hold for all."""
    if sampling.form == "fast":
        if scales is not None:
            raise ValueError("scales: found with sampling.form=fast, expected form=full")
        return None
    if scales is None and all(scene.scales is None for scene in scenes):
        return None
    given = scales or [{}] * len(scenes)
    rows = [
        {**sampling.scales, **(scene.scales or {}), **row}
        for scene, row in zip(scenes, given, strict=True)
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: torch.tensor([float(row.get(name, 0.0)) for row in rows]) for name in names}


def preview(
    model: SpaText, x_0_hat: Float[Tensor, "n c h w"], size: tuple[int, int]
) -> UInt8[np.ndarray, "n i j 3"]:
    """The picture of `size` (h, w) that the x_0 which `on_step` is told stands for.

    That of the decoder goes through the full `decode`; that of an upsampler is an image, enlarged
    where other upsamplers follow.
    """
    factor = size[0] // x_0_hat.shape[2]
    with torch.inference_mode():
        if factor == model.backbone.factor:
            return to_pixels(model.backbone.decode(x_0_hat.to(network_dtype(model)))).numpy()
        return to_pixels(upsample(x_0_hat, factor)).numpy()
