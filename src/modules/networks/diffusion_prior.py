"""The diffusion prior of unCLIP: CLIP image embeddings, drawn given a text."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from jaxtyping import Float, Int64, Real
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..functional.diffusion import add_noise, make_betas, snr
from ..functional.diffusion import alphas_cumprod as cumulate
from ..functional.guidance import combine
from ..functional.losses import Weighting, diffusion_loss, loss_weight
from ..functional.random import Purpose, derive_seeds, normal, randint, uniform
from ..functional.sampling import initial_noise, sample
from .clip import TextFeatures
from .folders import require_parts
from .prior_schedulers import KARLO, SCHEDULE, check_options, clamp, make_scheduler
from .priors import EMBEDDINGS

Dtype = Literal["float32", "bfloat16", "float16"]


class DiffusionPrior(nn.Module):
    """p(z_i | text) by a causal transformer that predicts x_0 (Ramesh et al. 2022, "Hierarchical
    text-conditional image generation with CLIP latents", sec. 2.2), in the form of Karlo.

    x_0 = (z_i - clip_mean) / clip_std; both statistics are part of the weights, zero in a new
    `PriorTransformer`. `scale` multiplies x_0 against the unit noise; it is kept in clip_std.

    A draw takes the best of `num_candidates` by the cosine to the text embedding: the paper's
    z_i . z_t, but for the norm (our choice). `guidance_scale` and `num_steps` are Karlo's and 1
    is no guidance. The noise of a candidate is a function of (seed of the row, its number).
    `max_rows` candidates at most go through the network at once, twice over with guidance.

    In training mode the text is dropped with probability `drop_rate`. Min-SNR weights the loss as
    in `loss_weight`.
    """

    stochastic = True
    alphas_cumprod: Tensor

    def __init__(
        self,
        transformer: PriorTransformer,
        scheduler_config: Mapping[str, Any],
        *,
        num_candidates: int = 2,
        guidance_scale: float = 4.0,
        num_steps: int = 25,
        scheduler: str = "UnCLIPScheduler",
        max_rows: int = 256,
        drop_rate: float = 0.1,
        scale: float = 1.0,
        loss_weighting: Weighting = "none",
        min_snr_gamma: float = 5.0,
    ) -> None:
        super().__init__()
        check_options(scheduler, scheduler_config, num_steps, num_candidates)
        # A Trainer keeps the mode it finds, and from_pretrained leaves it in evaluation mode.
        self.transformer = transformer.train()
        # No gradient ever reaches them, and DDP must not wait for one.
        transformer.clip_mean.requires_grad_(False)
        transformer.clip_std.requires_grad_(False)
        self.scheduler_config = dict(scheduler_config)
        # What is known of CLIP's embeddings; a published prior does not tell their scale.
        self.embeddings: dict[str, Any] = {"embed_dim": transformer.config.embedding_dim}
        self.num_candidates, self.guidance_scale = num_candidates, guidance_scale
        self.num_steps, self.scheduler, self.max_rows = num_steps, scheduler, max_rows
        self.drop_rate, self.scale = drop_rate, scale
        self.loss_weighting, self.min_snr_gamma = loss_weighting, min_snr_gamma
        betas = make_betas(SCHEDULE, scheduler_config.get("num_train_timesteps", 1000))
        self.register_buffer("alphas_cumprod", cumulate(betas).float(), persistent=False)

    @classmethod
    def from_config(
        cls,
        *,
        prior: Mapping[str, Any],
        prior_scheduler: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "DiffusionPrior":
        """A `PriorTransformer(**prior)` with random weights; the schedule defaults to Karlo's."""
        return cls(PriorTransformer(**prior), {**KARLO, **(prior_scheduler or {})}, **options)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, dtype: Dtype = "float32", **options: Any
    ) -> "DiffusionPrior":
        """Load prior/ and prior_scheduler/ of a folder or hub name: the layout of Karlo.

        The statistics stay float32. Raises ValueError naming the part that a folder lacks.
        """
        path = require_parts(path, ("prior", "prior_scheduler"), "prior.path")
        transformer = PriorTransformer.from_pretrained(
            path, subfolder="prior", torch_dtype=torch.float32
        )
        mean, std = transformer.clip_mean.data, transformer.clip_std.data
        if dtype != "float32":  # diffusers warns of any cast
            transformer.to(getattr(torch, dtype))
        transformer.clip_mean.data, transformer.clip_std.data = mean, std
        config = UnCLIPScheduler.load_config(path, subfolder="prior_scheduler")
        prior = cls(transformer, config, **options)
        if (record := Path(path) / EMBEDDINGS).is_file():
            prior.embeddings |= json.loads(record.read_text())
        return prior

    def save_pretrained(self, folder: Path) -> None:
        """Write prior/ and prior_scheduler/."""
        self.transformer.save_pretrained(folder / "prior")
        UnCLIPScheduler.from_config(self.scheduler_config).save_pretrained(
            folder / "prior_scheduler"
        )

    @property
    def embed_dim(self) -> int:
        return self.transformer.config.embedding_dim

    @property
    def has_statistics(self) -> bool:
        return bool(self.transformer.clip_std.any())

    def set_statistics(self, mean: Float[Tensor, " d"], std: Float[Tensor, " d"]) -> None:
        """Of the image embeddings. Raises ValueError for another width and where std is not > 0."""
        if len(mean) != self.embed_dim:
            raise ValueError(
                f"statistics: found {len(mean)} dimensions, expected {self.embed_dim}, the "
                "embedding_dim of the prior"
            )
        if not (std > 0).all():
            raise ValueError(
                f"statistics: the deviation is not positive in {int((~(std > 0)).sum())} of "
                f"{len(std)} dimensions, expected image embeddings that differ in each"
            )
        self.transformer.clip_mean.data.copy_(mean)
        self.transformer.clip_std.data.copy_(std / self.scale)

    def loss(
        self,
        x_0: Float[Tensor, "n d"],
        text: TextFeatures,
        null: TextFeatures,
        index: Int64[Tensor, " n"],
        seed: int,
    ) -> Float[Tensor, ""]:
        """E || f(x_t, t, text) - x_0 ||^2 (Ramesh et al. 2022, eq. 2) on standardised embeddings.

        Not finite without statistics.
        """
        self.check_text(text)
        transformer = self.transformer
        x_0 = (x_0 - transformer.clip_mean) / transformer.clip_std
        t = randint(seed, Purpose.TIMESTEP, index, len(self.alphas_cumprod))
        a_t = self.alphas_cumprod[t]
        x_t = add_noise(x_0, normal(seed, Purpose.NOISE, index, (self.embed_dim,)), a_t)
        if self.training and self.drop_rate:
            text = text.where(uniform(seed, Purpose.DROP_TEXT, index) >= self.drop_rate, null)
        weight = loss_weight(snr(a_t), "sample", self.loss_weighting, self.min_snr_gamma)
        return diffusion_loss(self.denoise(x_t, t, text), x_0, weight)

    def denoise(
        self, x_t: Float[Tensor, "n d"], t: Real[Tensor, " n"], text: TextFeatures
    ) -> Float[Tensor, "n d"]:
        """The prediction of x_0.

        The network runs on the tokens there are, not on its full length: the padding between the
        text and the last four tokens is masked, and each token keeps its own position.
        """
        network, length = self.transformer, text.states.shape[1]
        dtype, positions = network.dtype, network.positional_embedding
        last = positions[:, network.config.num_embeddings :]
        positions = torch.cat([positions[:, :length], last], dim=1)
        size = positions.shape[1]
        cut = {
            "positional_embedding": positions,
            "causal_attention_mask": network.causal_attention_mask[:, :size, :size],
        }
        given = {
            "proj_embedding": text.embeds.to(dtype),
            "encoder_hidden_states": text.states.to(dtype),
            "attention_mask": text.mask,
        }
        output = functional_call(network, cut, (x_t.to(dtype), t), given)
        return output.predicted_image_embedding.to(x_t.dtype)

    def forward(self, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Raises ValueError, before it samples, for text features of another width or length and
        for a network without statistics."""
        embeds = self.candidates(text, seeds)
        cosines = F.cosine_similarity(embeds, text.embeds[:, None], dim=-1)
        return embeds[torch.arange(len(embeds)), cosines.argmax(dim=1)]

    @torch.no_grad()
    def candidates(self, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n k d"]:
        """All that were drawn, in the scale of the run; those of fewer candidates come first."""
        self.check_text(text)
        if not self.has_statistics:
            raise ValueError(
                "prior: clip_std is all zero, expected the deviation of CLIP image embeddings; a "
                "new PriorTransformer has none until set_statistics or training gives it some"
            )
        num, device = self.num_candidates, self.alphas_cumprod.device
        row_seeds = derive_seeds(seeds.to(device), Purpose.CANDIDATE_SEED, num).flatten()
        of_text = torch.arange(len(text), device=device).repeat_interleave(num)
        drawn = [
            self._draw(text[rows], own_seeds)
            for rows, own_seeds in zip(
                of_text.split(self.max_rows), row_seeds.split(self.max_rows), strict=True
            )
        ]
        return self.transformer.post_process_latents(torch.cat(drawn)).unflatten(0, (-1, num))

    def _draw(self, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Standardised embeddings, one per row."""
        generators = [torch.Generator(seeds.device).manual_seed(seed) for seed in seeds.tolist()]
        dtype = torch.promote_types(torch.float32, self.transformer.clip_std.dtype)
        x_T = initial_noise(seeds, (self.embed_dim,)).to(dtype)
        scheduler = make_scheduler(self.scheduler, self.scheduler_config)
        return sample(self._guided(text), scheduler, x_T, self.num_steps, generators=generators)

    def _guided(self, text: TextFeatures) -> Callable[[Tensor, Tensor], Tensor]:
        """x_0(0) + s (x_0(text) - x_0(0)), both in one call, clamped as Karlo's scheduler does."""
        config, scale = self.scheduler_config, self.guidance_scale
        limit = config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None
        if scale == 1.0:
            return lambda x_t, t: clamp(self.denoise(x_t, t, text), limit)
        if text.null is None:
            raise ValueError("prior: guidance needs the features of the empty prompt, expected "
                             "features of Clip.encode_texts or guidance_scale=1")  # fmt: skip
        twice = torch.arange(len(text), device=text.mask.device).repeat(2)
        given = torch.arange(2 * len(text), device=text.mask.device) >= len(text)
        both = text[twice].where(given, text.null)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            uncond, cond = self.denoise(x_t.repeat(2, 1), t.repeat(2), both).chunk(2)
            return clamp(combine(uncond, [cond], [scale]), limit)

        return denoise

    def check_text(self, text: TextFeatures) -> None:
        """Raises ValueError where the network cannot take these features."""
        config, length = self.transformer.config, text.states.shape[1]
        if text.embeds.shape[-1] != self.embed_dim:
            raise ValueError(
                f"prior: found CLIP embeddings of width {text.embeds.shape[-1]}, expected "
                f"{self.embed_dim}, the embedding_dim of the prior"
            )
        if not 0 < length <= config.num_embeddings:
            reason = "" if length else " (the text tower of this CLIP model has none)"
            raise ValueError(
                f"prior: found {length} text states{reason}, expected 1 to "
                f"{config.num_embeddings}, the num_embeddings of the prior"
            )
