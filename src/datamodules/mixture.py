"""A mixture of two streams whose batches are a pure function of (seed, number of the batch).

Image pairs and region pairs are shuffled and repeated each for itself, and every global batch takes
its fixed number of both. So the share is exact in each batch, on each process, and no draw decides
it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from torch.utils.data import Sampler

from .order import ORDER_VERSION, epoch_order


def split_batch(global_batch_size: int, region_share: float) -> tuple[int, int]:
    """(image pairs, region pairs) of a global batch: round(region_share * size) of the second."""
    num_regions = round(region_share * global_batch_size)
    return global_batch_size - num_regions, num_regions


def divide(
    is_region: Bool[np.ndarray, " n"], global_batch_size: int, region_share: float | None
) -> list[tuple[str, int, np.ndarray]]:
    """(name, pairs in a global batch, rows) of each stream."""
    if region_share is None:
        return [("", global_batch_size, np.arange(len(is_region), dtype=np.int64))]
    num_images, num_regions = split_batch(global_batch_size, region_share)
    if (num_images == 0) != (region_share == 1) or (num_regions == 0) != (region_share == 0):
        raise ValueError(
            f"datamodule.region_share = {region_share} of a global batch of {global_batch_size} is "
            f"{num_regions} region and {num_images} image pairs, expected some of both; raise "
            "datamodule.batch_size"
        )
    both = [
        ("image ", num_images, np.flatnonzero(~is_region)),
        ("region ", num_regions, np.flatnonzero(is_region)),
    ]
    return [part for part in both if part[1]]


class Stream:
    """Endless passes over `rows`, `size` of them a batch, each pass but for its last size - 1.

    Pass e of stream `number` out of `num_streams` has the order of the epoch num_streams * e +
    number, so that no two passes of one seed share an order; a single stream has the order of
    `GlobalBatchSampler`.
    """

    def __init__(
        self, rows: Int64[np.ndarray, " n"], size: int, seed: int, number: int, num_streams: int
    ) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        self.number, self.num_streams = number, num_streams
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Batches of a pass."""
        return len(self.rows) // self.size

    def batch(self, number: int, start: int, stop: int) -> Int64[np.ndarray, " b"]:
        """Rows of the places [start, stop) of a global batch."""
        epoch, place = divmod(number, len(self))
        if epoch != self.epoch:
            address = self.num_streams * epoch + self.number
            self.epoch, self.order = epoch, epoch_order(len(self.rows), self.seed, address)
        first = place * self.size
        return self.rows[self.order[first + start : first + stop]]


class MixtureBatchSampler(Sampler[np.ndarray]):
    """Endless training stream in global batches: int64 [b, 2] of one rank, (stream_index, row).

    A global batch holds `split_batch(...)` image and region pairs, in this order; with region_share
    None all pairs are one stream. Rank r takes the r-th contiguous part of either, so both numbers
    must be multiples of the number of processes, and a run may go on with another number of them
    that divides both. The stream_index, global_batch_size * batch + place, goes with the row, not
    with the rank. An epoch is one pass over the stream that takes longer; the other one is repeated
    meanwhile.
    """

    def __init__(
        self,
        is_region: Bool[np.ndarray, " n"],
        global_batch_size: int,
        *,
        region_share: float | None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        digest: str = "",
    ) -> None:
        num_regions = int(is_region.sum())
        self.facts: dict[str, Any] = {
            "order_version": ORDER_VERSION,
            "seed": seed,
            "global_batch_size": global_batch_size,
            "region_share": region_share,
            "num_images": len(is_region) - num_regions,
            "num_regions": num_regions,
            "digest": digest,
        }
        self.global_batch_size = global_batch_size
        self.rank, self.world_size = rank, world_size
        self.num_handed_out = 0
        parts = divide(is_region, global_batch_size, region_share)
        for name, size, rows in parts:
            self._check(name, size, len(rows))
        self.streams = [
            Stream(rows, size, seed, number, len(parts))
            for number, (_, size, rows) in enumerate(parts)
        ]

    def __len__(self) -> int:
        """Global batches of an epoch."""
        return max(len(stream) for stream in self.streams)

    def __iter__(self) -> Iterator[np.ndarray]:
        """`len(self)` batches from `num_handed_out` on, as in GlobalBatchSampler."""
        for batch in range(self.num_handed_out, self.num_handed_out + len(self)):
            parts, first = [], batch * self.global_batch_size
            for stream in self.streams:
                part = stream.size // self.world_size
                start, stop = self.rank * part, (self.rank + 1) * part
                rows = stream.batch(batch, start, stop)
                parts.append(np.stack([np.arange(first + start, first + stop), rows], axis=1))
                first += stream.size
            yield np.concatenate(parts)

    @property
    def region_share(self) -> float | None:
        """That of each batch, which is whole numbers; None for a single stream over all pairs."""
        if (share := self.facts["region_share"]) is None:
            return None
        return split_batch(self.global_batch_size, share)[1] / self.global_batch_size

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank."""
        epoch, num = self.num_handed_out // len(self), self.num_handed_out * self.global_batch_size
        return {**self.facts, "epoch": epoch, "global_samples": num}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the batch after the saved ones; ValueError for another stream's state."""
        for name, here in self.facts.items():
            if here != state[name]:
                raise ValueError(
                    f"cannot resume the data: {name} was {state[name]} in the checkpoint, is {here}"
                )
        self.num_handed_out = state["global_samples"] // self.global_batch_size

    def _check(self, name: str, size: int, num_pairs: int) -> None:
        if size % self.world_size:
            raise ValueError(
                f"{size} {name}pairs of a global batch of {self.global_batch_size} are not a "
                f"multiple of {self.world_size} processes; change datamodule.batch_size or "
                "datamodule.region_share"
            )
        if num_pairs < size:
            hint = " or datamodule.region_share" if name else ""
            raise ValueError(
                f"datamodule.pairs holds {num_pairs} {name}pairs, fewer than the {size} of one "
                f"global batch; lower datamodule.batch_size{hint}"
            )
