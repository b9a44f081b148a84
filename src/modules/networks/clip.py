"""CLIP as an encoder of segment crops and local texts, and the one place that owns its scale."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import open_clip
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from .frozen import Frozen, HoldsFrozen

Scale = Literal["raw", "unit"]


class Clip(HoldsFrozen):
    """A frozen open_clip model.

    `name` and `pretrained` are open_clip's: ("ViT-L-14", "openai"), ("hf-hub:org/model", None) or
    ("local-dir:/folder", None). `scale` is the scale of every embedding of a run: "raw" is what
    CLIP returns and what published priors work in, "unit" is L2-normalised. Which of the two the
    paper trained with is not known; raw is our choice. Training, prior and cached embeddings must
    agree, so `fingerprint` goes into checkpoints.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, pretrained: str | None = None, scale: Scale = "raw") -> None:
        super().__init__()
        if scale not in get_args(Scale):
            raise ValueError(f"clip.scale: found {scale!r}, expected one of {get_args(Scale)}")
        self.name, self.scale = name, scale
        model, self.tokenizer = load_open_clip(name, pretrained)
        preprocess = open_clip.get_model_preprocess_cfg(model)
        self.model = Frozen(model)
        size = preprocess["size"]
        self.image_size: int = size if isinstance(size, int) else size[0]
        self.embed_dim = int(model.visual.output_dim)
        self.register_buffer("mean", torch.tensor(preprocess["mean"])[:, None, None], False)
        self.register_buffer("std", torch.tensor(preprocess["std"])[:, None, None], False)

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """What must agree between everything that meets these embeddings."""
        return {"clip": self.name, "scale": self.scale, "embed_dim": self.embed_dim}

    @torch.no_grad()
    def embed_images(
        self, pixels: UInt8[Tensor, "n 3 i j"] | Float[Tensor, "n 3 i j"]
    ) -> Float[Tensor, "n d"]:
        """uint8 pixels, or floats in [0, 1], already square; black stays black before mean/std."""
        x = preprocess_pixels(pixels, self.image_size, self.mean, self.std)
        return self._scaled(self.model.net.encode_image(x))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """CLIP_txt of each text, in the same scale."""
        return self._scaled(self.model.net.encode_text(self.tokenizer(list(texts)).to(self.device)))

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def _scaled(self, embeds: Tensor) -> Tensor:
        return nn.functional.normalize(embeds, dim=-1) if self.scale == "unit" else embeds


def preprocess_pixels(
    pixels: UInt8[Tensor, "n 3 i j"] | Float[Tensor, "n 3 i j"],
    size: int,
    mean: Float[Tensor, "3 1 1"],
    std: Float[Tensor, "3 1 1"],
) -> Float[Tensor, "n 3 s s"]:
    """Scale to [0, 1], resize to the network's input, normalise: CLIP's own steps, on the device.

    Black pixels are RGB 0 before the mean and deviation are applied, as in the crops.
    """
    x = pixels.to(mean.dtype) / 255 if pixels.dtype == torch.uint8 else pixels.to(mean.dtype)
    if x.shape[-2:] != (size, size):
        x = nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - mean) / std


def load_open_clip(name: str, pretrained: str | None) -> tuple[Any, Any]:
    """An open_clip model with its weights, and its tokenizer.

    Raises ValueError for a wrong name and for a folder that lacks weights or tokenizer.
    """
    try:
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
        return model, open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(
            f"clip.name={name!r} clip.pretrained={pretrained!r}: {reason}; expected an open_clip "
            "name and tag, 'hf-hub:org/model' or 'local-dir:/folder' with weights and tokenizer"
        ) from error
