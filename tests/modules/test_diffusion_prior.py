import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from spatext.modules.functional.random import Purpose, derive_seeds, normal, randint, uniform
from spatext.modules.functional.sampling import initial_noise
from spatext.modules.networks.clip import Clip, TextFeatures
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.prior_schedulers import KARLO
from spatext.modules.networks.priors import EMBEDDINGS, Prior, TrainablePrior
from tiny import (
    EMBED_DIM,
    MAX_LENGTH,
    PRIOR,
    TEXTS,
    as_text,
    load_spatext,
    make_prior_transformer,
    unchecked,
)

SCHEDULERS = ("UnCLIPScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")


def make_prior(transformer: PriorTransformer | None = None, **options: Any) -> DiffusionPrior:
    options = {"num_steps": 5, "guidance_scale": 3.0} | options
    return DiffusionPrior(transformer or make_prior_transformer(), KARLO, **options).eval()


def make_text(num: int = 4) -> TextFeatures:
    features = as_text(torch.randn(num + 1, EMBED_DIM), MAX_LENGTH)
    return replace(features[:num], null=features[num:])


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
        assert_close(found[:, k], expected, rtol=1e-4, atol=1e-5)
    # The noise of the steps is seen, not that of the start alone.
    assert (found[0] - found[3]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_row_does_not_depend_on_the_others(scheduler: str) -> None:
    prior, text, seeds = make_prior(scheduler=scheduler), make_text(), torch.tensor([4, 9, 1, 4])
    together = prior(text, seeds)
    for row in range(4):
        alone = prior(text[row : row + 1], seeds[row : row + 1])
        assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    prior.max_rows = 3
    assert_close(prior(text, seeds), together, rtol=1e-4, atol=1e-5)
    twice = prior(text[torch.tensor([0, 0, 0])], torch.tensor([4, 5, 4]))
    assert_close(twice[2], twice[0], rtol=1e-4, atol=1e-5)
    assert (twice[1] - twice[0]).abs().max() > 1e-2


@torch.no_grad()
def test_the_candidate_nearest_to_the_text_is_kept() -> None:
    prior, text, seeds = make_prior(num_candidates=4), make_text(8), torch.arange(8)
    candidates, kept = prior.candidates(text, seeds), prior(text, seeds)
    cosines = cosine_similarity(candidates, text.embeds[:, None], dim=-1)
    best = cosines.argmax(dim=1)
    assert len({*best.tolist()}) > 1
    assert_close(kept, candidates[torch.arange(8), best])
    prior.num_candidates = 2
    assert_close(prior.candidates(text, seeds), candidates[:, :2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_guidance_leads_away_from_the_empty_prompt() -> None:
    text, seeds = make_text(), torch.arange(4)
    prior = make_prior(guidance_scale=1.0, num_candidates=1)
    plain = prior(text, seeds)
    assert_close(plain, prior(replace(text, null=None), seeds))
    prior.guidance_scale = 0.0
    other = prior(replace(text, embeds=text.embeds + 1), seeds)
    assert_close(prior(text, seeds), other)
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
    assert_close(found, (weight * error).mean(), rtol=1e-4, atol=1e-6)
    # Nothing is dropped where the prior is judged.
    kept = prior.eval().loss(z_i, text, text.null, index, 3)
    prior.drop_rate = 0.0
    assert_close(kept, prior.train().loss(z_i, text, text.null, index, 3))
    assert abs(kept - found) > 1e-4


def test_the_states_behind_the_end_do_not_matter() -> None:
    prior, text = make_prior(), make_text()
    other = replace(text, states=text.states + 5 * (~text.mask)[..., None])
    assert (~text.mask).any()
    x_t, t = torch.randn(4, EMBED_DIM), torch.full((4,), 300)
    assert_close(prior.denoise(x_t, t, other), prior.denoise(x_t, t, text), rtol=1e-5, atol=1e-6)
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
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    gradients = [
        torch.autograd.grad(value.square().sum(), weights, allow_unused=True)
        for value in (found, expected)
    ]
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
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


def write_by_diffusers(folder: Path) -> PriorTransformer:
    transformer = make_prior_transformer()
    transformer.save_pretrained(folder / "prior")
    UnCLIPScheduler(**(KARLO | {"clip_sample_range": 4.0})).save_pretrained(
        folder / "prior_scheduler"
    )
    return transformer


@torch.no_grad()
def test_a_folder_of_karlo_goes_round(tmp_path: Path) -> None:
    text, seeds = make_text(), torch.arange(4)
    transformer = write_by_diffusers(tmp_path / "a")
    options = {"num_steps": 4, "num_candidates": 1, "guidance_scale": 2.0}
    prior = DiffusionPrior.from_pretrained(str(tmp_path / "a"), **options).eval()
    weights = dict(transformer.state_dict())
    assert_close(dict(prior.transformer.state_dict()), weights, rtol=0, atol=0)
    assert prior.scheduler_config["clip_sample_range"] == 4.0

    prior.save_pretrained(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["prior", "prior_scheduler"]
    again = PriorTransformer.from_pretrained(tmp_path / "b", subfolder="prior")
    assert_close(dict(again.state_dict()), weights, rtol=0, atol=0)
    scheduler = UnCLIPScheduler.from_pretrained(tmp_path / "b", subfolder="prior_scheduler")
    assert {**scheduler.config}.items() >= (KARLO | {"clip_sample_range": 4.0}).items()
    loaded = DiffusionPrior.from_pretrained(tmp_path / "b", **options).eval()
    assert_close(loaded(text, seeds), prior(text, seeds), rtol=0, atol=0)


@torch.no_grad()
def test_half_weights_keep_their_statistics(tmp_path: Path) -> None:
    transformer = write_by_diffusers(tmp_path)
    text, seeds = make_text(), torch.arange(4)
    half, full = (
        DiffusionPrior.from_pretrained(tmp_path, dtype=dtype, num_steps=4, num_candidates=1).eval()
        for dtype in ("bfloat16", "float32")
    )
    assert half.transformer.proj_in.weight.dtype == torch.bfloat16
    assert_close(half.transformer.clip_mean, transformer.clip_mean, rtol=0, atol=0)
    assert_close(half.transformer.clip_std, transformer.clip_std, rtol=0, atol=0)
    found = half(text, seeds)
    assert found.dtype == torch.float32
    assert_close(found, full(text, seeds), rtol=0.1, atol=0.2)


def test_a_folder_without_its_parts_is_named(tmp_path: Path) -> None:
    write_by_diffusers(tmp_path)
    (tmp_path / "prior_scheduler").rename(tmp_path / "scheduler")
    message = rf"^prior.path={tmp_path}: missing prior_scheduler; expected a folder with prior, "
    with pytest.raises(ValueError, match=message):
        DiffusionPrior.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^prior.path=/no/such: no such folder; expected prior, "):
        DiffusionPrior.from_pretrained("/no/such")


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


@torch.no_grad()
def test_spatext_paints_with_it(base: Path, tmp_path: Path) -> None:
    write_by_diffusers(tmp_path)
    prior = DiffusionPrior.from_pretrained(tmp_path, num_steps=3, guidance_scale=2.0)
    model = load_spatext(base, prior=prior)
    assert not model.prior.training
    ids = torch.ones(2, 16, 16, dtype=torch.uint8)
    texts, seeds = [["two dogs", "a blue sea"], ["two dogs"]], torch.tensor([5, 6])
    found = model.scene_conditions(["", ""], ids, texts, seeds).segments
    clip = Clip(f"local-dir:{base / 'clip'}")
    region_seeds = derive_seeds(seeds, Purpose.REGION_SEED, 2)
    for row, column in ((0, 0), (0, 1), (1, 0)):
        features = clip.encode_texts(texts[row][column : column + 1])
        expected = prior(features, region_seeds[row, column : column + 1])
        assert_close(found.embeds[row, column], expected[0], rtol=1e-4, atol=1e-5)
    # Another image, another draw.
    assert (found.embeds[0, 0] - found.embeds[1, 0]).abs().max() > 1e-2


def test_spatext_refuses_a_prior_for_other_embeddings(base: Path, tmp_path: Path) -> None:
    transformer = make_prior_transformer(embedding_dim=EMBED_DIM + 1)
    with pytest.raises(ValueError, match=r"^module.prior: embed_dim of its CLIP .* is 9, expect"):
        load_spatext(base, prior=make_prior(transformer))
    write_by_diffusers(tmp_path)
    record = Clip(f"local-dir:{base / 'clip'}", scale="unit").fingerprint
    (tmp_path / EMBEDDINGS).write_text(json.dumps(record))
    prior = DiffusionPrior.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^module.prior: scale .* is 'unit', expected 'raw' as "):
        load_spatext(base, prior=prior)
    load_spatext(base, prior=prior, scale="unit")


@torch.no_grad()
def test_the_empty_prompt_is_that_of_clip(base: Path) -> None:
    features = Clip(f"local-dir:{base / 'clip'}").encode_texts(TEXTS)
    prior, seeds = make_prior(guidance_scale=0.0), torch.arange(4)
    empty = Clip(f"local-dir:{base / 'clip'}").encode_texts([""] * 4)
    found = prior.candidates(features, seeds)
    prior.guidance_scale = 1.0
    assert_close(prior.candidates(empty, seeds), found, rtol=1e-4, atol=1e-5)
    assert empty.mask.sum(dim=1).tolist() == [2] * 4
