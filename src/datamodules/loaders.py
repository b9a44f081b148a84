"""Loaders that count bad samples and stop at a ceiling; the training one is resumed exactly."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from .batches import StreamSampler
from .worker_signals import asking_blocked, outlive_signals

log = logging.getLogger(__name__)

BAD_WINDOW = 1000  # samples before the share of bad ones is taken at its word (our choice)
MAX_RESTARTS = 3  # of the workers of a loader (our choice)


class BatchLoader(DataLoader[Any]):
    """Takes `bad`, the reasons of replaced samples, out of each batch and counts them in `bad`.

    RuntimeError with the counts once more than `max_bad_share` of the samples seen (of 1000 while
    these are fewer: one bad sample in the first batch is no reason to stop) were bad. The counts
    are of this process and its life.
    """

    def __init__(self, *args: Any, max_bad_share: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_bad_share = max_bad_share
        self.num_seen = 0
        self.bad: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with asking_blocked():
            batches = super().__iter__()
        for batch in batches:
            self.num_seen += len(batch["index"])
            self.bad.update(batch.pop("bad"))
            if self.bad.total() > self.max_bad_share * max(self.num_seen, BAD_WINDOW):
                raise RuntimeError(
                    f"{self.bad.total()} bad samples among {self.num_seen}, over "
                    f"datamodule.max_bad_share = {self.max_bad_share}: {dict(self.bad)}"
                )
            self.handed_out()
            yield batch

    def handed_out(self) -> None:
        """Called before each batch leaves."""


class TrainingLoader(BatchLoader):
    """BatchLoader over a StreamSampler whose place in the stream is state.

    Batches that workers have prefetched do not count, only those handed out. So where a worker is
    killed, new ones start at the batch that is waited for, MAX_RESTARTS times.
    """

    batch_sampler: StreamSampler
    num_restarts = 0

    @property
    def recovers(self) -> bool:
        """Whether another start of the workers would leave one more."""
        return self.num_restarts + 1 < MAX_RESTARTS

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        end = self.batch_sampler.num_handed_out + len(self)
        while True:
            try:
                yield from islice(super().__iter__(), end - self.batch_sampler.num_handed_out)
                return
            except (RuntimeError, OSError, EOFError) as error:
                died = self.num_workers > 0 and is_death_of_worker(error)
                if not died or self.num_restarts >= MAX_RESTARTS:
                    raise
                self.num_restarts += 1
                self._iterator = None  # persistent workers
                log.warning("%s: the loader starts its workers again", repr(error))

    def handed_out(self) -> None:
        self.batch_sampler.num_handed_out += 1

    def state_dict(self) -> dict[str, Any]:
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batch_sampler.load_state_dict(state)


def is_death_of_worker(error: Exception) -> bool:
    """torch has no class for it, and its queue may break before a worker is known to be dead.

    What a worker raises says "Caught ... in DataLoader worker process".
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    return not str(error).startswith("Caught")


class StreamDataModule(pl.LightningDataModule):
    """One training stream, whose place is kept in checkpoints."""

    def __init__(self, num_workers: int) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.train_loader: TrainingLoader | None = None
        self.restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream; Lightning restores the loader's own only within an epoch."""
        return self.train_loader.state_dict() if self.train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the loader is made."""
        self.restored = state_dict

    def training_loader(self, *args: Any, **kwargs: Any) -> TrainingLoader:
        """Of these arguments, at the place that was restored."""
        self.train_loader = TrainingLoader(*args, **kwargs)
        if self.restored:
            self.train_loader.load_state_dict(self.restored)
            self.restored = {}
        return self.train_loader

    def rank(self) -> tuple[int, int]:
        """(rank, number) of this process; (0, 1) without a trainer."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def loader_options(
        self, sampler: Sampler[Any], collate_fn: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "batch_sampler": sampler,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": collate_fn,
            "worker_init_fn": outlive_signals,
            "pin_memory": torch.cuda.is_available(),
        }
