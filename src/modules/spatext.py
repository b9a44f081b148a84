"""SpaText: a denoiser trained to obey CLIP embeddings painted into segments (CVPR 2023)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from .functional.conditions import Conditions
from .functional.random import Purpose, derive_seeds
from .functional.st import Segments
from .networks.backbone import Backbone
from .networks.clip import Clip, check_embeddings, check_fingerprint
from .networks.frozen import Frozen, HoldsFrozen
from .networks.lora import check_base
from .networks.priors import Prior
from .text_to_image import TextToImage

MAX_DRAWN = 4096  # embeddings of (text, seed): 12 MB at width 768


class SpaText(HoldsFrozen, TextToImage):
    """A text-to-image model that also sees ST (SpaText, sections 3.1 to 3.3).

    The paper drops its conditions independently but at rates that are not known: 0.1 each is our
    choice. `prior` maps the CLIP embeddings of local texts to image embeddings; only sampling
    uses it, and it is not trained here. `options` are those of `TextToImage`.
    """

    sees_images = False  # gives a backbone the CLIP embedding of the whole image

    def __init__(self, backbone: Backbone, clip: Clip, prior: Prior, **options: Any) -> None:
        super().__init__(backbone, **options)
        if backbone.null_image_embed is not None and not self.sees_images:
            raise ValueError(
                f"module._target_: found {type(self).__name__}, expected PixelSpaText for a "
                "backbone that sees the CLIP embedding of the whole image"
            )
        if clip.embed_dim != backbone.embed_dim:
            raise ValueError(
                f"module.backbone.embed_dim: found {backbone.embed_dim}, expected "
                f"{clip.embed_dim}, the embedding width of CLIP model {clip.name!r}"
            )
        self.clip = clip
        self.drawn: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self.use_prior(prior)

    @property
    def prior(self) -> Prior:
        """Held, not owned: it is neither trained nor averaged nor saved with the model."""
        return self.held_prior.net

    def use_prior(self, prior: Prior) -> None:
        """Paint with another one from now on. Raises ValueError for one of other embeddings."""
        assert isinstance(prior, nn.Module)
        check_fingerprint(getattr(prior, "embeddings", {}), self.clip.fingerprint, "module.prior")
        self.held_prior = Frozen(prior)
        self.drawn.clear()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.global_step == 0:
            self.log_painting(batch)
        return super().training_step(batch, batch_idx)

    def conditions(self, batch: dict[str, Any]) -> Conditions:
        """The conditions of a batch: its captions untouched, its crops through CLIP."""
        embeds = self.clip.embed_segments(batch)
        segments = Segments(ids=batch["ids"], embeds=embeds, valid=batch["valid"])
        return Conditions(text=self.text(batch), segments=segments)

    def encoder(self, kind: str) -> dict[str, Any]:
        return self.clip.encoder if kind == "embeds" else super().encoder(kind)

    def scene_conditions(
        self,
        prompts: Sequence[str],
        ids: UInt8[Tensor, "b h w"],
        texts: Sequence[Sequence[str]],
        seeds: Int64[Tensor, " b"],
    ) -> Conditions:
        """The conditions of painted scenes: local text -> CLIP text -> prior -> ST.

        `texts[i][k - 1]` belongs to the pixels of scene i with id k. What a stochastic prior draws
        for it is a function of its text, seeds[i] and k.
        """
        num = max(1, max(len(row) for row in texts))
        valid = torch.tensor([[k < len(row) for k in range(num)] for row in texts])
        region_seeds = derive_seeds(seeds.cpu(), Purpose.REGION_SEED, num)[valid]
        drawn = self.draw([text for row in texts for text in row], region_seeds)
        valid = valid.to(self.device)
        embeds = drawn.new_zeros(len(texts), num, self.clip.embed_dim)
        embeds[valid] = drawn
        segments = Segments(ids=ids.to(self.device), embeds=embeds, valid=valid)
        return Conditions(text=self.backbone.embed_text(prompts), segments=segments)

    def draw(self, texts: Sequence[str], seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Image embeddings of n texts, in the scale of the run.

        What was not drawn before is drawn by one call of the prior. The last MAX_DRAWN are kept,
        by text, seed and plain options of the prior: the scenes of a validation, or those that are
        painted again, ask for the same ones.
        """
        if not texts:
            return torch.zeros(0, self.clip.embed_dim, device=self.device)
        numbers = seeds.tolist() if self.prior.stochastic else [0] * len(texts)
        plain = {k: v for k, v in vars(self.prior).items() if isinstance(v, int | float | str)}
        options = tuple(sorted(plain.items()))
        asked = [(text, number, options) for text, number in zip(texts, numbers, strict=True)]
        if new := [row for row in dict.fromkeys(asked) if row not in self.drawn]:
            features = self.clip.encode_texts([text for text, *_ in new])
            drawn = self.prior(features, torch.tensor([n for _, n, _ in new], device=self.device))
            # No regression has the norm of what it predicts.
            self.drawn.update(zip(new, self.clip.scaled(drawn), strict=True))
        embeds = torch.stack([self.drawn[row].to(self.device) for row in asked])
        while len(self.drawn) > MAX_DRAWN:
            self.drawn.popitem(last=False)
        return embeds

    @torch.no_grad()
    def log_painting(self, batch: dict[str, Any]) -> None:
        """Log how loudly the freshly drawn weights speak, beside the signal they are added to."""
        x_0 = self.x_0(batch)
        base, added = self.backbone.first_layer_std(x_0, self.conditions(batch).segments)
        values = {"step_0/base_preactivation": base, "step_0/st_preactivation": added}
        # Straight to the loggers: `log_dict` keeps to log_every_n_steps, which leaves out step 0.
        for logger in self.loggers:
            logger.log_metrics({name: value.item() for name, value in values.items()}, step=0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["embeddings"] = self.clip.fingerprint
        if base := getattr(self.backbone, "base", None):
            checkpoint["base"] = dict(base)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_embeddings(checkpoint, self.clip.fingerprint)
        check_base(checkpoint, getattr(self.backbone, "base", None))


class LatentSpaText(SpaText):
    """SpaText on a latent backbone; nothing differs from the base yet."""
