"""Several sets of shards in one stream, each with its weight."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from .locations import Shard, Shards, expand_shards
from .mixture import Stream, StreamsSampler
from .order import Order

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
        own = expand_shards(entry["shards"])
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


class ShardMixtureSampler(StreamsSampler):
    """Several sets of shards, each with its weight, in every global batch by `apportion`.

    `shard_sizes` are those of all sets in a row, `sets` the number of shards and the weight of
    each. The sets' samples are spread over the batch and rank r takes the r-th contiguous part of
    it, so any number of processes that divides the batch sees the same ones.
    """

    def __init__(
        self,
        shard_sizes: Int64[np.ndarray, " n"],
        sets: Mapping[str, tuple[int, float]],
        global_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        window_shards: int | None = None,
        index_sha256: str = "",
    ) -> None:
        counts = apportion({name: weight for name, (_, weight) in sets.items()}, global_batch_size)
        bounds = np.cumsum([0, *(num for num, _ in sets.values())])
        streams, first = [], 0
        for number, (name, size) in enumerate(counts.items()):
            part = shard_sizes[bounds[number] : bounds[number + 1]]
            order = Order(part, seed, window_shards=window_shards, shuffle=shuffle)
            _check_set(name, size, order.num_samples, global_batch_size)
            streams.append(Stream(order, size, number, len(sets), first=first))
            first += order.num_samples
        if global_batch_size % world_size:
            raise ValueError(
                f"global batch size {global_batch_size} is not a multiple of {world_size} processes"
            )
        facts = {
            "seed": seed,
            "shuffle": shuffle,
            "window_shards": window_shards,
            "num_samples": int(shard_sizes.sum()),
            "global_batch_size": global_batch_size,
            "mixture": counts,
            "index_sha256": index_sha256,
        }
        mine = np.split(np.arange(global_batch_size), world_size)[rank]
        pattern = spread(list(counts.values()))
        super().__init__(streams, pattern, mine, facts, rank=rank, world_size=world_size)


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
