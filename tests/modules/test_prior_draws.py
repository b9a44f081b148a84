"""Embeddings that a diffusion prior draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from diffusion_priors import make_prior, make_text
from spatext.modules.functional.random import Purpose, derive_seeds
from spatext.modules.functional.sampling import initial_noise
from spatext.modules.networks.clip import Clip, TextFeatures
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.prior_schedulers import KARLO
from tiny import EMBED_DIM, PRIOR, TEXTS, as_text

SCHEDULERS = ("UnCLIPScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")


def pipeline_loop(
    prior: PriorTransformer, text: TextFeatures, scale: float, num_steps: int, seeds: torch.Tensor
) -> torch.Tensor:
    """The prior's part of UnCLIPPipeline.__call__, one generator per row."""
    scheduler, num = UnCLIPScheduler(**KARLO), len(text)
    scheduler.set_timesteps(num_steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    null = text.null
    embeds = torch.cat([null.embeds.repeat(num, 1), text.embeds])
    states = torch.cat([null.states.repeat(num, 1, 1), text.states])
    mask = torch.cat([null.mask.repeat(num, 1), text.mask])
    latents = initial_noise(seeds, (EMBED_DIM,))
    for i, t in enumerate(scheduler.timesteps):
        uncond, cond = prior(
            torch.cat([latents] * 2),
            timestep=t,
            proj_embedding=embeds,
            encoder_hidden_states=states,
            attention_mask=mask,
        ).predicted_image_embedding.chunk(2)
        following = scheduler.timesteps[i + 1] if i + 1 < num_steps else None
        latents = scheduler.step(
            uncond + scale * (cond - uncond),
            timestep=t,
            sample=latents,
            generator=generators,
            prev_timestep=following,
        ).prev_sample
    return prior.post_process_latents(latents)


@torch.no_grad()
def test_sampling_is_the_loop_of_unclip() -> None:
    prior, text = make_prior(num_candidates=3, num_steps=7), make_text()
    seeds = torch.tensor([3, -5, 2**40, 3])
    found = prior.candidates(text, seeds)
    row_seeds = derive_seeds(seeds, Purpose.CANDIDATE_SEED, 3)
    for k in range(3):
        expected = pipeline_loop(prior.transformer, text, 3.0, 7, row_seeds[:, k])
        assert_close(found[:, k], expected, rtol=1e-3, atol=5e-4)
    # The noise of the steps is seen, not that of the start alone.
    assert (found[0] - found[3]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_row_does_not_depend_on_the_others(scheduler: str) -> None:
    prior, text, seeds = make_prior(scheduler=scheduler), make_text(), torch.tensor([4, 9, 1, 4])
    together = prior(text, seeds)
    for row in range(4):
        alone = prior(text[row : row + 1], seeds[row : row + 1])
        assert_close(alone[0], together[row], rtol=1e-3, atol=5e-4)
    prior.max_rows = 3
    assert_close(prior(text, seeds), together, rtol=1e-3, atol=5e-4)
    twice = prior(text[torch.tensor([0, 0, 0])], torch.tensor([4, 5, 4]))
    assert_close(twice[2], twice[0], rtol=1e-3, atol=5e-4)
    assert (twice[1] - twice[0]).abs().max() > 1e-2


@torch.no_grad()
def test_the_candidate_nearest_to_the_text_is_kept() -> None:
    prior, text, seeds = make_prior(num_candidates=4), make_text(8), torch.arange(8)
    candidates, kept = prior.candidates(text, seeds), prior(text, seeds)
    cosines = cosine_similarity(candidates, text.embeds[:, None], dim=-1)
    best = cosines.argmax(dim=1)
    assert len({*best.tolist()}) > 1
    assert_close(kept, candidates[torch.arange(8), best], rtol=1e-3, atol=5e-4)
    prior.num_candidates = 2
    assert_close(prior.candidates(text, seeds), candidates[:, :2], rtol=1e-3, atol=5e-4)


@torch.no_grad()
def test_guidance_leads_away_from_the_empty_prompt() -> None:
    text, seeds = make_text(), torch.arange(4)
    prior = make_prior(guidance_scale=1.0, num_candidates=1)
    plain = prior(text, seeds)
    assert_close(plain, prior(replace(text, null=None), seeds), rtol=1e-3, atol=5e-4)
    prior.guidance_scale = 0.0
    other = prior(replace(text, embeds=text.embeds + 1), seeds)
    assert_close(prior(text, seeds), other, rtol=1e-3, atol=5e-4)
    prior.guidance_scale = 1.0001
    assert_close(prior(text, seeds), plain, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"^prior: guidance needs the features of the empty prom"):
        prior(replace(text, null=None), seeds)


class Gaussian(PriorTransformer):
    """E[x_0 | x_t, text] where (text, x_0) are jointly Gaussian: x_0 = A text + L noise."""

    def __init__(self, d: int) -> None:
        super().__init__(**(PRIOR | {"embedding_dim": d, "num_embeddings": 1}))
        self.A = torch.randn(d, d) / 2
        self.L = torch.eye(d) / 2 + torch.randn(d, d) / 4
        self.alphas_cumprod = UnCLIPScheduler(**KARLO).alphas_cumprod
        self.clip_mean.data = torch.randn(1, d)
        self.clip_std.data = 1 + torch.rand(1, d)

    def forward(self, hidden_states: Any, timestep: Any, proj_embedding: Any, **_: Any) -> Any:
        a = self.alphas_cumprod[timestep[0]]
        covariance, mean = self.L @ self.L.mT, proj_embedding @ self.A.mT
        noisy = a * covariance + (1 - a) * torch.eye(len(covariance))
        gain = a.sqrt() * covariance @ torch.linalg.inv(noisy)
        x_0 = mean + (hidden_states - a.sqrt() * mean) @ gain.mT
        return type("Output", (), {"predicted_image_embedding": x_0})


@torch.no_grad()
@pytest.mark.parametrize(
    ("scheduler", "num_steps", "num", "tolerance"),
    [
        ("UnCLIPScheduler", 64, 2000, 0.12),  # first order, and it draws: 7 % at 64 steps
        ("DDIMScheduler", 64, 20000, 0.07),
        ("DPMSolverMultistepScheduler", 25, 20000, 0.03),
    ],
)
def test_gaussian_embeddings_are_drawn_from_their_conditional(
    scheduler: str, num_steps: int, num: int, tolerance: float
) -> None:
    d = 3
    network = Gaussian(d)
    prior = DiffusionPrior(
        network,
        KARLO | {"clip_sample": False},
        num_candidates=1,
        guidance_scale=1.0,
        num_steps=num_steps,
        scheduler=scheduler,
        max_rows=num,
    )
    text = as_text(torch.randn(1, d), 1)
    drawn = prior(text[torch.zeros(num, dtype=torch.long)], torch.arange(num))
    std = network.clip_std[0]
    mean = network.clip_mean[0] + std * (network.A @ text.embeds[0])
    covariance = std[:, None] * (network.L @ network.L.mT) * std
    error = 4 * (covariance.diagonal() / num).sqrt()
    assert ((drawn.mean(0) - mean).abs() < error + 0.01).all()
    assert (drawn.mT.cov() - covariance).norm() < tolerance * covariance.norm()


def test_a_drawn_embedding_is_clamped_in_each_step() -> None:
    class Loud(Gaussian):
        def forward(self, hidden_states: Any, *args: Any, **options: Any) -> Any:
            x_0 = 100 * torch.ones_like(hidden_states)
            return type("Output", (), {"predicted_image_embedding": x_0})

    network = Loud(EMBED_DIM)
    text = as_text(torch.randn(2, EMBED_DIM), 1)
    for scheduler in SCHEDULERS:
        prior = make_prior(network, scheduler=scheduler, guidance_scale=1.0)
        found = (prior(text, torch.arange(2)) - network.clip_mean) / network.clip_std
        assert_close(found, torch.full((2, EMBED_DIM), 5.0), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_empty_prompt_is_that_of_clip(base: Path) -> None:
    features = Clip(f"local-dir:{base / 'clip'}").encode_texts(TEXTS)
    prior, seeds = make_prior(guidance_scale=0.0), torch.arange(4)
    empty = Clip(f"local-dir:{base / 'clip'}").encode_texts([""] * 4)
    found = prior.candidates(features, seeds)
    prior.guidance_scale = 1.0
    assert_close(prior.candidates(empty, seeds), found, rtol=1e-3, atol=5e-4)
    assert empty.mask.sum(dim=1).tolist() == [2] * 4
