"""Sampling with networks that have learned a variance, and with bounds on x_0."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UnCLIPScheduler,
)
from torch.testing import assert_close

from spatext.modules.functional.diffusion import to_x_0
from spatext.modules.functional.sampling import initial_noise, sample, takes_variance

SHAPE = (3, 4, 4)
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
LEARNED = {"variance_type": "learned_range"}


def mean(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.7 * x_t + 0.001 * t.to(x_t).view(-1, 1, 1, 1)).flip(-1)


def both(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Six channels; those of the variance are not those of the mean."""
    return torch.cat([mean(x_t, t), torch.sin(3 * x_t)], dim=1)


def x_T() -> torch.Tensor:
    return initial_noise(torch.arange(2), SHAPE)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(2)]


def run(denoise: Any, scheduler: Any, num_steps: int = 5) -> torch.Tensor:
    return sample(denoise, scheduler, x_T(), num_steps, generators=generators())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (DDIMScheduler, {}),
        (DPMSolverMultistepScheduler, LEARNED | {"lambda_min_clipped": -5.1}),
        (DPMSolverMultistepScheduler, {"lambda_min_clipped": -5.1}),
        (EulerDiscreteScheduler, {}),
        (DDPMScheduler, {"variance_type": "fixed_small"}),
    ],
)
def test_others_get_the_mean_alone(cls, options, prediction_type) -> None:
    scheduler = cls(**COSINE, prediction_type=prediction_type, **options)
    assert not takes_variance(scheduler)
    assert_close(run(both, scheduler), run(mean, scheduler), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_a_foreign_option_does_not_make_it_known(name: str) -> None:
    """`from_config` keeps options of another class among its own."""
    cls = {"DDIMScheduler": DDIMScheduler}.get(name, DPMSolverMultistepScheduler)
    scheduler = cls.from_config(UnCLIPScheduler(**LEARNED).config, clip_sample=False)
    assert scheduler.config.variance_type == "learned_range"
    assert not takes_variance(scheduler)
    assert_close(run(both, scheduler), run(mean, scheduler), rtol=0, atol=0)


@pytest.mark.parametrize("cls", [DDPMScheduler, UnCLIPScheduler])
def test_those_that_draw_with_it_get_it(cls) -> None:
    scheduler = cls(**COSINE, **LEARNED)
    assert takes_variance(scheduler)
    scheduler.set_timesteps(5)
    x, rng, times = x_T(), generators(), scheduler.timesteps
    for t, previous in zip(times, [*times[1:], None], strict=True):
        options = {"prev_timestep": previous} if cls is UnCLIPScheduler else {}
        x = scheduler.step(both(x, t.repeat(2)), t, x, generator=rng, **options).prev_sample
    found = run(both, cls(**COSINE, **LEARNED))
    assert_close(found, x)

    def other(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([mean(x_t, t), -torch.sin(3 * x_t)], dim=1)

    assert (run(other, cls(**COSINE, **LEARNED)) - found).abs().mean() > 1e-3


@pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler, UnCLIPScheduler])
def test_each_step_tells_the_x_0_of_the_mean(cls) -> None:
    options = LEARNED if cls is not DDIMScheduler else {}
    check_x_0(cls(**COSINE, **options), 1.0)
    check_x_0(cls(**COSINE, **options, clip_sample=False), None)


@pytest.mark.parametrize("cls", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_schedulers_over_sigma_tell_the_x_0_of_the_mean(cls) -> None:
    check_x_0(cls(beta_schedule="scaled_linear", timestep_spacing="trailing"), None)


def check_x_0(scheduler: Any, limit: float | None) -> None:
    expected, found = [], []

    def watched(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = both(x_t, t)
        a_t = scheduler.alphas_cumprod[t.long()]
        x_0 = to_x_0(out[:, :3], x_t, a_t, "epsilon")
        expected.append(x_0 if limit is None else x_0.clamp(-limit, limit))
        return out

    def keep(step: int, x: torch.Tensor, x_0_hat: torch.Tensor) -> None:
        found.append(x_0_hat)

    sample(watched, scheduler, x_T(), 4, generators=generators(), on_step=keep)
    assert found[0].shape == (2, *SHAPE)
    assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bound", [{"clip_sample": True}, {"thresholding": True}])
def test_the_direction_of_ddim_is_that_of_the_bounded_x_0(bound: dict[str, bool]) -> None:
    """x_s = sqrt(a_s) x_0 + sqrt(1 - a_s) noise, of which x_t is sqrt(a_t) x_0 + ... noise, too."""
    options = {"clip_sample": False, "timestep_spacing": "trailing", **bound}
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", **options)
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    x = x_T()
    sample(mean, scheduler, x, 4, on_step=lambda _, x, x_0: steps.append((x, x_0)))
    a = [*scheduler.alphas_cumprod[[999, 749, 499, 249]], torch.tensor(1.0)]
    for (following, x_0), a_t, a_s in zip(steps, a[:-1], a[1:], strict=True):
        assert x_0.abs().max() <= 1.0
        noise = (x - a_t.sqrt() * x_0) / (1 - a_t).sqrt()
        assert_close(following, a_s.sqrt() * x_0 + (1 - a_s).sqrt() * noise, rtol=1e-4, atol=1e-5)
        x = following
