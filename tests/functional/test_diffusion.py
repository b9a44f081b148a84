import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from spatext.modules.functional.diffusion import (
    PREDICTION_TYPES,
    add_noise,
    alphas_cumprod,
    make_betas,
    prediction_target,
    rescale_zero_terminal_snr,
    snr,
    to_x_0,
)

SCHEDULES = [
    ("linear", 1000, 1e-4, 0.02),
    ("linear", 50, 0.001, 0.2),
    ("scaled_linear", 1000, 0.00085, 0.012),
    ("scaled_linear", 40, 0.01, 0.3),
    ("squaredcos_cap_v2", 1000, 1e-4, 0.02),
    ("squaredcos_cap_v2", 30, 1e-4, 0.02),
]


def scheduler(cls, schedule: str, num_steps: int, start: float, end: float, **options):
    return cls(
        beta_schedule=schedule,
        num_train_timesteps=num_steps,
        beta_start=start,
        beta_end=end,
        **options,
    )


def draw(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x_0, noise = torch.randn(2, 6, 4, 3, 3, dtype=torch.float64).to(dtype)
    return x_0, noise, torch.tensor([0.001, 0.1, 0.4, 0.7, 0.95, 0.9999], dtype=torch.float64)


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("setting", SCHEDULES, ids=str)
def test_schedules_equal_diffusers(cls, setting) -> None:
    betas, reference = make_betas(*setting), scheduler(cls, *setting)
    assert betas.dtype == torch.float64
    torch.testing.assert_close(betas.float(), reference.betas, rtol=3e-6, atol=1e-9)
    a = alphas_cumprod(betas)
    torch.testing.assert_close(a.float(), reference.alphas_cumprod, rtol=3e-4, atol=1e-9)


@pytest.mark.parametrize("setting", SCHEDULES, ids=str)
def test_zero_terminal_snr(setting) -> None:
    betas = make_betas(*setting)
    rescaled = rescale_zero_terminal_snr(betas)
    reference = scheduler(DDIMScheduler, *setting, rescale_betas_zero_snr=True).betas
    torch.testing.assert_close(rescaled.float(), reference, rtol=1e-3, atol=2e-7)
    a = alphas_cumprod(rescaled)
    assert a[-1] == 0.0
    torch.testing.assert_close(a[0], alphas_cumprod(betas)[0], rtol=1e-12, atol=0)
    assert snr(a)[-1] == 0.0


def test_unknown_schedule() -> None:
    message = "expected one of linear, scaled_linear, squaredcos_cap_v2, got 'cosine'"
    with pytest.raises(ValueError, match=message):
        make_betas("cosine", 10, 1e-4, 0.02)


@pytest.mark.parametrize("setting", SCHEDULES, ids=str)
def test_forward_process_and_velocity_equal_diffusers(setting) -> None:
    reference, a = scheduler(DDPMScheduler, *setting), alphas_cumprod(make_betas(*setting))
    torch.manual_seed(0)
    x_0, noise = torch.randn(2, 5, 4, 3, 3)
    t = torch.tensor([0, 3, 11, 20, setting[1] - 1])
    expected = reference.add_noise(x_0, noise, t)
    torch.testing.assert_close(add_noise(x_0, noise, a[t]), expected, rtol=1e-4, atol=2e-5)
    velocity = prediction_target(x_0, noise, a[t], "v_prediction")
    expected = reference.get_velocity(x_0, noise, t)
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=2e-5)


def test_targets_by_their_names() -> None:
    x_0, noise, a = draw()
    assert prediction_target(x_0, noise, a, "epsilon").equal(noise)
    assert prediction_target(x_0, noise, a, "sample").equal(x_0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x_0_is_recovered_from_every_target(prediction_type) -> None:
    x_0, noise, a = draw()
    x_t = add_noise(x_0, noise, a)
    prediction = prediction_target(x_0, noise, a, prediction_type)
    torch.testing.assert_close(to_x_0(prediction, x_t, a, prediction_type), x_0)


@pytest.mark.parametrize("function", [prediction_target, to_x_0], ids=lambda f: f.__name__)
def test_prediction_types_are_a_closed_set(function) -> None:
    x_0, noise, a = draw()
    message = "expected one of epsilon, v_prediction, sample, got 'v'"
    # The checker of types sees it before the function does; the bare function is what users call.
    with pytest.raises(ValueError, match=message):
        bare(function)(x_0, noise, a, "v")


def bare(function):
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def test_low_precision_computes_in_float32() -> None:
    x_0, noise, a = draw(torch.bfloat16)
    x_t = add_noise(x_0, noise, a.float())
    assert x_t.dtype == torch.bfloat16
    exact = add_noise(x_0.double(), noise.double(), a)
    torch.testing.assert_close(x_t, exact.bfloat16())
    # In bf16 itself 1 - 0.9999 would be 0, and every term rounded.
    assert (x_t != exact.bfloat16()).double().mean() < 0.01
    for prediction_type in PREDICTION_TYPES:
        assert to_x_0(x_0, x_t, a, prediction_type).dtype == torch.bfloat16


def test_snr() -> None:
    a = torch.tensor([0.0, 0.5, 0.8, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 1.0, 4.0, torch.inf], dtype=torch.float64)
    torch.testing.assert_close(snr(a), expected)
