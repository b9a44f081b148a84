"""CLIP as an encoder of segment crops and local texts, and the one place that owns its scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import open_clip
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from .encodings import weights_digest
from .frozen import Frozen, HoldsFrozen
from .text_tower import encode_states

Scale = Literal["raw", "unit"]


@dataclass(frozen=True)
class TextFeatures:
    """What a prior is told of n texts.

    embeds: CLIP_txt, in the scale of the run. states: one row per token, as wide as the embeddings,
    in CLIP's own scale; l is the length of the longest of them, or 0 for a tower that has no such
    states. mask: True up to and including the end of the text; what the states hold elsewhere means
    nothing.
    null: one row, of the empty prompt; `Clip.encode_texts` always gives it.
    """

    embeds: Float[Tensor, "n d"]
    states: Float[Tensor, "n l d"]
    mask: Bool[Tensor, "n l"]
    null: "TextFeatures | None" = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Int64[Tensor, " m"] | slice) -> "TextFeatures":
        return replace(
            self, embeds=self.embeds[rows], states=self.states[rows], mask=self.mask[rows]
        )

    def where(self, keep: Bool[Tensor, " n"], null: "TextFeatures") -> "TextFeatures":
        """Rows not kept become the single row of `null`."""
        length = max(self.states.shape[1], null.states.shape[1])
        own, null = self.padded(length), null.padded(length)
        return replace(
            own,
            embeds=torch.where(keep[:, None], own.embeds, null.embeds),
            states=torch.where(keep[:, None, None], own.states, null.states),
            mask=torch.where(keep[:, None], own.mask, null.mask),
        )

    def padded(self, length: int) -> "TextFeatures":
        """With masked states behind the text, `length` in all."""
        more = length - self.states.shape[1]
        if not more:
            return self
        states = nn.functional.pad(self.states, (0, 0, 0, more))
        return replace(self, states=states, mask=nn.functional.pad(self.mask, (0, more)))


class Clip(HoldsFrozen):
    """A frozen open_clip model.

    `name` and `pretrained` are open_clip's: ("ViT-L-14", "openai"), ("hf-hub:org/model", None) or
    ("local-dir:/folder", None). `scale` is the scale of every embedding of a run: "raw" is what
    CLIP returns and what published priors work in, "unit" is L2-normalised. Which of the two the
    paper trained with is not known; raw is our choice. Training, prior and cached embeddings must
    agree, so `fingerprint` goes into checkpoints. `loaded` is a model and its tokenizer where these
    are at hand already.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: str | None = None,
        scale: Scale = "raw",
        *,
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        super().__init__()
        if scale not in get_args(Scale):
            raise ValueError(f"clip.scale: found {scale!r}, expected one of {get_args(Scale)}")
        self.name, self.scale = name, scale
        model, self.tokenizer = loaded or load_open_clip(name, pretrained)
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

    @property
    def encoder(self) -> dict[str, Any]:
        """What decides the embedding of an image: scale, and digest of the weights."""
        options = {
            "image_size": self.image_size,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }
        visual = weights_digest(self.model.net.visual.state_dict(), options)
        return {"scale": self.scale, "embed_dim": self.embed_dim, "clip": visual}

    @torch.no_grad()
    def embed_images(
        self, pixels: UInt8[Tensor, "n 3 i j"] | Float[Tensor, "n 3 i j"]
    ) -> Float[Tensor, "n d"]:
        """uint8 pixels, or floats in [0, 1], already square; black stays black before mean/std."""
        with torch.inference_mode():
            x = preprocess_pixels(pixels, self.image_size, self.mean, self.std)
            embeds = self.model.net.encode_image(x)
        return self.scaled(embeds.clone())  # an ordinary tensor again

    def embed_segments(self, batch: Mapping[str, Any]) -> Float[Tensor, "b k d"]:
        """The cached embeddings of a batch's segments, or those of its crops."""
        if "embeds" in batch:
            return batch["embeds"].to(self.mean.dtype)
        crops = batch["crops"]
        return self.embed_images(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """CLIP_txt of each text, in the same scale."""
        return self.scaled(self.model.net.encode_text(self.tokenizer(list(texts)).to(self.device)))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """`embed_texts`, and the states it pools; equal texts are encoded once.

        States are the tower's output after its last norm, as Karlo's prior takes them, and where
        the tower is not as wide as the embeddings, those through the text projection: our choice.
        """
        distinct = {text: i for i, text in enumerate(dict.fromkeys(["", *texts]))}
        embeds, states, mask = encode_states(self.model.net, self.tokenizer([*distinct]))
        features = TextFeatures(self.scaled(embeds), states, mask)
        rows = torch.tensor([distinct[text] for text in texts], dtype=torch.long)
        return replace(features[rows.to(self.device)], null=features[:1])

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def scaled(self, embeds: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Raw embeddings in the scale of the run."""
        return nn.functional.normalize(embeds, dim=-1) if self.scale == "unit" else embeds


def check_fingerprint(found: Mapping[str, Any], expected: Mapping[str, Any], owner: str) -> None:
    """Raises ValueError where the embeddings of `owner` are known to live in another space or
    scale."""
    for key in ("embed_dim", "scale"):
        if found.get(key, expected[key]) != expected[key]:
            raise ValueError(
                f"{owner}: {key} of its CLIP embeddings is {found[key]!r}, expected "
                f"{expected[key]!r} as configured by module.clip"
            )


def check_embeddings(checkpoint: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose embeddings live in another space or scale."""
    found = checkpoint.get("embeddings")
    if found is None:
        raise ValueError("checkpoint: found no record of its CLIP embeddings, expected that of a "
                         "model that paints or predicts them")  # fmt: skip
    check_fingerprint(found, expected, "checkpoint")


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
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            require_pretrained=True,
            force_quick_gelu=has_quick_gelu(name, pretrained),
        )
        return model, open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(
            f"clip.name={name!r} clip.pretrained={pretrained!r}: {reason}; expected an open_clip "
            "name and tag, 'hf-hub:org/model' or 'local-dir:/folder' with weights and tokenizer"
        ) from error


def has_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether these weights were trained with QuickGELU, x sigmoid(1.702 x).

    OpenAI's were. open_clip builds ("ViT-L-14", "openai") with the exact GELU and only warns.
    """
    known = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained or "")
    return bool(known.get("quick_gelu", False))
