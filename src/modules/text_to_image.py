"""Training a text-to-image diffusion model: the base that SpaText starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .functional.conditions import NAMES, Conditions, drop_conditions
from .functional.diffusion import add_noise, prediction_target, snr
from .functional.losses import Weighting, diffusion_loss, hybrid_losses, loss_weight
from .functional.random import Purpose, normal, randint
from .functional.st import Segments
from .functional.variational import variational_bound
from .networks.backbone import Backbone
from .training import MakeOptimizer, MakeScheduler, TrainedModule, steps_of


class TextToImage(TrainedModule):
    """One training step of a diffusion model on captions, for any backbone.

    `drop_rates` holds one probability per condition name; each condition has its own coin. Every
    random number of a step is a function of (`seed`, position of the sample in the training
    stream), so neither batch composition nor world size nor a resume changes what is trained on.

    `offset_noise` s adds s n_c to the noise of training, one standard normal number per image and
    channel, so that a mean brightness is learned too (Guttenberg 2023, "Diffusion with offset
    noise", with s = 0.1). The noise of validation has none, so that its losses compare.

    Where the backbone learns its variance the loss is L_hybrid, see `hybrid_losses`.
    `num_train_steps` trains on so many evenly spaced steps of the schedule; None is all of them.
    """

    timesteps: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler,
        drop_rates: Mapping[str, float],
        loss_weighting: Weighting = "none",
        min_snr_gamma: float = 5.0,
        offset_noise: float = 0.0,
        vb_weight: float = 0.001,
        num_train_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        for name, value in (("offset_noise", offset_noise), ("vb_weight", vb_weight)):
            if value < 0:
                raise ValueError(f"module.{name}: found {value}, expected at least 0")
        self.backbone, self.vb_weight = backbone, vb_weight
        timesteps = steps_of(backbone.alphas_cumprod, num_train_steps)
        self.register_buffer("timesteps", timesteps, persistent=False)
        check_rates(drop_rates, backbone)
        self.drop_rates = dict(drop_rates)
        self.loss_weighting, self.min_snr_gamma = loss_weighting, min_snr_gamma
        self.offset_noise, self.seed = offset_noise, seed

    def setup(self, stage: str) -> None:
        """ValueError where the datamodule's cached encodings come from other encoders.

        Before the trainer moves or casts any weights, of which they are told by their digests.
        """
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if kinds := getattr(datamodule, "encoded_kinds", ()):
            datamodule.check_encoders({kind: self.encoder(kind) for kind in kinds})

    def encoder(self, kind: str) -> dict[str, Any]:
        """Digests and options of what makes a kind of cached encodings."""
        if kind == "embeds":
            return {}  # there are no segments, and no CLIP
        return self.backbone.fingerprint(kind)  # type: ignore[arg-type]

    def on_fit_start(self) -> None:
        """ValueError where the datamodule tells of images that the network cannot take."""
        multiple = self.backbone.multiple
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        for height, width in getattr(datamodule, "image_sizes", []):
            if height % multiple or width % multiple:
                raise ValueError(
                    f"datamodule.image_size, datamodule.buckets.step: images of {height} x {width} "
                    f"pixels, expected sides that are multiples of {multiple} for this model"
                )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        conditions = drop_conditions(
            self.conditions(batch),
            self.null_conditions(),
            self.drop_rates,
            self.seed,
            batch["index"],
        )
        losses = self.losses(batch, conditions, self.seed, offset_noise=self.offset_noise)
        size = len(batch["index"])
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=size)
        return losses["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # The same noise at every validation, and not that of training.
        losses = self.losses(batch, self.conditions(batch), self.seed + 1)
        options: dict[str, Any] = {"sync_dist": True, "batch_size": len(batch["index"])}
        for name, value in losses.items():
            self.log(f"val/{name}", value, prog_bar=name == "loss", **options)
        return losses["loss"]

    def loss(
        self,
        batch: dict[str, Any],
        conditions: Conditions,
        seed: int,
        *,
        offset_noise: float = 0.0,
    ) -> Tensor:
        """What is minimised, of `losses`."""
        return self.losses(batch, conditions, seed, offset_noise=offset_noise)["loss"]

    def losses(
        self,
        batch: dict[str, Any],
        conditions: Conditions,
        seed: int,
        *,
        offset_noise: float = 0.0,
    ) -> dict[str, Tensor]:
        """E || target - prediction ||^2, weighted; the paper's L_LDM for the epsilon target.

        "loss", and with a learned variance its parts: "simple", and "vb" in bits per dimension.
        """
        index, backbone = batch["index"], self.backbone
        height, width = (side // backbone.factor for side in batch["image"].shape[-2:])
        shape = (backbone.channels, height, width)

        x_0 = self.x_0(batch, normal(seed, Purpose.POSTERIOR, index, shape))
        schedule = backbone.alphas_cumprod[self.timesteps]
        step = randint(seed, Purpose.TIMESTEP, index, len(schedule))
        a_t = schedule[step]
        noise = normal(seed, Purpose.NOISE, index, shape)
        if offset_noise:
            shift = normal(seed, Purpose.OFFSET_NOISE, index, (backbone.channels, 1, 1))
            noise = noise + offset_noise * shift
        x_t = add_noise(x_0, noise, a_t)
        target = prediction_target(x_0, noise, a_t, backbone.prediction_type)
        weight = loss_weight(
            snr(a_t), backbone.prediction_type, self.loss_weighting, self.min_snr_gamma
        )
        prediction = backbone.denoise(x_t, self.timesteps[step], conditions)
        if not backbone.learned_variance:
            return {"loss": diffusion_loss(prediction, target, weight)}
        bound = variational_bound(prediction, x_0, x_t, step, schedule, backbone.prediction_type)
        return hybrid_losses(
            prediction, target, weight, bound, vb_weight=self.vb_weight, num_steps=len(schedule)
        )

    def conditions(self, batch: dict[str, Any]) -> Conditions:
        """The captions of a batch, untouched, and no segments."""
        null = self.null_segments().repeat(len(batch["index"]))
        return Conditions(text=self.text(batch), segments=null)

    def x_0(self, batch: dict[str, Any], noise: Tensor | None = None) -> Tensor:
        """Drawn from the cached moments of a batch, or from those of its images."""
        if "moments" in batch:
            return self.backbone.draw(batch["moments"].float(), noise)
        return self.backbone.encode(batch["image"], noise)

    def text(self, batch: dict[str, Any]) -> Tensor:
        """The cached states of a batch's captions, or those of the encoder."""
        if "text" in batch:
            return batch["text"].to(self.backbone.embed_text([""]))  # device and precision
        return self.backbone.embed_text(batch["caption"])

    def null_segments(self) -> Segments:
        return Segments.null(1, 1, self.backbone.embed_dim, (1, 1), device=self.device)

    def null_conditions(self) -> Conditions:
        """The empty prompt and no segments: one row, for dropout and for guidance alike."""
        return Conditions(text=self.backbone.embed_text([""]), segments=self.null_segments())

    def save_pretrained(self, folder: Path, batches: list[dict[str, Any]]) -> None:
        """Write what the backbone trains, in its published layout. `batches` are not needed."""
        self.backbone.save_pretrained(folder)


def check_rates(rates: Mapping[str, float], backbone: Backbone) -> None:
    """What the first step would refuse, before any data are read: names that are unknown, numbers
    out of range, and an image embedding to drop where the backbone sees none. ValueError."""
    for name, rate in rates.items():
        if name not in NAMES:
            known = ", ".join(NAMES)
            raise ValueError(f"module.drop_rates: found {name!r}, expected names among {known}")
        if not 0 <= rate <= 1:
            raise ValueError(f"module.drop_rates.{name}: found {rate}, expected a number in [0, 1]")
    if (rate := rates.get("image_embed", 0.0)) > 0 and backbone.null_image_embed is None:
        raise ValueError(
            f"module.drop_rates.image_embed: found {rate}, expected 0: this model sees no "
            "embedding of the image"
        )
