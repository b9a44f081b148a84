"""The network of an upsampler: a denoiser of images that sees the image it enlarges."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from jaxtyping import Float, Real
from torch import Tensor

from ..functional.diffusion import PredictionType
from ..functional.resampling import upsample
from ..functional.st import Resize, Segments
from .compiled import Compile
from .diffusers_folder import named_errors
from .frozen import Frozen
from .surgery import Evaluation, NewWeights
from .trained_unet import TrainedUnet
from .unclip_folder import load_whole
from .unclip_schedule import load_scheduler, make_scheduler, published_scheduler
from .upsampler_folder import (
    FIRST,
    IMAGE,
    LAST,
    REQUIRED,
    SCHEDULER,
    check_upsampler,
    open_upsampler,
)


class UpsamplerNet(TrainedUnet):
    """A UNet of diffusers on [x_t, the low-resolution image enlarged], as Karlo's super-resolution.

    Low-resolution images are `scale` times smaller than x_0, in [-1, 1] as all images are. Six
    outputs are the mean and a learned variance, three the mean alone. `unet` is trained; `last`,
    where there is one, takes its place in the last step of sampling (Karlo has a network there that
    was trained further with a GAN loss) and is held, not owned: it is neither trained nor averaged.

    The paper feeds ST to the decoder alone. With `embed_dim` > 0 it enters here too, through the
    widened first convolution of `unet`; conf/experiment/upsampler_256.yaml says what that costs.
    """

    option = "module.net"

    def __init__(
        self,
        *,
        unet: UNet2DModel,
        scheduler: Any,
        scale: int,
        embed_dim: int = 0,
        last: UNet2DModel | None = None,
        new_weights: NewWeights = "he",
        st_conv: Evaluation = "factorised",
        st_resize: Resize = "area",
        channels_last: bool = True,
        gradient_checkpointing: bool = False,
        compile: Compile = False,
        compile_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if scale < 2:
            raise ValueError(f"upsampler.scale: found {scale}, expected at least 2")
        self.scale, self.channels = scale, IMAGE
        self.learned_variance: bool = unet.config.out_channels == 2 * IMAGE
        self.multiple = math.lcm(scale, 2 ** (len(unet.config.block_out_channels) - 1))
        self.take_unet(
            unet,
            channels=2 * IMAGE,
            embed_dim=embed_dim,
            new_weights=new_weights,
            st_conv=st_conv,
            st_resize=st_resize,
            channels_last=channels_last,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            compile_options=compile_options,
        )
        if last is not None and channels_last:
            last.to(memory_format=torch.channels_last)
        self.held_last = None if last is None else Frozen(last)
        self.prediction_type: PredictionType = scheduler.config.prediction_type
        self.scheduler_config: dict[str, Any] = dict(scheduler.config)
        self.take_schedule(scheduler.betas)

    @property
    def last(self) -> UNet2DModel | None:
        return None if self.held_last is None else self.held_last.net

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        scale: int = 4,
        *,
        embed_dim: int | None = None,
        prediction_type: PredictionType | None = None,
        **options: Any,
    ) -> "UpsamplerNet":
        """super_res_first/, super_res_scheduler/ and, where there is one, super_res_last/ of a
        folder or hub name in the layout of Karlo, safetensors only, as float32.

        `embed_dim` None takes the network as wide as it is there. Raises ValueError, before any
        weights are read, naming what is missing, of another kind, or at odds with the rest, and for
        a scheduler of another `prediction_type` (None takes that of the scheduler); and, by its
        name, for a weight that is missing or left over.
        """
        folder = open_upsampler(path)
        width = check_upsampler(folder, embed_dim, prediction_type)
        parts = [part for part in (FIRST, LAST) if part in folder.configs]
        with named_errors(path, folder.option, REQUIRED):
            nets = {part: load_whole(UNet2DModel, folder, part) for part in parts}
        return cls(
            unet=nets[FIRST],
            last=nets.get(LAST),
            scheduler=load_scheduler(folder, SCHEDULER),
            scale=scale,
            embed_dim=width,
            **options,
        )

    @classmethod
    def from_config(
        cls,
        *,
        unet: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        scale: int = 4,
        embed_dim: int = 0,
        **options: Any,
    ) -> "UpsamplerNet":
        """With random weights. `unet` are options of UNet2DModel, `scheduler` of DDPMScheduler.

        A `variance_type` learned_range there means six outputs.
        """
        made = make_scheduler(scheduler, f"{cls.option}.scheduler")
        learned = made.config.variance_type == "learned_range"
        net = UNet2DModel(in_channels=2 * IMAGE, out_channels=(2 if learned else 1) * IMAGE, **unet)
        return cls(unet=net, scheduler=made, scale=scale, embed_dim=embed_dim, **options)

    def save_pretrained(self, folder: Path) -> None:
        """The layout that `from_pretrained` and diffusers' `UnCLIPPipeline` read."""
        self.unet.save_pretrained(folder / FIRST)
        if self.last is not None:
            self.last.save_pretrained(folder / LAST)
        published_scheduler(self.scheduler_config).save_pretrained(folder / SCHEDULER)

    def denoise(
        self,
        x_t: Float[Tensor, "b 3 h w"],
        t: Real[Tensor, " b"],
        low: Float[Tensor, "b 3 i j"],
        segments: Segments | None = None,
        *,
        last: bool = False,
    ) -> Float[Tensor, "b c h w"]:
        """The prediction at step t, mean channels first.

        `low` has 1 / scale of the sides of x_t. `segments` speak where `embed_dim` > 0, in ids of
        any resolution; None is null ST. `last`: the network for the last step, if there is one.
        """
        x = torch.cat([x_t, upsample(low, self.scale).to(x_t.dtype)], dim=1)
        if last and self.last is not None:
            return self.last(x, t, return_dict=False)[0]
        unet = self.compiled(self.unet, x.device)
        if segments is None or self.embed_dim == 0:
            return unet(x, t, return_dict=False)[0]
        with self.unet.conv_in.painting(segments):
            return unet(x, t, return_dict=False)[0]
