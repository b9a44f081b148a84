"""The training loss and its weight over the noise levels."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .diffusion import PredictionType, check_prediction_type

Weighting = Literal["none", "min_snr"]


def loss_weight(
    snr: Float[Tensor, " b"],
    prediction_type: PredictionType,
    weighting: Weighting,
    gamma: float = 5.0,
) -> Float[Tensor, " b"]:
    """Weight of the squared error on the network's own target.

    min_snr is min(snr, gamma) on the x_0 error, carried over (Hang et al. 2023, "Efficient
    diffusion training via Min-SNR weighting strategy"): sample min(snr, gamma), epsilon
    min(snr, gamma) / snr, v min(snr, gamma) / (snr + 1). At snr = 0 epsilon takes its limit 1; the
    others take 0, so that the last step of a schedule of zero terminal SNR has no weight.
    Raises ValueError for another weighting or prediction type.
    """
    check_prediction_type(prediction_type)
    if weighting not in get_args(Weighting):
        names = ", ".join(get_args(Weighting))
        raise ValueError(f"weighting: expected one of {names}, got {weighting!r}")
    if weighting == "none":
        return torch.ones_like(snr)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    clipped = snr.clamp(max=gamma)
    return clipped if prediction_type == "sample" else clipped / (snr + 1.0)


def diffusion_loss(
    prediction: Float[Tensor, " b *shape"],
    target: Float[Tensor, " b *shape"],
    weight: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    """mean_b weight_b mean ||prediction_b - target_b||^2  (L_simple, DDPM, eq. 14), in float32 or
    better."""
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    error = (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(dim=1)
    return (weight.to(dtype) * error).mean()


def hybrid_losses(
    prediction: Float[Tensor, "b d *shape"],
    target: Float[Tensor, "b c *shape"],
    weight: Float[Tensor, " b"],
    bound: Float[Tensor, " b"],
    *,
    vb_weight: float,
    num_steps: int,
) -> dict[str, Tensor]:
    """Of a learned variance: "simple", L_simple of the mean channels, which come first; "vb", the
    mean of `bound`, one term of L_vlb for each image in bits per dimension; and "loss", L_hybrid =
    L_simple + `vb_weight` L_vlb (Nichol and Dhariwal 2021, "Improved denoising diffusion
    probabilistic models", eq. 16), in which the term that was drawn stands for all `num_steps`.

    `variational_bound` lets no gradient reach the mean: it teaches the variance alone, and L_simple
    the mean alone.
    """
    simple, vb = diffusion_loss(prediction[:, : target.shape[1]], target, weight), bound.mean()
    return {"loss": simple + vb_weight * num_steps * vb, "simple": simple, "vb": vb}
