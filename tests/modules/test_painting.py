"""What images may be asked for beyond their scenes: `Controls`."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from painted import (
    FREE,
    IDS,
    LOCAL,
    NUM,
    PICTURES,
    PROMPTS,
    SEEDS,
    everything,
    fill,
    first_rows,
    paint,
)
from spatext.modules.functional.sampling import initial_noise
from spatext.modules.functional.st import reduce_ids
from spatext.modules.generate import generate, to_pixels
from spatext.modules.painting import Controls, start_noise
from spatext.modules.sampling_options import Sampling, make_scheduler
from spatext.modules.spatext import SpaText
from tiny import CHANNELS, LATENT_SIZE, SIZE, TEXTS


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("form", ["fast", "full"])
def test_an_image_does_not_depend_on_its_batch(model: SpaText, scheduler: str, form: str) -> None:
    controls = everything()
    if form == "fast":
        assert isinstance(controls.scales, dict)
        controls = Controls(**{**vars(controls), "scales": controls.scales["text"]})
    options: dict[str, Any] = {"scheduler": scheduler, "form": form, "rescale": 0.5}
    options["guidance_interval"] = (0.2, 0.9)
    latents, images = paint(model, range(NUM), controls, **options)
    for size in (1, 3):
        for start in range(0, NUM, size):
            part = range(start, min(start + size, NUM))
            found, pictures = paint(model, part, controls, **options)
            assert_close(found[-1], latents[-1][list(part)], rtol=1e-3, atol=2e-3)
            a, b = to_pixels(pictures).int(), to_pixels(images[list(part)]).int()
            assert (a - b).abs().max() <= 1  # float error may cross the border of a rounding
            assert (a != b).float().mean() < 0.01
    assert (latents[-1][:-1] - latents[-1][1:]).abs().amax(dim=(1, 2, 3)).min() > 1e-2


def test_the_network_is_told_what_is_painted(model: SpaText) -> None:
    """One step without guidance, written out: the regions end inside of latent cells."""
    backbone = model.backbone
    conditions = model.scene_conditions(PROMPTS, IDS, LOCAL, SEEDS)
    x_T = initial_noise(SEEDS, (CHANNELS, LATENT_SIZE, LATENT_SIZE))
    sampling = Sampling(num_steps=1, scale=1.0, append_texts=False)
    scheduler = make_scheduler(sampling, backbone.scheduler_config)
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        prediction = backbone.denoise(x_T, t.expand(NUM), conditions)
    (found,), _ = paint(model, range(NUM), num_steps=1, scale=1.0, append_texts=False)
    expected = scheduler.step(prediction, t, x_T).prev_sample
    assert_close(found, expected, rtol=1e-3, atol=2e-3)


def test_an_image_that_asks_for_nothing_is_a_plain_one(model: SpaText) -> None:
    found, _ = paint(model, range(NUM), everything(), form="full")
    expected, _ = paint(model, [2], form="full")
    assert_close(found[-1][2:3], expected[-1], rtol=1e-3, atol=2e-3)


def test_a_negative_prompt_changes_its_image_alone(model: SpaText) -> None:
    for form in ("fast", "full"):
        plain, _ = paint(model, form=form)
        same, _ = paint(model, controls=fill(negative_prompts=["", "", ""]), form=form)
        assert torch.equal(same[-1], plain[-1])
        found, _ = paint(model, controls=fill(negative_prompts=["", "two dogs", ""]), form=form)
        assert_close(found[-1][::2], plain[-1][::2], rtol=1e-3, atol=2e-3)
        assert (found[-1][1] - plain[-1][1]).abs().mean() > 1e-2


def test_a_negative_prompt_stands_for_the_null_text(model: SpaText) -> None:
    """Where nothing is guided, it is all that is left."""
    negative = fill(negative_prompts=list(TEXTS[:3]))
    found, _ = paint(model, controls=negative, scale=0.0)
    latents: list[torch.Tensor] = []
    generate(
        model,
        TEXTS[:3],
        torch.zeros_like(IDS[:3]),
        [[], [], []],
        SEEDS[:3],
        Sampling(num_steps=4, scale=1.0),
        lambda _, x, __: latents.append(x),
    )
    assert_close(found[-1], latents[-1], rtol=1e-3, atol=2e-3)


def test_strength_is_a_factor_of_the_guidance_in_the_region(model: SpaText) -> None:
    """One step, after which each cell is a function of its own prediction."""
    cells = reduce_ids(IDS[:1], torch.ones(1, 2, dtype=torch.bool), (LATENT_SIZE, LATENT_SIZE))
    for form in ("fast", "full"):
        options: dict[str, Any] = {"num_steps": 1, "form": form}

        def last(scale: float, controls: Controls | None = None) -> torch.Tensor:
            scales = {"text": scale, "segments": scale}
            (x,), _ = paint(model, [0], controls, scale=scale, scales=scales, **options)  # noqa: B023
            return x[0]

        found = last(3.0, Controls(strength=first_rows([0.0, 0.5])))
        for number, scale in enumerate((3.0, 0.0, 1.5)):
            inside = (cells[0] == number).expand(CHANNELS, -1, -1)
            assert inside.any()
            assert_close(found[inside], last(scale)[inside], rtol=1e-3, atol=5e-3)
        assert (last(3.0) - last(0.0)).abs().mean() > 1e-2


def test_strength_one_is_none_and_zero_everywhere_is_no_guidance(model: SpaText) -> None:
    for options in ({"form": "full"}, {"scale": 1.0}, {"scale": 3.0, "rescale": 0.5}):
        plain, _ = paint(model, **options)
        found, _ = paint(model, controls=Controls(strength=first_rows(1.0)), **options)
        assert torch.equal(found[-1], plain[-1])
    whole = torch.ones(1, SIZE, SIZE, dtype=torch.uint8)

    def last(scale: float, controls: Controls | None) -> torch.Tensor:
        args = (["a red circle"], whole, [["two dogs"]], SEEDS[:1])
        return generate(model, *args, Sampling(num_steps=4, scale=scale), controls=controls)

    found_one = last(3.0, Controls(strength=torch.zeros(1, 1)))
    assert_close(found_one, last(0.0, None), rtol=1e-3, atol=2e-3)
    assert (found_one - last(3.0, None)).abs().mean() > 1e-2
    # Not the conditional branch, which is what a scale of 1 would be without a strength.
    assert_close(last(1.0, Controls(strength=torch.zeros(1, 1))), found_one, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "DDPMScheduler"],
)
def test_the_background_is_kept_to_the_bit(model: SpaText, scheduler: str) -> None:
    pixels = torch.randint(0, 256, (NUM, SIZE, SIZE, 3), dtype=torch.uint8)
    picture = pixels.movedim(-1, 1).float() / 127.5 - 1
    controls = Controls(background=picture, repaint=FREE)
    latents, image = paint(model, controls=controls, scheduler=scheduler)
    kept = ~FREE[:3]
    assert torch.equal(to_pixels(image)[kept], pixels[:3][kept])
    assert (to_pixels(image)[~kept] != pixels[:3][~kept]).float().mean() > 0.9
    # The cells that no repainted pixel touches end as the latents of the background.
    cells = FREE[:3].unfold(1, 2, 2).unfold(2, 2, 2).any(-1).any(-1)[:, None].expand_as(latents[-1])
    x_0 = model.backbone.encode(picture[:3])
    assert_close(latents[-1][~cells], x_0[~cells], rtol=1e-3, atol=2e-3)
    assert (latents[-1][cells] - x_0[cells]).abs().mean() > 1e-2
    # And the rest of the picture knows of it.
    free, _ = paint(model, scheduler=scheduler)
    assert (latents[-1][cells] - free[-1][cells]).abs().mean() > 1e-3


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_repainting_everything_needs_no_background(model: SpaText, scheduler: str) -> None:
    controls = Controls(background=PICTURES, repaint=torch.ones_like(FREE))
    found, image = paint(model, controls=controls, scheduler=scheduler)
    plain, expected = paint(model, scheduler=scheduler)
    assert torch.equal(found[-1], plain[-1])
    assert torch.equal(image, expected)


def test_variation_mixes_the_noise_of_two_seeds_in_the_region(model: SpaText) -> None:
    cells = reduce_ids(IDS[:1], torch.ones(1, 2, dtype=torch.bool), (LATENT_SIZE, LATENT_SIZE))
    shape = (CHANNELS, LATENT_SIZE, LATENT_SIZE)
    own, other = initial_noise(SEEDS[:1], shape), initial_noise(SEEDS[1:2], shape)
    controls = Controls(variation=torch.tensor([[1.0, 0.6]]), variation_seeds=SEEDS[1:2])
    found = start_noise(controls, cells, SEEDS[:1], CHANNELS)
    for number, expected in enumerate((own, other, 0.8 * own + 0.6 * other)):
        inside = (cells[:, None] == number).expand_as(found)
        assert_close(found[inside], expected[inside])

    def last(share: float) -> torch.Tensor:
        controls = Controls(variation=first_rows(share), variation_seeds=SEEDS.flip(0))
        return paint(model, controls=controls)[0][-1]

    plain = paint(model)[0][-1]
    assert torch.equal(last(0.0), plain)
    assert (last(0.5) - plain).abs().amax(dim=(1, 2, 3))[:2].min() > 1e-2
    assert torch.equal(last(1.0)[2], plain[2])  # no region


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": first_rows(-1.0)}, "strength: found -1, expected at least 0"),
        ({"strength": first_rows(float("nan"))}, "strength: found nan, expected at least 0"),
        (
            {"variation": first_rows([0.5, 1.5]), "variation_seeds": SEEDS},
            "variation: found 0.5 to 1.5, expected 0 to 1",
        ),
        (
            {"variation": first_rows(0.5)},
            "variation, variation_seeds: found one of the two, expected both or none",
        ),
        (
            {"repaint": FREE},
            "background, repaint: found one of the two, expected both or none",
        ),
    ],
)
def test_wrong_controls_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Controls(**values)
