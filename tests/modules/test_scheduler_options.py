"""Schedulers by name: noise schedule of the model, thresholding, and those of upsamplers."""

import re
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UnCLIPScheduler
from torch.testing import assert_close

from spatext.modules.functional.sampling import sample
from spatext.modules.sampling_options import (
    Sampling,
    make_scheduler,
    make_upsampler_scheduler,
)

# As Karlo's decoder has it, but for what the network predicts.
PIXELS = dict(UnCLIPScheduler(variance_type="learned_range", prediction_type="sample").config)
LATENTS = {"prediction_type": "sample", "clip_sample": False, "steps_offset": 1}
LATENTS |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CLIPPING = ("DDIMScheduler", "DDPMScheduler", "UnCLIPScheduler", "HeunDiscreteScheduler")
DYNAMIC = (
    "DDIMScheduler",
    "DDPMScheduler",
    "LCMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
)
X_0 = torch.tensor([0.5, -1.2, 3.0, 0.1]).repeat(2, 3, 4, 1)  # beyond [-1, 1]


def last(scheduler: Any) -> torch.Tensor:
    """Where a network ends that always says X_0, without doubt: at X_0 as it was bounded."""
    variance = scheduler.config.get("variance_type") == "learned_range"
    output = torch.cat([X_0, -torch.ones_like(X_0)], dim=1) if variance else X_0
    rng = [torch.Generator().manual_seed(i) for i in range(2)]
    return sample(lambda x_t, t: output, scheduler, torch.randn_like(X_0), 2, generators=rng)


@pytest.mark.parametrize("name", sorted({*CLIPPING, *DYNAMIC}))
def test_pixels_are_clipped_by_default(name: str) -> None:
    for kind in ("auto", "static"):
        scheduler = make_scheduler(Sampling(name, thresholding=kind), PIXELS)
        assert_close(last(scheduler), X_0.clamp(-1, 1), rtol=1e-3, atol=1e-3)
    latents = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
    scheduler = make_scheduler(Sampling(name, thresholding="static"), LATENTS | latents)
    assert_close(last(scheduler), X_0.clamp(-1, 1), rtol=1e-3, atol=1e-3)
    free = make_scheduler(Sampling(name, thresholding="none"), PIXELS)
    assert_close(last(free), X_0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_thresholding_is_imagens(name: str) -> None:
    for maximum, s in ((1.5, 1.5), (5.0, 3.0)):  # the quantile lies at 3.0
        options = Sampling(name, thresholding="dynamic", dynamic_ratio=0.9, dynamic_max=maximum)
        found = last(make_scheduler(options, PIXELS))
        assert_close(found, X_0.clamp(-s, s) / s, rtol=1e-3, atol=1e-3)
    median = Sampling(name, thresholding="dynamic", dynamic_ratio=0.3, dynamic_max=5.0)
    assert_close(last(make_scheduler(median, PIXELS)), X_0.clamp(-1, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "kind", "config", "found"),
    [
        ("EulerDiscreteScheduler", "static", LATENTS, "static"),
        ("EulerDiscreteScheduler", "auto", PIXELS, "auto, which is static for pixels"),
        ("PNDMScheduler", "dynamic", {}, "dynamic"),
        ("UnCLIPScheduler", "dynamic", PIXELS, "dynamic"),
        ("HeunDiscreteScheduler", "dynamic", PIXELS, "dynamic"),
        ("TCDScheduler", "static", PIXELS, "static"),
    ],
)
def test_what_a_scheduler_cannot_do_is_refused(
    name: str, kind: Any, config: dict[str, Any], found: str
) -> None:
    message = (
        f"sampling.thresholding: found {found}, which sampling.{{}} {name} cannot do; "
        "expected none, or another scheduler"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message.format('scheduler'))}$"):
        make_scheduler(Sampling(name, thresholding=kind), config)
    upsampler = Sampling(thresholding=kind, upsampler_scheduler=name)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format('upsampler_scheduler'))}$"):
        make_upsampler_scheduler(upsampler, config)
    make_scheduler(Sampling(name, thresholding="none"), config)


@pytest.mark.parametrize("kind", ["auto", "none"])
@pytest.mark.parametrize("name", [*DYNAMIC, "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
def test_latents_are_free(name: str, kind: Any) -> None:
    made = make_scheduler(Sampling(name, thresholding=kind), LATENTS)
    cls = getattr(diffusers, name)
    config = LATENTS | {"clip_sample": False, "timestep_spacing": "trailing"}
    known = {key: value for key, value in config.items() if key in cls().config}
    expected = cls(**known)
    own = [key for key in expected.config if not key.startswith("_")]
    assert {key: made.config[key] for key in own} == {key: expected.config[key] for key in own}


def test_a_model_whose_own_sampling_is_dynamic_keeps_it() -> None:
    config = dict(DDPMScheduler(thresholding=True, sample_max_value=1.5).config)
    scheduler = make_scheduler(Sampling("DDPMScheduler"), config)
    assert (scheduler.config.thresholding, scheduler.config.sample_max_value) == (True, 1.5)
    scheduler = make_scheduler(Sampling("DDPMScheduler", thresholding="static"), config)
    assert (scheduler.config.thresholding, scheduler.config.clip_sample) == (False, True)


def test_the_noise_schedule_is_the_models_even_where_it_is_its_default() -> None:
    """UnCLIPScheduler's default is cosine, DDIM's linear, LCM's scaled linear."""
    reference = UnCLIPScheduler()
    for name in ("DDIMScheduler", "LCMScheduler", "DPMSolverMultistepScheduler"):
        scheduler = make_scheduler(Sampling(name), dict(reference.config))
        assert_close(scheduler.alphas_cumprod, reference.alphas_cumprod, rtol=1e-5, atol=0)
    scheduler = make_scheduler(Sampling("LCMScheduler"), dict(DDPMScheduler().config))
    assert_close(scheduler.alphas_cumprod, DDPMScheduler().alphas_cumprod, rtol=1e-5, atol=0)


def test_upsamplers_have_a_scheduler_of_their_own() -> None:
    options = {"timestep_spacing": "leading", "clip_sample": False}
    sampling = Sampling("UnCLIPScheduler", scheduler_options=options, thresholding="static")
    scheduler = make_upsampler_scheduler(sampling, PIXELS)
    assert type(scheduler) is DDIMScheduler
    assert (scheduler.config.timestep_spacing, scheduler.config.clip_sample) == ("trailing", True)
    other = Sampling(upsampler_scheduler="UnCLIPScheduler", upsampler_steps=7)
    scheduler = make_upsampler_scheduler(other, PIXELS)
    assert type(scheduler) is UnCLIPScheduler
    assert scheduler.config.variance_type == "learned_range"


def test_names_and_steps_are_looked_at_before_a_model_is_loaded() -> None:
    message = r"^sampling.upsampler_scheduler: found 'DDIM', expected the name of a diffusers sch"
    for make in (make_scheduler, make_upsampler_scheduler):
        with pytest.raises(ValueError, match=message):
            make(Sampling(upsampler_scheduler="DDIM"), {})
    with pytest.raises(ValueError, match=r"^sampling.num_steps: found 1, expected at least 2 of U"):
        make_scheduler(Sampling("UnCLIPScheduler", num_steps=1), {})
    single = Sampling(upsampler_scheduler="UnCLIPScheduler", upsampler_steps=1)
    with pytest.raises(ValueError, match=r"^sampling.upsampler_steps: found 1, expected at least"):
        make_upsampler_scheduler(single, {})


@pytest.mark.parametrize(("variance", "last"), [("learned_range", 0), ("fixed_small", 99)])
def test_a_learned_variance_adds_no_noise_at_the_end(variance: str, last: int) -> None:
    config = dict(DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type=variance).config)
    scheduler = make_scheduler(Sampling("DDPMScheduler", num_steps=10), config)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[[0, -1]].tolist() == [999, last]
