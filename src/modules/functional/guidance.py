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
Scale = float | Float[Tensor, " b"]


def combine(
    eps_uncond: Float[Tensor, " b *shape"],
    eps_conds: Sequence[Float[Tensor, " b *shape"]],
    scales: Sequence[Scale],
    strength: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, " b *shape"]:
    """eps(x_t | 0) + w sum_i s_i (eps(x_t | c_i) - eps(x_t | 0))  (SpaText, eq. 5).

    `strength` w, one number per cell, is our addition; None is 1 everywhere, as in the paper.
    """
    guided = eps_uncond
    for eps_cond, scale in zip(eps_conds, scales, strict=True):
        if isinstance(scale, Tensor):
            scale = _per_image(scale, eps_uncond)
        weight = scale if strength is None else scale * strength.to(eps_uncond)
        guided = guided + weight * (eps_cond - eps_uncond)
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
    guidance_scale: Scale,
    *,
    rescale: float = 0.0,
    strength: Float[Tensor, "b 1 h w"] | None = None,
) -> GuidedDenoise:
    """eps(x_t | 0) + w s (eps(x_t | all) - eps(x_t | 0))  (SpaText, eq. 6, the default there; `w`
    as in `combine`).

    Both branches are one call of batch 2 b. s = 1 calls the conditional branch alone (unless there
    is a strength), and s = 0 the null branch alone (unless rescaled, which needs the other).
    """
    null_only = _only((), conditions, null)
    if not isinstance(guidance_scale, Tensor):
        if guidance_scale == 1.0 and strength is None:
            return lambda x_t, t: denoise(x_t, t, conditions)
        if guidance_scale == 0.0 and rescale == 0.0:
            return lambda x_t, t: denoise(x_t, t, null_only)
    return _guided(denoise, [null_only, conditions], [guidance_scale], [1.0], rescale, strength)


def full_guidance(
    denoise: Denoise,
    conditions: Conditions,
    null: Conditions,
    scales: Mapping[str, Scale],
    *,
    rescale: float = 0.0,
    strength: Float[Tensor, "b 1 h w"] | None = None,
    with_text: Sequence[str] = (),
) -> GuidedDenoise:
    """eps(x_t | 0) + w sum_i s_i (eps(x_t | c_i) - eps(x_t | 0))  (SpaText, eq. 5; `w` as in
    `combine`).

    Each condition stands ALONE against all-null; it is not the nested form of InstructPix2Pix. The
    N + 1 branches are one call of batch (N + 1) b. A condition whose scale is 0 for every image
    costs no branch; one that is not named is null throughout, but for those in `with_text`, which
    speak in the branch of the text. Raises ValueError for a name that is unknown or absent.

    Rescaling compares with all scales 1 but those that are 0, which for N = 1 is the conditional
    branch (our choice).
    """
    check_names(scales, conditions, "scales")
    active = {name: scale for name, scale in scales.items() if _is_on(scale).any()}
    spoken = [(name, *with_text) if name == "text" else (name,) for name in active]
    branches = [_only(names, conditions, null) for names in [(), *spoken]]
    if not active:
        return lambda x_t, t: denoise(x_t, t, branches[0])
    on = [_is_on(scale).float() if isinstance(scale, Tensor) else 1.0 for scale in active.values()]
    return _guided(denoise, branches, list(active.values()), on, rescale, strength)


def unguided(
    denoise: Denoise, conditions: Conditions, null: Conditions, scales: Mapping[str, Scale]
) -> GuidedDenoise:
    """One branch: all conditions together but those whose scale is 0 or that are not named."""
    check_names(scales, conditions, "scales")
    num, device = len(conditions), conditions.text.device
    keep = {name: _is_on(scales.get(name, 0.0)).to(device).expand(num) for name in conditions.names}
    kept = conditions.where(keep, null)
    return lambda x_t, t: denoise(x_t, t, kept)


def interval_guidance(
    guided: GuidedDenoise,
    conditional: GuidedDenoise,
    interval: Sequence[float],
    num_train_timesteps: int,
) -> GuidedDenoise:
    """`guided` while t / num_train_timesteps lies in [lo, hi], `conditional` alone elsewhere
    (Kynkaanniemi et al. 2024, who give the interval in sigma; in t it is our choice).

    For samplers, whose t is the same for all images.
    """
    low, high = interval

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        inside = low <= float(t[0]) / num_train_timesteps <= high
        return guided(x_t, t) if inside else conditional(x_t, t)

    return denoise


def _is_on(scale: Scale) -> Bool[Tensor, "..."]:
    return torch.as_tensor(scale) != 0


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x).view(-1, *[1] * (x.ndim - 1))


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
    scales: Sequence[Scale],
    on: Sequence[Scale],
    rescale: float,
    strength: Tensor | None,
) -> GuidedDenoise:
    """branches[0] is all-null; they are batched once, not at every step. `on` is 1 for the images
    that a branch speaks to, so that none depends on what is asked of the others."""
    num_branches = len(branches)
    batched = Conditions.cat(branches)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        copies = x_t.repeat(num_branches, *[1] * (x_t.ndim - 1))
        prediction = denoise(copies, t.repeat(num_branches), batched)
        # Channels beyond those of x_t are a learned variance: it is not guided, but taken from the
        # conditional branches, from their mean where there are several (our choice).
        mean, variance = prediction.tensor_split([x_t.shape[1]], dim=1)
        eps_uncond, *eps_conds = mean.chunk(num_branches)
        eps = combine(eps_uncond, eps_conds, scales, strength)
        if rescale:
            eps = guidance_rescale(eps, combine(eps_uncond, eps_conds, on), rescale)
        if variance.shape[1] == 0:
            return eps
        variance_uncond, *variance_conds = variance.chunk(num_branches)
        weights = torch.stack([torch.as_tensor(w).to(eps).expand(len(eps)) for w in on])
        shares = list(weights / weights.sum(dim=0).clamp(min=1))
        return torch.cat([eps, combine(variance_uncond, variance_conds, shares)], dim=1)

    return guided
