"""Pairs of embeddings whose maps are known, and spatext-priors on them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from runs import compose_config
from spatext.datamodules.pair_files import PairRows, write_shard
from spatext.datamodules.pair_folder import Pairs
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.regression import MLPPrior
from spatext.tools.priors import compare
from spatext.tools.priors_report import Row
from tiny import EMBED_DIM

COLOURS = "red blue yellow green black white grey pink".split()
THINGS = "circle sea star square dog bird tree house lamp boat".split()
WORLD = torch.randn(2, EMBED_DIM, EMBED_DIM, generator=torch.Generator().manual_seed(3))


def make_texts(kind: str) -> list[str]:
    return [f"{kind} {colour} {thing}" for colour in COLOURS for thing in THINGS]


def write_pairs(folder: Path, clip: Clip, numbers: np.ndarray, noise: float, **facts: Any) -> None:
    """Image embeddings are an affine map of the text embeddings, of images and of regions another,
    and noise; every fifth text is empty, and the last one is there three times."""
    parts = []
    for kind in (0, 1):
        every = make_texts(("two", "a")[kind])
        texts = [every[i] for i in numbers] + [every[numbers[-1]]] * 2
        image = clip.embed_texts(texts) @ WORLD[kind] + 2 + kind
        draw = torch.Generator().manual_seed(len(numbers))
        image += noise * torch.randn(image.shape, generator=draw)
        texts = ["" if i % 5 == 0 else text for i, text in enumerate(texts)]
        parts.append((image, texts))
    texts = parts[0][1] + parts[1][1]
    rows = PairRows(
        image_embeds=torch.cat([part[0] for part in parts]).numpy(),
        is_region=np.arange(len(texts)) >= len(parts[0][1]),
        texts=texts,
        keys=[f"s/{i}" for i in range(len(texts))],
    )
    defaults: dict[str, Any] = {"fingerprint": clip.fingerprint, "source": {}, "options": {}}
    write_shard(folder, "s", rows, **(defaults | {"bad": {}} | facts))


def make_clip(folder: Path) -> Clip:
    return Clip(f"local-dir:{folder / 'base' / 'clip'}")


def run(world: Path, out: Path, *overrides: str) -> dict[tuple[str, str], Row]:
    rows = compare(
        compose_config(
            "priors",
            [
                f"pairs={world / 'train'}",
                f"val_pairs={world / 'val'}",
                f"clip.name=local-dir:{world / 'base' / 'clip'}",
                "clip.pretrained=null",
                f"out={out}",
                "device=cpu",
                "batch_size=7",
                *overrides,
            ],
        )
    )
    return {(row.pairs, row.prior): row for row in rows}


def held_out(world: Path, is_region: bool) -> tuple[torch.Tensor, list[str]]:
    """The first pair of each text that is none."""
    pairs = Pairs(world / "val")
    rows = np.flatnonzero(pairs.kinds == is_region)
    texts = pairs.texts(rows)
    first = [i for i, text in enumerate(texts) if text and text not in texts[:i]]
    return torch.from_numpy(pairs.image_embeds(rows[first])), [texts[i] for i in first]


BASELINES = ["the text itself", "another image", "mean of training"]
FITTED = [
    *("linear", "linear_regions", "retrieval_k1", "retrieval_k10"),
    *("retrieval_linear_k1", "retrieval_linear_k10"),
]


def make_mlp(folder: Path, width: int = EMBED_DIM) -> MLPPrior:
    prior = MLPPrior(embed_dim=width, width=16, num_blocks=1)
    prior.set_statistics(torch.full((width,), 2.0), torch.ones(width))
    prior.save_pretrained(folder)
    return prior.eval()
