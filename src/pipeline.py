"""SpaText as a pipeline of diffusers: scenes in, images out, from one folder."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .callbacks.images import sample_scenes
from .callbacks.jobs import Job, check_counts, check_sizes, make_batches, make_jobs
from .callbacks.remarks import remarks
from .modules.functional.sampling import OnStep
from .modules.generate import to_pixels
from .modules.networks.latent import LatentBackbone
from .modules.sampling_options import Sampling, make_scheduler
from .modules.spatext import SpaText
from .pipeline_folder import CARD, card, check_saving, find_folder, forget_origin
from .pipeline_inputs import (
    OutputType,
    SceneLike,
    as_output,
    check_output,
    merge_sampling,
    plain_sampling,
    read_scenes,
)
from .pipeline_model import assemble
from .pipeline_parts import ClipPart, PriorPart

NETWORKS = ("unet", "vae", "text_encoder", "clip")
PARTS = (*NETWORKS, "tokenizer", "prior")  # of the model; the scheduler is not

log = logging.getLogger(__name__)


class SpaTextPipeline(DiffusionPipeline):
    """Paints scenes; the loop, the guidance and the random numbers are those of `generate`, so that
    a picture is that of spatext-sample for the same scene, seed, options and batch.

    `scheduler` is the sampler, any of diffusers; `schedule` is that of the training, on which a
    call makes another by its name. Without `prior` the texts' own embeddings are painted.
    `st_conv`, `st_resize` and `channels_last` are those of `LatentBackbone`, `sampling` the
    defaults of `__call__`; `record` is what the model card tells of the training.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _exclude_from_cpu_offload = ["clip", "prior"]  # noqa: RUF012  (as the base class has it)
    _optional_components = ["prior"]  # noqa: RUF012

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
        self.register_to_config(
            st_conv=st_conv,
            st_resize=st_resize,
            channels_last=channels_last,
            schedule=dict(schedule or scheduler.config),
            sampling=plain_sampling(Sampling(**(sampling or {}))),
            record=dict(record or {}),
        )
        self._card: str | None = None
        self._assemble()

    @classmethod
    def from_model(
        cls,
        model: SpaText,
        *,
        sampling: Sampling | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> "SpaTextPipeline":
        """Of a trained model, whose networks it takes over: it is not to be trained any further."""
        sampling, backbone = sampling or Sampling(), model.backbone
        if not isinstance(backbone, LatentBackbone):
            found = type(backbone).__name__
            raise ValueError(f"module.backbone: found a {found}, expected a LatentBackbone")
        conv = backbone.unet.conv_in
        return cls(
            unet=backbone.plain_unet(),
            vae=backbone.vae.net,
            text_encoder=backbone.text_encoder.net,
            tokenizer=backbone.tokenizer,
            scheduler=make_scheduler(sampling, backbone.scheduler_config),
            clip=ClipPart.of(model.clip),
            prior=PriorPart.of(model.prior),  # type: ignore[arg-type]
            st_conv=conv.evaluation,
            st_resize=conv.resize,
            channels_last=conv.weight.is_contiguous(memory_format=torch.channels_last),
            schedule=backbone.scheduler_config,
            sampling=plain_sampling(sampling),
            record=dict(record or {}),
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "SpaTextPipeline":
        """A folder of spatext-export or of `save_pretrained`, or its name on the hub, safetensors
        only; float32 unless `dtype` says otherwise.

        Raises ValueError, before any weights are read, naming what a folder lacks.
        """
        folder = find_folder(path, options)
        pipeline = super().from_pretrained(str(folder), use_safetensors=True, **options)
        if "dtype" not in options and "torch_dtype" not in options:
            for name in NETWORKS:  # files may be float16, which transformers would keep
                if getattr(pipeline, name).dtype != torch.float32:
                    getattr(pipeline, name).to(torch.float32)
        if (folder / CARD).is_file():
            pipeline._card = (folder / CARD).read_text(encoding="utf-8")
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """What `from_pretrained` reads, with a model card."""
        check_saving(options)
        super().save_pretrained(str(save_directory), **options)
        forget_origin(Path(save_directory))
        text = self._card or card(self.config)  # what somebody has filled in is kept
        Path(save_directory, CARD).write_text(text, encoding="utf-8")

    def enable_sequential_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Refused: between its layers the text encoder is nowhere, and is asked where it is."""
        raise ValueError("enable_sequential_cpu_offload: expected enable_model_cpu_offload")

    def to(self, *args: Any, **options: Any) -> "SpaTextPipeline":
        """Place and dtype of all networks, as diffusers has it."""
        moved = super().to(*args, **options)
        self._model.drawn.clear()  # embeddings that were drawn by the networks as they were
        return moved

    @property
    def model(self) -> SpaText:
        """The components as one model, where they are now."""
        if any(self._parts[name] is not getattr(self, name) for name in self._parts):
            self._assemble()
        self._model.place_buffers(self._execution_device)
        return self._model

    def _assemble(self) -> None:
        self._parts = {name: getattr(self, name) for name in PARTS}
        options = {name: self.config[name] for name in ("st_conv", "st_resize", "channels_last")}
        self._model = assemble(**self._parts, scheduler=self.scheduler, **options)

    def __call__(
        self,
        scene: SceneLike | Sequence[SceneLike] | None = None,
        *,
        prompt: str = "",
        negative_prompt: str | None = None,
        regions: Sequence[Any] = (),
        size: int | Sequence[int] | None = None,
        seed: int | None = None,
        num_images: int = 1,
        batch_size: int = 8,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> Any:
        """Images of scenes, seed after seed and scene after scene, as spatext-sample orders them.

        scene: a path, a `Scene`, a dict as scene files have it, or a list of these; or, in its
            place, `prompt` and `regions` (see `read_region`), `size` being one side or (h, w).
        seed: of the first image of each scene, the others follow; None is the scene's own.
        batch_size: images painted together. Rounding depends on it, nothing else does.
        output_type: "pil"; "np", the same pixels as float32 [n, h, w, 3] in [0, 1]; "pt", as
            [n, 3, h, w] on the CPU; "latent", x_0 as float32 [n, c, h / 8, w / 8]: the
            autoencoder's latents times its scaling_factor.
        on_step: called with (step, x_t, x_0_hat) after each step; what it raises ends the call.
        options: fields of `Sampling` (num_steps, form, scale, scales, rescale, guidance_interval,
            append_texts, scheduler, scheduler_options, vae_tiling, compile), in place of the
            folder's. `num_inference_steps` and `guidance_scale` are num_steps and scale.

        Raises ValueError for what is wrong with these before anything is painted, and warns of
        what scenes say in vain: texts that are cut, scales under form "fast".
        """
        backbone = self.model.backbone
        cells = self.unet.config.sample_size or 64  # one side, or both
        default_size = backbone.factor * (cells if isinstance(cells, int) else cells[0])
        scenes = read_scenes(scene, prompt, negative_prompt or "", regions, size, default_size)
        check_sizes(scenes, backbone.multiple)
        check_output(output_type, scenes)
        check_counts(seed=seed, num_images=num_images, batch_size=batch_size)
        jobs = make_jobs(scenes, seed, num_images, [None])
        batches = make_batches(jobs, [False] * len(jobs), batch_size)
        sampling, backbone.scheduler_config = merge_sampling(
            self.config.sampling, self.scheduler, self.config.schedule, options
        )
        for line in dict.fromkeys(remarks(self._model, scenes, sampling)):
            log.warning("%s", line)
        painted = self._paint(batches, sampling, latent=output_type == "latent", on_step=on_step)
        self.maybe_free_model_hooks()
        images = as_output([painted[id(job)] for job in jobs], output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _paint(
        self,
        batches: Sequence[Sequence[Job]],
        sampling: Sampling,
        *,
        latent: bool,
        on_step: OnStep | None,
    ) -> dict[int, Any]:
        """Pixels, or latents where they were computed, by the id of their job."""
        scheduler = make_scheduler(sampling, self._model.backbone.scheduler_config)
        scheduler.set_timesteps(sampling.num_steps)  # some take more steps than they are told
        painted: dict[int, Any] = {}
        with self.progress_bar(total=len(batches) * len(scheduler.timesteps)) as bar:

            def tick(step: int, x_t: Tensor, x_0_hat: Tensor) -> None:
                bar.update()
                if on_step is not None:
                    on_step(step, x_t, x_0_hat)

            for jobs in batches:
                images = sample_scenes(
                    self._model,
                    [job.scene for job in jobs],
                    torch.tensor([job.seed for job in jobs]),
                    sampling,
                    on_step=tick,
                    latent=latent,
                )
                # A clone is out of inference mode.
                rows: Any = images.clone() if latent else to_pixels(images).numpy()
                painted |= {id(job): row for job, row in zip(jobs, rows, strict=True)}
        return painted
