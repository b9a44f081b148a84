"""Training a CLIP model of one's own: for worlds that no published CLIP has seen."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from .networks.clip import preprocess_pixels
from .networks.priors import fit_linear_prior, save_linear_prior
from .networks.text_tower import encode_texts, to_text_encoder
from .training import MakeOptimizer, MakeScheduler, TrainedModule


class Contrastive(TrainedModule):
    """open_clip's model and loss on two kinds of pairs: (image, caption) and (crop, text).

    The crops are those of SpaText, so the image tower has seen objects on black when it is asked
    to embed them; the sum of both losses is our choice. `save_pretrained` writes the folder that
    `Clip("local-dir:...")` loads, and the text tower in the diffusers layout.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Mapping[str, Any],
        tokenizer: CLIPTokenizer,
        *,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.config = deepcopy(dict(model))
        self.config["text_cfg"] |= {
            "vocab_size": len(tokenizer),
            "context_length": tokenizer.model_max_length,
            "hf_tokenizer_name": "tokenizer",  # beside the weights; open_clip wants a name
        }
        self.tokenizer = tokenizer
        self.model = open_clip.CLIP(**self.config)
        self.criterion = open_clip.ClipLoss()
        self.image_size = int(self.config["vision_cfg"]["image_size"])
        self.register_buffer("mean", torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        region, image = self.losses(batch)
        values = {"train/region_loss": region, "train/image_loss": image}
        self.log_dict(values, prog_bar=True, batch_size=len(batch["index"]))
        return region + image

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Accuracy of picking a crop's own text among the distinct texts of the batch."""
        crops, texts = regions(batch)
        distinct = sorted(set(texts))
        image, text, _ = self(crops, distinct)
        found = (image @ text.mT).argmax(-1).cpu()
        truth = torch.tensor([distinct.index(text) for text in texts])
        accuracy = (found == truth).float().mean()
        self.log("val/accuracy", accuracy, prog_bar=True, sync_dist=True, batch_size=len(texts))
        return accuracy

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """open_clip's symmetric contrastive loss over regions and over whole images."""
        region = self.criterion(*self(*regions(batch)))
        image = self.criterion(*self((batch["image"] + 1) / 2, batch["caption"]))
        return region, image

    def forward(self, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit image and text embeddings and the logit scale: what open_clip's loss takes."""
        image, text = self.embed_images(pixels), self.embed_texts(texts)
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1), self.model.logit_scale.exp()

    def embed_images(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(
            preprocess_pixels(pixels, self.image_size, self.mean, self.std)
        )

    def embed_texts(self, texts: list[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(texts, **options).input_ids.to(self.device)
        return encode_texts(self.model, tokens, self.tokenizer.eos_token_id)

    @torch.no_grad()
    def save_pretrained(self, folder: Path, batches: list[dict[str, Any]]) -> None:
        """Write clip/ (open_clip layout and a linear prior), text_encoder/ and tokenizer/.

        `batches` are what the linear prior is fitted on.
        """
        clip = folder / "clip"
        clip.mkdir(parents=True, exist_ok=True)
        crops, texts = zip(*map(regions, batches), strict=True)
        image = torch.cat([self.embed_images(pixels) for pixels in crops]).cpu()
        text = torch.cat([self.embed_texts(row) for row in texts]).cpu()
        save_linear_prior(clip / "linear_prior.safetensors", fit_linear_prior(text, image))
        self.tokenizer.save_pretrained(clip)
        weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, clip / "open_clip_model.safetensors")
        config = {"model_cfg": self.config, "preprocess_cfg": {}}
        (clip / "open_clip_config.json").write_text(json.dumps(config, indent=2))

        to_text_encoder(self.model, self.config["text_cfg"]).save_pretrained(
            folder / "text_encoder"
        )
        self.tokenizer.save_pretrained(folder / "tokenizer")


def regions(batch: dict[str, Any]) -> tuple[Tensor, list[str]]:
    """The valid crops of a batch and the texts of those that have one."""
    texts = [text for row in batch["texts"] for text in row]
    told = torch.tensor([bool(text) for text in texts])
    keep = batch["valid"].flatten().cpu() & told
    crops = batch["crops"].flatten(0, 1)[keep.to(batch["crops"].device)]
    return crops, [text for text, kept in zip(texts, keep.tolist(), strict=True) if kept]
