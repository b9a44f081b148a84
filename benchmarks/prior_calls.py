"""What benchmarks/prior.py times: the prior's training step and its draws, ours and plain."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from torch import Tensor
from torch.nn import functional as F

from spatext.modules.networks.clip import TextFeatures
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.optim import adamw

SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "num_layers": 4,
        "embedding_dim": 64,
        "num_embeddings": 64,
    },
    "vit-l14": {
        "num_attention_heads": 32,
        "attention_head_dim": 64,
        "num_layers": 20,
        "embedding_dim": 768,
        "num_embeddings": 77,
    },
}
TEXT_LENGTHS = (6, 20)  # tokens, as local texts have


@dataclass(frozen=True)
class Case:
    size: str
    device: str
    dtype: str
    num: int  # pairs of a training step, or regions
    num_steps: int
    num_candidates: int
    guidance_scale: float


def make_prior(case: Case) -> DiffusionPrior:
    torch.manual_seed(0)
    prior = DiffusionPrior.from_config(
        prior=SIZES[case.size],
        num_candidates=case.num_candidates,
        guidance_scale=case.guidance_scale,
        num_steps=case.num_steps,
        scheduler="UnCLIPScheduler",
    )
    prior.set_statistics(torch.zeros(prior.embed_dim), torch.ones(prior.embed_dim))
    return prior.to(case.device)


def make_text(case: Case) -> TextFeatures:
    torch.manual_seed(1)
    d, length = SIZES[case.size]["embedding_dim"], SIZES[case.size]["num_embeddings"]

    def features(num: int, ends: Tensor) -> TextFeatures:
        mask = torch.arange(length, device=case.device) < ends[:, None]
        embeds, states = torch.randn(num, d), torch.randn(num, length, d)
        return TextFeatures(embeds.to(case.device), states.to(case.device), mask)

    ends = torch.randint(*TEXT_LENGTHS, (case.num,), device=case.device)
    null = features(1, torch.full((1,), 2, device=case.device))
    text = features(case.num, ends)
    return TextFeatures(text.embeds, text.states, text.mask, null)


def cut(text: TextFeatures) -> TextFeatures:
    """No longer than the longest text, as `Clip.encode_texts` gives them."""
    length = int(text.mask.sum(dim=1).max())
    null = None if text.null is None else cut(text.null)
    return replace(text, states=text.states[:, :length], mask=text.mask[:, :length], null=null)


def training_calls(case: Case) -> dict[str, Callable[[], None]]:
    """One optimizer step on `num` pairs; under autocast where dtype is not float32."""
    text, x_0 = make_text(case), torch.randn(case.num, SIZES[case.size]["embedding_dim"])
    x_0, index = x_0.to(case.device), torch.arange(case.num, device=case.device)
    assert text.null is not None
    null, short = text.null, cut(text)
    assert short.null is not None
    short_null = short.null
    autocast: dict[str, Any] = {"enabled": case.dtype != "float32"}
    autocast |= {"dtype": getattr(torch, case.dtype), "device_type": case.device}
    ours, plain = make_prior(case), make_prior(case).transformer
    own_optimizer = adamw([p for p in ours.parameters() if p.requires_grad], lr=1e-4)
    plain_optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-4)
    scheduler = UnCLIPScheduler(prediction_type="sample")

    def step_ours() -> None:
        with torch.autocast(**autocast):
            loss = ours.loss(x_0, short, short_null, index, 0)
        loss.backward()
        own_optimizer.step()
        own_optimizer.zero_grad()

    def step_plain() -> None:
        noise = torch.randn_like(x_0)
        t = torch.randint(0, 1000, (case.num,), device=case.device)
        keep = torch.rand(case.num, device=case.device) >= 0.1
        given = text.where(keep, null)
        target = (x_0 - plain.clip_mean) / plain.clip_std
        with torch.autocast(**autocast):
            x_t = scheduler.add_noise(target, noise, t)
            loss = F.mse_loss(predict(plain, x_t, t, given).float(), target)
        loss.backward()
        plain_optimizer.step()
        plain_optimizer.zero_grad()

    return {"plain": step_plain, "ours": step_ours}


def sampling_calls(case: Case) -> dict[str, Callable[[], None]]:
    """One embedding for each of `num` regions."""
    prior, text = make_prior(case).eval(), make_text(case)
    short = cut(text)
    prior.transformer.to(getattr(torch, case.dtype))
    seeds = torch.arange(case.num, device=case.device)

    def draw_ours() -> None:
        with torch.inference_mode():
            prior(short, seeds)

    def draw_plain() -> None:
        with torch.inference_mode():
            for i in range(case.num):
                draw_one(prior.transformer, text[i : i + 1], i, case)

    return {"plain": draw_plain, "ours": draw_ours}


def draw_one(transformer: PriorTransformer, text: TextFeatures, seed: int, case: Case) -> Tensor:
    """What diffusers' pipelines do for one prompt, and the choice among its candidates."""
    num, dtype = case.num_candidates, transformer.dtype
    assert text.null is not None
    rows = [part for part in (text.null, text) for _ in range(num)]
    given = TextFeatures(
        *(torch.cat([getattr(r, name) for r in rows]) for name in ("embeds", "states", "mask"))
    )
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
    )
    scheduler.set_timesteps(case.num_steps, device=case.device)
    generator = torch.Generator(case.device).manual_seed(seed)
    width = text.embeds.shape[-1]
    x = torch.randn(num, width, generator=generator, device=case.device, dtype=dtype)
    timesteps = [*scheduler.timesteps, None]
    for t, previous in pairwise(timesteps):
        uncond, cond = predict(transformer, x.repeat(2, 1), t, given).chunk(2)
        x_0 = uncond + case.guidance_scale * (cond - uncond)
        step = scheduler.step(x_0, t, x, generator=generator, prev_timestep=previous)
        x = step.prev_sample
    drawn = transformer.post_process_latents(x)
    return drawn[F.cosine_similarity(drawn, text.embeds.to(dtype)).argmax()]


def predict(transformer: PriorTransformer, x_t: Tensor, t: Any, text: TextFeatures) -> Tensor:
    dtype = transformer.dtype
    return transformer(
        x_t.to(dtype),
        t,
        proj_embedding=text.embeds.to(dtype),
        encoder_hidden_states=text.states.to(dtype),
        attention_mask=text.mask,
    ).predicted_image_embedding
