import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spatext.modules.functional import metrics
from spatext.modules.functional.metrics import (
    RECALLS,
    cosine,
    hits_at,
    norm_ratio,
    prior_metrics,
    recall_at,
    variance_ratio,
)


def draw(n: int = 40, d: int = 6, noise: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions that are right by halves, of another norm; true embeddings of a known offset."""
    image = torch.randn(n, d) * torch.logspace(-1, 1, d) + 1
    return 3 * (image + noise * torch.randn(n, d)), image


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """[n, n] in float64, by numpy."""
    x, y = a.double().numpy(), b.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T


def test_cosine() -> None:
    predicted, image = draw()
    expected = np.diag(cosines(predicted, image)).mean()
    np.testing.assert_allclose(cosine(predicted, image), expected, rtol=1e-6)
    a, b = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0], [0.0, -9.0]])
    assert cosine(a, b) == pytest.approx((1 / math.sqrt(2) - 1) / 2)
    assert cosine(torch.zeros(2, 2), b) == 0.0


def test_a_mean_over_many_rows_is_summed_in_float64() -> None:
    """In bfloat16 or float32 the sum itself would be rounded."""
    x = torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16).expand(100_000, 2)
    assert cosine(x, x) == pytest.approx(1.0, abs=1e-6)
    assert norm_ratio(x, x) == 1.0


@pytest.mark.parametrize("chunk", [1, 120, 2**24])
def test_recall_is_the_rank_of_the_true_row(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CHUNK", chunk)  # rows at a time: 1, 3 and all
    predicted, image = draw(noise=3.0)
    found = recall_at(predicted, image, (1, 2, 5, 10, 40))
    table = cosines(predicted, image)
    ranks = np.array([np.flatnonzero(np.argsort(-row) == i)[0] for i, row in enumerate(table)])
    expected = {k: float((ranks < k).mean()) for k in found}
    assert found == pytest.approx(expected)
    assert 0 < found[1] < found[10] < 1 == found[40]  # or nothing was tested
    np.testing.assert_array_equal(hits_at(predicted, image, (5,))[:, 0], ranks < 5)


def test_recall_takes_no_side_of_the_norms() -> None:
    predicted, image = draw()
    scales = torch.rand(2, len(image), 1) * 9 + 0.1
    assert recall_at(predicted * scales[0], image * scales[1]) == recall_at(predicted, image)


@pytest.mark.parametrize(
    "collapsed", [lambda x: torch.zeros_like(x), lambda x: x.mean(0).expand_as(x)]
)
def test_a_collapsed_prediction_scores_chance(
    collapsed: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    _, image = draw(n=50)
    found = recall_at(collapsed(image), image)
    assert found == pytest.approx({k: k / 50 for k in RECALLS})


def test_ties_are_broken_by_expectation() -> None:
    """Four rows, of which three are one image: it is the first of three, or the first alone."""
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    found = recall_at(image, image, (1, 2, 3, 4))
    thirds = (np.arange(1, 4) / 3).tolist()
    expected = [(3 * third + 1) / 4 for third in [*thirds, 1.0]]
    assert found == pytest.approx(dict(zip((1, 2, 3, 4), expected, strict=True)))
    # Below a nearer image, the three share the places from the second on.
    wrong = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    assert recall_at(wrong, image, (1, 2)) == pytest.approx({1: 1 / 4, 2: (3 * 1 / 3 + 1) / 4})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_found_by_nobody(value: float) -> None:
    image = torch.eye(4)
    predicted = image.clone()
    predicted[0, 0] = value
    assert recall_at(predicted, image, (1, 4)) == {1: 0.75, 4: 0.75}
    assert not math.isfinite(prior_metrics(predicted, image, image)["cosine"])


def test_norm_and_variance_ratios() -> None:
    predicted, image = draw()
    x, y = predicted.double().numpy(), image.double().numpy()
    norms = np.linalg.norm(x, axis=1).mean() / np.linalg.norm(y, axis=1).mean()
    np.testing.assert_allclose(norm_ratio(predicted, image), norms, rtol=1e-6)
    ratios = x.var(0) / y.var(0)
    np.testing.assert_allclose(
        variance_ratio(predicted, image), (ratios.mean(), ratios.min()), rtol=1e-6
    )


def test_variance_ratio_of_a_conditional_mean_is_r_squared() -> None:
    text = torch.randn(20_000, 3)
    weights = torch.tensor([0.9, 0.6, 0.0])  # shares of the deviation that text explains
    image = weights * text + (1 - weights.square()).sqrt() * torch.randn(20_000, 3)
    mean, least = variance_ratio(weights * text, image)
    assert mean == pytest.approx((0.81 + 0.36) / 3, abs=0.02)
    assert least == pytest.approx(0.0, abs=1e-6)


def test_dimensions_that_do_not_vary_are_left_out() -> None:
    image = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    predicted = torch.tensor([[1.0, 0.0], [2.0, 9.0]])
    assert variance_ratio(predicted, image) == (0.25, 0.25)
    assert all(map(math.isnan, variance_ratio(predicted, torch.ones(2, 2))))


def test_all_metrics_with_their_baselines() -> None:
    predicted, image = draw(n=30)
    text, other = torch.randn(30, 6), torch.randn(30, 6)
    found = prior_metrics(predicted, image, text, {"linear": other})
    mean = image.double().mean(0, keepdim=True).expand_as(image)
    another = torch.cat([image[15:], image[:15]])
    expected = {
        "cosine": cosine(predicted, image),
        "norm_ratio": norm_ratio(predicted, image),
        "variance_ratio": variance_ratio(predicted, image)[0],
        "variance_ratio_min": variance_ratio(predicted, image)[1],
        "cosine_another": float(np.diag(cosines(another, image)).mean()),
        "cosine_mean": float(np.diag(cosines(mean, image)).mean()),
        "cosine_text": cosine(text, image),
        "cosine_linear": cosine(other, image),
        **{f"recall@{k}": value for k, value in recall_at(predicted, image).items()},
        **{f"recall@{k}_text": value for k, value in recall_at(text, image).items()},
        **{f"recall@{k}_linear": value for k, value in recall_at(other, image).items()},
        **{f"recall@{k}_chance": k / 30 for k in (1, 5, 10)},
    }
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_perfect_predictions() -> None:
    _, image = draw()
    found = prior_metrics(image, image, image)
    for name in ("cosine", "recall@1", "norm_ratio", "variance_ratio", "variance_ratio_min"):
        assert found[name] == pytest.approx(1.0), name


def test_halves_are_measured_in_float32() -> None:
    predicted, image = draw(n=200)
    half = [x.bfloat16() for x in (predicted, image)]
    expected = prior_metrics(half[0].float(), half[1].float(), half[1].float())
    assert_close(prior_metrics(half[0], half[1], half[1]), expected, rtol=1e-2, atol=1e-6)
    assert recall_at(*half) == recall_at(half[0].float(), half[1].float())


def test_low_precision_of_products_is_not_let_in() -> None:
    """As in a validation under autocast: cosines 5e-5 apart are told apart."""
    angles = torch.arange(50) * 1e-2
    image = torch.stack([angles.cos(), angles.sin()], dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert recall_at(image, image, (1,)) == {1: 1.0}


def test_one_pair_is_refused() -> None:
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"^prior_metrics: found 1 pairs, expected at least 2$"):
        prior_metrics(one, one, one)
