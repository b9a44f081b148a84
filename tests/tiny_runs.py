"""Tiny data, and tiny runs of the real Trainer."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from spatext.datamodules.batches import GlobalBatchSampler
from spatext.datamodules.loaders import TrainingLoader
from spatext.modules.functional.random import Purpose, normal
from spatext.modules.networks.frozen import Frozen, HoldsFrozen
from spatext.modules.training import TrainedModule
from tiny import LR_SCHEDULER, NUM_SEGMENTS, OPTIMIZER, SIZE, TEXTS


def make_sample(index: int) -> dict[str, Any]:
    """One row of a batch, before collation: a function of `index`."""
    draw = torch.Generator().manual_seed(index)
    ids = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    num_valid = index % (NUM_SEGMENTS + 1)
    for k in range(num_valid):
        ids[:, 5 * k : 5 * k + 5] = k + 1
    crops = torch.randint(0, 256, (NUM_SEGMENTS, 3, 12, 12), generator=draw, dtype=torch.uint8)
    valid = torch.arange(NUM_SEGMENTS) < num_valid
    crops[~valid] = 0
    return {
        "image": torch.rand(3, SIZE, SIZE, generator=draw) * 2 - 1,
        "caption": TEXTS[index % len(TEXTS)],
        "key": f"shard/{index}",
        "index": torch.tensor(index),
        "ids": ids,
        "valid": valid,
        "crops": crops,
        "texts": [TEXTS[(index + k) % len(TEXTS)] if valid[k] else "" for k in range(NUM_SEGMENTS)],
    }


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    rows = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: torch.stack(row) if isinstance(row[0], torch.Tensor) else row
        for name, row in rows.items()
    }


def make_batch(*indices: int) -> dict[str, Any]:
    return collate([make_sample(index) for index in indices])


class Samples(Dataset[dict[str, Any]]):
    """Asked for by number, or by (place in the stream, number) as the training stream does."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        index, number = item if isinstance(item, tuple) else (item, item)
        return make_sample(number) | {"index": torch.tensor(index)}


def make_loader(num_samples: int, batch_size: int = 2) -> DataLoader[dict[str, Any]]:
    return DataLoader(Samples(num_samples), batch_size, collate_fn=collate)


class TinyData(pl.LightningDataModule):
    """Four batches of two an epoch; resumed exactly, by the project's own loader."""

    def __init__(self, num_val: int = 0) -> None:
        super().__init__()
        self.num_val = num_val
        self.restored: dict[str, Any] = {}
        self.loader: TrainingLoader | None = None

    def train_dataloader(self) -> TrainingLoader:
        self.loader = TrainingLoader(
            Samples(8),
            batch_sampler=GlobalBatchSampler(8, 2),
            collate_fn=lambda samples: collate(samples) | {"bad": []},
        )
        if self.restored:
            self.loader.load_state_dict(self.restored)
        return self.loader

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        return make_loader(self.num_val) if self.num_val else []

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict() if self.loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict


class TinyModule(HoldsFrozen, TrainedModule):
    """A student of a frozen teacher, with addressed noise: all that callbacks care about."""

    def __init__(self) -> None:
        super().__init__(OPTIMIZER, LR_SCHEDULER)
        self.layer = nn.Linear(4, 3)
        teacher = nn.Linear(4, 3)
        nn.init.eye_(teacher.weight)
        nn.init.ones_(teacher.bias)
        self.teacher = Frozen(teacher)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.loss(batch, batch["image"].flatten(1)[:, :4])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.loss(batch, batch["image"].flatten(1)[:, :4])

    def loss(self, batch: dict[str, Any], x: Tensor) -> Tensor:
        noise = normal(0, Purpose.NOISE, batch["index"], (4,))
        return (self.layer(x + noise) - self.teacher.net(x)).square().mean()


class Logging(TinyModule):
    """Logs the number of each step."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.log("train/number", float(self.global_step))
        return super().training_step(batch, batch_idx)


def make_trainer(folder: Path, **options: Any) -> pl.Trainer:
    """Quiet, on the CPU; `folder` is where it may write."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return pl.Trainer(**(defaults | options))
