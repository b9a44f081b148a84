import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from spatext.modules.networks.priors import EMBEDDINGS, TrainablePrior
from spatext.modules.networks.regression import MLPPrior
from tiny import as_text

D = 6
SEEDS = torch.arange(50)


def make_prior(**options: float) -> MLPPrior:
    prior = MLPPrior(embed_dim=D, **({"width": 16, "num_blocks": 2} | options))
    prior.set_statistics(torch.linspace(-5, 5, D), torch.logspace(-1, 1, D))
    return prior


def test_it_is_trainable() -> None:
    assert isinstance(make_prior(), TrainablePrior)
    assert make_prior().stochastic is False


def test_a_new_network_is_a_linear_map_in_normalised_space() -> None:
    prior = make_prior()
    x = torch.randn(50, D) * 7 + 2
    first, last = prior.net[1], prior.net[-1]
    y = last(first(F.layer_norm(x, (D,))))
    assert_close(prior(as_text(x), SEEDS), y * prior.std + prior.mean, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_squared_error_in_normalised_space() -> None:
    prior = make_prior()
    text, x_0 = as_text(torch.randn(50, D)), torch.randn(50, D) * prior.std + prior.mean
    error = (prior(text, SEEDS) - x_0) / prior.std
    found = prior.loss(x_0, text, text[:1], SEEDS, 0)
    assert_close(found, error.square().mean(), rtol=1e-4, atol=1e-5)


def test_neither_the_norm_of_the_text_nor_the_seed_matters() -> None:
    prior = make_prior()
    x = torch.randn(50, D)
    assert_close(prior(as_text(9 * x), SEEDS + 7), prior(as_text(x), SEEDS), rtol=1e-4, atol=1e-4)


def test_a_map_that_is_not_linear_is_learned() -> None:
    """Where linear regression stays at R^2 = 0: the target is even in the text."""
    x = torch.randn(512, D)
    x_0 = F.layer_norm(x, (D,)).abs() * 3 - 4
    prior = MLPPrior(embed_dim=D, width=32, num_blocks=2)
    prior.set_statistics(x_0.mean(0), x_0.std(0))
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    text, index = as_text(x), torch.arange(512)
    for _ in range(150):
        optimizer.zero_grad()
        prior.loss(x_0, text, text[:1], index, 0).backward()
        optimizer.step()
    assert prior.loss(x_0, text, text[:1], index, 0).item() < 0.1
    assert_close(prior(text, index).mean(0), x_0.mean(0), rtol=0, atol=0.1)


def test_every_parameter_is_trained() -> None:
    prior = make_prior()
    text = as_text(torch.randn(8, D))
    for block in prior.net[2:-1]:
        torch.nn.init.normal_(block.down.weight)
    prior.loss(torch.randn(8, D), text, text[:1], torch.arange(8), 0).backward()
    assert [
        name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def test_dropout_is_off_in_evaluation() -> None:
    prior = make_prior(dropout=0.5)
    for block in prior.net[2:-1]:
        torch.nn.init.normal_(block.down.weight)
    text = as_text(torch.randn(50, D))
    assert not torch.equal(prior(text, SEEDS), prior(text, SEEDS))
    prior.eval()
    assert torch.equal(prior(text, SEEDS), prior(text, SEEDS))


def test_a_folder_holds_the_prior(tmp_path: Path) -> None:
    prior = make_prior(dropout=0.1).eval()
    prior.save_pretrained(tmp_path / "prior")
    again = MLPPrior.from_pretrained(tmp_path / "prior")
    assert sorted(p.name for p in (tmp_path / "prior").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    text = as_text(torch.randn(50, D))
    assert_close(again(text, SEEDS), prior(text, SEEDS), rtol=0, atol=0)
    assert (again.config, again.training) == (prior.config, False)
    assert_close(again.std, prior.std, rtol=0, atol=0)
    assert again.embeddings == {"embed_dim": D}
    record = {"clip": "tiny", "scale": "unit", "embed_dim": D}  # of the module that trained it
    (tmp_path / "prior" / EMBEDDINGS).write_text(json.dumps(record))
    assert MLPPrior.from_pretrained(tmp_path / "prior").embeddings == record


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^module.prior.path={tmp_path}: no config.json"):
        MLPPrior.from_pretrained(tmp_path)
    make_prior().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in it"):
        MLPPrior.from_pretrained(tmp_path)
    make_prior().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {
        "_class_name": "PriorTransformer"
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="describes PriorTransformer, expected MLPPrior"):
        MLPPrior.from_pretrained(tmp_path)


def test_no_statistics_no_prediction() -> None:
    prior, text = MLPPrior(embed_dim=D, width=8, num_blocks=1), as_text(torch.randn(2, D))
    index = torch.arange(2)
    assert (prior.has_statistics, make_prior().has_statistics) == (False, True)
    with pytest.raises(ValueError, match=r"^prior: its statistics are all zero"):
        prior(text, index)
    assert not prior.loss(text.embeds, text, text[:1], index, 0).isfinite()
    flat = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"deviation in dimension 2 is 0\.0, expected more than 0"):
        prior.set_statistics(torch.zeros(D), flat)
