"""Priors that are made of the training pairs on the spot: linear regression and retrieval."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from spatext.datamodules.pair_folder import Pairs
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.priors import LinearPrior, fit_linear_prior, save_linear_prior
from spatext.modules.networks.retrieval import RetrievalPrior, build_index
from spatext.tools.retrieval import pick_rows


@dataclass
class Training:
    """The training pairs, and what was made of them in `folder`, each thing once.

    Of more than `num_fit` pairs the regression sees that many, evenly spaced.
    """

    pairs: Pairs
    clip: Clip
    folder: Path
    num_fit: int
    batch_size: int
    embeds: dict[str, Tensor] = field(default_factory=dict)
    made: dict[str, Path] = field(default_factory=dict)

    def linear(self, rows: str, ridge: float) -> Path:
        """A file of `LinearPrior`, fitted on those of the pairs that have a text."""
        name = f"linear_prior-{rows}-{ridge:g}.safetensors"
        if name not in self.made:
            numbers = spread(pick_rows(self.pairs, rows), self.num_fit)
            texts = self.pairs.texts(numbers)
            told = np.array([bool(text) for text in texts])
            if told.sum() < 2:
                raise ValueError(
                    f"{self.pairs.folder}: {told.sum()} of {len(told)} pairs that were picked have "
                    "a text, expected 2 or more to fit a linear prior"
                )
            image = torch.from_numpy(self.pairs.image_embeds(numbers[told]))
            state = fit_linear_prior(self.embed([text for text in texts if text]), image, ridge)
            save_linear_prior(self.folder / name, state)
            self.made[name] = self.folder / name
        return self.made[name]

    def index(self, rows: str, kind: str) -> Path:
        """A folder of `build_index`."""
        name = f"index-{rows}-{kind.replace(',', '-')}"
        if name not in self.made:
            pairs, numbers = self.pairs, pick_rows(self.pairs, rows)
            facts = {"fingerprint": pairs.fingerprint, "kind": kind}
            build_index(self.folder / name, pairs.image_embeds, numbers, **facts)
            self.made[name] = self.folder / name
        return self.made[name]

    def embed(self, texts: list[str]) -> Float[Tensor, "n d"]:
        new = [text for text in dict.fromkeys(texts) if text not in self.embeds]
        for part in tqdm(batches(new, self.batch_size), desc="embed texts", unit="batch"):
            rows = self.clip.embed_texts(part).float().cpu()
            self.embeds.update(zip(part, rows, strict=True))
        return torch.stack([self.embeds[text] for text in texts])


def fit_linear(training: Training, *, rows: str = "all", ridge: float = 1e-3) -> LinearPrior:
    """Ridge regression on `rows` (all, images, regions); its file stays in the folder."""
    return LinearPrior(training.linear(rows, ridge))


def fit_retrieval(
    training: Training,
    *,
    k: int = 1,
    kind: str = "Flat",
    rows: str = "all",
    linear: bool = False,
    search: str = "",
) -> RetrievalPrior:
    """`rows` of the pairs indexed; with `linear` searched from where a regression on them leads."""
    path = training.linear(rows, 1e-3) if linear else None
    return RetrievalPrior(training.index(rows, kind), k, linear=path, search=search)


def spread(rows: Int64[np.ndarray, " n"], most: int) -> Int64[np.ndarray, " m"]:
    """At most `most` of them, evenly spaced."""
    return rows if len(rows) <= most else rows[np.arange(most) * len(rows) // most]


def batches(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]
