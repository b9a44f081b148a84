"""The latent backbone: Stable Diffusion's UNet, autoencoder, text encoder and noise schedule."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float, Real
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..functional.conditions import Conditions
from ..functional.diffusion import PredictionType, rescale_zero_terminal_snr
from ..functional.st import Resize
from .backbone import Backbone, Kind
from .captions import encode_captions
from .compiled import Compile
from .diffusers_folder import PARTS, check_foreign, check_model, named_errors, open_folder
from .encodings import draw_posterior, posterior_moments, text_fingerprint, vae_fingerprint
from .frozen import Frozen
from .lora import merged
from .surgery import Evaluation, NewWeights
from .trained_unet import TrainedUnet

ENCODERS = ("vae", "text_encoder", "tokenizer")


class LatentBackbone(TrainedUnet, Backbone):
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
        self.channels: int = vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.multiple = self.factor * 2 ** (len(unet.config.block_out_channels) - 1)
        self.take_unet(
            unet,
            channels=self.channels,
            embed_dim=embed_dim,
            new_weights=new_weights,
            st_conv=st_conv,
            st_resize=st_resize,
            channels_last=channels_last,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            compile_options=compile_options,
            lora=lora,
        )
        self.vae, self.text_encoder = Frozen(vae), Frozen(text_encoder)
        self.tokenizer = tokenizer
        betas = scheduler.betas.double()
        # Latents are not bounded, whatever the folder's scheduler has by default.
        self.scheduler_config: dict[str, Any] = dict(scheduler.config) | {"clip_sample": False}
        if zero_terminal_snr:
            betas = rescale_zero_terminal_snr(betas)
            self.scheduler_config["rescale_betas_zero_snr"] = True
        self.take_schedule(betas)

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
        backbone = cls(embed_dim=embed_dim, **parts, **options)
        if backbone.base is not None:
            backbone.base["path"] = path
        return backbone

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
        net = self.text_encoder.net
        if list(captions) != [""]:
            return encode_captions(net, self.tokenizer, captions)
        return self.cached_null_text(
            net.dtype, lambda: encode_captions(net, self.tokenizer, captions)
        )

    def denoise(
        self,
        x_t: Float[Tensor, "b c i j"],
        t: Real[Tensor, " b"],
        conditions: Conditions,
    ) -> Float[Tensor, "b c i j"]:
        unet = self.compiled(self.unet, x_t.device)
        with self.unet.conv_in.painting(conditions.segments):
            return unet(x_t, t, encoder_hidden_states=conditions.text, return_dict=False)[0]


def load_encoders(path: str) -> dict[str, Any]:
    """The frozen parts of a diffusers-layout folder or hub name, as float32."""
    weights = {"use_safetensors": True, "torch_dtype": torch.float32}
    return {
        "vae": AutoencoderKL.from_pretrained(path, subfolder="vae", **weights),
        "text_encoder": CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **weights),
        "tokenizer": CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
    }
