"""A deterministic prior that is learned: does the distribution matter, or only its mean?"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .clip import TextFeatures
from .priors import EMBEDDINGS

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Block(nn.Module):
    """h + W_2 gelu(W_1 LayerNorm(h)); W_2 starts at zero, so a new block is the identity."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, h: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        return h + self.dropout(self.down(F.gelu(self.up(self.norm(h)))))


class MLPPrior(nn.Module):
    """E[z_i | z_t] by a residual MLP: the minimiser of the squared error, the same for every seed.

    Works where the embeddings have mean 0 and deviation 1 in each dimension, between

        x = LayerNorm(z_t),  y = (z_i - mean) / std,  loss = mean (f(x) - y)^2.

    The norm of the text embedding is therefore not used, and both scales of `Clip` train alike. A
    new network is a linear map, which the blocks then bend. The architecture is our choice.
    """

    stochastic = False
    mean: Tensor
    std: Tensor

    def __init__(
        self, *, embed_dim: int, width: int = 1024, num_blocks: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = {
            "embed_dim": embed_dim,
            "width": width,
            "num_blocks": num_blocks,
            "dropout": dropout,
        }
        self.net = nn.Sequential(
            nn.LayerNorm(embed_dim, elementwise_affine=False),
            nn.Linear(embed_dim, width),
            *(Block(width, dropout) for _ in range(num_blocks)),
            nn.Linear(width, embed_dim),
        )
        # What is known of CLIP's embeddings, for whoever joins the two.
        self.embeddings: dict[str, Any] = {"embed_dim": embed_dim}
        # Zero, as in a new PriorTransformer: not set.
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("std", torch.zeros(embed_dim))

    @property
    def has_statistics(self) -> bool:
        return bool(self.std.any())

    def set_statistics(self, mean: Float[Tensor, " d"], std: Float[Tensor, " d"]) -> None:
        """Of the image embeddings that it is trained on. ValueError for a deviation of 0."""
        if not (std > 0).all():
            where = int((std > 0).logical_not().nonzero()[0])
            raise ValueError(
                f"statistics: the deviation in dimension {where} is {std[where].item()}, "
                "expected more than 0 in each; are the image embeddings all the same?"
            )
        self.mean.copy_(mean)
        self.std.copy_(std)

    def loss(
        self,
        x_0: Float[Tensor, "n d"],
        text: TextFeatures,
        null: TextFeatures,
        index: Int64[Tensor, " n"],
        seed: int,
    ) -> Float[Tensor, ""]:
        """Nothing is drawn and no text is dropped: there is no guidance to train for.

        Not finite without statistics; to look for them here would wait for the device each step.
        """
        return F.mse_loss(self.net(text.embeds).float(), (x_0 - self.mean) / self.std)

    def forward(self, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Raises ValueError for a network without statistics."""
        if not self.has_statistics:
            raise ValueError(
                "prior: its statistics are all zero, expected the mean and deviation of the image "
                "embeddings; a new MLPPrior is given them by set_statistics"
            )
        return self.net(text.embeds) * self.std + self.mean

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, each under a temporary name first."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights, config = folder / f"{WEIGHTS}.tmp", folder / f"{CONFIG}.tmp"
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, weights)
        config.write_text(json.dumps({"_class_name": "MLPPrior", **self.config}, indent=2) + "\n")
        weights.replace(folder / WEIGHTS)
        config.replace(folder / CONFIG)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "MLPPrior":
        """As float32, in evaluation mode. Names the file that is missing or of another class."""
        folder = Path(path)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"module.prior.path={path}: no {name} in it, expected a folder of "
                    "MLPPrior.save_pretrained"
                )
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        if (found := config.pop("_class_name", None)) != cls.__name__:
            raise ValueError(
                f"module.prior.path={path}: {CONFIG} describes {found}, expected {cls.__name__}"
            )
        prior = cls(**config)
        weights = load_file(folder / WEIGHTS)
        prior.load_state_dict({name: value.float() for name, value in weights.items()})
        if (record := folder / EMBEDDINGS).is_file():
            prior.embeddings |= json.loads(record.read_text())
        return prior.eval()
