"""Discrete diffusion: schedules, the forward process, and the three things a network may predict.

a_t = alphas_cumprod[t]; x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise. Every conversion computes in
float32 or better and returns the dtype of its first argument.
"""

from math import cos, pi
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def make_betas(
    schedule: str, num_steps: int, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Float64[Tensor, " t"]:
    """linear: DDPM, sec. 4. scaled_linear: linear in sqrt(beta), as latent diffusion.
    squaredcos_cap_v2: Improved DDPM, eq. 17, s = 0.008, beta <= 0.999; it has no start and end.

    Raises ValueError for another name. The default range is Stable Diffusion's.
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2
    if schedule == "squaredcos_cap_v2":
        f = [cos((t / num_steps + 0.008) / 1.008 * pi / 2) ** 2 for t in range(num_steps + 1)]
        betas = [min(1 - f[t + 1] / f[t], 0.999) for t in range(num_steps)]
        return torch.tensor(betas, dtype=torch.float64)
    raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")


def alphas_cumprod(betas: Float64[Tensor, " t"]) -> Float64[Tensor, " t"]:
    """a_t = prod_{s <= t} (1 - beta_s)  (DDPM, eq. 4)."""
    return torch.cumprod(1.0 - betas, dim=0)


def rescale_zero_terminal_snr(betas: Float64[Tensor, " t"]) -> Float64[Tensor, " t"]:
    """Betas with a_T = 0 and a_1 unchanged (Lin et al. 2024, "Common diffusion noise schedules and
    sample steps are flawed", Alg. 1): sqrt(a_t) is shifted and scaled."""
    root = alphas_cumprod(betas).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    a = root**2
    return 1.0 - torch.cat([a[:1], a[1:] / a[:-1]])


def check_terminal_snr(zero: bool, prediction_type: str) -> None:
    """Raises ValueError where the last step would teach nothing: at a_T = 0 the noise is x_T itself
    and x_0 cannot be told from it (Lin et al. 2024, sec. 3.3)."""
    if zero and prediction_type == "epsilon":
        raise ValueError(
            "zero_terminal_snr: found true for a network that predicts epsilon, expected false, or "
            "a network that predicts v_prediction or sample"
        )


def snr(alphas_cumprod_t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """a_t / (1 - a_t); 0 at zero terminal SNR, inf at a_t = 1."""
    return alphas_cumprod_t / (1.0 - alphas_cumprod_t)


def add_noise(
    x_0: Float[Tensor, " b *shape"],
    noise: Float[Tensor, " b *shape"],
    alphas_cumprod_t: Float[Tensor, " b"],
) -> Float[Tensor, " b *shape"]:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise  (DDPM, eq. 4)."""
    alpha, sigma = _coefficients(x_0, alphas_cumprod_t)
    return (alpha * x_0 + sigma * noise).to(x_0.dtype)


def prediction_target(
    x_0: Float[Tensor, " b *shape"],
    noise: Float[Tensor, " b *shape"],
    alphas_cumprod_t: Float[Tensor, " b"],
    prediction_type: PredictionType,
) -> Float[Tensor, " b *shape"]:
    """epsilon: noise. sample: x_0. v_prediction: sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans and
    Ho 2022, app. D)."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise.to(x_0.dtype)
    if prediction_type == "sample":
        return x_0
    alpha, sigma = _coefficients(x_0, alphas_cumprod_t)
    return (alpha * noise - sigma * x_0).to(x_0.dtype)


def to_x_0(
    prediction: Float[Tensor, " b *shape"],
    x_t: Float[Tensor, " b *shape"],
    alphas_cumprod_t: Float[Tensor, " b"],
    prediction_type: PredictionType,
) -> Float[Tensor, " b *shape"]:
    """epsilon: (x_t - sqrt(1 - a_t) eps) / sqrt(a_t), undefined at a_t = 0 (DDPM, eq. 15).
    v: sqrt(a_t) x_t - sqrt(1 - a_t) v (Salimans and Ho 2022, app. D)."""
    check_prediction_type(prediction_type)
    alpha, sigma = _coefficients(prediction, alphas_cumprod_t)
    if prediction_type == "epsilon":
        return ((x_t - sigma * prediction) / alpha).to(prediction.dtype)
    if prediction_type == "v_prediction":
        return (alpha * x_t - sigma * prediction).to(prediction.dtype)
    return prediction


def check_prediction_type(prediction_type: str) -> None:
    """Raises ValueError unless it is one of the three."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, "
            f"got {prediction_type!r}"
        )


def _coefficients(
    x: Float[Tensor, " b *shape"], alphas_cumprod_t: Float[Tensor, " b"]
) -> tuple[Tensor, Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t), [b, 1, ...], in float32 or better so that they promote x."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    a = alphas_cumprod_t.view(-1, *[1] * (x.ndim - 1))
    return a.sqrt().to(dtype), (1.0 - a).sqrt().to(dtype)
