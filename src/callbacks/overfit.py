"""Train on a few batches over and over: a model that cannot learn these learns nothing."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Batches:
    """A loader of batches that are there already."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Overfit(Callback):
    """Each epoch is the first `num_batches` of the training stream, with the same draws.

    Lightning's overfit_batches would go on along the stream, whose place is kept over epochs.
    """

    def __init__(self, num_batches: int = 1) -> None:
        if num_batches < 1:
            raise ValueError(f"callbacks.overfit.num_batches: found {num_batches}, expected >= 1")
        self.num_batches = num_batches

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data: pl.LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        make_loader = data.train_dataloader
        data.train_dataloader = (  # type: ignore[method-assign]
            lambda: Batches(islice(make_loader(), self.num_batches))
        )
