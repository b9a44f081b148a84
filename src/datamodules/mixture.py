"""Mixtures of streams whose batches are a pure function of (seed, number of the batch).

Every stream is shuffled and repeated for itself, and every global batch takes its fixed number of
each. So the shares are exact in each batch, and no draw decides them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from .batches import StreamSampler
from .order import Order

PAIR_ORDER_VERSION = 1  # pairs lie in one file: their order knows no windows


class Stream:
    """Endless passes over an order, `size` of its samples a batch, each pass but for its last
    size - 1.

    Pass e of stream `number` out of `num_streams` has the order of the epoch num_streams * e +
    number, so that no two passes of one seed share an order; a single stream has the order of
    `GlobalBatchSampler`. `rows`: what the samples of the order are called outside; or they are
    numbered from `first` on.
    """

    def __init__(
        self,
        order: Order,
        size: int,
        number: int,
        num_streams: int,
        *,
        rows: Int64[np.ndarray, " n"] | None = None,
        first: int = 0,
    ) -> None:
        self.order, self.size = order, size
        self.number, self.num_streams = number, num_streams
        self.rows, self.first = rows, first

    def __len__(self) -> int:
        """Batches of a pass."""
        return self.order.num_samples // self.size

    def batch(self, number: int, places: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Rows of these places, 0..size - 1, of a global batch."""
        if not len(places):
            return places
        epoch, place = divmod(number, len(self))
        start, stop = int(places.min()), int(places.max()) + 1
        first = place * self.size
        found = self.order.samples(self._address(epoch), first + start, first + stop)
        found = found[places - start]
        return self.first + found if self.rows is None else self.rows[found]

    def replacement(self, number: int, place: int, stream_index: int, attempt: int) -> int:
        epoch, batch = divmod(number, len(self))
        position = batch * self.size + place
        found = self.order.replacement(self._address(epoch), position, stream_index, attempt)
        return self.first + found if self.rows is None else int(self.rows[found])

    def _address(self, epoch: int) -> int:
        return self.num_streams * epoch + self.number


class Streams:
    """Global batches of several streams, of which `pattern[p]` is the one that the place p of a
    batch belongs to. An epoch is one pass over the stream that takes longest; the others are
    repeated meanwhile.
    """

    def __init__(self, streams: Sequence[Stream], pattern: Int64[np.ndarray, " g"]) -> None:
        self.streams, self.pattern = streams, pattern
        self.inside = np.zeros(len(pattern), dtype=np.int64)  # place among those of its stream
        for number, stream in enumerate(streams):
            self.inside[pattern == number] = np.arange(stream.size)

    def __len__(self) -> int:
        """Global batches of an epoch."""
        return max(len(stream) for stream in self.streams)

    def rows(self, batch: int, places: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """What stands at these places of a global batch."""
        found = np.empty(len(places), dtype=np.int64)
        for number, stream in enumerate(self.streams):
            own = self.pattern[places] == number
            found[own] = stream.batch(batch, self.inside[places[own]])
        return found

    def replacement(self, stream_index: int, attempt: int) -> int:
        batch, place = divmod(stream_index, len(self.pattern))
        stream = self.streams[self.pattern[place]]
        return stream.replacement(batch, int(self.inside[place]), stream_index, attempt)


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


class MixtureBatchSampler(StreamSampler):
    """Image and region pairs, `split_batch(...)` of them in a global batch, in this order: int64
    [b, 2] of one rank, (stream_index, row). The stream_index, global_batch_size * batch + place,
    goes with the row, not with the rank.

    With region_share None all pairs are one stream. Rank r takes the r-th contiguous part of
    either, so both numbers must be multiples of the number of processes, and a run may go on with
    another number of them that divides both.
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
        facts: dict[str, Any] = {
            "order_version": PAIR_ORDER_VERSION,
            "seed": seed,
            "global_batch_size": global_batch_size,
            "region_share": region_share,
            "num_images": len(is_region) - num_regions,
            "num_regions": num_regions,
            "digest": digest,
        }
        parts = divide(is_region, global_batch_size, region_share)
        for name, size, rows in parts:
            _check_pairs(name, size, len(rows), global_batch_size, world_size)
        streams = [
            Stream(Order(len(rows), seed), size, number, len(parts), rows=rows)
            for number, (_, size, rows) in enumerate(parts)
        ]
        sizes = [stream.size for stream in streams]
        pattern = np.repeat(np.arange(len(sizes)), sizes)
        blocks = np.split(np.arange(global_batch_size), np.cumsum(sizes)[:-1])
        self.mine = np.concatenate([np.split(block, world_size)[rank] for block in blocks])
        self.streams = Streams(streams, pattern)
        super().__init__(facts, global_batch_size, rank=rank, world_size=world_size)

    def __len__(self) -> int:
        return len(self.streams)

    def __iter__(self) -> Iterator[Int64[np.ndarray, "b 2"]]:
        for batch in range(self.num_handed_out, self.num_handed_out + len(self)):
            stream = batch * self.global_batch_size + self.mine
            yield np.stack([stream, self.streams.rows(batch, self.mine)], axis=1)

    def replacement(self, stream_index: int, attempt: int) -> int:
        return self.streams.replacement(stream_index, attempt)

    @property
    def region_share(self) -> float | None:
        """That of each batch, which is whole numbers; None for a single stream over all pairs."""
        if (share := self.facts["region_share"]) is None:
            return None
        return split_batch(self.global_batch_size, share)[1] / self.global_batch_size


def _check_pairs(
    name: str, size: int, num_pairs: int, global_batch_size: int, world_size: int
) -> None:
    if size % world_size:
        raise ValueError(
            f"{size} {name}pairs of a global batch of {global_batch_size} are not a "
            f"multiple of {world_size} processes; change datamodule.batch_size or "
            "datamodule.region_share"
        )
    if num_pairs < size:
        hint = " or datamodule.region_share" if name else ""
        raise ValueError(
            f"datamodule.pairs holds {num_pairs} {name}pairs, fewer than the {size} of one "
            f"global batch; lower datamodule.batch_size{hint}"
        )
