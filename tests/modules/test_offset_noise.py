"""Noise whose mean over an image is not zero."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from spatext.modules.functional.random import Purpose, normal, randint
from spatext.modules.spatext import SpaText
from tiny import CHANNELS, LATENT_SIZE, load_spatext
from tiny_runs import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
OFFSET, SEED = 0.1, 4


def load(base: Path, offset_noise: float) -> tuple[SpaText, list[torch.Tensor]]:
    """A model with the same weights each time, and what its denoiser is given from now on."""
    torch.manual_seed(0)
    model = load_spatext(base, offset_noise=offset_noise, seed=SEED, drop_rates={})
    given: list[torch.Tensor] = []
    denoise = model.backbone.denoise

    def recorded(x_t: torch.Tensor, *rest: Any) -> torch.Tensor:
        given.append(x_t)
        return denoise(x_t, *rest)

    model.backbone.denoise = recorded
    return model, given


def test_each_channel_of_each_image_is_shifted_by_its_own_number(base: Path) -> None:
    batch = make_batch(3, 1, 2**33)
    (plain, x_t), (model, shifted) = load(base, 0.0), load(base, OFFSET)
    plain.training_step(batch, 0)
    loss = model.training_step(batch, 0)

    t = randint(SEED, Purpose.TIMESTEP, batch["index"], 1000)
    a_t = plain.backbone.alphas_cumprod[t][:, None, None, None]
    shift = OFFSET * normal(SEED, Purpose.OFFSET_NOISE, batch["index"], (CHANNELS, 1, 1))
    expected = x_t[0] + (1 - a_t).sqrt() * shift
    assert_close(shifted[0], expected, rtol=1e-5, atol=1e-5)
    assert shift.unique().numel() == 3 * CHANNELS

    # The target is the noise that was added, shift included.
    shape = (CHANNELS, LATENT_SIZE, LATENT_SIZE)
    noise = normal(SEED, Purpose.NOISE, batch["index"], shape) + shift
    with torch.no_grad():
        prediction = model.backbone.denoise(expected, t, model.conditions(batch))
    assert_close(loss, (prediction - noise).square().mean(), rtol=1e-5, atol=1e-5)


def test_it_does_not_depend_on_the_batch(base: Path) -> None:
    model, given = load(base, OFFSET)
    batch = make_batch(5, 0, 6)
    model.training_step(batch, 0)
    for row in range(3):
        model.training_step({name: value[row : row + 1] for name, value in batch.items()}, 1)
    assert_close(torch.cat(given[1:]), given[0], rtol=1e-5, atol=1e-5)


def test_validation_has_none(base: Path) -> None:
    batch = make_batch(3, 1)
    (plain, _), (model, _) = load(base, 0.0), load(base, OFFSET)
    assert_close(model.validation_step(batch, 0), plain.validation_step(batch, 0))
    assert abs(model.training_step(batch, 0) - plain.training_step(batch, 0)) > 1e-4


def test_a_negative_one_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match=r"^module.offset_noise: found -0.1, expected at least 0$"):
        load_spatext(base, offset_noise=-0.1)
