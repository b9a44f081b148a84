"""SpaText: a denoiser trained to obey CLIP embeddings painted into segments (CVPR 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .functional.conditions import Conditions, drop_conditions
from .functional.diffusion import add_noise, prediction_target, snr
from .functional.losses import Weighting, diffusion_loss, loss_weight
from .functional.random import Purpose, normal, randint
from .functional.st import Segments
from .networks.backbone import Backbone
from .networks.clip import Clip
from .networks.priors import Prior
from .training import MakeOptimizer, MakeScheduler, TrainedModule


class SpaText(TrainedModule):
    """One training step of SpaText, for any backbone (SpaText, sections 3.1 to 3.3).

    `drop_rates` holds one probability per condition name; each condition has its own coin. The
    paper drops independently but its rate is not known: 0.1 each is our choice. `prior` maps the
    CLIP embeddings of local texts to image embeddings; only sampling uses it.

    Every random number of a step is a function of (`seed`, position of the sample in the training
    stream), so neither batch composition nor world size nor a resume changes what is trained on.
    """

    def __init__(
        self,
        backbone: Backbone,
        clip: Clip,
        prior: Prior,
        *,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler,
        drop_rates: Mapping[str, float],
        loss_weighting: Weighting = "none",
        min_snr_gamma: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if clip.embed_dim != backbone.embed_dim:
            raise ValueError(
                f"module.backbone.embed_dim: found {backbone.embed_dim}, expected "
                f"{clip.embed_dim}, the embedding width of CLIP model {clip.name!r}"
            )
        self.backbone, self.clip, self.prior = backbone, clip, prior
        self.drop_rates = dict(drop_rates)
        self.loss_weighting, self.min_snr_gamma = loss_weighting, min_snr_gamma
        self.seed = seed

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        conditions = self.conditions(batch)
        if self.global_step == 0:
            self.log_painting(batch, conditions)
        conditions = drop_conditions(
            conditions, self.null_conditions(), self.drop_rates, self.seed, batch["index"]
        )
        loss = self.loss(batch, conditions, self.seed)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["index"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # The same noise at every validation, and not that of training.
        loss = self.loss(batch, self.conditions(batch), self.seed + 1)
        size = len(batch["index"])
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def loss(self, batch: dict[str, Any], conditions: Conditions, seed: int) -> Tensor:
        """E || target - prediction ||^2, weighted; the paper's L_LDM for the epsilon target."""
        index, backbone = batch["index"], self.backbone
        height, width = (side // backbone.factor for side in batch["image"].shape[-2:])
        shape = (backbone.channels, height, width)

        x_0 = backbone.encode(batch["image"], normal(seed, Purpose.POSTERIOR, index, shape))
        t = randint(seed, Purpose.TIMESTEP, index, len(backbone.alphas_cumprod))
        a_t = backbone.alphas_cumprod[t]
        noise = normal(seed, Purpose.NOISE, index, shape)
        x_t = add_noise(x_0, noise, a_t)
        target = prediction_target(x_0, noise, a_t, backbone.prediction_type)
        weight = loss_weight(
            snr(a_t), backbone.prediction_type, self.loss_weighting, self.min_snr_gamma
        )
        return diffusion_loss(backbone.denoise(x_t, t, conditions), target, weight)

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

    def null_conditions(self) -> Conditions:
        """The empty prompt and no segments: one row, for dropout and for guidance alike."""
        segments = Segments.null(
            1, 1, self.backbone.embed_dim, (1, 1), device=self.device, dtype=torch.float32
        )
        return Conditions(text=self.backbone.embed_text([""]), segments=segments)

    @torch.no_grad()
    def log_painting(self, batch: dict[str, Any], conditions: Conditions) -> None:
        """Log how loudly the freshly drawn weights speak, beside the signal they are added to."""
        x_0 = self.backbone.encode(batch["image"])
        base, added = self.backbone.first_layer_std(x_0, conditions.segments)
        self.log_dict({"step_0/base_preactivation": base, "step_0/st_preactivation": added})

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
