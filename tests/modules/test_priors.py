from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spatext.modules.networks.priors import (
    IdentityPrior,
    LinearPrior,
    Prior,
    fit_linear_prior,
    save_linear_prior,
)
from tiny import as_text, no_seeds


def draw(num: int = 200, d: int = 6, e: int = 4) -> tuple[torch.Tensor, ...]:
    """Inputs of unequal scale and far from zero, and an affine map."""
    scales = torch.logspace(-1, 1, d, dtype=torch.float64)
    x = torch.randn(num, d, dtype=torch.float64) * scales + 3
    return x, torch.randn(d, e, dtype=torch.float64), torch.randn(e, dtype=torch.float64)


def test_a_known_affine_map_is_recovered() -> None:
    x, weight, bias = draw()
    state = fit_linear_prior(x, x @ weight + bias, ridge=0.0)
    # The sums are in float64, what is stored is float32.
    assert_close(state, {"weight": weight.float(), "bias": bias.float()}, rtol=1e-6, atol=1e-6)


def test_without_ridge_it_is_least_squares() -> None:
    x, weight, _ = draw()
    y = x @ weight + torch.randn(200, 4, dtype=torch.float64)
    stacked = np.concatenate([x.numpy(), np.ones((200, 1))], axis=1)
    expected = np.linalg.lstsq(stacked, y.numpy(), rcond=None)[0]
    state = fit_linear_prior(x, y, ridge=1e-12)
    np.testing.assert_allclose(state["weight"], expected[:-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["bias"], expected[-1], rtol=1e-5, atol=1e-6)


def test_ridge_is_relative_to_the_mean_variance_and_spares_the_bias() -> None:
    x, weight, bias = draw(d=3)
    y = x @ weight + bias
    state = fit_linear_prior(x, y, ridge=0.5)
    # Rows that pull the weights to zero: the same problem as plain least squares.
    centred = x - x.mean(0)
    penalty = (0.5 * centred.square().sum(0).mean()).sqrt() * torch.eye(3, dtype=x.dtype)
    rows = torch.cat([centred, penalty])
    target = torch.cat([y - y.mean(0), torch.zeros(3, 4, dtype=x.dtype)])
    expected = torch.linalg.lstsq(rows, target).solution
    assert_close(state["weight"], expected.float(), rtol=1e-5, atol=1e-6)
    found = x.float() @ state["weight"] + state["bias"]
    assert_close(found.mean(0), y.mean(0).float(), rtol=1e-4, atol=1e-4)


def test_a_file_holds_the_prior(tmp_path: Path) -> None:
    x, weight, bias = draw(d=4)
    state = fit_linear_prior(x, x @ weight + bias)
    path = tmp_path / "prior.safetensors"
    save_linear_prior(path, state)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    prior = LinearPrior(path)
    assert isinstance(prior, Prior)
    assert not prior.stochastic
    found = prior(as_text(x.float()), no_seeds(len(x)))
    assert_close(found, x.float() @ state["weight"] + state["bias"], rtol=1e-4, atol=1e-4)
    assert prior.state_dict() == {}
    assert prior.to(torch.float64)(as_text(x), no_seeds(len(x))).dtype == torch.float64
    save_linear_prior(path, {"weight": state["weight"].mT, "bias": state["bias"] + 1})
    assert_close(LinearPrior(path).weight, state["weight"].mT, rtol=0, atol=0)


def test_a_half_file_is_loaded_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    state = {"weight": torch.randn(4, 4).half(), "bias": torch.randn(4).half()}
    save_linear_prior(path, state)
    x = torch.randn(3, 4)
    expected = x @ state["weight"].float() + state["bias"].float()
    assert_close(LinearPrior(path)(as_text(x), no_seeds(3)), expected, rtol=1e-4, atol=1e-5)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with pytest.raises(FileNotFoundError, match=rf"^module.prior.path={path}: no such file, .*$"):
        LinearPrior(path)


def test_identity() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(IdentityPrior()(as_text(x), no_seeds(2)), x)
    assert isinstance(IdentityPrior(), Prior)
    assert not IdentityPrior().stochastic
