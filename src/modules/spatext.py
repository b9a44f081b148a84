"""SpaText: a denoiser trained to obey CLIP embeddings painted into segments (CVPR 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .functional.conditions import Conditions
from .functional.st import Segments
from .networks.backbone import Backbone
from .networks.clip import Clip
from .networks.priors import Prior
from .text_to_image import TextToImage


class SpaText(TextToImage):
    """A text-to-image model that also sees ST (SpaText, sections 3.1 to 3.3).

    The paper drops its conditions independently but at rates that are not known: 0.1 each is our
    choice. `prior` maps the CLIP embeddings of local texts to image embeddings; only sampling
    uses it. `options` are those of `TextToImage`.
    """

    def __init__(self, backbone: Backbone, clip: Clip, prior: Prior, **options: Any) -> None:
        super().__init__(backbone, **options)
        if clip.embed_dim != backbone.embed_dim:
            raise ValueError(
                f"module.backbone.embed_dim: found {backbone.embed_dim}, expected "
                f"{clip.embed_dim}, the embedding width of CLIP model {clip.name!r}"
            )
        self.clip, self.prior = clip, prior

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.global_step == 0:
            self.log_painting(batch)
        return super().training_step(batch, batch_idx)

    def conditions(self, batch: dict[str, Any]) -> Conditions:
        """The conditions of a batch: its captions untouched, its crops through CLIP."""
        crops = batch["crops"]
        embeds = self.clip.embed_images(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
        return Conditions(
            text=self.backbone.embed_text(batch["caption"]),
            segments=Segments(ids=batch["ids"], embeds=embeds, valid=batch["valid"]),
        )

    def scene_conditions(
        self, prompts: Sequence[str], ids: Tensor, texts: Sequence[Sequence[str]]
    ) -> Conditions:
        """The conditions of painted scenes: local text -> CLIP text -> prior -> ST.

        `ids` is uint8 [b, h, w]; `texts[i][k - 1]` belongs to the pixels of scene i with id k.
        """
        num = max(1, max(len(row) for row in texts))
        valid = torch.tensor([[k < len(row) for k in range(num)] for row in texts])
        flat = [text for row in texts for text in [*row, *[""] * (num - len(row))]]
        distinct = sorted(set(flat))
        painted = self.prior(self.clip.embed_texts(distinct))
        rows = torch.tensor([distinct.index(text) for text in flat], device=painted.device)
        return Conditions(
            text=self.backbone.embed_text(prompts),
            segments=Segments(
                ids=ids.to(self.device),
                embeds=painted[rows].unflatten(0, (len(texts), num)),
                valid=valid.to(self.device),
            ),
        )

    @torch.no_grad()
    def log_painting(self, batch: dict[str, Any]) -> None:
        """Log how loudly the freshly drawn weights speak, beside the signal they are added to."""
        x_0 = self.backbone.encode(batch["image"])
        base, added = self.backbone.first_layer_std(x_0, self.conditions(batch).segments)
        values = {"step_0/base_preactivation": base, "step_0/st_preactivation": added}
        # Straight to the loggers: `log_dict` keeps to log_every_n_steps, which leaves out step 0.
        for logger in self.loggers:
            logger.log_metrics({name: value.item() for name, value in values.items()}, step=0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["embeddings"] = self.clip.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_embeddings(checkpoint, self.clip.fingerprint)


class LatentSpaText(SpaText):
    """SpaText on a latent backbone; nothing differs from the base yet."""


def check_embeddings(checkpoint: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose embeddings live in another space or scale."""
    found = checkpoint.get("embeddings")
    if found is None:
        raise ValueError("checkpoint: found no record of its CLIP embeddings, expected a SpaText "
                         "checkpoint")  # fmt: skip
    for key in ("embed_dim", "scale"):
        if found[key] != expected[key]:
            raise ValueError(
                f"checkpoint: {key} of its CLIP embeddings is {found[key]!r}, expected "
                f"{expected[key]!r} as configured by module.clip"
            )
