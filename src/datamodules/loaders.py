"""Loaders that count bad samples and stop at a ceiling; the training one is resumed exactly."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from .order import GlobalBatchSampler

BAD_WINDOW = 1000  # samples before the share of bad ones is taken at its word (our choice)


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
        for batch in super().__iter__():
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
    """BatchLoader over a GlobalBatchSampler whose place in the stream is state.

    Batches that workers have prefetched do not count, only those handed out.
    """

    batch_sampler: GlobalBatchSampler

    def handed_out(self) -> None:
        self.batch_sampler.num_handed_out += 1

    def state_dict(self) -> dict[str, Any]:
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batch_sampler.load_state_dict(state)
