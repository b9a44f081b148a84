"""The pixel backbone: an unCLIP or GLIDE decoder, its projection of text and image embeddings, text
encoder and noise schedule."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float, Real
from torch import Tensor
from transformers import CLIPTokenizer

from ..functional.conditions import Conditions
from ..functional.diffusion import PredictionType
from ..functional.packed_text import unpack_text
from ..functional.resampling import downsample, upsample
from ..functional.st import Resize
from .backbone import Backbone, Kind
from .captions import encode_packed
from .compiled import Compile
from .encodings import text_fingerprint
from .frozen import Frozen
from .pixel_parts import load_parts, make_parts
from .surgery import Evaluation, NewWeights
from .text_image import TextImageProjection
from .trained_unet import TrainedUnet
from .unclip_folder import PIXEL_CHANNELS
from .unclip_schedule import published_scheduler

NO_MOMENTS = (
    "datamodule.encodings.moments: found true, expected false: a model in pixels has no "
    "autoencoder, its x_0 is the image made smaller"
)


class PixelBackbone(TrainedUnet, Backbone):
    """SpaText on a decoder in pixels (SpaText, section 3.3): UNet and projection are trained.

    The network is that of the openly released unCLIP decoder, Karlo: pooled text and image
    embedding are added to the time embedding, extra tokens of the image embedding and the text
    states are attended to; see `TextImageProjection`. Six output channels are the mean and a
    learned variance, three the mean alone. ST enters once, through the widened first convolution.

    A projection without image parts makes it a decoder in the manner of GLIDE. What differs from
    GLIDE itself (our choice): `train_text` trains a causal CLIP text tower, where GLIDE has a
    transformer that sees the whole text; its state at the end of the text takes the place of
    GLIDE's last token; and states go through the projection's linear layer and norm.

    x_0 is the image `factor` times smaller, the mean over cells; `decode` enlarges it by
    interpolation, which the upsamplers of a cascade take the place of. `embed_text` gives pooled
    embedding and states as `pack_text` does, padded to the tokenizer's length.
    """

    def __init__(
        self,
        *,
        decoder: UNet2DConditionModel,
        projection: TextImageProjection,
        text_encoder: Any,
        tokenizer: CLIPTokenizer,
        scheduler: DDPMScheduler,
        embed_dim: int,
        factor: int = 1,
        new_weights: NewWeights = "he",
        st_conv: Evaluation = "factorised",
        st_resize: Resize = "area",
        channels_last: bool = True,
        gradient_checkpointing: bool = False,
        compile: Compile = False,
        compile_options: Mapping[str, Any] | None = None,
        train_text: bool = False,
    ) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"module.backbone.factor: found {factor}, expected at least 1")
        self.channels, self.factor = PIXEL_CHANNELS, factor
        self.levels = len(decoder.config.block_out_channels)
        self.multiple = factor * 2 ** (self.levels - 1)
        self.learned_variance = decoder.config.out_channels == 2 * PIXEL_CHANNELS
        self.take_unet(
            decoder,
            channels=PIXEL_CHANNELS,
            embed_dim=embed_dim,
            new_weights=new_weights,
            st_conv=st_conv,
            st_resize=st_resize,
            channels_last=channels_last,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            compile_options=compile_options,
        )
        self.projection = projection.train()
        self.train_text = train_text
        self.text_encoder: Any = text_encoder.train() if train_text else Frozen(text_encoder)
        self.tokenizer = tokenizer
        self.prediction_type: PredictionType = scheduler.config.prediction_type
        self.scheduler_config: dict[str, Any] = dict(scheduler.config)
        self.take_schedule(scheduler.betas)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        embed_dim: int,
        prediction_type: PredictionType | None = None,
        **options: Any,
    ) -> "PixelBackbone":
        """decoder/, text_proj/, text_encoder/, tokenizer/ and decoder_scheduler/ of a folder or hub
        name in the layout of Karlo, safetensors only, as float32.

        Raises ValueError, before any weights are read, naming what is missing, of another kind, or
        at odds with the rest, and for a scheduler of another `prediction_type` than this one (None
        takes that of the scheduler); and, by its name, for a weight that is missing or left over.
        """
        parts = load_parts(path, embed_dim, prediction_type)
        return cls(embed_dim=embed_dim, **parts, **options)

    @classmethod
    def from_config(
        cls,
        path: str,
        *,
        decoder: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        embed_dim: int,
        image_embed: bool = True,
        num_context_tokens: int = 4,
        text_encoder: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "PixelBackbone":
        """A decoder and projection with random weights beside tokenizer/ and text_encoder/ of the
        folder at `path`; `text_encoder`, options of CLIPTextConfig, makes a new one of these too.

        `decoder` are options of UNet2DConditionModel, `scheduler` those of DDPMScheduler: a
        variance_type of learned_range makes six output channels. The image embedding is as wide as
        ST, or without ST as the text embedding. Raises ValueError naming the part of the folder
        that is missing or of another kind.
        """
        if text_encoder is not None and not options.get("train_text", False):
            raise ValueError(
                "module.backbone.train_text: found false with a new text_encoder, expected true"
            )
        parts = make_parts(
            path,
            decoder=decoder,
            scheduler=scheduler,
            embed_dim=embed_dim,
            image_embed=image_embed,
            num_context_tokens=num_context_tokens,
            text_encoder=text_encoder,
        )
        return cls(embed_dim=embed_dim, **parts, **options)

    def save_pretrained(self, folder: Path) -> None:
        """decoder/, text_proj/ and decoder_scheduler/, and text_encoder/ and tokenizer/ where the
        text is trained. With `embed_dim` 0 the decoder is an ordinary one of unCLIP."""
        self.unet.save_pretrained(folder / "decoder")
        self.projection.save_pretrained(folder / "text_proj")
        published_scheduler(self.scheduler_config).save_pretrained(folder / "decoder_scheduler")
        if self.train_text:
            self.text_encoder.save_pretrained(folder / "text_encoder")
            self.tokenizer.save_pretrained(folder / "tokenizer")

    @property
    def null_image_embed(self) -> Float[Tensor, "1 d"] | None:
        null = self.projection.learned_classifier_free_guidance_embeddings
        return None if null is None else null[None]

    def encode(
        self,
        image: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b c i j"] | None = None,
    ) -> Float[Tensor, "b c i j"]:
        """There is no posterior to draw from: `noise` does not matter."""
        return downsample(image, self.factor)

    def draw(
        self,
        moments: Float[Tensor, "b 2 c i j"],
        noise: Float[Tensor, "b c i j"] | None = None,
    ) -> Float[Tensor, "b c i j"]:
        raise ValueError(NO_MOMENTS)

    def fingerprint(self, kind: Kind) -> dict[str, Any]:
        if kind == "moments":
            raise ValueError(NO_MOMENTS)
        if self.train_text:
            raise ValueError("datamodule.encodings.text: found true, expected false: the text "
                             "encoder of this model is trained")  # fmt: skip
        return text_fingerprint(self.text_encoder.net, self.tokenizer) | {"packed": True}

    def decode(self, x_0: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        return upsample(x_0, self.factor).clamp(-1, 1)

    def embed_text(self, captions: Sequence[str]) -> Float[Tensor, "b l e"]:
        """Carries gradients where the text encoder is trained."""
        if self.train_text:
            return encode_packed(self.text_encoder, self.tokenizer, captions)
        net = self.text_encoder.net
        if list(captions) != [""]:
            return encode_packed(net, self.tokenizer, captions)
        return self.cached_null_text(
            net.dtype, lambda: encode_packed(net, self.tokenizer, captions)
        )

    def denoise(
        self,
        x_t: Float[Tensor, "b c i j"],
        t: Real[Tensor, " b"],
        conditions: Conditions,
    ) -> Float[Tensor, "b d i j"]:
        pooled, states, mask = unpack_text(conditions.text)
        context, embedding = self.projection(pooled, states, conditions.image_embed)
        mask = F.pad(mask.to(x_t.dtype), (self.projection.num_context_tokens, 0), value=1.0)
        # diffusers takes a mask as long as the cells of a level to be one over these cells.
        height, width = x_t.shape[-2:]
        cells = {(height >> i) * (width >> i) for i in range(self.levels)}
        spare = next(n for n in count() if mask.shape[1] + n not in cells)
        unet = self.compiled(self.unet, x_t.device)
        with self.unet.conv_in.painting(conditions.segments):
            return unet(
                x_t,
                t,
                encoder_hidden_states=F.pad(context, (0, 0, 0, spare)),
                class_labels=embedding,
                attention_mask=F.pad(mask, (0, spare)),
                return_dict=False,
            )[0]
