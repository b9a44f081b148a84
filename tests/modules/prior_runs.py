"""Pairs of embeddings that a text decides, and priors to train on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from spatext.datamodules.batches import EvaluationBatchSampler
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.prior import PriorModule
from tiny import EMBED_DIM, LR_SCHEDULER, OPTIMIZER, PRIOR, TEXTS

SAMPLING = {"num_steps": 3, "num_candidates": 1, "guidance_scale": 2.0}


def make_pair(index: int) -> dict[str, Any]:
    """The text decides the embedding, but for some noise."""
    draw = torch.Generator().manual_seed(index)
    centre = torch.randn(EMBED_DIM, generator=torch.Generator().manual_seed(index % 4))
    return {
        "image_embeds": 2 + 3 * centre + 0.1 * torch.randn(EMBED_DIM, generator=draw),
        "text": TEXTS[index % 4],
        "is_region": index % 2 == 0,
        "key": f"shard/{index}",
        "index": index,
    }


def make_pairs(*indices: int) -> dict[str, Any]:
    rows = [make_pair(index) for index in indices]
    return {
        "image_embeds": torch.stack([row["image_embeds"] for row in rows]),
        "text": [row["text"] for row in rows],
        "is_region": torch.tensor([row["is_region"] for row in rows]),
        "key": [row["key"] for row in rows],
        "index": torch.tensor([row["index"] for row in rows]),
    }


class TinyPairs(pl.LightningDataModule):
    """Two batches of four an epoch, and five pairs to validate on."""

    def __init__(self, **fingerprint: Any) -> None:
        super().__init__()
        self.fingerprint = {"clip": "any", "scale": "raw", "embed_dim": EMBED_DIM} | fingerprint
        self.asked = 0

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        self.asked += 1
        embeds = make_pairs(*range(8))["image_embeds"]
        return embeds.mean(0).numpy(), embeds.std(0, correction=0).numpy()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(8), 4, collate_fn=lambda rows: make_pairs(*rows))

    def val_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        sampler = EvaluationBatchSampler(
            5, 3, rank=trainer.global_rank, world_size=trainer.world_size
        )
        return DataLoader(
            range(100, 105),
            batch_sampler=[[row for row, _ in batch] for batch in sampler],
            collate_fn=lambda rows: make_pairs(*rows),
        )


def make_network(**options: Any) -> DiffusionPrior:
    return DiffusionPrior.from_config(prior=PRIOR, **(SAMPLING | options))


def make_module(base: Path, network: Any = None, **options: Any) -> PriorModule:
    return PriorModule(
        network or make_network(),
        Clip(f"local-dir:{base / 'clip'}"),
        optimizer=OPTIMIZER,
        lr_scheduler=LR_SCHEDULER,
        **options,
    )
