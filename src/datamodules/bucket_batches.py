"""Global batches of which each holds samples of one bucket, as pure a function as without."""

import logging
from typing import Any

import numpy as np
from jaxtyping import Int64

from .batches import GlobalBatchSampler
from .buckets import MAX_BUCKETS, SampleBuckets
from .order import Order, Purpose, permutation, philox

log = logging.getLogger(__name__)


class BucketOrder:
    """Which bucket a batch of an epoch is of, and which samples it holds.

    The samples of a bucket stand in the order of the windows and, inside of a window, permuted
    among themselves; its batches are slices of `batch_size` of them. A batch belongs to the window
    that its last sample lies in, and those of a window are permuted. So the counts of samples by
    shard and bucket tell which batch is where, and a batch needs no windows but those that it has
    samples in: one or two, and more where its bucket is rare. Unshuffled, the batches of a window
    stand bucket by bucket.
    """

    def __init__(self, order: Order, samples: SampleBuckets, batch_size: int) -> None:
        self.order, self.samples, self.batch_size = order, samples, batch_size
        self.counts = samples.count()
        self.totals: list[int] = self.counts.sum(axis=0).tolist()
        self.num_batches = sum(total // batch_size for total in self.totals)
        self._layout: tuple[int, np.ndarray, np.ndarray] = (-1, self.counts, self.counts)
        self._parts: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def batch(self, epoch: int, number: int) -> tuple[int, int]:
        """(bucket, which of its batches)."""
        before, ends = self.layout(epoch)
        window = int(np.searchsorted(ends, number, side="right"))
        done, then = before[window : window + 2] // self.batch_size
        buckets = np.repeat(np.arange(len(done)), then - done)
        seed = self.order.seed
        if self.order.shuffle:
            buckets = buckets[permutation(len(buckets), seed, Purpose.BATCHES, epoch, window)]
        place = number - (int(ends[window - 1]) if window else 0)
        bucket = int(buckets[place])
        return bucket, int(done[bucket]) + int((buckets[:place] == bucket).sum())

    def rows(self, epoch: int, number: int, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """Sample ids of the places [start, stop) of a batch."""
        bucket, which = self.batch(epoch, number)
        first = which * self.batch_size
        return self.members(epoch, bucket, first + start, first + stop)

    def replacement(self, epoch: int, number: int, address: int, attempt: int) -> int:
        """Sample id that stands in for an unusable one: a draw from the batch's bucket, whose part
        of a window may be that one sample."""
        bucket, _ = self.batch(epoch, number)
        word = int(philox(self.order.seed, Purpose.REPLACEMENT, address, attempt).random_raw())
        place = word % self.totals[bucket]
        return int(self.members(epoch, bucket, place, place + 1)[0])

    def members(self, epoch: int, bucket: int, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """The samples of a bucket from one place to another among them."""
        before, _ = self.layout(epoch)
        places = before[:, bucket]
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            window = int(np.searchsorted(places, start, side="right")) - 1
            first = int(places[window])
            part = self._part(epoch, window, bucket)[start - first : stop - first]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(samples of each bucket before each window and in all; batches to each window's end)."""
        if self._layout[0] != epoch:
            done = np.cumsum(self.counts[self.order.shards(epoch)], axis=0)[self.order.lasts]
            before = np.concatenate([np.zeros_like(done[:1]), done])
            self._layout = (epoch, before, (done // self.batch_size).sum(axis=1))
        return self._layout[1:]

    def _part(self, epoch: int, window: int, bucket: int) -> Int64[np.ndarray, " n"]:
        """What of a bucket lies in a window; of each bucket the last one asked for is kept."""
        if bucket not in self._parts or self._parts[bucket][0] != (epoch, window):
            order, shards = self.order, self.order.window(epoch, window)
            shards = shards[self.counts[shards, bucket] > 0]
            spans = zip(order.firsts[shards].tolist(), order.sizes[shards].tolist(), strict=True)
            found = [self.samples.members(bucket, first, first + size) for first, size in spans]
            ids = np.concatenate(found)
            if order.shuffle:
                sub = window * MAX_BUCKETS + bucket
                ids = ids[permutation(len(ids), order.seed, Purpose.BUCKET, epoch, sub)]
            self._parts[bucket] = ((epoch, window), ids)
        return self._parts[bucket][1]


class BucketBatchSampler(GlobalBatchSampler):
    """Lists of (stream_index, sample_id) of one rank, all of one bucket in a global batch.

    An epoch covers each sample once but for at most GB - 1 of each bucket, others in each epoch
    where the bucket has more than that; those of a bucket with fewer are never seen.
    """

    def __init__(self, samples: SampleBuckets, global_batch_size: int, **options: Any) -> None:
        super().__init__(samples.records.sizes, global_batch_size, **options)
        self.samples = samples
        self.bucket_order = BucketOrder(self.order, samples, global_batch_size)
        self.facts["buckets"] = samples.buckets.facts
        if not self.bucket_order.num_batches:
            raise ValueError(
                f"datamodule.buckets: none of {len(samples)} holds a global batch of "
                f"{global_batch_size}; lower datamodule.batch_size, or raise "
                "datamodule.buckets.step"
            )

        small = [total for total in self.bucket_order.totals if 0 < total < global_batch_size]
        if small and self.rank == 0:
            log.warning(
                "datamodule.buckets: %d samples in %d buckets that fill no global batch are left "
                "out",
                sum(small),
                len(small),
            )

    def __len__(self) -> int:
        return self.bucket_order.num_batches

    def shape_of(self, number: int) -> tuple[int, int]:
        """(h, w) of the training image of a sample."""
        return self.samples.shape_of(number)

    def rows(self, batch: int, start: int, stop: int) -> Int64[np.ndarray, " b"]:
        return self.bucket_order.rows(*divmod(batch, len(self)), start, stop)

    def replacement(self, stream_index: int, attempt: int) -> int:
        epoch, number = divmod(stream_index // self.global_batch_size, len(self))
        return self.bucket_order.replacement(epoch, number, stream_index, attempt)
