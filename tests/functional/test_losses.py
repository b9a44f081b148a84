import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from spatext.modules.functional.diffusion import (
    PREDICTION_TYPES,
    add_noise,
    prediction_target,
    to_x_0,
)
from spatext.modules.functional.diffusion import snr as signal_to_noise
from spatext.modules.functional.losses import diffusion_loss, loss_weight

SNR = torch.tensor([0.0, 0.25, 5.0, 20.0, torch.inf], dtype=torch.float64)


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        ("epsilon", [1.0, 1.0, 1.0, 0.25, 0.0]),
        ("sample", [0.0, 0.25, 5.0, 5.0, 5.0]),
        ("v_prediction", [0.0, 0.2, 5 / 6, 5 / 21, 0.0]),
    ],
)
def test_min_snr_closed_forms(prediction_type, expected) -> None:
    found = loss_weight(SNR, prediction_type, "min_snr")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_is_that_of_diffusers(prediction_type) -> None:
    """Over a schedule, by the rule of its training examples."""
    scheduler, t = DDPMScheduler(beta_schedule="scaled_linear"), torch.arange(1000)
    snr = compute_snr(scheduler, t)
    expected = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(dim=0)
    expected /= {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    a_t = scheduler.alphas_cumprod[t]
    found = loss_weight(signal_to_noise(a_t), prediction_type, "min_snr")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_gamma() -> None:
    found = loss_weight(SNR, "sample", "min_snr", gamma=1.0)
    torch.testing.assert_close(found, SNR.clamp(max=1.0))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_no_weighting(prediction_type) -> None:
    assert loss_weight(SNR, prediction_type, "none").equal(torch.ones_like(SNR))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_is_one_loss_on_x_0(prediction_type) -> None:
    torch.manual_seed(0)
    x_0, noise, prediction = torch.randn(3, 5, 4, 3, 3, dtype=torch.float64)
    a = torch.tensor([0.01, 0.3, 0.6, 0.9, 0.99], dtype=torch.float64)
    x_t = add_noise(x_0, noise, a)
    snr = signal_to_noise(a)
    target = prediction_target(x_0, noise, a, prediction_type)
    weight = loss_weight(snr, prediction_type, "min_snr")
    found = weight * (prediction - target).square().sum((1, 2, 3))
    error = (to_x_0(prediction, x_t, a, prediction_type) - x_0).square().sum((1, 2, 3))
    torch.testing.assert_close(found, snr.clamp(max=5.0) * error)


def test_unknown_names() -> None:
    bare = loss_weight
    while hasattr(bare, "__wrapped__"):  # the checker of types would see it first
        bare = bare.__wrapped__
    with pytest.raises(ValueError, match="expected one of none, min_snr, got 'p2'"):
        bare(SNR, "epsilon", "p2")
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample, got 'noise'"):
        bare(SNR, "noise", "none")


def test_diffusion_loss_weighs_samples() -> None:
    prediction = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    target = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    # mean(0.5 * (1 + 9) / 2, 2 * (1 + 4) / 2)
    found = diffusion_loss(prediction, target, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(found, torch.tensor(3.75))


def test_diffusion_loss_in_float32() -> None:
    prediction = torch.full((2, 1000), 1.0, dtype=torch.bfloat16)
    target = torch.full((2, 1000), 0.0078125, dtype=torch.bfloat16)
    found = diffusion_loss(prediction, target, torch.ones(2, dtype=torch.bfloat16))
    torch.testing.assert_close(found, torch.tensor(0.9921875**2))
