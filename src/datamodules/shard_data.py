"""Shards, their indexes and the order of their samples: what all that reads them shares."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .batches import EvaluationBatchSampler, GlobalBatchSampler
from .bucket_batches import BucketBatchSampler
from .buckets import Buckets, SampleBuckets
from .index_opening import open_index
from .loaders import StreamDataModule
from .order import Order
from .shard_cache import ShardCache
from .shard_index import ShardIndex
from .shard_mixture import ShardMixtureSampler, expand_sets
from .shards import Shard, Shards, expand_shards
from .skip_list import KeptSamples, find_skip_list, without

MAX_INDEX_JOBS = 16


class ShardDataModule(StreamDataModule):
    """Opens shards and says which of their samples stand in which batch. Options: see
    `PanopticDataModule`; FileNotFoundError for shards that are not there."""

    def __init__(
        self,
        shards: Shards | Mapping[str, Any],
        val_shards: Shards | None,
        *,
        batch_size: int,
        num_workers: int,
        shuffle: bool,
        window_shards: int | None,
        seed: int,
        index: str | Path | None,
        cache: str | Path | None,
        cache_bytes: int,
        buckets: Buckets | None,
    ) -> None:
        super().__init__(num_workers)
        self.shards, self.sets = self.expand(shards)
        if buckets is not None and self.sets:
            raise ValueError(
                "datamodule.buckets: not for a mixture, expected datamodule.shards without weights"
            )
        self.val_shards: list[Shard] | None = None
        if val_shards is not None:
            self.val_shards = expand_shards(val_shards, "datamodule.val_shards")
        self.batch_size = batch_size
        self.shuffle, self.window_shards, self.seed = shuffle, window_shards, seed
        self.index = index
        self.cache = None if cache is None else ShardCache(cache, cache_bytes)
        self.buckets = buckets

    def expand(
        self, shards: Shards | Mapping[str, Any]
    ) -> tuple[list[Shard], dict[str, tuple[int, float]]]:
        """All shards, and the sets of a mixture; see `expand_sets`."""
        return expand_sets(shards)

    def open_records(
        self, shards: list[Shard], skip: str | Path | None = None
    ) -> ShardIndex | KeptSamples:
        """The index of the shards, made where there is none, without the samples of a list."""
        path = None if skip is None else find_skip_list(skip)
        index = open_index(
            shards,
            self.index,
            cache=self.cache,
            jobs=min(self.num_workers, MAX_INDEX_JOBS),
            bar=self.rank()[0] == 0,
        )
        return without(index, path)

    def training_sampler(self, records: ShardIndex | KeptSamples) -> GlobalBatchSampler:
        rank, world_size = self.rank()
        options: dict[str, Any] = {
            "rank": rank,
            "world_size": world_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "window_shards": self.window_shards,
            "index_sha256": records.sha256,
        }
        size = self.batch_size * world_size
        if self.sets:
            return ShardMixtureSampler(records.sizes, self.sets, size, **options)
        if self.buckets is not None:
            return BucketBatchSampler(SampleBuckets(self.buckets, records), size, **options)
        return GlobalBatchSampler(records.sizes, size, **options)

    def validation_order(
        self, records: ShardIndex | KeptSamples
    ) -> tuple[EvaluationBatchSampler, partial[int]]:
        """The batches, and what stands in for an unusable sample: (number, attempt) -> number."""
        rank, world_size = self.rank()
        sampler = EvaluationBatchSampler(
            len(records), self.batch_size, rank=rank, world_size=world_size
        )
        order = Order(records.sizes, self.seed, window_shards=self.window_shards, shuffle=False)
        return sampler, partial(stand_in, order)


def stand_in(order: Order, number: int, attempt: int) -> int:
    """Of an unusable sample of the validation: another one of its window."""
    return order.replacement(0, number, number, attempt)
