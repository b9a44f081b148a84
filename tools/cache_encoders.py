"""The frozen encoders that spatext-cache runs, and what they make of a batch of views."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from spatext.datamodules.collation import unit_range
from spatext.datamodules.encoding_files import EntryWriter
from spatext.modules.networks.captions import encode_captions
from spatext.modules.networks.diffusers_folder import named_errors, open_folder
from spatext.modules.networks.encodings import (
    posterior_moments,
    text_fingerprint,
    vae_fingerprint,
)

AUTOCAST = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTS = {"moments": ("vae",), "text": ("text_encoder", "tokenizer"), "embeds": ()}


class Encoders:
    """Of these kinds, loaded as training loads them; no other is."""

    def __init__(self, cfg: DictConfig, kinds: Sequence[str], device: str) -> None:
        self.device, self.dtype = torch.device(device), AUTOCAST[cfg.autocast]
        self.batch_size = cfg.batch_size
        self.fingerprints: dict[str, dict[str, Any]] = {}
        parts = tuple(part for kind in kinds for part in PARTS[kind])
        weights = {"use_safetensors": True, "torch_dtype": torch.float32}
        if parts:
            path = open_folder(cfg.base, parts, "base").path
            with named_errors(cfg.base, "base"):
                if "moments" in kinds:
                    vae = AutoencoderKL.from_pretrained(path, subfolder="vae", **weights)
                    self.vae = self._frozen(vae)
                if "text" in kinds:
                    text = CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **weights)
                    self.tokenizer = CLIPTokenizer.from_pretrained(path, subfolder="tokenizer")
                    self.text_encoder = self._frozen(text)
        if "moments" in kinds:
            self.fingerprints["moments"] = vae_fingerprint(self.vae)
        if "text" in kinds:
            self.fingerprints["text"] = text_fingerprint(self.text_encoder, self.tokenizer)
        if "embeds" in kinds:
            self.clip = instantiate(cfg.clip, _convert_="all").to(self.device)
            self.fingerprints["embeds"] = self.clip.encoder

    def write(self, kind: str, batch: dict[str, Any], writer: EntryWriter, num_flips: int) -> None:
        """The entries of a batch of `collate_views`."""
        if not batch["number"]:
            return
        made_of = [row[kind] for row in batch["made_of"]]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None),
        ):
            values = getattr(self, f"_{kind}")(batch)
        for i, (number, flip) in enumerate(zip(batch["number"], batch["flip"], strict=True)):
            if kind != "text":
                ids = batch["ids"][i] if kind == "embeds" else None
                writer.add(number * num_flips + flip, values[i], made_of[i], ids)
            elif not flip:
                writer.add(number, values[i], made_of[i])

    def _moments(self, batch: dict[str, Any]) -> list[np.ndarray]:
        """An array for each view, of the size of its image."""
        found: dict[int, np.ndarray] = {}
        for places, pixels in zip(batch["places"], batch["image"], strict=True):
            image = unit_range(pixels.to(self.device, non_blocking=True))
            found |= zip(places, to_numpy(posterior_moments(self.vae, image)), strict=True)
        return [found[i] for i in range(len(found))]

    def _text(self, batch: dict[str, Any]) -> np.ndarray:
        return to_numpy(encode_captions(self.text_encoder, self.tokenizer, batch["caption"]))

    def _embeds(self, batch: dict[str, Any]) -> list[np.ndarray]:
        """An array for each view."""
        crops = batch["crops"].to(self.device, non_blocking=True)
        parts = [self.clip.embed_images(part) for part in crops.split(self.batch_size) if len(part)]
        rows = to_numpy(torch.cat(parts)) if parts else np.zeros((0, self.clip.embed_dim))
        return np.split(rows, np.cumsum([len(ids) for ids in batch["ids"]])[:-1])

    def _frozen(self, net: Any) -> Any:
        return net.eval().requires_grad_(False).to(self.device)


def to_numpy(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
