"""What the pipelines of diffusers around a SpaText model have in common: all but the components."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor, nn

from .callbacks.images import sample_scenes
from .callbacks.jobs import Job, check_counts, check_sizes, make_batches, make_jobs
from .callbacks.remarks import remarks
from .modules.cascade import count_steps, size_multiple
from .modules.functional.sampling import OnStep
from .modules.generate import to_pixels
from .modules.sampling_options import Sampling
from .pipeline_card import card
from .pipeline_folder import CARD, check_saving, find_folder, forget_origin
from .pipeline_inputs import (
    OutputType,
    SceneLike,
    as_output,
    check_output,
    merge_sampling,
    plain_sampling,
    read_scenes,
)
from .pipeline_model import Assembled

log = logging.getLogger(__name__)


class ScenePipeline(DiffusionPipeline):
    """Paints scenes; the loop, the guidance and the random numbers are those of `generate`, so that
    a picture is that of spatext-sample for the same scene, seed, options and batch.

    A subclass names the components and, in `PARTS`, those that make the model: `assemble` of these
    and of the options named in `OPTIONS`. `KIND` is its name in a folder.
    """

    assemble: Callable[..., Assembled]
    KIND: str
    PARTS: tuple[str, ...]
    OPTIONS: tuple[str, ...] = ("st_conv", "st_resize", "channels_last")

    def _complete(self, schedule: dict | None, sampling: dict | None, record: dict | None) -> None:
        """The end of a subclass's `__init__`, whose components and options are registered."""
        self.register_to_config(
            schedule=dict(schedule or self.scheduler.config),
            sampling=plain_sampling(Sampling(**(sampling or {}))),
            record=dict(record or {}),
        )
        self._card: str | None = None
        self._assemble()

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "ScenePipeline":
        """A folder of spatext-export or of `save_pretrained`, or its name on the hub, safetensors
        only; float32 unless `dtype` says otherwise.

        Raises ValueError, before any weights are read, naming what a folder lacks.
        """
        folder = find_folder(path, options, cls.KIND)
        pipeline = super().from_pretrained(str(folder), use_safetensors=True, **options)
        if "dtype" not in options and "torch_dtype" not in options:
            for part in pipeline.components.values():
                if isinstance(part, nn.Module):  # files may be float16, which some classes keep
                    nn.Module.to(part, torch.float32)
        if (folder / CARD).is_file():
            pipeline._card = (folder / CARD).read_text(encoding="utf-8")
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """What `from_pretrained` reads, with a model card."""
        check_saving(options)
        super().save_pretrained(str(save_directory), **options)
        forget_origin(Path(save_directory))
        new = card(self.KIND, self.config, self.default_size, self.stages)
        text = self._card or new  # what somebody has filled in is kept
        Path(save_directory, CARD).write_text(text, encoding="utf-8")

    def enable_sequential_cpu_offload(self, *_: Any, **__: Any) -> None:
        """Refused: between its layers the text encoder is nowhere, and is asked where it is."""
        raise ValueError("enable_sequential_cpu_offload: expected enable_model_cpu_offload")

    def to(self, *args: Any, **options: Any) -> "ScenePipeline":
        """Place and dtype of all networks, as diffusers has it."""
        moved = super().to(*args, **options)
        self._model.drawn.clear()  # embeddings that were drawn by the networks as they were
        return moved

    @property
    def model(self) -> Assembled:
        """The components as one model, where they are now."""
        if any(self._parts[name] is not getattr(self, name) for name in self._parts):
            self._assemble()
        self._model.place_buffers(self._execution_device)
        return self._model

    @property
    def default_size(self) -> int:
        """Side of the images that the denoiser was made for."""
        backbone: Any = self._model.backbone
        cells = backbone.unet.config.sample_size or 64  # one side, or both
        return backbone.factor * (cells if isinstance(cells, int) else cells[0])

    @property
    def stages(self) -> dict[str, str]:
        """For the model card: what paints an image, one after the other; none where it is one."""
        return {}

    def _assemble(self) -> None:
        self._parts = {name: getattr(self, name) for name in self.PARTS}
        options = {name: self.config[name] for name in self.OPTIONS}
        scheduler = DDPMScheduler.from_config(dict(self.config.schedule))
        self._model = type(self).assemble(**self._parts, scheduler=scheduler, **options)
        self._schedule = self._model.backbone.scheduler_config  # which calls replace

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
            [n, 3, h, w] on the CPU; "latent", x_0 as float32 [n, c, h / factor, w / factor]: the
            autoencoder's latents times its scaling_factor, or the picture as the decoder gives it.
        on_step: called with (step, x_t, x_0_hat) after each step, those of the upsamplers too; what
            it raises ends the call.
        options: fields of `Sampling` (num_steps, form, scale, scales, scheduler, thresholding,
            upsampler_steps and so on), in place of the folder's. `num_inference_steps` and
            `guidance_scale` are num_steps and scale.

        Raises ValueError for what is wrong with these before anything is painted, and warns of
        what scenes say in vain: texts that are cut, scales under form "fast".
        """
        backbone: Any = self.model.backbone
        default = self.default_size
        scenes = read_scenes(scene, prompt, negative_prompt or "", regions, size, default)
        check_sizes(scenes, size_multiple(self._model))
        check_output(output_type, scenes)
        check_counts(seed=seed, num_images=num_images, batch_size=batch_size)
        jobs = make_jobs(scenes, seed, num_images, [None])
        batches = make_batches(jobs, [False] * len(jobs), batch_size)
        sampling, backbone.scheduler_config = merge_sampling(
            self.config.sampling, self.scheduler, self._schedule, options
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
        painted: dict[int, Any] = {}
        num_steps = count_steps(self._model, sampling, latent=latent)
        with self.progress_bar(total=len(batches) * num_steps) as bar:

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
