"""Scenes in, images out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from .cascade import (
    Kept,
    compile_unets,
    count_steps,
    count_timesteps,
    generators,
    later,
    upsample,
    upsamplers,
)
from .functional.conditions import Conditions
from .functional.guidance import (
    GuidedDenoise,
    Scale,
    fast_guidance,
    full_guidance,
    interval_guidance,
    unguided,
)
from .functional.sampling import OnStep, sample
from .functional.st import reduce_ids
from .networks.latent import LatentBackbone
from .painting import (
    Controls,
    latent_background,
    network_dtype,
    null_conditions,
    paste,
    start_noise,
    strength_map,
)
from .sampling_options import Sampling, make_scheduler
from .spatext import SpaText


@torch.inference_mode()
def generate(
    model: SpaText,
    prompts: Sequence[str],
    ids: UInt8[Tensor, "b h w"],
    texts: Sequence[Sequence[str]],
    seeds: Int64[Tensor, " b"],
    sampling: Sampling,
    on_step: OnStep | None = None,
    *,
    controls: Controls | None = None,
    latent: bool = False,
) -> Float[Tensor, "b c i j"]:
    """Sample one image per scene, in [-1, 1]; with `latent` its x_0, which is not decoded.

    `texts[i][k - 1]` is the local text of the pixels of scene i with id k; 0 is unpainted. Image i
    is a function of its own scene, seed and row of `controls`, whatever else is in the batch.
    `on_step` is that of `sample`, and goes on through the upsamplers (`count_steps` in all), whose
    x_t and x_0_hat are larger images. x_t is float32; the networks run in the model's own dtype.
    """
    controls = controls or Controls()
    backbone, dtype = model.backbone, network_dtype(model)
    scheduler = make_scheduler(sampling, backbone.scheduler_config)
    check_tiling(model, sampling)
    if not latent:
        count_steps(model, sampling)  # raises for what is wrong with the upsamplers' options
    full_prompts = [
        ", ".join(part for part in [prompt, *(local if sampling.append_texts else ())] if part)
        for prompt, local in zip(prompts, texts, strict=True)
    ]
    conditions = model.scene_conditions(full_prompts, ids, texts, seeds).to(dtype=dtype)
    null = null_conditions(model, controls.negative_prompts).to(dtype=dtype)
    segments = conditions.segments
    size = (ids.shape[1] // backbone.factor, ids.shape[2] // backbone.factor)
    cells = reduce_ids(segments.ids, segments.valid, size)
    x_T = start_noise(controls, cells, seeds, backbone.channels)
    with economical(model, sampling):
        x_0 = sample(
            guide(model, conditions, null, sampling, controls, strength_map(controls, cells)),
            scheduler,
            x_T,
            sampling.num_steps,
            generators=generators(seeds, x_T.device),
            background=latent_background(model, controls, x_T),
            on_step=on_step,
        )
        if latent:
            return x_0
        if not upsamplers(model):
            return paste(backbone.decode(x_0.to(dtype)), controls)
        first = count_timesteps(scheduler, sampling.num_steps)
        kept = None
        if controls.background is not None and controls.repaint is not None:
            kept = Kept(controls.background, controls.repaint)
        tell = later(on_step, first)
        images = upsample(model, x_0, conditions, seeds, sampling, kept=kept, on_step=tell)
        return paste(images, controls)


def guide(
    model: SpaText,
    conditions: Conditions,
    null: Conditions,
    sampling: Sampling,
    controls: Controls,
    strength: Float[Tensor, "b 1 h w"] | None,
) -> GuidedDenoise:
    """The denoiser under the guidance that is asked for; its predictions are float32.

    A global image embedding that `scales` do not name goes with the text: both are made of the
    prompt, and are the paper's one global condition (our choice). Named, it stands alone.
    """
    dtype = network_dtype(model)
    options: dict[str, Any] = {"rescale": sampling.rescale, "strength": strength}
    scales = asked_scales(sampling, controls, conditions.text.device)

    def denoise(x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return model.backbone.denoise(x_t.to(dtype), t, conditions).float()

    if isinstance(scales, Mapping):
        absent = "image_embed" in conditions.names and "image_embed" not in scales
        with_text = ["image_embed"] if absent else []
        guided = full_guidance(denoise, conditions, null, scales, with_text=with_text, **options)
        if "text" in scales:
            scales = {**dict.fromkeys(with_text, scales["text"]), **scales}
    else:
        guided = fast_guidance(denoise, conditions, null, scales, **options)
        scales = dict.fromkeys(conditions.names, scales)
    if tuple(sampling.guidance_interval) == (0.0, 1.0):
        return guided
    conditional = unguided(denoise, conditions, null, scales)
    num = len(model.backbone.alphas_cumprod)
    return interval_guidance(guided, conditional, sampling.guidance_interval, num)


def asked_scales(
    sampling: Sampling, controls: Controls, device: torch.device
) -> Scale | Mapping[str, Scale]:
    """One for form "fast", one per condition for "full". ValueError for those of the other form."""
    scales = controls.scales
    if scales is None:
        return sampling.scale if sampling.form == "fast" else sampling.scales
    if isinstance(scales, Tensor) != (sampling.form == "fast"):
        found = "one" if isinstance(scales, Tensor) else "one per condition"
        raise ValueError(f"scales: found {found} per image, expected those of form {sampling.form}")
    if isinstance(scales, Tensor):
        return scales.to(device)
    return {name: scale.to(device) for name, scale in scales.items()}


def check_tiling(model: SpaText, sampling: Sampling) -> None:
    """Raises ValueError where there is no autoencoder to tile."""
    if sampling.vae_tiling and not isinstance(model.backbone, LatentBackbone):
        raise ValueError(
            f"sampling.vae_tiling: found with a {type(model.backbone).__name__}, which has no "
            "autoencoder, expected false"
        )


@contextmanager
def economical(model: SpaText, sampling: Sampling) -> Iterator[None]:
    """Inside the block, what `sampling` asks for to save memory or time.

    A compiled UNet stays compiled: calls without `compile` are faster from then on, too.
    """
    if sampling.compile:
        compile_unets(model)
    if not sampling.vae_tiling:
        yield
        return
    assert isinstance(model.backbone, LatentBackbone)
    vae = model.backbone.vae.net
    vae.enable_tiling()
    vae.enable_slicing()
    try:
        yield
    finally:  # elsewhere the autoencoder's own setting stays
        vae.disable_tiling()
        vae.disable_slicing()


def to_pixels(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b h w 3"]:
    """[-1, 1] to 0 .. 255, rounded to the nearest, on the CPU."""
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(1, -1).cpu()
