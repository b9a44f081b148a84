"""How well predicted CLIP image embeddings stand for the true ones, with baselines beside."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RECALLS = (1, 5, 10)
TIE = 1e-6  # cosines closer than this are one: embeddings are float32 at best
CHUNK = 2**24  # cosines held at a time: 128 MiB of float64


def prior_metrics(
    predicted: Float[Tensor, "n d"],
    image_embeds: Float[Tensor, "n d"],
    text_embeds: Float[Tensor, "n d"],
    baselines: Mapping[str, Float[Tensor, "n d"]] | None = None,
) -> dict[str, float]:
    """All measures of a prior on n held-out pairs, and what costs nothing beside them.

    Those of `prediction_metrics`. Beside them, cosine_<name> and recall@k_<name> of `text` (the
    text embedding itself) and of each prediction in `baselines`; cosine_another, of another row's
    true embedding (half the batch away: neighbours may be of one image); cosine_mean, of the mean
    of `image_embeds`; recall@k_chance = k / n, of any prediction that ignores the text.

    Raises ValueError for fewer than two rows, of which no row is another.
    """
    n = len(image_embeds)
    if n < 2:
        raise ValueError(f"prior_metrics: found {n} pairs, expected at least 2")
    mean = image_embeds.mean(0, dtype=long(image_embeds)).to(image_embeds.dtype)
    metrics = {
        **prediction_metrics(predicted, image_embeds),
        "cosine_another": cosine(image_embeds.roll(n // 2, 0), image_embeds),
        "cosine_mean": cosine(mean.expand_as(image_embeds), image_embeds),
        **{f"recall@{k}_chance": min(k / n, 1.0) for k in RECALLS},
    }
    for name, baseline in {"text": text_embeds, **(baselines or {})}.items():
        found = agreement(baseline, image_embeds)
        metrics |= {f"{key}_{name}": value for key, value in found.items()}
    return metrics


def prediction_metrics(
    predicted: Float[Tensor, "n d"], image_embeds: Float[Tensor, "n d"]
) -> dict[str, float]:
    """cosine, recall@1/5/10, norm_ratio, variance_ratio and variance_ratio_min."""
    ratio, least = variance_ratio(predicted, image_embeds)
    return {
        **agreement(predicted, image_embeds),
        "norm_ratio": norm_ratio(predicted, image_embeds),
        "variance_ratio": ratio,
        "variance_ratio_min": least,
    }


def agreement(
    predicted: Float[Tensor, "n d"], image_embeds: Float[Tensor, "n d"]
) -> dict[str, float]:
    """Cosine and recall@1/5/10: what does not depend on the predictions' norms."""
    recalls = recall_at(predicted, image_embeds, RECALLS)
    return {
        "cosine": cosine(predicted, image_embeds),
        **{f"recall@{k}": value for k, value in recalls.items()},
    }


def cosine(predicted: Float[Tensor, "n d"], image_embeds: Float[Tensor, "n d"]) -> float:
    """Mean over rows of the cosine of a prediction and its true embedding; 0 for a zero row."""
    rows = (unit(predicted) * unit(image_embeds)).sum(-1)
    return rows.mean(dtype=long(rows)).item()


def recall_at(
    predicted: Float[Tensor, "n d"],
    image_embeds: Float[Tensor, "n d"],
    ks: Sequence[int] = RECALLS,
) -> dict[int, float]:
    """Share of the predictions whose true embedding is among the k nearest of all n, by cosine."""
    means = hits_at(predicted, image_embeds, ks).mean(0)
    return dict(zip(ks, means.tolist(), strict=True))


def hits_at(
    predicted: Float[Tensor, "n d"],
    image_embeds: Float[Tensor, "n d"],
    ks: Sequence[int] = RECALLS,
) -> Float[Tensor, "n k"]:
    """What each prediction adds to `recall_at`: 1 where its true embedding is among the k nearest.

    Ties are broken by expectation: a true row that is tied with m - 1 others, below g nearer ones,
    counts by (k - g) / m, held to [0, 1]. So a constant or zero prediction scores chance, k / n,
    where the order of rows or the benefit of the doubt would give it anything up to 1; a prediction
    that is not finite scores 0. An image that occurs m times is tied with itself: give each once.

    The matrix of all cosines is made in chunks of rows, in float64, which neither TF32 nor autocast
    touches: their rounding would make neighbours of strangers.
    """
    n = len(image_embeds)
    pool = unit(image_embeds).to(long(image_embeds))
    hits = torch.zeros(n, len(ks), dtype=pool.dtype, device=pool.device)
    size = max(1, CHUNK // n)
    for start in range(0, n, size):
        cosines = unit(predicted[start : start + size]).to(pool.dtype) @ pool.mT
        true = cosines.diagonal(start)[:, None]
        below = (cosines < true - TIE).sum(1)
        tied = ((cosines - true).abs() <= TIE).sum(1)  # with itself, unless it is not finite
        nearer = n - below - tied
        for i, k in enumerate(ks):
            hits[start : start + size, i] = ((k - nearer) / tied.clamp(min=1)).clamp(0, 1)
    return hits


def norm_ratio(predicted: Float[Tensor, "n d"], image_embeds: Float[Tensor, "n d"]) -> float:
    """Mean norm of the predictions over that of the true embeddings; 1 is the declared scale."""
    found, true = (x.norm(dim=-1).mean(dtype=long(x)) for x in wide(predicted, image_embeds))
    return (found / true).item()


def variance_ratio(
    predicted: Float[Tensor, "n d"], image_embeds: Float[Tensor, "n d"]
) -> tuple[float, float]:
    """Mean and least over dimensions of Var(predictions) / Var(true embeddings).

    1 for draws from the true distribution and R^2 for its conditional mean; towards 0 the prior
    has collapsed to few modes. Dimensions in which the true embeddings do not vary are left out;
    NaN where there are no others.
    """
    found, true = (x.to(long(x)).var(0) for x in (predicted, image_embeds))
    varies = true > 0
    if not varies.any():
        return float("nan"), float("nan")
    ratios = found[varies] / true[varies]
    return ratios.mean().item(), ratios.min().item()


def wide(*embeds: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], ...]:
    """In float32 or better."""
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in embeds)


def unit(embeds: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return F.normalize(wide(embeds)[0], dim=-1)


def long(x: Tensor) -> torch.dtype:
    """For sums over many rows: float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
