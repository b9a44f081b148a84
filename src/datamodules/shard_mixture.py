"""Several sets of shards in one stream, each with its weight."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from .batches import GlobalBatchSampler
from .locations import Shard, Shards, expand_shards
from .mixture import Stream, Streams

ENTRIES = {"shards", "weight"}


def expand_sets(
    shards: Shards | Mapping[str, Any],
) -> tuple[list[Shard], dict[str, tuple[int, float]]]:
    """All shards in a row; and of each set its number of shards and its weight, none for a single
    set."""
    if not isinstance(shards, Mapping):
        return expand_shards(shards), {}
    found: list[Shard] = []
    sets: dict[str, tuple[int, float]] = {}
    for name, entry in shards.items():
        if not isinstance(entry, Mapping) or set(entry) != ENTRIES:
            raise ValueError(f"datamodule.shards.{name}: expected shards and weight")
        weight = entry["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise ValueError(
                f"datamodule.shards.{name}.weight is {weight!r}, expected a number over 0"
            )
        own = expand_shards(entry["shards"], f"datamodule.shards.{name}.shards")
        sets[name] = (len(own), float(weight))
        found += own
    if not sets:
        raise ValueError("datamodule.shards is an empty mapping, expected name: {shards, weight}")
    return found, sets


def apportion(weights: Mapping[str, float | int], num: int) -> dict[str, int]:
    """`num` by weight, in whole numbers, by largest remainders (of equal ones the first)."""
    total = sum(weights.values())
    exact = {name: num * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in rest[: num - sum(counts.values())]:
        counts[name] += 1
    return counts


def spread(counts: Sequence[int]) -> Int64[np.ndarray, " g"]:
    """Which stream each place of a batch belongs to: every stream evenly over the batch."""
    middles = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(middles, kind="stable")]


class ShardMixtureSampler(GlobalBatchSampler):
    """Several sets of shards, each with its weight, in every global batch by `apportion`.

    `shard_sizes` are those of all sets in a row, `sets` the number of shards and the weight of
    each. The sets' samples are spread over the batch, so that each rank has some of each.
    """

    def __init__(
        self,
        shard_sizes: Int64[np.ndarray, " n"],
        sets: Mapping[str, tuple[int, float]],
        global_batch_size: int,
        **options: Any,
    ) -> None:
        super().__init__(shard_sizes, global_batch_size, **options)
        counts = apportion({name: weight for name, (_, weight) in sets.items()}, global_batch_size)
        bounds = np.cumsum([0, *(num for num, _ in sets.values())])
        streams, first = [], 0
        for number, (name, size) in enumerate(counts.items()):
            part = shard_sizes[bounds[number] : bounds[number + 1]]
            order = self.order.of(part)
            _check_set(name, size, order.num_samples, global_batch_size)
            streams.append(Stream(order, size, number, len(sets), first=first))
            first += order.num_samples
        self.streams = Streams(streams, spread(list(counts.values())))
        self.facts["mixture"] = counts

    def __len__(self) -> int:
        return len(self.streams)

    def rows(self, batch: int, start: int, stop: int) -> Int64[np.ndarray, " b"]:
        return self.streams.rows(batch, np.arange(start, stop))

    def replacement(self, stream_index: int, attempt: int) -> int:
        return self.streams.replacement(stream_index, attempt)


def _check_set(name: str, size: int, num_samples: int, global_batch_size: int) -> None:
    if not size:
        raise ValueError(
            f"datamodule.shards.{name}: its weight gives it no sample in a global batch of "
            f"{global_batch_size}; raise it or datamodule.batch_size"
        )
    if num_samples < size:
        raise ValueError(
            f"datamodule.shards.{name} hold {num_samples} samples, fewer than the {size} in a "
            "global batch; lower its weight or datamodule.batch_size"
        )
