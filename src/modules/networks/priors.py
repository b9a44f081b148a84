"""Maps from CLIP text to CLIP image embeddings: the paper's P, its doors and its simple forms."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .clip import TextFeatures

EMBEDDINGS = "embeddings.json"  # in a prior's folder: the fingerprint of the CLIP it was trained on


@runtime_checkable
class Prior(Protocol):
    """CLIP_txt -> CLIP_img, both in the one declared scale of the run.

    Row i is a function of row i of the text and seeds[i], whatever else is in the batch. Where
    `stochastic` is false the seeds are ignored.
    """

    stochastic: bool

    def __call__(self, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]: ...


@runtime_checkable
class TrainablePrior(Prior, Protocol):
    """A prior that `PriorModule` trains."""

    def loss(
        self,
        x_0: Float[Tensor, "n d"],
        text: TextFeatures,
        null: TextFeatures,
        index: Int64[Tensor, " n"],
        seed: int,
    ) -> Float[Tensor, ""]:
        """Of image embeddings `x_0` in the scale of the run, given their texts.

        `null`, one row, is the empty prompt. Whatever is drawn is a function of (`seed`, `index`).
        """
        ...

    def set_statistics(self, mean: Float[Tensor, " d"], std: Float[Tensor, " d"]) -> None:
        """Of the image embeddings that it is trained on."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write what `from_pretrained(folder)` of the class reads."""
        ...


class IdentityPrior(nn.Module):
    """Paints the text embedding itself: the paper's "CLIP text embedding" ablation."""

    stochastic = False

    def forward(self, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        return text.embeds


class LinearPrior(nn.Module):
    """Ridge regression from text to image embeddings, loaded from a file of `fit`.

    The deterministic baseline every learned prior has to beat.
    """

    stochastic = False
    weight: Tensor
    bias: Tensor

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"module.prior.path={path}: no such file, expected a linear prior (.safetensors)"
            )
        for name, value in load_file(path).items():
            self.register_buffer(name, value.float(), persistent=False)

    def forward(self, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n e"]:
        return text.embeds @ self.weight + self.bias


def fit_linear_prior(
    text_embeds: Float[Tensor, "n d"], image_embeds: Float[Tensor, "n e"], ridge: float = 1e-3
) -> dict[str, Tensor]:
    """argmin_W ||(X - mean X) W - (Y - mean Y)||^2 + ridge tr(X'X)/d ||W||^2, in float64."""
    x, y = text_embeds.double(), image_embeds.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.mT @ x
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, x.mT @ y)
    return {"weight": weight.float(), "bias": (y_mean - x_mean @ weight).float()}


def save_linear_prior(path: str | Path, state: dict[str, Tensor]) -> None:
    """Write what `LinearPrior` reads, under a temporary name first."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: value.contiguous() for name, value in state.items()}, temporary)
    temporary.replace(path)
