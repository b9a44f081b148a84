"""What was wrong with the data of a run, and what it could not use."""

import logging
from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ..datamodules.loaders import StreamDataModule
from .throughput import is_logged_step

log = logging.getLogger(__name__)


class DataCounts(Callback):
    """Logs data/* every `trainer.log_every_n_steps` steps, summed over the processes since they
    started, and one line at the end of the run with the reasons.

    bad_samples       unusable ones that others have stood in for
    without_segments  share of the training images that had no segment: null ST
    """

    def __init__(self) -> None:
        self.last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        stepped, self.last_step = trainer.global_step > self.last_step, trainer.global_step
        if not stepped or not is_logged_step(trainer):
            return
        metrics = self.metrics(trainer)
        for logger in trainer.loggers if trainer.is_global_zero else []:
            # The step under which Lightning files what the module logged for this batch.
            logger.log_metrics(metrics, step=trainer.global_step - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loader = getattr(data_of(trainer), "train_loader", None)
        if loader is None or not loader.bad:
            return
        reasons = Counter[str]()
        for reason, num in loader.bad.items():
            reasons[reason.partition(": ")[2]] += num
        shards = len({reason.partition(": ")[0] for reason in loader.bad})
        log.warning(
            "%d bad samples among %d, in %d shards: %s",
            loader.bad.total(), loader.num_seen, shards, dict(reasons.most_common()),
        )  # fmt: skip

    def metrics(self, trainer: pl.Trainer) -> dict[str, float]:
        """The same on every process, and asked for by all of them."""
        datamodule = data_of(trainer)
        if datamodule is None or datamodule.train_loader is None:
            return {}
        segments = getattr(datamodule, "segment_counts", None)
        local = [datamodule.train_loader.bad.total(), 0, 0]
        if segments is not None:
            local[1:] = [segments.num_without, segments.num_images]
        values = torch.tensor(local, dtype=torch.int64, device=trainer.strategy.root_device)
        bad, without, images = trainer.strategy.reduce(values, reduce_op="sum").tolist()
        share = {"data/without_segments": without / images} if images else {}
        return {"data/bad_samples": float(bad), **share}


def data_of(trainer: pl.Trainer) -> StreamDataModule | None:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    return datamodule if isinstance(datamodule, StreamDataModule) else None
