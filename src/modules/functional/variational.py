"""The variational bound of a denoiser with a learned variance (Improved DDPM, Nichol and Dhariwal
2021, sec. 2 and 3).

Steps count from 0 as in `alphas_cumprod`, a_{-1} = 1, and x_{-1} is x_0, whose pixels are 8-bit
values in [-1, 1]. A respaced process is the same thing with the alphas_cumprod of its own steps
(see `respaced`); t is then a place among those, and the network is given timesteps[t].

Everything is computed in float32 or better, the schedule in the precision that it comes in: in
float32 the smallest betas of a cosine schedule are good to 0.2 percent.
"""

from collections.abc import Callable
from math import log

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .diffusion import PredictionType, add_noise, to_x_0


def posterior(
    x_0: Float[Tensor, " b *shape"],
    x_t: Float[Tensor, " b *shape"],
    t: Int64[Tensor, " b"],
    alphas_cumprod: Float[Tensor, " n"],
) -> tuple[Float[Tensor, " b *shape"], Float[Tensor, " b"]]:
    """Mean and log-variance of q(x_{t-1} | x_t, x_0)  (DDPM, eq. 6 and 7).

    The variance at t = 0 is 0; in its place stands that of t = 1, as in Improved DDPM's code (with
    one step, which has no t = 1, beta_0: our choice).
    """
    x_0, x_t = _promoted(x_0, x_t)
    a, previous, beta = (values[t] for values in _schedule(alphas_cumprod))
    weight_0 = previous.sqrt() * beta / (1.0 - a)
    weight_t = (a / previous).sqrt() * (1.0 - previous) / (1.0 - a)
    mean = _per_image(weight_0, x_0) * x_0 + _per_image(weight_t, x_t) * x_t
    return mean, _log_posterior_variance(alphas_cumprod)[t].to(x_0.dtype)


def learned_range_log_variance(
    v: Float[Tensor, " b *shape"],
    t: Int64[Tensor, " b"],
    alphas_cumprod: Float[Tensor, " n"],
) -> Float[Tensor, " b *shape"]:
    """From the log-variance of `posterior` at v = -1 to log beta_t at v = 1, linear in v (Improved
    DDPM, eq. 15, whose v is (v + 1) / 2 here). The network is not held to this range."""
    (v,) = _promoted(v)
    _, _, beta = _schedule(alphas_cumprod)
    low = _per_image(_log_posterior_variance(alphas_cumprod)[t], v)
    high = _per_image(beta.log()[t], v)
    fraction = (v + 1.0) / 2.0
    return fraction * high + (1.0 - fraction) * low


def gaussian_kl(
    mean: Float[Tensor, "*#shape"],
    log_variance: Float[Tensor, "*#shape"],
    other_mean: Float[Tensor, "*#shape"],
    other_log_variance: Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """KL(N(mean, variance) || N(other mean, other variance)) of each element, in nats."""
    ratio = log_variance - other_log_variance
    distance = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return 0.5 * (torch.exp(ratio) - ratio - 1.0 + distance)


def discretised_gaussian_nll(
    x_0: Float[Tensor, "*#shape"],
    mean: Float[Tensor, "*#shape"],
    log_variance: Float[Tensor, "*#shape"],
) -> Float[Tensor, "*shape"]:
    """-log of N(mean, variance)'s mass within 1 / 255 of each pixel, in nats; the levels -1 and 1
    have the tails, so that the 256 levels sum to 1 (DDPM, eq. 13).

    Values between the levels, as means over cells give them, get the mass around themselves. The
    distribution function is exact, where the released code of DDPM's successors has an
    approximation by tanh.
    """
    x_0, mean, log_variance = torch.broadcast_tensors(*_promoted(x_0, mean, log_variance))
    scale, half = torch.exp(-0.5 * log_variance), 1.0 / 255.0
    # Both ends of the bin, turned into the lower tail, where logarithms of the mass are precise.
    distance = (x_0 - mean).abs()
    near = torch.special.log_ndtr((half - distance) * scale)
    far = torch.special.log_ndtr((-half - distance) * scale)
    tiny = torch.finfo(mean.dtype).tiny
    inside = near + torch.log(-torch.expm1((far - near).clamp(max=-tiny)))
    below = torch.special.log_ndtr((x_0 + half - mean) * scale)
    above = torch.special.log_ndtr((mean - x_0 + half) * scale)
    edge = 1.0 - 0.5 * half
    return -torch.where(x_0 < -edge, below, torch.where(x_0 > edge, above, inside))


def variational_bound(
    prediction: Float[Tensor, "b d *shape"],
    x_0: Float[Tensor, "b c *shape"],
    x_t: Float[Tensor, "b c *shape"],
    t: Int64[Tensor, " b"],
    alphas_cumprod: Float[Tensor, " n"],
    prediction_type: PredictionType,
) -> Float[Tensor, " b"]:
    """L_t of each image in bits per dimension: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), at
    t = 0 -log p(x_0 | x_1) of 8-bit pixels  (DDPM, eq. 5).

    `prediction` has the mean channels first and as many of the variance. No gradient reaches the
    mean channels (Improved DDPM, sec. 3.1), nor what x_0 and x_t were made of: the bound teaches
    the variance alone, and L_simple the mean alone.
    """
    assert prediction.shape[1] == 2 * x_t.shape[1], (prediction.shape, x_t.shape)
    x_0, x_t, prediction = _promoted(x_0.detach(), x_t.detach(), prediction)
    output, v = prediction.chunk(2, dim=1)
    x_0_hat = to_x_0(output.detach(), x_t, alphas_cumprod[t], prediction_type)
    model_mean, _ = posterior(x_0_hat, x_t, t, alphas_cumprod)
    model_log_variance = learned_range_log_variance(v, t, alphas_cumprod)
    mean, log_variance = posterior(x_0, x_t, t, alphas_cumprod)
    kl = gaussian_kl(mean, _per_image(log_variance, mean), model_mean, model_log_variance)
    nll = discretised_gaussian_nll(x_0, model_mean, model_log_variance)
    return _bits_per_dimension(torch.where(_per_image(t, kl) == 0, nll, kl))


def prior_bound(
    x_0: Float[Tensor, " b *shape"], alphas_cumprod: Float[Tensor, " n"]
) -> Float[Tensor, " b"]:
    """L_T = KL(q(x_T | x_0) || N(0, 1)) in bits per dimension (DDPM, eq. 5); nothing in it is
    learned."""
    (x_0,) = _promoted(x_0)
    a_T = alphas_cumprod[-1].to(x_0.dtype)
    mean, log_variance = a_T.sqrt() * x_0, torch.log1p(-a_T)
    zero = torch.zeros_like(log_variance)
    return _bits_per_dimension(gaussian_kl(mean, log_variance, zero, zero))


@torch.no_grad()
def total_bound(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x_0: Float[Tensor, "b c *shape"],
    alphas_cumprod: Float[Tensor, " n"],
    prediction_type: PredictionType,
    *,
    noise: Callable[[int], Tensor],
    timesteps: Int64[Tensor, " n"] | None = None,
) -> Float[Tensor, " b"]:
    """-log p(x_0) <= sum_t L_t + L_T of each image in bits per dimension, one network call per step
    of the schedule, with one sample of x_t in each.

    `denoise` gets x_t and t [b] and gives mean and variance channels. `noise(t)` is standard normal
    and shaped as x_0. `timesteps` are those of a respaced schedule, which the network is told.
    """
    total = prior_bound(x_0, alphas_cumprod)
    for step in range(len(alphas_cumprod)):
        t = torch.full((len(x_0),), step, device=x_0.device)
        x_t = add_noise(x_0, noise(step), alphas_cumprod[t])
        prediction = denoise(x_t, t if timesteps is None else timesteps[t])
        bound = variational_bound(prediction, x_0, x_t, t, alphas_cumprod, prediction_type)
        total = total + bound
    return total


def respaced(
    alphas_cumprod: Float[Tensor, " n"], num_steps: int
) -> tuple[Int64[Tensor, " {num_steps}"], Float[Tensor, " {num_steps}"]]:
    """`num_steps` of the n timesteps, ascending, and their alphas_cumprod, between which beta is
    1 - a_t / a_s (Improved DDPM, sec. 4).

    They are evenly spaced from 0 to n - 1, both included, and rounded half to even, as in the
    released code of Improved DDPM and in Karlo; one step alone is n - 1 (our choice).
    Raises ValueError unless 1 <= num_steps <= n.
    """
    num = len(alphas_cumprod)
    if not 1 <= num_steps <= num:
        raise ValueError(f"num_steps: found {num_steps}, expected 1 to {num}, the steps to pick of")
    if num_steps == 1:
        timesteps = torch.tensor([num - 1])
    else:
        places = torch.arange(num_steps, dtype=torch.float64)
        timesteps = (places * ((num - 1) / (num_steps - 1))).round().long()
    timesteps = timesteps.to(alphas_cumprod.device)
    return timesteps, alphas_cumprod[timesteps]


def _schedule(
    alphas_cumprod: Float[Tensor, " n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """a_t, a_{t-1} and beta_t = 1 - a_t / a_{t-1}."""
    a = alphas_cumprod.to(torch.promote_types(alphas_cumprod.dtype, torch.float32))
    previous = torch.cat([torch.ones_like(a[:1]), a[:-1]])
    return a, previous, 1.0 - a / previous


def _log_posterior_variance(alphas_cumprod: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log of (1 - a_{t-1}) / (1 - a_t) beta_t, at t = 0 that of t = 1."""
    a, previous, beta = _schedule(alphas_cumprod)
    variance = beta * (1.0 - previous) / (1.0 - a)
    first = variance[1:2] if len(variance) > 1 else beta[:1]
    return torch.cat([first, variance[1:]]).log()


def _promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """[b] as [b, 1, ...]; real numbers in the dtype of `like`."""
    values = values.to(like.dtype) if values.is_floating_point() else values
    return values.view(-1, *[1] * (like.ndim - 1))


def _bits_per_dimension(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(dim=1) / log(2.0)
