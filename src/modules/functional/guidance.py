"""Classifier-free guidance for one and for several conditions, as a function around the denoiser.

The rules are affine in the prediction with weights that sum to 1, so they mean the same whether the
network predicts epsilon, v or x_0; `eps` stands for whichever it is.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .conditions import NAMES, Conditions, check_names

Denoise = Callable[[Tensor, Tensor, Conditions], Tensor]
GuidedDenoise = Callable[[Tensor, Tensor], Tensor]


def combine(
    eps_uncond: Float[Tensor, " b *shape"],
    eps_conds: Sequence[Float[Tensor, " b *shape"]],
    scales: Sequence[float | Float[Tensor, " b"]],
) -> Float[Tensor, " b *shape"]:
    """eps(x_t | 0) + sum_i s_i (eps(x_t | c_i) - eps(x_t | 0))  (SpaText, eq. 5)."""
    guided = eps_uncond
    for eps_cond, scale in zip(eps_conds, scales, strict=True):
        if isinstance(scale, Tensor):
            scale = scale.to(eps_uncond).view(-1, *[1] * (eps_uncond.ndim - 1))
        guided = guided + scale * (eps_cond - eps_uncond)
    return guided


def guidance_rescale(
    eps: Float[Tensor, " b *shape"], eps_cond: Float[Tensor, " b *shape"], rescale: float
) -> Float[Tensor, " b *shape"]:
    """Brings each sample's std to that of eps_cond, and mixes by `rescale` in [0, 1] (Lin et al.
    2024, eq. 15-16; they use 0.7)."""
    std, std_cond = (x.flatten(1).std(dim=1) for x in (eps, eps_cond))
    factor = rescale * (std_cond / std) + (1.0 - rescale)
    return eps * factor.view(-1, *[1] * (eps.ndim - 1))


def fast_guidance(
    denoise: Denoise,
    conditions: Conditions,
    null: Conditions,
    guidance_scale: float | Float[Tensor, " b"],
    *,
    rescale: float = 0.0,
) -> GuidedDenoise:
    """eps(x_t | 0) + s (eps(x_t | all) - eps(x_t | 0))  (SpaText, eq. 6, the default there).

    Both branches are one call of batch 2 b. s = 1 calls the conditional branch alone, and s = 0
    the null branch alone (unless rescaled, which needs the other).
    """
    if isinstance(guidance_scale, (int, float)):
        if guidance_scale == 1.0:
            return lambda x_t, t: denoise(x_t, t, conditions)
        if guidance_scale == 0.0 and rescale == 0.0:
            null_only = _only((), conditions, null)
            return lambda x_t, t: denoise(x_t, t, null_only)
    return _guided(denoise, [_only((), conditions, null), conditions], [guidance_scale], rescale)


def full_guidance(
    denoise: Denoise,
    conditions: Conditions,
    null: Conditions,
    scales: Mapping[str, float],
    *,
    rescale: float = 0.0,
) -> GuidedDenoise:
    """eps(x_t | 0) + sum_i s_i (eps(x_t | c_i) - eps(x_t | 0))  (SpaText, eq. 5).

    Each condition stands ALONE against all-null; it is not the nested form of InstructPix2Pix. The
    N + 1 branches are one call of batch (N + 1) b. A condition with scale 0 costs no branch; one
    that is not named is null throughout. Raises ValueError for a name that is unknown or absent.

    Rescaling compares with all scales 1, which for N = 1 is the conditional branch (our choice).
    """
    check_names(scales, conditions, "scales")
    active = {name: scale for name, scale in scales.items() if scale != 0.0}
    branches = [_only(names, conditions, null) for names in [(), *((name,) for name in active)]]
    if not active:
        return lambda x_t, t: denoise(x_t, t, branches[0])
    return _guided(denoise, branches, list(active.values()), rescale)


def _only(names: Sequence[str], conditions: Conditions, null: Conditions) -> Conditions:
    """All conditions but the named ones made null."""
    dropped: Bool[Tensor, " b"] = torch.zeros(
        len(conditions), dtype=torch.bool, device=conditions.text.device
    )
    keep = {name: dropped for name in NAMES if name in conditions.names and name not in names}
    return conditions.where(keep, null)


def _guided(
    denoise: Denoise,
    branches: Sequence[Conditions],
    scales: Sequence[float | Float[Tensor, " b"]],
    rescale: float,
) -> GuidedDenoise:
    """branches[0] is all-null; they are batched once, not at every step."""
    num_branches = len(branches)
    batched = Conditions.cat(branches)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        copies = x_t.repeat(num_branches, *[1] * (x_t.ndim - 1))
        prediction = denoise(copies, t.repeat(num_branches), batched)
        # Channels beyond those of x_t are a learned variance: it is not guided, but taken from the
        # conditional branches, from their mean where there are several (our choice).
        mean, variance = prediction.tensor_split([x_t.shape[1]], dim=1)
        eps_uncond, *eps_conds = mean.chunk(num_branches)
        eps = combine(eps_uncond, eps_conds, scales)
        if rescale:
            eps = guidance_rescale(
                eps, combine(eps_uncond, eps_conds, [1.0] * len(scales)), rescale
            )
        if variance.shape[1] == 0:
            return eps
        variance_cond = torch.stack(variance.chunk(num_branches)[1:]).mean(dim=0)
        return torch.cat([eps, variance_cond], dim=1)

    return guided
