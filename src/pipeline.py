"""SpaText as a pipeline of diffusers: scenes in, images out, from one folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .modules.networks.frozen import Frozen
from .modules.networks.latent import LatentBackbone
from .modules.networks.pixel import PixelBackbone
from .modules.networks.text_image import TextImageProjection
from .modules.networks.unclip_schedule import published_scheduler
from .modules.pixel_spatext import PixelSpaText
from .modules.sampling_options import Sampling, make_scheduler
from .modules.spatext import SpaText
from .pipeline_base import ScenePipeline
from .pipeline_folder import DECODER_SCHEDULER, LATENT, PIXEL, find_folder, read_index
from .pipeline_inputs import plain_sampling
from .pipeline_model import assemble_latent, assemble_pixel
from .pipeline_parts import ClipPart, PriorPart, UpsamplerPart, conv_options


class SpaTextPipeline(ScenePipeline):
    """A latent model, as `ScenePipeline` paints with it.

    `scheduler` is the sampler, any of diffusers; `schedule` is that of the training, on which a
    call makes another by its name. Without `prior` the texts' own embeddings are painted.
    `st_conv`, `st_resize` and `channels_last` are those of `LatentBackbone`, `sampling` the
    defaults of `__call__`; `record` is what the model card tells of the training.
    """

    KIND = LATENT
    PARTS = ("unet", "vae", "text_encoder", "clip", "tokenizer", "prior")
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _exclude_from_cpu_offload = ["clip", "prior"]  # noqa: RUF012  (as the base class has it)
    _optional_components = ["prior"]  # noqa: RUF012
    assemble = staticmethod(assemble_latent)

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: Any,
        clip: ClipPart,
        prior: PriorPart | None = None,
        *,
        st_conv: str = "factorised",
        st_resize: str = "area",
        channels_last: bool = True,
        schedule: dict | None = None,
        sampling: dict | None = None,
        record: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_modules(scheduler=scheduler, clip=clip, prior=prior)
        self.register_to_config(st_conv=st_conv, st_resize=st_resize, channels_last=channels_last)
        self._complete(schedule, sampling, record)

    @classmethod
    def from_model(
        cls,
        model: SpaText,
        *,
        sampling: Sampling | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> "SpaTextPipeline":
        """Of a trained model, whose networks it takes over: it is not to be trained any further."""
        backbone = model.backbone
        if not isinstance(backbone, LatentBackbone):
            found = type(backbone).__name__
            raise ValueError(f"module.backbone: found a {found}, expected a LatentBackbone")
        return cls(
            unet=backbone.plain_unet(),
            vae=backbone.vae.net,
            text_encoder=backbone.text_encoder.net,
            **conv_options(backbone.unet.conv_in),
            **common(model, sampling, record),
        )


class SpaTextPixelPipeline(ScenePipeline):
    """A decoder in pixels and its upsamplers, as `ScenePipeline` paints with them.

    The components are those of `PixelBackbone`; `upsampler_1` and `upsampler_2` enlarge what the
    decoder paints, one after the other, `factor` times together. Without any it is enlarged by
    interpolation. All else is as in `SpaTextPipeline`.
    """

    KIND = PIXEL
    PARTS = (
        *("decoder", "text_proj", "text_encoder", "clip", "tokenizer", "prior"),
        *("upsampler_1", "upsampler_2"),
    )
    OPTIONS = (*ScenePipeline.OPTIONS, "factor")
    model_cpu_offload_seq = "text_encoder->decoder->upsampler_1->upsampler_2"
    # The null embedding in text_proj is read, not called.
    _exclude_from_cpu_offload = ["clip", "prior", "text_proj"]  # noqa: RUF012
    _optional_components = ["prior", "upsampler_1", "upsampler_2"]  # noqa: RUF012
    assemble = staticmethod(assemble_pixel)

    def __init__(
        self,
        decoder: UNet2DConditionModel,
        text_proj: TextImageProjection,
        text_encoder: CLIPTextModelWithProjection | CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: Any,
        clip: ClipPart,
        prior: PriorPart | None = None,
        upsampler_1: UpsamplerPart | None = None,
        upsampler_2: UpsamplerPart | None = None,
        *,
        factor: int = 1,
        st_conv: str = "factorised",
        st_resize: str = "area",
        channels_last: bool = True,
        schedule: dict | None = None,
        sampling: dict | None = None,
        record: dict | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(decoder=decoder, text_proj=text_proj, text_encoder=text_encoder)
        self.register_modules(tokenizer=tokenizer, scheduler=scheduler, clip=clip, prior=prior)
        self.register_modules(upsampler_1=upsampler_1, upsampler_2=upsampler_2)
        self.register_to_config(st_conv=st_conv, st_resize=st_resize, channels_last=channels_last)
        self.register_to_config(factor=factor)
        self._complete(schedule, sampling, record)

    @classmethod
    def from_model(
        cls,
        model: SpaText,
        *,
        sampling: Sampling | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> "SpaTextPixelPipeline":
        """As `SpaTextPipeline.from_model`, with the upsamplers that the model has."""
        backbone = model.backbone
        if not (isinstance(model, PixelSpaText) and isinstance(backbone, PixelBackbone)):
            found = type(backbone).__name__
            raise ValueError(f"module.backbone: found a {found}, expected a PixelBackbone")
        if (num := len(model.upsamplers)) > 2:
            raise ValueError(f"module.upsamplers: found {num}, expected at most 2")
        parts = [UpsamplerPart.of(net) for net in model.upsamplers]
        text_encoder = backbone.text_encoder
        return cls(
            decoder=backbone.unet,
            text_proj=backbone.projection,
            text_encoder=text_encoder.net if isinstance(text_encoder, Frozen) else text_encoder,
            **{f"upsampler_{i}": part for i, part in enumerate(parts, 1)},
            factor=backbone.factor,
            **conv_options(backbone.unet.conv_in),
            **common(model, sampling, record),
        )

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """And the schedule of the training, with which the folder is one to train on from."""
        super().save_pretrained(save_directory, **options)
        schedule = published_scheduler(dict(self.config.schedule))
        schedule.save_pretrained(Path(save_directory, DECODER_SCHEDULER))

    @property
    def stages(self) -> dict[str, str]:
        side, backbone = self.default_size // self.config.factor, self._model.backbone
        variance = "learned" if backbone.learned_variance else "fixed"
        stages = {"decoder": f"{side} x {side} px, {variance} variance"}
        parts = {name: getattr(self, name) for name in ("upsampler_1", "upsampler_2")}
        for name, part in parts.items():
            if part is not None:
                side *= part.scale
                own = ", sees the map" if part.embed_dim else ""
                last = ", another network in the last step" if part.last is not None else ""
                stages[name] = f"{part.scale} times, to {side} x {side} px{own}{last}"
        if len(stages) == 1 and self.config.factor > 1:
            stages["interpolation"] = f"{self.config.factor} times, to {self.default_size} px"
        return stages


def load_pipeline(path: str | Path, **options: Any) -> ScenePipeline:
    """`from_pretrained` of the class that a folder, or its name on the hub, is for."""
    folder = find_folder(path, options)
    kind = read_index(folder, f"pipeline={path}")["_class_name"]
    made: type[ScenePipeline] = SpaTextPixelPipeline if kind == PIXEL else SpaTextPipeline
    return made.from_pretrained(folder, **options)


def pipeline_of(
    model: SpaText,
    *,
    sampling: Sampling | None = None,
    record: Mapping[str, Any] | None = None,
) -> ScenePipeline:
    """`from_model` of the class for a model of its kind."""
    made = SpaTextPixelPipeline if isinstance(model, PixelSpaText) else SpaTextPipeline
    return made.from_model(model, sampling=sampling, record=record)


def common(
    model: SpaText, sampling: Sampling | None, record: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The components and the configuration that both kinds have."""
    sampling = sampling or Sampling()
    backbone: Any = model.backbone
    return {
        "tokenizer": backbone.tokenizer,
        "scheduler": make_scheduler(sampling, backbone.scheduler_config),
        "clip": ClipPart.of(model.clip),
        "prior": PriorPart.of(model.prior),  # type: ignore[arg-type]
        "schedule": backbone.scheduler_config,
        "sampling": plain_sampling(sampling),
        "record": dict(record or {}),
    }
