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
from ..functional.diffusion import alphas_cumprod as cumulate
from ..functional.st import Resize, Segments
from .backbone import Backbone
from .folders import require_parts
from .frozen import Frozen, HoldsFrozen
from .surgery import Evaluation, NewWeights, widen_conv

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class LatentBackbone(HoldsFrozen, Backbone):
    """SpaText on a latent diffusion model (SpaText, section 3.3): only the UNet is trained.

    The spatio-textual map enters once, through the widened first convolution. Latents are
    multiplied by the autoencoder's `scaling_factor`. See `Backbone` for shapes and ranges.
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
        zero_terminal_snr: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.channels: int = vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.multiple = self.factor * 2 ** (len(unet.config.block_out_channels) - 1)
        unet.conv_in = widen_conv(
            unet.conv_in,
            embed_dim,
            new_weights=new_weights,
            evaluation=st_conv,
            resize=st_resize,
        )
        unet.register_to_config(in_channels=self.channels + embed_dim)
        if channels_last:
            unet.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        # from_pretrained leaves it in evaluation mode, and a Trainer keeps the mode it finds.
        self.unet = unet.train()
        self.vae, self.text_encoder = Frozen(vae), Frozen(text_encoder)
        self.tokenizer = tokenizer

        betas = scheduler.betas.double()
        self.scheduler_config: dict[str, Any] = dict(scheduler.config)
        if zero_terminal_snr:
            betas = rescale_zero_terminal_snr(betas)
            self.scheduler_config["rescale_betas_zero_snr"] = True
        self.prediction_type: PredictionType = scheduler.config.prediction_type
        # float32, as in diffusers: some devices have no float64.
        self.register_buffer("alphas_cumprod", cumulate(betas).float(), persistent=False)

    @classmethod
    def from_pretrained(cls, path: str, *, embed_dim: int, **options: Any) -> "LatentBackbone":
        """Load a diffusers-layout folder or hub name, safetensors only, as float32.

        Raises ValueError naming the part of a local folder that is missing.
        """
        path = require_parts(path, PARTS, "backbone.path")
        return cls(
            unet=UNet2DConditionModel.from_pretrained(
                path, subfolder="unet", use_safetensors=True, torch_dtype=torch.float32
            ),
            scheduler=DDPMScheduler.from_pretrained(path, subfolder="scheduler"),
            embed_dim=embed_dim,
            **load_encoders(path),
            **options,
        )

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

        Raises ValueError naming the part of a local folder that is missing.
        """
        encoders = load_encoders(require_parts(path, PARTS[1:4], "backbone.path"))
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
        self.unet.save_pretrained(folder / "unet")
        DDPMScheduler.from_config(self.scheduler_config).save_pretrained(folder / "scheduler")

    @torch.no_grad()
    def encode(
        self,
        image: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b c i j"] | None = None,
    ) -> Float[Tensor, "b c i j"]:
        posterior = self.vae.net.encode(image).latent_dist
        latent = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return latent * self.vae.net.config.scaling_factor

    @torch.no_grad()
    def decode(self, x_0: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        image = self.vae.net.decode(x_0 / self.vae.net.config.scaling_factor).sample
        return image.clamp(-1, 1)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> Float[Tensor, "b l e"]:
        """Last hidden states; padded to the tokenizer's length and cut there, as in SD.

        Equal captions, as those of a dropped or an empty prompt, are encoded once.
        """
        distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        tokens = self.tokenizer(
            [*distinct],
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        ids = tokens.input_ids.to(self.alphas_cumprod.device)
        states = self.text_encoder.net(ids).last_hidden_state
        return states[torch.tensor([distinct[caption] for caption in captions], device=ids.device)]

    def denoise(
        self,
        x_t: Float[Tensor, "b c i j"],
        t: Real[Tensor, " b"],
        conditions: Conditions,
    ) -> Float[Tensor, "b c i j"]:
        with self.unet.conv_in.painting(conditions.segments):
            return self.unet(x_t, t, encoder_hidden_states=conditions.text).sample

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
