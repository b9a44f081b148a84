import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)
from scipy import stats

from spatext.modules.functional.diffusion import (
    alphas_cumprod,
    make_betas,
    prediction_target,
    to_x_0,
)
from spatext.modules.functional.random import Purpose, normal
from spatext.modules.functional.sampling import initial_noise, predict_x_0, sample

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DETERMINISTIC = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
]
SHAPE = (3, 4, 4)


def make(cls, **options):
    if cls in (DDIMScheduler, DDPMScheduler):
        options = {"clip_sample": False, **options}
    return cls(**BETAS, **options)


def denoise(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    assert t.shape == (len(x_t),)
    return torch.tanh(0.7 * x_t + 0.001 * t.to(x_t).view(-1, 1, 1, 1)).flip(-1)


def generators(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(batch)]


def x_T(batch: int = 3) -> torch.Tensor:
    return initial_noise(torch.arange(batch), SHAPE)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("cls", DETERMINISTIC)
def test_trajectory_equals_the_loop_written_out(cls, prediction_type) -> None:
    scheduler = make(cls, prediction_type=prediction_type)
    scheduler.set_timesteps(7)
    x = x_T() * scheduler.init_noise_sigma
    expected = []
    for t in scheduler.timesteps:
        out = denoise(scheduler.scale_model_input(x, t), t.repeat(len(x)))
        x = scheduler.step(out, t, x).prev_sample
        expected.append(x)
    found: dict[int, torch.Tensor] = {}
    scheduler = make(cls, prediction_type=prediction_type)
    last = sample(
        denoise, scheduler, x_T(), 7, on_step=lambda step, x, _: found.__setitem__(step, x)
    )
    assert list(found) == list(range(7))
    torch.testing.assert_close(list(found.values()), expected)
    torch.testing.assert_close(last, expected[-1])


def test_unclip_is_told_the_previous_timestep() -> None:
    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample")
    expected_scheduler = copy.deepcopy(scheduler)
    expected_scheduler.set_timesteps(4)
    times = expected_scheduler.timesteps
    x, rng = x_T(), generators(3)
    for t, previous in zip(times, [*times[1:], None], strict=True):
        out = denoise(x, t.repeat(3))
        step = expected_scheduler.step(out, t, x, prev_timestep=previous, generator=rng)
        x = step.prev_sample
    found = sample(denoise, scheduler, x_T(), 4, generators=generators(3))
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize("cls", [*DETERMINISTIC, EulerAncestralDiscreteScheduler])
def test_the_scheduler_of_the_caller_is_left_alone(cls) -> None:
    scheduler = make(cls)
    first = sample(denoise, scheduler, x_T(), 4, generators=generators(3))
    second = sample(denoise, scheduler, x_T(), 4, generators=generators(3))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert scheduler.num_inference_steps is None


@pytest.mark.parametrize(
    ("cls", "scheduler_options", "options"),
    [
        (DDIMScheduler, {}, {}),
        (DDIMScheduler, {}, {"eta": 1.0}),
        (DDPMScheduler, {}, {}),
        (EulerDiscreteScheduler, {}, {}),
        (EulerAncestralDiscreteScheduler, {}, {}),
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, {}),
        (UniPCMultistepScheduler, {}, {}),
    ],
)
def test_an_image_does_not_depend_on_its_batch(cls, scheduler_options, options) -> None:
    scheduler = make(cls, **scheduler_options)
    together = sample(denoise, scheduler, x_T(), 5, generators=generators(3), **options)
    for i in range(3):
        seeds, rng = torch.tensor([i]), [generators(3)[i]]
        noise = initial_noise(seeds, SHAPE)
        alone = sample(denoise, scheduler, noise, 5, generators=rng, **options)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


def test_eta_adds_the_noise_of_the_generators() -> None:
    scheduler = make(DDIMScheduler)
    rng = generators(3)
    scheduler.set_timesteps(5)
    x = x_T()
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, t.repeat(3)), t, x, eta=0.5, generator=rng).prev_sample
    found = sample(denoise, make(DDIMScheduler), x_T(), 5, eta=0.5, generators=generators(3))
    torch.testing.assert_close(found, x)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler has none, expected 0, got 0\.5"):
        sample(denoise, make(EulerDiscreteScheduler), x_T(), 2, eta=0.5)
    with pytest.raises(ValueError, match=r"one per image \(3\), got 2"):
        sample(denoise, make(DDIMScheduler), x_T(), 2, generators=generators(2))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_gaussian_data_are_reproduced(prediction_type) -> None:
    # x_0 ~ N(mu, s^2): x_t is normal too, and E[noise | x_t] is in closed form.
    mu, s = 0.8, 0.3
    a = alphas_cumprod(make_betas("scaled_linear", 1000, 0.00085, 0.012))

    def exact(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a_t = a[t].view(-1, 1, 1, 1)
        variance = a_t * s**2 + 1 - a_t
        eps = (1 - a_t).sqrt() * (x_t - a_t.sqrt() * mu) / variance
        return prediction_target(to_x_0(eps, x_t, a[t], "epsilon"), eps, a[t], prediction_type)

    # The probability flow between two normal laws is affine; DDIM follows it to first order.
    noise = initial_noise(torch.arange(16), (1, 8, 8)).double()
    expected = mu + s * (noise - a[-1].sqrt() * mu) / (a[-1] * s**2 + 1 - a[-1]).sqrt()
    options = {"set_alpha_to_one": True, "timestep_spacing": "trailing"}
    scheduler = make(DDIMScheduler, prediction_type=prediction_type, **options)
    x_0 = sample(exact, scheduler, noise, 1000)
    torch.testing.assert_close(x_0, expected, rtol=0, atol=0.05 * s)
    torch.testing.assert_close(x_0.mean(), expected.mean(), rtol=0, atol=0.002 * s)
    torch.testing.assert_close(x_0.std(), expected.std(), rtol=0.012, atol=0)


def test_initial_noise_belongs_to_the_image() -> None:
    seeds = torch.tensor([5, 2**40, 0])
    together = initial_noise(seeds, SHAPE)
    torch.testing.assert_close(together[1:2], initial_noise(seeds[1:2], SHAPE), rtol=0, atol=0)
    assert not together[0].equal(together[2])
    assert not together.equal(normal(0, Purpose.NOISE, seeds, SHAPE))
    many = initial_noise(torch.arange(200), SHAPE)
    assert stats.kstest(many.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("cls", [*DETERMINISTIC, DDPMScheduler, EulerAncestralDiscreteScheduler])
def test_each_step_tells_the_x_0_that_the_network_saw(cls, prediction_type) -> None:
    scheduler = make(cls, prediction_type=prediction_type, timestep_spacing="trailing")
    expected, found = [], []

    def watched(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = denoise(x_t, t)
        expected.append(to_x_0(out, x_t, scheduler.alphas_cumprod[t.long()], prediction_type))
        return out

    rng = generators(3)
    last = sample(
        watched, scheduler, x_T(), 5, generators=rng, on_step=lambda *step: found.append(step)
    )
    assert [step for step, _, _ in found] == [0, 1, 2, 3, 4]
    for (_, _, x_0_hat), x_0 in zip(found, expected, strict=True):
        torch.testing.assert_close(x_0_hat, x_0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[-1][1], last, rtol=0, atol=0)


def test_x_0_is_predicted_from_the_mean_alone() -> None:
    """Where the network has learned a variance, too."""
    scheduler = make(DPMSolverMultistepScheduler, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    x_t = x_T(2)
    mean = torch.randn_like(x_t)
    for step, t in enumerate(scheduler.timesteps.tolist()):
        found = predict_x_0(scheduler, torch.cat([mean, mean.exp()], dim=1), x_t, step)
        a_t = scheduler.alphas_cumprod[t].expand(2)
        torch.testing.assert_close(found, to_x_0(mean, x_t, a_t, "epsilon"), rtol=1e-3, atol=1e-3)


def test_what_a_step_raises_ends_the_sampling() -> None:
    calls = []

    def stop(step: int, x: torch.Tensor, x_0_hat: torch.Tensor) -> None:
        calls.append(step)
        if step == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(denoise, make(DDIMScheduler), x_T(), 5, on_step=stop)
    assert calls == [0, 1]
