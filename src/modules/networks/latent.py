"""The latent backbone: Stable Diffusion's UNet, autoencoder, text encoder and noise schedule."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float, Real
from torch import Tensor
from torch.amp import is_autocast_available
from transformers import CLIPTextModel, CLIPTokenizer

from ..functional.conditions import Conditions
from ..functional.diffusion import PredictionType, check_terminal_snr, rescale_zero_terminal_snr
from ..functional.diffusion import alphas_cumprod as cumulate
from ..functional.st import Resize, Segments
from .backbone import Backbone, Kind
from .captions import encode_captions
from .compiled import Compile, Compiled
from .diffusers_folder import PARTS, check_foreign, check_model, named_errors, open_folder
from .encodings import draw_posterior, posterior_moments, text_fingerprint, vae_fingerprint
from .frozen import Frozen, PartlyTrained
from .lora import add_lora, make_lora, merged
from .surgery import Evaluation, NewWeights, widen_conv

ENCODERS = ("vae", "text_encoder", "tokenizer")


class LatentBackbone(PartlyTrained, Backbone):
    """SpaText on a latent diffusion model (SpaText, section 3.3): only the UNet is trained.

    The spatio-textual map enters once, through the widened first convolution; a UNet that is as
    wide already, as `save_pretrained` writes it, keeps its weights there. Latents are multiplied by
    the autoencoder's `scaling_factor`. See `Backbone` for shapes and ranges.

    `zero_terminal_snr` rescales the schedule so that x_T holds nothing but noise (Lin et al. 2024,
    "Common diffusion noise schedules and sample steps are flawed", Alg. 1), in training and, by
    `scheduler_config`, in sampling. It needs a network that predicts v or x_0.
    `lora`, the options of `Lora`, trains updates of these layers and the first convolution alone;
    checkpoints hold no more than these, the rest comes from where it came from.
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: DDPMScheduler,
        embed_dim: int,
        new_weights: NewWeights = "he",
        st_conv: Evaluation = "factorised",
        st_resize: Resize = "area",
        channels_last: bool = True,
        gradient_checkpointing: bool = False,
        compile: Compile = False,
        compile_options: Mapping[str, Any] | None = None,
        zero_terminal_snr: bool = False,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.prediction_type: PredictionType = scheduler.config.prediction_type
        rescaled = zero_terminal_snr or scheduler.config.rescale_betas_zero_snr
        check_terminal_snr(rescaled, self.prediction_type)
        self.embed_dim = embed_dim
        self.channels: int = vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.multiple = self.factor * 2 ** (len(unet.config.block_out_channels) - 1)
        unet.conv_in = widen_conv(
            unet.conv_in,
            embed_dim,
            in_channels=self.channels,
            new_weights=new_weights,
            evaluation=st_conv,
            resize=st_resize,
        )
        unet.register_to_config(in_channels=self.channels + embed_dim)
        if lora is not None:
            add_lora(unet, make_lora(lora))
        if channels_last:
            unet.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.compiled = Compiled(compile, compile_options)
        # from_pretrained leaves it in evaluation mode, and a Trainer keeps the mode it finds.
        self.unet = unet.train()
        self.untrained = frozenset(n for n, p in self.named_parameters() if not p.requires_grad)
        self.vae, self.text_encoder = Frozen(vae), Frozen(text_encoder)
        self.tokenizer = tokenizer
        self.null_text: dict[tuple[torch.device, torch.dtype], Tensor] = {}

        betas = scheduler.betas.double()
        self.scheduler_config: dict[str, Any] = dict(scheduler.config)
        if zero_terminal_snr:
            betas = rescale_zero_terminal_snr(betas)
            self.scheduler_config["rescale_betas_zero_snr"] = True
        # float32, as in diffusers: some devices have no float64.
        self.register_buffer("alphas_cumprod", cumulate(betas).float(), persistent=False)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        embed_dim: int,
        prediction_type: PredictionType | None = None,
        **options: Any,
    ) -> "LatentBackbone":
        """Load a diffusers-layout folder or hub name, safetensors only, as float32.

        Raises ValueError, before any weights are read, naming what is missing, of another kind, or
        at odds with the rest, and for a scheduler of another `prediction_type` than this one; None
        takes that of the scheduler.
        """
        folder = open_folder(path, PARTS, "backbone.path")
        check_model(folder, embed_dim, prediction_type, options.get("zero_terminal_snr", False))
        with named_errors(path, "backbone.path"):
            parts = {
                "unet": UNet2DConditionModel.from_pretrained(
                    folder.path, subfolder="unet", use_safetensors=True, torch_dtype=torch.float32
                ),
                "scheduler": DDPMScheduler.from_pretrained(folder.path, subfolder="scheduler"),
                **load_encoders(folder.path),
            }
        return cls(embed_dim=embed_dim, **parts, **options)

    @classmethod
    def from_config(
        cls,
        path: str,
        *,
        unet: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        embed_dim: int,
        **options: Any,
    ) -> "LatentBackbone":
        """A UNet with random weights beside the pretrained encoders of the folder at `path`.

        Raises ValueError naming the part of it that is missing or of another kind.
        """
        folder = open_folder(path, ENCODERS, "backbone.path")
        check_foreign(folder, "vae")
        with named_errors(path, "backbone.path"):
            encoders = load_encoders(folder.path)
        latent_channels = encoders["vae"].config.latent_channels
        return cls(
            unet=UNet2DConditionModel(
                in_channels=latent_channels,
                out_channels=latent_channels,
                cross_attention_dim=encoders["text_encoder"].config.hidden_size,
                **unet,
            ),
            scheduler=DDPMScheduler(**scheduler),
            embed_dim=embed_dim,
            **encoders,
            **options,
        )

    def save_pretrained(self, folder: Path) -> None:
        """unet/ and scheduler/. With `embed_dim` 0 the UNet is an ordinary text-to-image one."""
        self.plain_unet().save_pretrained(folder / "unet")
        DDPMScheduler.from_config(self.scheduler_config).save_pretrained(folder / "scheduler")

    def plain_unet(self) -> UNet2DConditionModel:
        """The UNet as diffusers knows it, low-rank updates merged into the weights."""
        return merged(self.unet) if self.untrained else self.unet

    @torch.no_grad()
    def encode(
        self,
        image: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b c i j"] | None = None,
    ) -> Float[Tensor, "b c i j"]:
        with torch.inference_mode():
            moments = posterior_moments(self.vae.net, image)
        return self.draw(moments, noise)

    @torch.no_grad()
    def draw(
        self,
        moments: Float[Tensor, "b 2 c i j"],
        noise: Float[Tensor, "b c i j"] | None = None,
    ) -> Float[Tensor, "b c i j"]:
        latent = draw_posterior(moments, noise)
        return latent * self.vae.net.config.scaling_factor  # an ordinary tensor again

    def fingerprint(self, kind: Kind) -> dict[str, Any]:
        if kind == "moments":
            return vae_fingerprint(self.vae.net)
        return text_fingerprint(self.text_encoder.net, self.tokenizer)

    @torch.no_grad()
    def decode(self, x_0: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        image = self.vae.net.decode(x_0 / self.vae.net.config.scaling_factor).sample
        return image.clamp(-1, 1)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> Float[Tensor, "b l e"]:
        """Last hidden states; padded to the tokenizer's length and cut there, as in SD.

        Equal captions, as those of a dropped or an empty prompt, are encoded once; the empty
        prompt alone, which every step asks for, once per device and precision.
        """
        if list(captions) != [""]:
            return encode_captions(self.text_encoder.net, self.tokenizer, captions)
        device = self.alphas_cumprod.device
        dtype = self.text_encoder.net.dtype
        if is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        key = (device, dtype)
        if key not in self.null_text:
            # Training keeps it for the backward pass, also where a validation asked for it first.
            with torch.inference_mode(False), torch.no_grad():
                null = encode_captions(self.text_encoder.net, self.tokenizer, [""])
            self.null_text = {key: null}
        return self.null_text[key]

    def denoise(
        self,
        x_t: Float[Tensor, "b c i j"],
        t: Real[Tensor, " b"],
        conditions: Conditions,
    ) -> Float[Tensor, "b c i j"]:
        unet = self.compiled(self.unet, x_t.device)
        with self.unet.conv_in.painting(conditions.segments):
            return unet(x_t, t, encoder_hidden_states=conditions.text, return_dict=False)[0]

    def first_layer_std(
        self, x_t: Float[Tensor, "b c i j"], segments: Segments
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        conv = self.unet.conv_in
        silent = torch.zeros_like(x_t)
        with conv.painting(segments):
            painted = conv(silent)
        return conv(x_t).std(), (painted - conv(silent)).std()


def load_encoders(path: str) -> dict[str, Any]:
    """The frozen parts of a diffusers-layout folder or hub name, as float32."""
    weights = {"use_safetensors": True, "torch_dtype": torch.float32}
    return {
        "vae": AutoencoderKL.from_pretrained(path, subfolder="vae", **weights),
        "text_encoder": CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **weights),
        "tokenizer": CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
    }
