"""The variational quantities are those that the schedulers of diffusers step with, and add up to
the analytic bits per dimension of data whose law is known."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UnCLIPScheduler
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from spatext.modules.functional.diffusion import alphas_cumprod, make_betas, to_x_0
from spatext.modules.functional.variational import (
    learned_range_log_variance,
    posterior,
    respaced,
    total_bound,
)

NUM, SHAPE = 100, (1, 3, 4, 4)
BETAS = make_betas("squaredcos_cap_v2", NUM)
A = alphas_cumprod(BETAS)


def precise(cls: Any, **options: Any) -> Any:
    """In float64, so that the comparison is of formulas."""
    options = {"variance_type": "learned_range", "clip_sample": False, **options}
    scheduler = cls(num_train_timesteps=NUM, beta_schedule="squaredcos_cap_v2", **options)
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = BETAS, 1 - BETAS, A
    return scheduler


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=draw(seed), dtype=torch.float64)


def ours(
    prediction: torch.Tensor, x_t: torch.Tensor, t: int, a: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """A step of the chain whose schedule is `a`, with the noise of seed 7 but at its end."""
    output, v = prediction.chunk(2, dim=1)
    at = torch.tensor([t])
    mean, _ = posterior(to_x_0(output, x_t, a[at], prediction_type), x_t, at, a)
    log_variance = learned_range_log_variance(v, at, a)
    return mean + (0.5 * log_variance).exp() * noise(7) * (t > 0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("cls", [DDPMScheduler, UnCLIPScheduler])
def test_single_steps_are_those_of_the_schedulers(cls, prediction_type) -> None:
    scheduler = precise(cls, prediction_type=prediction_type)
    for t in (0, 1, 2, 50, NUM - 1):
        x_t, prediction = noise(t), noise(t + 1, (1, 6, 4, 4))
        found = scheduler.step(prediction, t, x_t, generator=draw(7)).prev_sample
        assert_close(found, ours(prediction, x_t, t, A, prediction_type), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_steps", [2, 7, 27])
@pytest.mark.parametrize("cls", [DDPMScheduler, UnCLIPScheduler])
def test_respaced_steps_are_those_of_the_schedulers(cls, num_steps) -> None:
    options = {"timestep_spacing": "linspace"} if cls is DDPMScheduler else {}
    scheduler = precise(cls, **options)
    scheduler.set_timesteps(num_steps)
    timesteps, a = respaced(A, num_steps)
    assert scheduler.timesteps.tolist() == timesteps.flip(0).tolist()
    for place, t in enumerate(timesteps.tolist()):
        x_t, prediction = noise(t), noise(t + 1, (1, 6, 4, 4))
        options = {}
        if cls is UnCLIPScheduler:
            options["prev_timestep"] = timesteps[place - 1] if place else None
        found = scheduler.step(prediction, t, x_t, generator=draw(7), **options).prev_sample
        assert_close(found, ours(prediction, x_t, place, a, "epsilon"), rtol=1e-6, atol=1e-9)


MEAN, STD = 0.1, 0.2
ROUGH = alphas_cumprod(make_betas("linear", 30, 0.01, 0.3))


class Exact:
    """E[x_0 | x_t] of x_0 ~ N(MEAN, STD^2), and the variance of q(x_{t-1} | x_t), which is exact
    for a chain of the given timesteps of ROUGH."""

    def __init__(self, timesteps: torch.Tensor) -> None:
        self.places = {t: i for i, t in enumerate(timesteps.tolist())}
        self.a = ROUGH[timesteps]

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        place = self.places[int(t[0])]
        a, before = self.a[place], self.a[place - 1] if place else torch.ones(()).double()
        marginal = a * STD**2 + 1 - a
        x_0 = MEAN + a.sqrt() * STD**2 / marginal * (x_t - a.sqrt() * MEAN)
        # x_{t-1} and x_t are jointly normal.
        step = a / before
        covariance = step.sqrt() * (before * STD**2 + 1 - before)
        variance = before * STD**2 + 1 - before - covariance**2 / marginal
        low = [(1 - b) / (1 - c) * (1 - c / b) for b, c in zip(self.a, self.a[1:], strict=False)]
        low, high = low[max(place - 1, 0)].log(), (1 - step).log()
        v = 2 * (variance.log() - low) / (high - low) - 1
        return torch.cat([x_0, v.expand_as(x_0)], dim=1)


def pixels() -> torch.Tensor:
    """At the quantiles of their law, rounded to 8 bits."""
    places = (torch.arange(8 * 4096, dtype=torch.float64) + 0.5) / (8 * 4096)
    values = Normal(MEAN, STD).icdf(places)
    return ((values + 1) * 127.5).round().clamp(0, 255).div(127.5).sub(1).view(8, 1, 64, 64)


def analytic(a_T: torch.Tensor) -> float:
    """Entropy of x_0 in bits, plus what the prior of x_T has wrong: the bound is tight, as
    p(x_{t-1} | x_t) is exact."""
    entropy = Normal(MEAN, STD).entropy() / math.log(2) + math.log2(127.5)
    marginal = Normal(a_T.sqrt() * MEAN, (a_T * STD**2 + 1 - a_T).sqrt())
    return float(entropy + kl_divergence(marginal, Normal(0.0, 1.0)) / math.log(2))


@pytest.mark.parametrize("num_steps", [30, 6])
def test_bits_per_dimension_of_a_known_gaussian(num_steps: int) -> None:
    timesteps, a = respaced(ROUGH, num_steps)
    x_0, denoise = pixels(), Exact(timesteps)

    def total(denoise: Any) -> float:
        bound = total_bound(
            denoise, x_0, a, "sample", noise=lambda t: noise(t, x_0.shape), timesteps=timesteps
        )
        assert bound.shape == (8,)
        return float(bound.mean())

    expected = analytic(a[-1])
    assert total(denoise) == pytest.approx(expected, abs=0.02)

    def worse(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x_0, v = denoise(x_t, t).chunk(2, dim=1)
        return torch.cat([x_0, v - 1], dim=1)

    assert total(worse) > expected + 0.05
