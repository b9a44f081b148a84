"""Training a text-to-image diffusion model: the base that SpaText starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .functional.conditions import Conditions, drop_conditions
from .functional.diffusion import add_noise, prediction_target, snr
from .functional.losses import Weighting, diffusion_loss, loss_weight
from .functional.random import Purpose, normal, randint
from .functional.st import Segments
from .networks.backbone import Backbone
from .training import MakeOptimizer, MakeScheduler, TrainedModule


class TextToImage(TrainedModule):
    """One training step of a diffusion model on captions, for any backbone.

    `drop_rates` holds one probability per condition name; each condition has its own coin. Every
    random number of a step is a function of (`seed`, position of the sample in the training
    stream), so neither batch composition nor world size nor a resume changes what is trained on.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler,
        drop_rates: Mapping[str, float],
        loss_weighting: Weighting = "none",
        min_snr_gamma: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.backbone = backbone
        self.drop_rates = dict(drop_rates)
        self.loss_weighting, self.min_snr_gamma = loss_weighting, min_snr_gamma
        self.seed = seed

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        conditions = drop_conditions(
            self.conditions(batch),
            self.null_conditions(),
            self.drop_rates,
            self.seed,
            batch["index"],
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
        """The captions of a batch, untouched, and no segments."""
        null = self.null_segments().repeat(len(batch["index"]))
        return Conditions(text=self.backbone.embed_text(batch["caption"]), segments=null)

    def null_segments(self) -> Segments:
        return Segments.null(1, 1, self.backbone.embed_dim, (1, 1), device=self.device)

    def null_conditions(self) -> Conditions:
        """The empty prompt and no segments: one row, for dropout and for guidance alike."""
        return Conditions(text=self.backbone.embed_text([""]), segments=self.null_segments())

    def save_pretrained(self, folder: Path, batches: list[dict[str, Any]]) -> None:
        """Write unet/ and scheduler/ in the diffusers layout. `batches` are not needed."""
        self.backbone.save_pretrained(folder)
