"""The terms of the variational bound against closed forms in float64, written independently."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from spatext.modules.functional.diffusion import (
    PREDICTION_TYPES,
    add_noise,
    alphas_cumprod,
    make_betas,
    prediction_target,
)
from spatext.modules.functional.losses import diffusion_loss
from spatext.modules.functional.variational import (
    discretised_gaussian_nll,
    gaussian_kl,
    learned_range_log_variance,
    posterior,
    prior_bound,
    respaced,
    variational_bound,
)

BETAS = make_betas("squaredcos_cap_v2", 50)
A = alphas_cumprod(BETAS)
T = torch.tensor([0, 1, 7, 30, 49])
LEVELS = torch.linspace(-1, 1, 256, dtype=torch.float64)


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_0 of whole levels, noise, and x_t at T."""
    rng = torch.Generator().manual_seed(0)
    x_0 = LEVELS[torch.randint(256, (len(T), 3, 4, 4), generator=rng)]
    noise = torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
    return x_0, noise, add_noise(x_0, noise, A[T])


def variances(x_0: torch.Tensor) -> torch.Tensor:
    return torch.randn(
        x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).tanh()


def reversed_by_bayes(
    x_0: torch.Tensor, x_t: torch.Tensor, t: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """q(x_{t-1} | x_t, x_0) ~ q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions add up."""
    alpha, before = 1 - BETAS[t], (1 - BETAS[:t]).prod()
    precision = 1 / (1 - before) + alpha / BETAS[t]
    mean = (before.sqrt() * x_0 / (1 - before) + alpha.sqrt() * x_t / BETAS[t]) / precision
    return mean, 1 / precision


def test_posterior_is_bayes_rule() -> None:
    x_0, _, x_t = draw()
    mean, log_variance = posterior(x_0, x_t, T, A)
    for i, t in enumerate(T.tolist()[1:], start=1):
        expected_mean, expected_variance = reversed_by_bayes(x_0[i], x_t[i], t)
        assert_close(mean[i], expected_mean)
        assert_close(log_variance[i].exp(), expected_variance)
    assert_close(mean[0], x_0[0])
    assert_close(log_variance[0], log_variance[1])
    _, alone = posterior(x_0[:1], x_t[:1], T[:1], A[-1:])
    assert_close(alone, (1 - A[-1:]).log())


def test_learned_range() -> None:
    x_0, _, x_t = draw()
    _, low = posterior(x_0, x_t, T, A)
    for v, expected in [
        (-1.0, low),
        (1.0, BETAS[T].log()),
        (0.0, (low + BETAS[T].log()) / 2),
        (3.0, BETAS[T].log() + (BETAS[T].log() - low)),
    ]:
        found = learned_range_log_variance(torch.full_like(x_0, v), T, A)
        assert_close(found, expected.view(-1, 1, 1, 1).expand(x_0.shape))


def test_kl_of_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    mean, log_variance, other, other_log_variance = torch.randn(
        4, 100, generator=rng, dtype=torch.float64
    )
    expected = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()), Normal(other, (0.5 * other_log_variance).exp())
    )
    assert_close(gaussian_kl(mean, log_variance, other, other_log_variance), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_levels_of_a_pixel_sum_to_1(dtype: torch.dtype) -> None:
    means = torch.tensor([-3.0, -1.0, -0.3, 0.002, 0.9999, 1.2], dtype=dtype).view(-1, 1, 1)
    scales = torch.tensor([1e-4, 1e-3, 0.01, 0.3, 5.0], dtype=dtype).view(-1, 1)
    nll = discretised_gaussian_nll(LEVELS.to(dtype), means, 2 * scales.log())
    assert nll.isfinite().all()
    total = (-nll).exp().sum(dim=-1)
    assert_close(
        total, torch.ones_like(total), rtol=0, atol=2e-4 if dtype == torch.float32 else 1e-10
    )


def test_mass_of_a_level() -> None:
    mean, scale, half = torch.tensor(0.1), torch.tensor(0.05), 1 / 255
    law = Normal(mean.double(), scale.double())
    found = discretised_gaussian_nll(LEVELS, mean.double(), 2 * scale.double().log())
    middle = LEVELS[100:180]
    expected = (law.cdf(middle + half) - law.cdf(middle - half)).log()
    assert_close(-found[100:180], expected, rtol=1e-6, atol=0)
    broad = Normal(torch.tensor(0.1).double(), torch.tensor(1.0).double())
    found = discretised_gaussian_nll(LEVELS, broad.loc, 2 * broad.scale.log())
    assert_close((-found[0]).exp(), broad.cdf(-1 + torch.tensor(half).double()))
    assert_close((-found[-1]).exp(), 1 - broad.cdf(1 - torch.tensor(half).double()))


def test_far_levels_have_finite_values_and_gradients() -> None:
    x_0 = torch.tensor([-1.0, -0.2, 0.0, 1.0])
    mean = torch.tensor([4.0, 5.0, 0.0, -4.0], requires_grad=True)
    log_variance = torch.tensor([-12.0, -12.0, 30.0, -12.0], requires_grad=True)
    nll = discretised_gaussian_nll(x_0, mean, log_variance)
    nll.sum().backward()
    assert nll.isfinite().all()
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()
    assert nll[0] > 1e5


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_bound_of_each_step(prediction_type) -> None:
    x_0, noise, x_t = draw()
    guess = x_0 + 0.01 * noise
    implied = (x_t - A[T].sqrt().view(-1, 1, 1, 1) * guess) / (1 - A[T]).sqrt().view(-1, 1, 1, 1)
    output, v = prediction_target(guess, implied, A[T], prediction_type), variances(x_0)
    prediction = torch.cat([output, v], dim=1)
    found = variational_bound(prediction, x_0, x_t, T, A, prediction_type)
    low, high = posterior(x_0, x_t, T, A)[1], BETAS[T].log()
    for i, t in enumerate(T.tolist()):
        scale = (0.5 * (low[i] + (v[i] + 1) / 2 * (high[i] - low[i]))).exp()
        if t == 0:
            law = Normal(guess[i], scale)
            below = torch.where(x_0[i] == -1, 0, law.cdf(x_0[i] - 1 / 255))
            above = torch.where(x_0[i] == 1, 1, law.cdf(x_0[i] + 1 / 255))
            expected = -(above - below).log()
        else:
            mean, variance = reversed_by_bayes(x_0[i], x_t[i], t)
            model_mean, _ = reversed_by_bayes(guess[i], x_t[i], t)
            expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(model_mean, scale))
        assert_close(found[i], expected.mean() / math.log(2), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_bound_of_the_truth_is_0(prediction_type) -> None:
    x_0, noise, x_t = draw()
    target = prediction_target(x_0, noise, A[T], prediction_type)
    prediction = torch.cat([target, -torch.ones_like(target)], dim=1)
    found = variational_bound(prediction, x_0, x_t, T, A, prediction_type)
    assert_close(found[1:], torch.zeros_like(found[1:]))
    assert found[0] > 0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_two_losses_teach_one_half_each(prediction_type) -> None:
    x_0, noise, x_t = draw()
    target = prediction_target(x_0, noise, A[T], prediction_type)
    output = (target + 0.1 * noise.flip(0)).requires_grad_()
    v = variances(x_0).requires_grad_()
    x_0.requires_grad_()
    prediction = torch.cat([output, v], dim=1)
    bound = variational_bound(prediction, x_0, x_t, T, A, prediction_type).mean()
    mean_grad, variance_grad, x_0_grad = torch.autograd.grad(
        bound, [output, v, x_0], allow_unused=True, retain_graph=True
    )
    assert x_0_grad is None
    assert mean_grad.abs().max() == 0
    assert (variance_grad.flatten(1).abs().amax(dim=1) > 0).all()
    simple = diffusion_loss(prediction[:, :3], target, torch.ones(len(T), dtype=torch.float64))
    mean_grad, unreached = torch.autograd.grad(simple, [output, v], retain_graph=True)
    assert unreached.abs().max() == 0
    both = torch.autograd.grad(simple + bound, [output, v])
    assert_close(both, (mean_grad, variance_grad))


def test_prior_bound() -> None:
    x_0, _, _ = draw()
    a = A[:20]
    expected = kl_divergence(
        Normal(a[-1].sqrt() * x_0, (1 - a[-1]).sqrt()), Normal(torch.zeros_like(x_0), 1.0)
    )
    assert_close(prior_bound(x_0, a), expected.flatten(1).mean(dim=1) / math.log(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    x_0, noise, x_t = (x.to(dtype) for x in draw())
    prediction = torch.cat([noise, variances(noise).to(dtype)], dim=1)
    found = variational_bound(prediction, x_0, x_t, T, A.float(), "epsilon")
    exact = variational_bound(prediction.double(), x_0.double(), x_t.double(), T, A, "epsilon")
    assert found.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert_close(found.double(), exact, rtol=5e-3, atol=1e-4)
    assert prior_bound(x_0, A).dtype == torch.float32
    assert posterior(x_0, x_t, T, A)[0].dtype == torch.float32


def test_respaced() -> None:
    timesteps, a = respaced(A, 4)
    assert timesteps.tolist() == [0, 16, 33, 49]
    assert_close(a, A[timesteps])
    assert respaced(A, 50)[0].tolist() == list(range(50))
    assert respaced(A, 1)[0].tolist() == [49]
    for num_steps in (0, 51):
        with pytest.raises(ValueError, match=f"^num_steps: found {num_steps}, expected 1 to 50"):
            respaced(A, num_steps)
