"""Save now, and find what was saved, by way of the run's own checkpoint callback."""

import logging

import pytorch_lightning as pl

from .checkpoint_files import verify
from .checkpoint_retention import Entry
from .checkpoints import Checkpoint

log = logging.getLogger(__name__)


def checkpoint_callback(trainer: pl.Trainer) -> Checkpoint | None:
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoint)), None)


def save_now(trainer: pl.Trainer) -> bool:
    """Write a checkpoint of this step unless there is one. Called on all ranks.

    Durable where it returns True. False: the run keeps no checkpoints, or the disk refused.
    """
    callback = checkpoint_callback(trainer)
    if callback is None:
        return False
    callback.save_once(trainer)
    return callback.saved_step == trainer.global_step and not callback.is_lost(trainer)


def newest_checkpoint(trainer: pl.Trainer) -> str | None:
    """The newest valid one that this run has written, the same on all ranks."""
    callback = checkpoint_callback(trainer)
    entries: list[Entry] = []
    if callback is not None and callback.folder is not None:  # it is on rank 0 alone
        entries = sorted(callback.folder.entries(), key=lambda e: e.created, reverse=True)
    path = next((str(entry.path) for entry in entries if is_valid(entry)), None)
    return trainer.strategy.broadcast(path)


def is_valid(entry: Entry) -> bool:
    try:
        verify(entry.path)
    except ValueError as error:
        log.warning("passed over %s: %s", entry.path, error)
        return False
    return True
