"""Training a learned variance: L_simple and the variational bound, each for its own channels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spatext.modules.functional.diffusion import add_noise
from spatext.modules.functional.random import Purpose, normal, randint
from spatext.modules.functional.resampling import downsample
from spatext.modules.functional.variational import respaced, variational_bound
from spatext.modules.pixel_spatext import PixelSpaText
from tiny import LATENT_SIZE, load_spatext
from tiny_karlo import FACTOR, make_pixel_model
from tiny_runs import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
SEED = 5
SHAPE = (3, LATENT_SIZE, LATENT_SIZE)


def load(karlo: Path, **options: Any) -> PixelSpaText:
    torch.manual_seed(0)  # of the new weights
    return make_pixel_model(karlo, **({"seed": SEED, "drop_rates": {}} | options))


def timesteps(model: PixelSpaText) -> list[Tensor]:
    """What the denoiser is told from now on."""
    told = []
    denoise = model.backbone.denoise

    def recorded(x_t: Tensor, t: Tensor, conditions: Any) -> Tensor:
        told.append(t)
        return denoise(x_t, t, conditions)

    model.backbone.denoise = recorded  # type: ignore[method-assign]
    return told


@pytest.mark.parametrize("num_steps", [None, 10])
def test_the_loss_is_both_on_the_addressed_draws(karlo: Path, num_steps: int | None) -> None:
    model = load(karlo, num_train_steps=num_steps, vb_weight=0.02)
    batch, told = make_batch(3, 1, 1000, 2**33 + 7), timesteps(model)
    found = model.losses(batch, model.conditions(batch), SEED)

    backbone, index = model.backbone, batch["index"]
    schedule, steps = backbone.alphas_cumprod, torch.arange(1000)
    if num_steps is not None:
        steps, schedule = respaced(schedule, num_steps)
    step = randint(SEED, Purpose.TIMESTEP, index, len(steps))
    assert torch.equal(told[0], steps[step])
    x_0 = downsample(batch["image"], FACTOR)
    noise = normal(SEED, Purpose.NOISE, index, SHAPE)
    x_t = add_noise(x_0, noise, schedule[step])
    prediction = backbone.denoise(x_t, steps[step], model.conditions(batch))
    simple = (prediction[:, :3] - noise).square().mean()
    bound = variational_bound(prediction, x_0, x_t, step, schedule, "epsilon").mean()
    assert_close(found["simple"], simple, rtol=1e-4, atol=1e-5)
    assert_close(found["vb"], bound, rtol=1e-4, atol=1e-5)
    assert bound > 0.01
    expected = simple + 0.02 * len(steps) * bound
    assert_close(found["loss"], expected, rtol=1e-4, atol=1e-5)
    assert_close(model.training_step(batch, 0), expected, rtol=1e-4, atol=1e-5)


def test_each_term_teaches_its_own_channels(karlo: Path) -> None:
    model, batch = load(karlo), make_batch(0, 1, 2)
    last = model.backbone.unet.conv_out
    grads = {}
    for name in ("simple", "vb", "loss"):
        model.zero_grad()
        model.losses(batch, model.conditions(batch), SEED)[name].backward()
        grads[name] = torch.cat([last.weight.grad.flatten(1), last.bias.grad[:, None]], dim=1)
    assert not grads["simple"][3:].any()
    assert not grads["vb"][:3].any()
    assert (grads["simple"][:3].abs().amax(1) > 0).all()
    assert (grads["vb"][3:].abs().amax(1) > 0).all()
    assert_close(grads["loss"][:3], grads["simple"][:3], rtol=1e-4, atol=1e-6)
    assert_close(grads["loss"][3:], grads["vb"][3:], rtol=1e-4, atol=1e-6)  # 0.001 x 1000


def test_min_snr_weights_the_simple_loss_alone(karlo: Path) -> None:
    batch = make_batch(0, 1, 2, 3)
    plain, weighted = (load(karlo, loss_weighting=name) for name in ("none", "min_snr"))
    one, other = (model.losses(batch, model.conditions(batch), SEED) for model in (plain, weighted))
    assert_close(one["vb"], other["vb"], rtol=1e-4, atol=1e-5)
    assert one["simple"] > other["simple"] + 1e-3


def test_validation_reports_both(karlo: Path) -> None:
    model, batch = load(karlo), make_batch(0, 1)
    found = model.validation_step(batch, 0)
    parts = model.losses(batch, model.conditions(batch), SEED + 1)
    assert_close(found, parts["simple"] + parts["vb"], rtol=1e-4, atol=1e-5)


def test_a_latent_model_has_one_loss(base: Path) -> None:
    batch = make_batch(3, 1)
    full, few = (load_spatext(base, seed=SEED, num_train_steps=n) for n in (None, 4))
    assert full.losses(batch, full.conditions(batch), SEED).keys() == {"loss"}
    told = timesteps(few)
    few.loss(make_batch(*range(16)), few.conditions(make_batch(*range(16))), SEED)
    assert set(told[0].tolist()) == {0, 333, 666, 999}


def test_a_trained_text_encoder_learns(karlo: Path) -> None:
    """Also where all captions are dropped: then it is the empty prompt that teaches it."""
    for rate in (0.0, 1.0):
        model = load(karlo, train_text=True, drop_rates={"text": rate, "image_embed": 0.5})
        model.training_step(make_batch(1, 2, 3), 0).backward()
        assert all(p.grad is not None for p in model.parameters())
        text = [p for name, p in model.named_parameters() if ".text_encoder." in name]
        assert sum(p.grad.abs().sum() for p in text if p.grad is not None) > 0
    frozen = load(karlo)
    assert not any(".text_encoder." in name for name, _ in frozen.named_parameters())
    assert not frozen.null_conditions().text.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vb_weight": -0.1}, r"^module.vb_weight: found -0.1, expected at least 0$"),
        ({"num_train_steps": 0}, r"^module.num_train_steps: found 0, expected 1 to 1000$"),
        ({"num_train_steps": 1001}, r"^module.num_train_steps: found 1001, expected 1 to 1000$"),
    ],
)
def test_wrong_options_are_refused(base: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_spatext(base, **options)
