"""Order of the data: a pure function of (seed, epoch, position), so that its state is one number.

Global batch s holds the stream positions [s GB, (s + 1) GB) and rank r the r-th contiguous part of
them, whatever the number of processes and workers. Permutations sort raw Philox words, which NumPy
keeps stable across versions, unlike `Generator.permutation`.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

ORDER_VERSION = 1


class Purpose(IntEnum):
    """What random numbers are for; never renumber, a run's data depends on it."""

    ORDER = 0
    CROP = 1
    SEGMENTS = 2
    REPLACEMENT = 3


def philox(seed: int, purpose: Purpose, address: int, sub: int = 0) -> np.random.Philox:
    """Philox 4x64 with key (seed, purpose) and the counter's high words (address, sub)."""
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, sub, address], dtype=np.uint64))


def epoch_order(
    num_samples: int, seed: int, epoch: int, shuffle: bool = True
) -> Int64[np.ndarray, " n"]:
    """Sample ids of one epoch, each once."""
    if not shuffle:
        return np.arange(num_samples, dtype=np.int64)
    words = philox(seed, Purpose.ORDER, epoch).random_raw(num_samples)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def replacement(num_samples: int, seed: int, stream_index: int, attempt: int) -> int:
    """Sample id that stands in for an unreadable one at this place of the stream."""
    word = philox(seed, Purpose.REPLACEMENT, stream_index, attempt).random_raw()
    return int(word) % num_samples


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless training stream in global batches: lists of (stream_index, sample_id) of one rank.

    An epoch covers each sample once but for the last GB - 1 at most, others in each epoch.
    An iteration yields `len(sampler)` batches from `num_handed_out` on, the count of global batches
    that whoever consumes them keeps (workers prefetch, so the sampler itself cannot know).
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        start_batch: int = 0,
    ) -> None:
        if global_batch_size % world_size:
            raise ValueError(
                f"global batch size {global_batch_size} is not a multiple of {world_size} processes"
            )
        if num_samples < global_batch_size:
            raise ValueError(
                f"datamodule.shards hold {num_samples} samples, fewer than one global batch of "
                f"{global_batch_size}; lower datamodule.batch_size"
            )
        if seed < 0:
            raise ValueError(f"datamodule.seed is {seed}, expected 0 or more")
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shuffle = shuffle
        self.num_handed_out = start_batch

    def __len__(self) -> int:
        """Global batches of an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def epoch(self) -> int:
        return self.num_handed_out // len(self)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start = self.num_handed_out
        part = self.global_batch_size // self.world_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for batch in range(start, start + len(self)):
            if batch // len(self) != epoch:
                epoch = batch // len(self)
                order = epoch_order(self.num_samples, self.seed, epoch, self.shuffle)
            first = batch % len(self) * self.global_batch_size + self.rank * part
            stream = batch * self.global_batch_size + self.rank * part
            yield [(stream + i, int(order[first + i])) for i in range(part)]

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank."""
        return {
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "global_batch_size": self.global_batch_size,
            "epoch": self.epoch,
            "global_samples": self.num_handed_out * self.global_batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the batch after the saved ones; ValueError for another stream's state."""
        for name in ("order_version", "seed", "num_samples", "global_batch_size"):
            if (here := self.state_dict()[name]) != state[name]:
                raise ValueError(
                    f"cannot resume the data: {name} was {state[name]} in the checkpoint, is {here}"
                )
        self.num_handed_out = state["global_samples"] // self.global_batch_size


class EvaluationBatchSampler(Sampler[list[tuple[int, int]]]):
    """Every sample exactly once at any world size, with as many batches on each rank.

    The n samples are spread evenly over the global batches and these over the ranks: no padding,
    so local batches differ by a row (and exceed `batch_size` by one where n leaves no choice).
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if num_samples < world_size:
            raise ValueError(
                f"datamodule.val_shards hold {num_samples} samples, expected one for each of the "
                f"{world_size} processes"
            )
        self.num_samples = num_samples
        self.rank = rank
        self.world_size = world_size
        wanted = -(-num_samples // (batch_size * world_size))
        self.num_batches = min(wanted, num_samples // world_size)  # no rank may be left without

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.num_batches):
            first = batch * self.num_samples // self.num_batches
            rows = (batch + 1) * self.num_samples // self.num_batches - first
            start = first + self.rank * rows // self.world_size
            stop = first + (self.rank + 1) * rows // self.world_size
            yield [(i, i) for i in range(start, stop)]
