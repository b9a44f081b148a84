"""Training an upsampler: the stage of a cascade that enlarges what the one before it has made."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .functional.diffusion import add_noise, prediction_target
from .functional.losses import diffusion_loss, hybrid_losses
from .functional.random import Purpose, normal, randint, uniform
from .functional.resampling import blur, downsample, random_crops
from .functional.st import Segments
from .functional.variational import variational_bound
from .networks.clip import Clip, check_embeddings
from .networks.upsampler import UpsamplerNet
from .training import MakeOptimizer, MakeScheduler, TrainedModule, steps_of


class Upsampler(TrainedModule):
    """One training step of an upsampler (Ho et al. 2022, "Cascaded diffusion models"; unCLIP, 2.3).

    x_0 is the image of a batch, or a random square of `crop` pixels of it (unCLIP trains on a
    quarter of the side; the network has no attention, so it samples at any size). What it enlarges
    is x_0 made `net.scale` times smaller, and made worse, because the decoder's images are not as
    clean as real ones: by a blur of a pixel's width with probability `blur_rate`, and by Gaussian
    noise of a deviation uniform on [0, `noise_level`] with probability `noise_rate`. That it is
    blurred is unCLIP's, noise Ho et al.'s; the rates and the level are our choice. The network is
    not told of either. Captions are not looked at.

    `num_train_steps` n trains on n evenly spaced steps of the schedule alone: those that Karlo's
    UnCLIPScheduler takes when it samples with n (7 there). None is all of them. For a learned
    variance the loss is L_hybrid, see `hybrid_losses`.
    With `net.embed_dim` > 0 the segments of a batch, cropped with its image, are embedded by `clip`
    and null with probability `drop_rate`. Every random number is a function of (`seed`, position of
    the sample in the training stream).
    """

    timesteps: Tensor

    def __init__(
        self,
        net: UpsamplerNet,
        *,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler,
        crop: int | None = None,
        blur_rate: float = 0.5,
        noise_rate: float = 0.5,
        noise_level: float = 0.1,
        num_train_steps: int | None = None,
        vb_weight: float = 0.001,
        clip: Clip | None = None,
        drop_rate: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        rates = {"blur_rate": blur_rate, "noise_rate": noise_rate, "drop_rate": drop_rate}
        for name, rate in rates.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"module.{name}: found {rate}, expected a number in [0, 1]")
        for name, value in (("noise_level", noise_level), ("vb_weight", vb_weight)):
            if value < 0:
                raise ValueError(f"module.{name}: found {value}, expected at least 0")
        check_clip(net, clip)
        if crop is not None:
            check_side(crop, net.multiple, "module.crop")
        self.net, self.clip, self.crop = net, clip, crop
        self.blur_rate, self.noise_rate, self.noise_level = blur_rate, noise_rate, noise_level
        self.vb_weight, self.drop_rate, self.seed = vb_weight, drop_rate, seed

        timesteps = steps_of(net.alphas_cumprod, num_train_steps)
        self.register_buffer("timesteps", timesteps, persistent=False)

    def setup(self, stage: str) -> None:
        """ValueError for cached encodings other than embeddings of segments, made by this CLIP, and
        for a network that takes segments where there are none."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if self.clip is not None and getattr(datamodule, "segmenter", "stored") is None:
            raise ValueError(
                "datamodule.segmenter: found null, expected one: module.net.embed_dim is "
                f"{self.net.embed_dim}, so that ST is fed"
            )
        kinds = tuple(getattr(datamodule, "encoded_kinds", ()))
        if unused := [kind for kind in kinds if kind != "embeds" or self.clip is None]:
            raise ValueError(
                f"datamodule.encodings.{unused[0]}: found true, expected false: an upsampler is "
                "trained on images"
            )
        if kinds and self.clip is not None:
            datamodule.check_encoders({"embeds": self.clip.encoder})

    def on_fit_start(self) -> None:
        """ValueError where the datamodule tells of images that do not fit."""
        for size in getattr(self.trainer.datamodule, "image_sizes", []):  # type: ignore[attr-defined]
            if self.crop is None:
                for side in size:
                    check_side(side, self.net.multiple, "datamodule.image_size")
            elif self.crop > min(size):
                raise ValueError(
                    f"module.crop: found {self.crop}, expected at most {min(size)}, the shorter "
                    f"side of images of {size[0]} x {size[1]} pixels"
                )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x_0, segments = self.targets(batch, self.seed)
        low = self.spoiled(downsample(x_0, self.net.scale), batch)
        if segments is not None:
            coins = uniform(self.seed, Purpose.DROP_SEGMENTS, batch["index"])
            segments = segments.where(coins >= self.drop_rate)
        losses = self.losses(batch, x_0, low, segments, self.seed)
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(x_0))
        return losses["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """With the same numbers at every validation, others than in training, and clean images."""
        x_0, segments = self.targets(batch, self.seed + 1)
        low = downsample(x_0, self.net.scale)
        losses = self.losses(batch, x_0, low, segments, self.seed + 1)
        options: dict[str, Any] = {"sync_dist": True, "batch_size": len(x_0)}
        for name, value in losses.items():
            self.log(f"val/{name}", value, prog_bar=name == "loss", **options)
        return losses["loss"]

    def targets(
        self, batch: dict[str, Any], seed: int
    ) -> tuple[Float[Tensor, "b 3 h w"], Segments | None]:
        """x_0 and, where the network takes them, its segments, the same part of both."""
        names = ["image"] if self.clip is None else ["image", "ids"]
        images = [batch[name] for name in names]
        if self.crop is not None:
            images = random_crops(images, self.crop, seed, batch["index"])
        if self.clip is None:
            return images[0], None
        embeds = self.clip.embed_segments(batch)
        return images[0], Segments(ids=images[1], embeds=embeds, valid=batch["valid"])

    def spoiled(
        self, low: Float[Tensor, "b 3 h w"], batch: dict[str, Any]
    ) -> Float[Tensor, "b 3 h w"]:
        """Blurred and noisy, each by its own coin."""
        index, shape = batch["index"], tuple(low.shape[1:])
        draws = uniform(self.seed, Purpose.LOW_RES_LEVEL, index, (3, 1, 1, 1))
        is_blurred, is_noisy = draws[:, 0] < self.blur_rate, draws[:, 1] < self.noise_rate
        low = torch.where(is_blurred, blur(low), low)
        noise = normal(self.seed, Purpose.LOW_RES_NOISE, index, shape)
        return low + torch.where(is_noisy, self.noise_level * draws[:, 2], 0.0) * noise

    def losses(
        self,
        batch: dict[str, Any],
        x_0: Float[Tensor, "b 3 h w"],
        low: Float[Tensor, "b 3 i j"],
        segments: Segments | None,
        seed: int,
    ) -> dict[str, Tensor]:
        """ "loss", and with a learned variance its parts: simple, and vb in bits per dimension."""
        index, net, schedule = batch["index"], self.net, self.net.alphas_cumprod[self.timesteps]
        step = randint(seed, Purpose.TIMESTEP, index, len(schedule))
        noise = normal(seed, Purpose.NOISE, index, tuple(x_0.shape[1:]))
        a_t = schedule[step]
        x_t = add_noise(x_0, noise, a_t)
        target = prediction_target(x_0, noise, a_t, net.prediction_type)
        prediction = net.denoise(x_t, self.timesteps[step], low, segments)
        weight = torch.ones_like(a_t)
        if not net.learned_variance:
            return {"loss": diffusion_loss(prediction, target, weight)}
        bound = variational_bound(prediction, x_0, x_t, step, schedule, net.prediction_type)
        return hybrid_losses(
            prediction, target, weight, bound, vb_weight=self.vb_weight, num_steps=len(schedule)
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.clip is not None:
            checkpoint["embeddings"] = self.clip.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.clip is not None:
            check_embeddings(checkpoint, self.clip.fingerprint)

    def save_pretrained(self, folder: Path, batches: list[dict[str, Any]]) -> None:
        """Write super_res_first/ and super_res_scheduler/ as Karlo has them, and super_res_last/
        where it began from one. `batches` are not needed."""
        self.net.save_pretrained(folder)


def check_clip(net: UpsamplerNet, clip: Clip | None) -> None:
    """Raises ValueError unless there is one exactly where the network takes its embeddings."""
    if (found := 0 if clip is None else clip.embed_dim) != net.embed_dim:
        raise ValueError(
            f"module.clip: found embeddings of width {found}, expected {net.embed_dim}, the "
            "module.net.embed_dim; module.clip=null goes with 0"
        )


def check_side(side: int, multiple: int, option: str) -> None:
    if side % multiple:
        raise ValueError(
            f"{option}: found {side}, expected a multiple of {multiple} for this network"
        )
