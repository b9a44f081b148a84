from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UnCLIPScheduler
from torch.testing import assert_close

from diffusion_priors import make_prior, make_text
from spatext.modules.functional.random import Purpose, normal, randint, uniform
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.prior_schedulers import KARLO
from spatext.modules.networks.priors import Prior, TrainablePrior
from tiny import EMBED_DIM, MAX_LENGTH, PRIOR, as_text, unchecked


@pytest.mark.parametrize("loss_weighting", ["none", "min_snr"])
def test_the_loss_is_that_of_diffusers_on_the_addressed_draws(loss_weighting: Any) -> None:
    prior, text = make_prior(drop_rate=0.5, loss_weighting=loss_weighting).train(), make_text(8)
    index = torch.tensor([1, 2**33 + 1, 5, 8, 13, 21, 34, 55])
    z_i = torch.randn(8, EMBED_DIM)
    found = prior.loss(z_i, text, text.null, index, 3)

    scheduler, transformer = UnCLIPScheduler(**KARLO), prior.transformer
    x_0 = (z_i - transformer.clip_mean) / transformer.clip_std
    t = randint(3, Purpose.TIMESTEP, index, 1000)
    x_t = scheduler.add_noise(x_0, normal(3, Purpose.NOISE, index, (EMBED_DIM,)), t)
    dropped = uniform(3, Purpose.DROP_TEXT, index) < 0.5
    assert 0 < dropped.sum() < 8
    error = torch.zeros(8)
    for row, drop in enumerate(dropped.tolist()):
        told = text.null if drop else text[row : row + 1]
        prediction = transformer(
            x_t[row : row + 1], t[row], told.embeds, told.states, told.mask
        ).predicted_image_embedding
        error[row] = (prediction[0] - x_0[row]).square().mean()
    a_t = scheduler.alphas_cumprod[t]
    weight = (a_t / (1 - a_t)).clamp(max=5) if loss_weighting == "min_snr" else torch.ones(8)
    assert_close(found, (weight * error).mean(), rtol=1e-4, atol=1e-5)
    # Nothing is dropped where the prior is judged.
    kept = prior.eval().loss(z_i, text, text.null, index, 3)
    prior.drop_rate = 0.0
    assert_close(kept, prior.train().loss(z_i, text, text.null, index, 3), rtol=1e-4, atol=1e-5)
    assert abs(kept - found) > 1e-4


def test_the_states_behind_the_end_do_not_matter() -> None:
    prior, text = make_prior(), make_text()
    other = replace(text, states=text.states + 5 * (~text.mask)[..., None])
    assert (~text.mask).any()
    x_t, t = torch.randn(4, EMBED_DIM), torch.full((4,), 300)
    assert_close(prior.denoise(x_t, t, other), prior.denoise(x_t, t, text), rtol=1e-4, atol=1e-4)
    inside = replace(text, states=text.states + 5 * text.mask[..., None])
    assert (prior.denoise(x_t, t, inside) - prior.denoise(x_t, t, text)).abs().max() > 1e-2


def test_cutting_the_padding_off_changes_neither_values_nor_gradients() -> None:
    prior, text = make_prior(), make_text()
    network, length = prior.transformer, int(text.mask.sum(dim=1).max())
    assert length < MAX_LENGTH
    cut = replace(text, states=text.states[:, :length], mask=text.mask[:, :length])
    x_t, t = torch.randn(4, EMBED_DIM), torch.tensor([3, 300, 700, 999])
    found = prior.denoise(x_t, t, cut)
    output = network(x_t, t, text.embeds, text.states, text.mask)
    expected = output.predicted_image_embedding
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    gradients = [
        torch.autograd.grad(value.square().sum(), weights, allow_unused=True)
        for value in (found, expected)
    ]
    assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)
    (at,) = [i for i, weight in enumerate(weights) if weight is network.positional_embedding]
    assert (gradients[0][at] != 0).any(dim=-1).sum() == length + 4


def test_a_new_network_is_refused_until_it_has_statistics() -> None:
    prior = DiffusionPrior.from_config(prior=PRIOR, num_steps=2)
    calls: list[Any] = []
    prior.transformer.register_forward_hook(lambda *args: calls.append(args))
    text, seeds = make_text(), torch.arange(4)
    assert not prior.has_statistics
    with pytest.raises(ValueError, match=r"^prior: clip_std is all zero, expected .*[^\n]$"):
        prior(text, seeds)
    assert not calls
    mean, std = torch.randn(EMBED_DIM), torch.rand(EMBED_DIM) + 0.1
    prior.set_statistics(mean, std)
    assert prior.has_statistics
    assert prior(text, seeds).isfinite().all()
    assert_close(prior.transformer.clip_mean[0], mean)
    assert_close(prior.transformer.clip_std[0], std)
    assert not prior.transformer.clip_std.requires_grad
    with pytest.raises(ValueError, match=r"^statistics: the deviation is not positive in 2 of 8 "):
        prior.set_statistics(mean, std * torch.tensor([0.0, float("nan"), *[1.0] * 6]))
    with pytest.raises(ValueError, match=r"^statistics: found 7 dimensions, expected 8"):
        prior.set_statistics(mean[1:], std[1:])


def test_scale_is_the_deviation_of_what_the_network_sees() -> None:
    z_i = 7 + 3 * torch.randn(4096, EMBED_DIM)
    seen = []
    prior = make_prior(scale=2.0)
    prior.transformer.proj_to_clip_embeddings.register_forward_hook(lambda *args: seen.append(args))
    prior.set_statistics(z_i.mean(0), z_i.std(0))
    x_0 = (z_i - prior.transformer.clip_mean) / prior.transformer.clip_std
    assert_close(x_0.std(0), torch.full((EMBED_DIM,), 2.0))
    assert_close(prior.transformer.post_process_latents(x_0), z_i, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "EulerScheduler"}, r"^prior.scheduler: found 'EulerScheduler', expected "),
        ({"num_steps": 1}, r"^prior.num_steps: found 1, expected at least 2$"),
        ({"num_candidates": 0}, r"^prior.num_candidates: found 0, expected at least 1$"),
        (
            {"prior_scheduler": {"prediction_type": "epsilon"}},
            r"^prior_scheduler.prediction_type: found 'epsilon', expected 'sample'$",
        ),
        (
            {"prior_scheduler": {"beta_schedule": "linear"}},
            r"^prior_scheduler.beta_schedule: found 'linear', expected 'squaredcos_cap_v2'$",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        DiffusionPrior.from_config(prior=PRIOR, **options)


def test_features_of_another_shape_are_refused() -> None:
    prior, text = make_prior(), make_text()
    wide = as_text(torch.randn(4, EMBED_DIM + 1), MAX_LENGTH)
    long = as_text(torch.randn(4, EMBED_DIM), MAX_LENGTH + 1)
    bare = as_text(torch.randn(4, EMBED_DIM))
    for features, message in (
        (wide, r"^prior: found CLIP embeddings of width 9, expected 8, the embedding_dim of "),
        (long, r"^prior: found 13 text states, expected 1 to 12, the num_embeddings of the prior$"),
        (bare, r"^prior: found 0 text states \(the text tower of this CLIP model has none\), exp"),
    ):
        with pytest.raises(ValueError, match=message):
            prior(features, torch.arange(4))
        with pytest.raises(ValueError, match=message):
            prior.loss(features.embeds, features, text.null, torch.arange(4), 0)


def test_it_is_a_prior_that_is_trained(tmp_path: Path) -> None:
    prior = make_prior()
    assert isinstance(prior, Prior)
    assert isinstance(prior, TrainablePrior)
    assert prior.stochastic
