import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch.testing import assert_close
from transformers import CLIPTextModel, CLIPTokenizer

from spatext.modules.functional.sampling import initial_noise
from spatext.modules.generate import generate, to_pixels
from spatext.modules.sampling_options import Sampling, make_scheduler
from spatext.modules.spatext import SpaText
from tiny import CHANNELS, LATENT_SIZE, SIZE, TEXTS, load_spatext, unchecked, write_scheduler

PROMPTS = (TEXTS[0], "", TEXTS[2])
LOCAL = (("a blue sea", "two dogs"), ("a yellow star",), ())
SEEDS = torch.tensor([3, 2**40, 11])
SHAPE = (CHANNELS, LATENT_SIZE, LATENT_SIZE)


def draw_ids() -> torch.Tensor:
    ids = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    ids[:2, :9], ids[0, 9:, 4:] = 1, 2
    return ids


IDS = draw_ids()


def paint(model: SpaText, *rows: int, prompts: Any = PROMPTS, **options: Any) -> torch.Tensor:
    """The scenes of these numbers, in one batch of five steps."""
    index = list(rows or range(3))
    return generate(
        model,
        [prompts[i] for i in index],
        IDS[index],
        [LOCAL[i] for i in index],
        SEEDS[index],
        Sampling(num_steps=5, **options),
    )


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("form", ["fast", "full"])
def test_an_image_does_not_depend_on_its_batch(model: SpaText, scheduler: str, form: str) -> None:
    together = paint(model, scheduler=scheduler, form=form)
    for row in range(3):
        alone = paint(model, row, scheduler=scheduler, form=form)
        assert_close(together[row], alone[0], rtol=1e-3, atol=2e-3)
    assert together.abs().max() <= 1
    assert (together[0] - together[1]).abs().mean() > 1e-2


def test_the_seed_alone_starts_and_stirs(model: SpaText) -> None:
    options = {"scheduler": "EulerAncestralDiscreteScheduler"}
    torch.manual_seed(1)
    first = paint(model, **options)
    torch.manual_seed(2)
    assert torch.equal(paint(model, **options), first)


@pytest.mark.parametrize(
    ("prediction_type", "zero_snr", "rescale"),
    [
        ("epsilon", False, 0.0),
        ("v_prediction", False, 0.0),
        ("v_prediction", True, 0.7),
        ("sample", False, 0.0),
    ],
)
@pytest.mark.parametrize("painted", [False, True])
def test_without_new_weights_it_is_stable_diffusion(
    base: Path, tmp_path: Path, prediction_type: str, zero_snr: bool, rescale: float, painted: bool
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    write_scheduler(folder, prediction_type)
    model = load_spatext(folder, new_weights="zero", zero_terminal_snr=zero_snr).eval()
    spacing = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": zero_snr}
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **spacing),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs: list[torch.Tensor] = []

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        theirs.append(tensors["latents"])
        return {}

    expected = pipeline(
        list(PROMPTS),
        height=SIZE,
        width=SIZE,
        num_inference_steps=5,
        guidance_scale=3.0,
        guidance_rescale=rescale,
        latents=initial_noise(SEEDS, SHAPE),
        output_type="pt",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents"],
    ).images
    ours: list[torch.Tensor] = []
    found = generate(
        model,
        PROMPTS,
        IDS if painted else torch.zeros_like(IDS),
        LOCAL if painted else [()] * 3,
        SEEDS,
        Sampling(num_steps=5, scale=3.0, rescale=rescale, append_texts=False),
        lambda _, x, __: ours.append(x),
    )
    assert_close(ours, theirs, rtol=1e-3, atol=2e-3)
    assert_close((found + 1) / 2, expected, rtol=1e-3, atol=2e-3)
    assert (theirs[-1] - initial_noise(SEEDS, SHAPE)).abs().mean() > 0.1


def test_appended_texts_are_a_longer_prompt(model: SpaText) -> None:
    longer = ("a red circle, a blue sea, two dogs", "a yellow star", PROMPTS[2])
    assert_close(
        paint(model), paint(model, prompts=longer, append_texts=False), rtol=1e-3, atol=2e-3
    )
    plain = paint(model, append_texts=False)
    assert (paint(model) - plain).abs().amax(dim=(1, 2, 3))[:2].min() > 1e-3
    assert_close(paint(model)[2], plain[2], rtol=1e-3, atol=2e-3)


def test_full_guidance_by_text_alone_ignores_the_segments(model: SpaText) -> None:
    scales = {"text": 2.5, "segments": 0.0}
    found = paint(model, form="full", scales=scales)
    expected = generate(
        model,
        ["a red circle, a blue sea, two dogs", "a yellow star", PROMPTS[2]],
        torch.zeros_like(IDS),
        [()] * 3,
        SEEDS,
        Sampling(num_steps=5, scale=2.5),
    )
    assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert (found[:2] - paint(model, scale=2.5)[:2]).abs().mean() > 1e-2


def test_full_guidance_by_segments_alone_ignores_the_prompt(model: SpaText) -> None:
    scales = {"text": 0.0, "segments": 2.5}
    found = paint(model, form="full", scales=scales)
    other = paint(model, form="full", scales=scales, prompts=("x", "y", "z"))
    assert torch.equal(found, other)
    expected = paint(model, scale=2.5, prompts=("",) * 3, append_texts=False)
    assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert (found[:2] - paint(model, scale=0.0)[:2]).abs().mean() > 1e-2


def test_full_guidance_is_the_sum_of_its_parts(model: SpaText) -> None:
    """One step, so that the predictions are taken at the same x_t."""

    def last(form: str, **scales: float) -> torch.Tensor:
        latents: list[torch.Tensor] = []
        options = Sampling(num_steps=1, form=form, scale=1.0, scales=scales)
        generate(model, PROMPTS, IDS, LOCAL, SEEDS, options, lambda _, x, __: latents.append(x))
        return latents[0]

    null, text, segments = (
        last("full", text=s, segments=r) for s, r in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    expected = null + 3 * (text - null) + 2 * (segments - null)
    assert_close(last("full", text=3.0, segments=2.0), expected, rtol=1e-3, atol=5e-3)
    assert (text - null).abs().mean() > 1e-2 < (segments - null).abs().mean()


def test_rescaling_reaches_the_sampler(model: SpaText) -> None:
    for form in ("fast", "full"):
        plain, rescaled = (paint(model, form=form, rescale=r) for r in (0.0, 0.7))
        assert (plain - rescaled).abs().mean() > 1e-3


def test_a_wide_scene_is_wide(model: SpaText) -> None:
    ids = torch.ones(1, SIZE, 2 * SIZE, dtype=torch.uint8)
    image = generate(model, [""], ids, [["two dogs"]], SEEDS[:1], Sampling(num_steps=1))
    assert image.shape == (1, 3, SIZE, 2 * SIZE)


def test_a_scheduler_has_the_noise_schedule_of_the_model(model: SpaText) -> None:
    config = model.backbone.scheduler_config
    scheduler = make_scheduler(Sampling(), config)
    assert type(scheduler) is DDIMScheduler
    assert_close(scheduler.alphas_cumprod, model.backbone.alphas_cumprod, rtol=1e-5, atol=0)
    names = ("clip_sample", "timestep_spacing", "set_alpha_to_one", "steps_offset")
    assert [scheduler.config[name] for name in names] == [False, "trailing", False, 1]
    # diffusers clips by default, for pixels; latents are not bounded.
    assert config["clip_sample"] is False
    ancestral = make_scheduler(Sampling("EulerAncestralDiscreteScheduler"), config)
    assert type(ancestral) is EulerAncestralDiscreteScheduler
    assert_close(ancestral.betas, scheduler.betas)


def test_options_override_the_schedule(model: SpaText) -> None:
    options = {"timestep_spacing": "leading", "prediction_type": "sample", "clip_sample": True}
    sampling = Sampling(scheduler_options=options)
    scheduler = make_scheduler(sampling, model.backbone.scheduler_config | {"clip_sample": False})
    assert {name: scheduler.config[name] for name in options} == options
    sampling = Sampling("DPMSolverMultistepScheduler", scheduler_options={"solver_order": 3})
    scheduler = make_scheduler(sampling, model.backbone.scheduler_config)
    assert type(scheduler) is DPMSolverMultistepScheduler
    assert scheduler.config.solver_order == 3


@pytest.mark.parametrize("name", ["DDIMSchedule", "UNet2DConditionModel", "__name__"])
def test_an_unknown_scheduler_is_named(model: SpaText, name: str) -> None:
    with pytest.raises(ValueError, match=f"^sampling.scheduler: found '{name}', expected the name"):
        paint(model, scheduler=name)


def test_wrong_options_are_named(model: SpaText) -> None:
    with unchecked(), pytest.raises(ValueError, match=r"^sampling.form: found 'slow', .*'fast'"):
        Sampling(form="slow")
    with pytest.raises(ValueError, match=r"^sampling.num_steps: found 0, expected at least 1"):
        Sampling(num_steps=0)
    with pytest.raises(ValueError, match=r"^scales: expected names among .*, got 'colour'"):
        paint(model, form="full", scales={"colour": 1.0})


def test_pixels() -> None:
    image = torch.tensor([-3.0, -1.0, -1 + 1.1 / 127.5, 0.0, 1.0, 2.0]).view(1, 1, 1, 6)
    pixels = to_pixels(image.expand(2, 3, -1, -1))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 1, 6, 3)
    assert pixels[1, 0, :, 2].tolist() == [0, 0, 1, 128, 255, 255]
