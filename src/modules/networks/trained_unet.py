"""What backbones have in common: a UNet that is widened and trained, and its noise schedule."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from jaxtyping import Float
from torch import Tensor
from torch.amp import is_autocast_available

from ..functional.diffusion import PredictionType, check_terminal_snr
from ..functional.diffusion import alphas_cumprod as cumulate
from ..functional.st import Resize, Segments
from .compiled import Compile, Compiled
from .frozen import PartlyTrained
from .lora import add_lora, describe_base, make_lora
from .surgery import Evaluation, NewWeights, widen_conv


class TrainedUnet(PartlyTrained):
    """The parts of a backbone that do not depend on the space it works in."""

    option = "module.backbone"  # the key of the configuration that makes it
    unet: UNet2DConditionModel | UNet2DModel
    prediction_type: PredictionType
    alphas_cumprod: Tensor
    base: dict[str, Any] | None = None  # where weights that checkpoints lack are from, and which

    def take_unet(
        self,
        unet: UNet2DConditionModel | UNet2DModel,
        *,
        channels: int,
        embed_dim: int,
        new_weights: NewWeights = "he",
        st_conv: Evaluation = "factorised",
        st_resize: Resize = "area",
        channels_last: bool = True,
        gradient_checkpointing: bool = False,
        compile: Compile = False,
        compile_options: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        """Own `unet` from here on, widened by `embed_dim` inputs; see `widen_conv` and `Compiled`
        for options and errors. `lora` trains updates of it and the first convolution alone."""
        self.embed_dim = embed_dim
        unet.conv_in = widen_conv(
            unet.conv_in,
            embed_dim,
            in_channels=channels,
            new_weights=new_weights,
            evaluation=st_conv,
            resize=st_resize,
        )
        unet.register_to_config(in_channels=channels + embed_dim)
        if lora is not None:
            add_lora(unet, make_lora(lora))
        if channels_last:
            unet.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.compiled = Compiled(compile, compile_options, self.option)
        # from_pretrained leaves it in evaluation mode, and a Trainer keeps the mode it finds.
        self.unet = unet.train()
        self.untrained = frozenset(n for n, p in self.named_parameters() if not p.requires_grad)
        # Of the weights as they were read, whatever they are cast to later.
        self.base = describe_base(self.shared()) if self.untrained else None
        self.null_text: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def take_schedule(self, betas: Float[Tensor, " t"]) -> None:
        """Of a network of this `prediction_type`: ValueError where the two cannot go together."""
        # float32, as in diffusers: some devices have no float64.
        schedule = cumulate(betas.double()).float()
        check_terminal_snr(bool(schedule[-1] == 0), self.prediction_type)
        self.register_buffer("alphas_cumprod", schedule, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TrainedUnet":
        schedule = self.alphas_cumprod
        super()._apply(fn, recurse)
        # Half precision would round its first steps to no noise at all.
        self.alphas_cumprod = schedule.to(self.alphas_cumprod.device)
        return self

    def cached_null_text(
        self, dtype: torch.dtype, encode: Callable[[], Float[Tensor, "1 l e"]]
    ) -> Float[Tensor, "1 l e"]:
        """Of a frozen encoder, whose weights are of `dtype`: once per device and precision, since
        every step asks for it."""
        device = self.alphas_cumprod.device
        if is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        key = (device, dtype)
        if key not in self.null_text:
            # Training keeps it for the backward pass, also where a validation asked for it first.
            with torch.inference_mode(False), torch.no_grad():
                null = encode()
            self.null_text = {key: null}
        return self.null_text[key]

    def first_layer_std(
        self, x_t: Float[Tensor, "b c i j"], segments: Segments
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        conv = self.unet.conv_in
        silent = torch.zeros_like(x_t)
        with conv.painting(segments):
            painted = conv(silent)
        return conv(x_t).std(), (painted - conv(silent)).std()
