from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)
from torch.testing import assert_close

from spatext.modules.functional.blending import Background, free_cells, region_map, vary
from spatext.modules.functional.diffusion import add_noise
from spatext.modules.functional.sampling import initial_noise, sample

BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "trailing",
}
SHAPE = (2, 4, 4)
X_T = initial_noise(torch.arange(3), SHAPE)
X_0 = torch.linspace(-2, 2, X_T.numel()).view_as(X_T)
FREE = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
FREE[0, :, 1:3], FREE[1, :, :, :2] = True, True
KEPT = ~FREE.expand_as(X_T)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(3)]


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (DDIMScheduler, {"clip_sample": False}),
        (DDPMScheduler, {"clip_sample": False}),
        (DPMSolverMultistepScheduler, {}),
        (EulerDiscreteScheduler, {}),
        (EulerAncestralDiscreteScheduler, {}),
        (HeunDiscreteScheduler, {}),
        (UniPCMultistepScheduler, {}),
        (UnCLIPScheduler, {"prediction_type": "sample", "clip_sample": False}),
    ],
)
def test_the_background_has_the_level_of_every_step(cls: Any, options: dict[str, Any]) -> None:
    """Whatever the scheduler counts in, a network sees sqrt(a_t) x_0 + sqrt(1 - a_t) noise."""
    scheduler = cls(**({} if cls is UnCLIPScheduler else BETAS), **options)
    seen: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    free: list[bool] = []

    def denoise(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x_t[KEPT])
        a_t = scheduler.alphas_cumprod[t.long()]
        expected.append(add_noise(X_0, X_T, a_t)[KEPT])
        free.append(torch.equal(x_t[~KEPT], X_T[~KEPT]))
        return torch.tanh(x_t)

    background = Background(X_0, X_T, FREE)
    x_0_hats: list[torch.Tensor] = []
    found = sample(
        denoise,
        scheduler,
        X_T,
        6,
        generators=generators(),
        background=background,
        on_step=lambda _, __, x_0_hat: x_0_hats.append(x_0_hat),
    )
    assert_close(seen, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found[KEPT], X_0[KEPT])
    for x_0_hat in x_0_hats:
        assert torch.equal(x_0_hat[KEPT], X_0[KEPT])
    alone = sample(lambda x, _: torch.tanh(x), scheduler, X_T, 6, generators=generators())
    # Elementwise, so that what is free does not know of the background.
    assert_close(found[~KEPT], alone[~KEPT])
    assert (found - alone)[KEPT].abs().mean() > 0.1


def test_steps_of_one_t_have_levels_of_their_own() -> None:
    """Karras' levels lie between the steps of training, and their t is rounded."""
    scheduler = DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    seen: list[torch.Tensor] = []

    def denoise(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x_t[KEPT])
        return torch.tanh(x_t)

    sample(denoise, scheduler, X_T, 300, background=Background(X_0, X_T, FREE))
    scheduler.set_timesteps(300)
    assert len(scheduler.timesteps.unique()) < 300
    levels = 1 / (1 + scheduler.sigmas[:-1].square())
    expected = [add_noise(X_0, X_T, a_t.expand(3))[KEPT] for a_t in levels]
    assert_close(seen, expected, rtol=1e-5, atol=1e-5)


def test_region_map() -> None:
    ids = torch.tensor([[[0, 1], [2, 2]], [[1, 0], [0, 0]]], dtype=torch.uint8)
    values = torch.tensor([[0.5, 2.0], [0.0, 7.0]])
    found = region_map(ids, values, elsewhere=1.0)
    assert found.tolist() == [[[[1.0, 0.5], [2.0, 2.0]]], [[[0.0, 1.0], [1.0, 1.0]]]]


def test_varied_noise_is_standard_normal() -> None:
    noise = torch.randn(2, 3, 64, 64)
    share = torch.tensor([0.0, 0.3, 0.8, 1.0]).repeat_interleave(16).view(1, 1, 1, 64)
    found = vary(noise[:1], noise[1:], share.expand(1, 1, 64, 64))
    assert torch.equal(found[..., :16], noise[:1, ..., :16])
    assert torch.equal(found[..., 48:], noise[1:, ..., 48:])
    assert_close(found[..., 32:48], 0.6 * noise[:1, ..., 32:48] + 0.8 * noise[1:, ..., 32:48])
    for part in found.split(16, dim=3):
        assert_close(part.std(), torch.tensor(1.0), rtol=0, atol=0.05)


def test_a_cell_is_free_if_one_of_its_pixels_is() -> None:
    repaint = torch.zeros(1, 4, 6, dtype=torch.bool)
    repaint[0, 1, 2] = repaint[0, 3, 5] = True
    assert free_cells(repaint, (2, 3)).int().tolist() == [[[[0, 1, 0], [0, 0, 1]]]]
    assert free_cells(repaint, (4, 6))[:, 0].equal(repaint)
