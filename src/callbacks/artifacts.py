"""Checkpoints as W&B artifacts."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from .checkpoints import Checkpoint
from .tracking import Tracker


class CheckpointArtifacts(Callback):
    """Uploads the best checkpoint (alias `best`, where a metric is monitored) and the last one
    (alias `latest`) every `every_n_hours` and at the end, each only if it is new.

    Each version is a whole checkpoint, with the run's configuration in it as it is: secrets are
    not taken out of a file that others load. W&B copies it before the upload, so retention may
    delete the original; an upload that fails is a warning.
    """

    def __init__(self, name: str, *, every_n_hours: float = 6.0) -> None:
        if every_n_hours <= 0:
            raise ValueError(
                f"callbacks.artifacts.every_n_hours: found {every_n_hours:g}, expected more than 0"
            )
        self.name, self.period = name, every_n_hours * 3600
        self.due = time.monotonic() + self.period
        self.sent: dict[str, tuple[Path, float]] = {}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + self.period
            self.upload(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.upload(trainer)

    def upload(self, trainer: pl.Trainer) -> None:
        """What W&B receives last becomes `latest` there, so the best one goes first."""
        trackers = [logger for logger in trainer.loggers if isinstance(logger, Tracker)]
        if not trainer.is_global_zero or not trackers:
            return
        for path, aliases in newest(trainer):
            try:
                version = (path, path.stat().st_mtime)
            except FileNotFoundError:  # the writing thread has deleted it meanwhile
                continue
            if all(self.sent.get(alias) == version for alias in aliases):
                continue
            self.sent |= dict.fromkeys(aliases, version)
            for tracker in trackers:
                tracker.log_files(self.name, path, aliases)


def newest(trainer: pl.Trainer) -> list[tuple[Path, list[str]]]:
    """The files or folders of the checkpoints, links resolved, with their aliases: best first."""
    found: dict[Path, list[str]] = {}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpoint):
            paths = {"best": callback.best_model_path, "latest": callback.last_model_path}
            for alias, path in paths.items():
                if path and Path(path).exists():
                    found.setdefault(Path(path).resolve(), []).append(alias)
    return list(found.items())
