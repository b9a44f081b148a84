"""The pipeline of diffusers around a model paints as `generate` does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from torch.testing import assert_close

from piped import QUICK, SCENE, painted, pixels, quiet, record_calls
from spatext.datamodules.scenes import Region
from spatext.modules.sampling_options import Sampling, make_scheduler
from spatext.modules.spatext import SpaText
from spatext.pipeline import SpaTextPipeline
from spatext.pipeline_inputs import merge_sampling
from tiny import SIZE, load_loud, load_spatext, make_unet

SCHEDULERS = (
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)


@pytest.fixture(scope="module")
def model(base: Path) -> SpaText:
    return load_loud(base)


@pytest.fixture
def pipeline(model: SpaText) -> SpaTextPipeline:
    return quiet(model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 5.0, "rescale": 0.5, "guidance_interval": (0.2, 0.9)},
        {"form": "full", "scales": {"text": 2.0, "segments": 4.0}, "append_texts": False},
        {"scheduler": "DPMSolverMultistepScheduler", "scheduler_options": {"solver_order": 1}},
        {"scheduler": "HeunDiscreteScheduler", "num_steps": 3},
    ],
    ids=["default", "fast", "full", "scheduler", "more-steps"],
)
def test_images_are_those_of_generate(
    pipeline: SpaTextPipeline, model: SpaText, options: dict[str, Any]
) -> None:
    found = pixels(pipeline(SCENE, num_images=2, **options).images)
    np.testing.assert_array_equal(found, painted(model, SCENE, 5, 6, **options))
    assert found.std() > 1


def test_a_prior_and_other_evaluations_are_kept(base: Path) -> None:
    model = load_spatext(base, st_conv="dense", st_resize="majority", scale="unit").eval()
    expected = painted(model, SCENE, 1)
    pipeline = SpaTextPipeline.from_model(model, sampling=QUICK)
    pipeline.set_progress_bar_config(disable=True)
    assert (pipeline.config.st_conv, pipeline.config.st_resize) == ("dense", "majority")
    np.testing.assert_array_equal(pixels(pipeline(SCENE, seed=1).images), expected)


def test_the_scheduler_is_the_sampler(pipeline: SpaTextPipeline, model: SpaText) -> None:
    """In place of the pipeline's, with its options, as users of diffusers put it there."""
    config = pipeline.scheduler.config
    pipeline.scheduler = EulerDiscreteScheduler.from_config(config, timestep_spacing="leading")
    found = pixels(pipeline(SCENE).images)
    options = {"scheduler": "EulerDiscreteScheduler"}
    leading = {"scheduler_options": {"timestep_spacing": "leading"}}
    np.testing.assert_array_equal(found, painted(model, SCENE, 5, **options, **leading))
    assert np.abs(found.astype(int) - painted(model, SCENE, 5, **options)).max() > 1
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config)
    expected = painted(model, SCENE, 5, scheduler="DPMSolverMultistepScheduler")
    np.testing.assert_array_equal(pixels(pipeline(SCENE).images), expected)


def test_schedulers_are_made_as_from_the_model(base: Path, tmp_path: Path) -> None:
    """From a folder whose sampler has other defaults, and JSON that does not tell defaults."""
    model = load_spatext(base)
    DDPMScheduler(beta_end=0.01).save_pretrained(tmp_path / "scheduler")
    training = dict(DDPMScheduler.from_pretrained(tmp_path / "scheduler").config)
    training |= {"clip_sample": False}  # as a backbone of latents has it
    model.backbone.scheduler_config = training
    SpaTextPipeline.from_model(model).save_pretrained(tmp_path / "folder")
    pipeline = SpaTextPipeline.from_pretrained(tmp_path / "folder")
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    for name in SCHEDULERS:
        sampling = Sampling(scheduler=name)
        given = () if name == "DDIMScheduler" else (("scheduler", name),)
        asked, schedule = merge_sampling(
            pipeline.config.sampling, pipeline.scheduler, pipeline.config.schedule, dict(given)
        )
        expected = make_scheduler(sampling, training)
        found = make_scheduler(asked, schedule)
        for one in (expected, found):
            one.set_timesteps(7)
        assert_close(found.timesteps, expected.timesteps, rtol=0, atol=0)
        assert_close(found.alphas_cumprod, expected.alphas_cumprod, rtol=0, atol=0)
        own = [key for key in type(found)().config if not key.startswith("_")]
        assert {key: found.config[key] for key in own} == {key: expected.config[key] for key in own}


def test_a_component_is_replaced(pipeline: SpaTextPipeline) -> None:
    before = pixels(pipeline(SCENE).images)
    pipeline.vae = AutoencoderKL.from_config(pipeline.vae.config)
    after = pixels(pipeline(SCENE).images)
    assert np.abs(after.astype(int) - before).mean() > 1
    pipeline.prior = None  # the embeddings of the texts themselves
    assert np.abs(pixels(pipeline(SCENE).images).astype(int) - after).max() > 0


def test_dtype_moves_all_networks(base: Path) -> None:
    pipeline = quiet(load_loud(base))
    expected = pixels(pipeline(SCENE).images).astype(int)
    assert pipeline.to(torch.bfloat16) is pipeline
    found = pixels(pipeline(SCENE).images)
    assert pipeline.model.draw(["two dogs"], torch.tensor([0])).dtype == torch.bfloat16
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.bfloat16}
    assert 0 < np.abs(found - expected).mean() < 3
    latents = pipeline(SCENE, output_type="latent").images
    assert latents.dtype == torch.float32


def test_networks_are_offloaded(base: Path) -> None:
    """The hooks of accelerate, which here move them from the CPU to the CPU."""
    pipeline = quiet(load_loud(base))
    expected = pixels(pipeline(SCENE).images)
    pipeline.enable_model_cpu_offload(device="cpu")
    called = record_calls(pipeline, "unet", "vae", "text_encoder")
    np.testing.assert_array_equal(pixels(pipeline(SCENE).images), expected)
    assert [*dict.fromkeys(called)] == ["text_encoder", "unet", "vae"]
    np.testing.assert_array_equal(pixels(pipeline(SCENE).images), expected)  # hooked anew
    with pytest.raises(ValueError, match="expected enable_model_cpu_offload"):
        pipeline.enable_sequential_cpu_offload()


def test_components_make_another_pipeline(pipeline: SpaTextPipeline) -> None:
    expected = pixels(pipeline(SCENE).images)
    other = SpaTextPipeline(**pipeline.components, **pipeline.parameters)
    np.testing.assert_array_equal(pixels(other(SCENE).images), expected)
    assert other.unet is pipeline.unet
    # Latents are not clipped, whatever schedule they were trained with.
    schedule = {"schedule": dict(pipeline.config.schedule) | {"clip_sample": True}}
    other = SpaTextPipeline(**pipeline.components, **pipeline.parameters | schedule)
    found = pixels(other(SCENE, scheduler="DDIMScheduler").images)
    np.testing.assert_array_equal(found, expected)


def test_a_lora_is_merged(base: Path) -> None:
    model = load_spatext(base, lora={"rank": 2}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = painted(model, SCENE, 5)
    pipeline = SpaTextPipeline.from_model(model, sampling=QUICK)
    assert not any("lora" in name for name in pipeline.unet.state_dict())
    found = pixels(pipeline(SCENE).images).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert type(pipeline.unet) is UNet2DConditionModel


def test_a_unet_that_has_seen_no_map_is_refused(pipeline: SpaTextPipeline) -> None:
    parts = pipeline.components | {"unet": make_unet()}
    with pytest.raises(ValueError, match="unet: found 4 input channels, expected 4 of the latents"):
        SpaTextPipeline(**parts)
    # Nor may a region be asked for with a mask of another size.
    mask = np.ones((8, 8), dtype=np.bool_)
    with pytest.raises(ValueError, match=r"regions\[0\].mask: found"):
        pipeline(regions=[Region("a blue sea", mask)], size=SIZE)
