"""Global batches: which process trains on which samples, and the place in the stream as state.

Global batch s holds the stream positions [s GB, (s + 1) GB) and rank r the r-th contiguous part of
them, whatever the number of processes and workers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

from .order import ORDER_VERSION, Order


class StreamSampler(Sampler[Any]):
    """An endless training stream of global batches, whose state is a count.

    An iteration yields `len(sampler)` batches from `num_handed_out` on, the count of global batches
    that whoever consumes them keeps (workers prefetch, so the sampler itself cannot know). `facts`
    say which stream it is; `hints` what to do where one of them is another than in a checkpoint.
    """

    def __init__(
        self, facts: dict[str, Any], global_batch_size: int, *, rank: int, world_size: int
    ) -> None:
        if facts["seed"] < 0:
            raise ValueError(f"datamodule.seed is {facts['seed']}, expected 0 or more")
        self.facts = {"order_version": ORDER_VERSION, **facts}
        self.global_batch_size = global_batch_size
        self.rank, self.world_size = rank, world_size
        self.num_handed_out = 0

    def __len__(self) -> int:
        """Global batches of an epoch."""
        raise NotImplementedError

    def replacement(self, stream_index: int, attempt: int) -> int:
        """Sample id that stands in for an unreadable one at this place of the stream."""
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        return self.num_handed_out // len(self)

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank."""
        num = self.num_handed_out * self.global_batch_size
        return {**self.facts, "epoch": self.epoch, "global_samples": num}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the batch after the saved ones; ValueError for another stream's state."""
        for name in dict.fromkeys([*self.facts, *state]):
            here, saved = self.facts.get(name), state.get(name)
            if name not in PLACE and here != saved:
                hint = HINTS.get(name, "")
                raise ValueError(
                    f"cannot resume the data: {name} was {saved} in the checkpoint, is {here}{hint}"
                )
        self.num_handed_out = state["global_samples"] // self.global_batch_size


PLACE = ("epoch", "global_samples")  # in the stream, which the rest of a state names
HINTS = {
    "index_sha256": ": datamodule.shards or skip are others, or were written again since",
    "order_version": ": another version of this package ordered the data",
    "global_batch_size": ": it is datamodule.batch_size x processes",
}


class GlobalBatchSampler(StreamSampler):
    """Lists of (stream_index, sample_id) of one rank, which takes the rank-th contiguous part of
    each global batch.

    An epoch covers each sample once but for the last GB - 1 at most, others in each epoch.
    `shard_sizes`, `window_shards`: see `Order`. `index_sha256` identifies the data.
    """

    def __init__(
        self,
        shard_sizes: int | Sequence[int] | Int64[np.ndarray, " n"],
        global_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        window_shards: int | None = None,
        index_sha256: str = "",
        start_batch: int = 0,
    ) -> None:
        self.order = Order(shard_sizes, seed, window_shards=window_shards, shuffle=shuffle)
        facts = {
            "seed": seed,
            "shuffle": shuffle,
            "window_shards": window_shards,
            "num_samples": self.order.num_samples,
            "global_batch_size": global_batch_size,
            "index_sha256": index_sha256,
        }
        super().__init__(facts, global_batch_size, rank=rank, world_size=world_size)
        if global_batch_size % world_size:
            raise ValueError(
                f"global batch size {global_batch_size} is not a multiple of {world_size} processes"
            )
        if self.order.num_samples < global_batch_size:
            raise ValueError(
                f"datamodule.shards hold {self.order.num_samples} samples, fewer than one global "
                f"batch of {global_batch_size}; lower datamodule.batch_size"
            )
        self.num_handed_out = start_batch

    def __len__(self) -> int:
        return self.order.num_samples // self.global_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part = self.global_batch_size // self.world_size
        first = self.rank * part
        for batch in range(self.num_handed_out, self.num_handed_out + len(self)):
            stream = batch * self.global_batch_size + first
            ids = self.rows(batch, first, first + part).tolist()
            yield list(zip(range(stream, stream + part), ids, strict=True))

    def rows(self, batch: int, start: int, stop: int) -> Int64[np.ndarray, " b"]:
        """Sample ids of the places [start, stop) of a global batch."""
        epoch, number = divmod(batch, len(self))
        first = number * self.global_batch_size
        return self.order.samples(epoch, first + start, first + stop)

    def replacement(self, stream_index: int, attempt: int) -> int:
        batch, place = divmod(stream_index, self.global_batch_size)
        epoch, number = divmod(batch, len(self))
        position = number * self.global_batch_size + place
        return self.order.replacement(epoch, position, stream_index, attempt)


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
