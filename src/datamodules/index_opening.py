"""Finds the index of a set of shards, or makes it."""

import errno
import logging
from collections.abc import Sequence
from pathlib import Path

from .index_building import build_index
from .index_places import index_places, locked
from .locations import Shard
from .shard_cache import ShardCache
from .shard_index import ChangedShard, ShardIndex

log = logging.getLogger(__name__)

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
MADE_BY = "datamodule"


def open_index(
    shards: Sequence[Shard],
    folder: str | Path | None = None,
    *,
    cache: ShardCache | None = None,
    jobs: int = 1,
    bar: bool = True,
) -> ShardIndex:
    """The index of these shards, made if there is none: by one process, while others wait.

    ChangedShard where a shard is not the one indexed and somebody made the index on purpose; one
    that was made here is made again, with a warning.
    """
    places = index_places(shards, folder)
    if (index := _find(places, shards, cache)) is not None:
        return index
    for place in places:
        try:
            with locked(place):
                if (index := _find([place], shards, cache)) is None:
                    build_index(shards, place, jobs=jobs, made_by=MADE_BY, bar=bar)
                    index = ShardIndex(place, shards, cache)
                    index.check()
                return index
        except OSError as error:
            if error.errno not in READ_ONLY or place is places[-1]:
                raise
    raise AssertionError


def _find(
    places: Sequence[Path], shards: Sequence[Shard], cache: ShardCache | None
) -> ShardIndex | None:
    for place in places:
        try:
            index = ShardIndex(place, shards, cache)
            index.check()
        except FileNotFoundError:
            continue
        except ChangedShard as error:
            if index.facts["made_by"] != MADE_BY:
                raise
            log.warning("%s: indexed again", str(error).partition(";")[0])
            return None
        return index
    return None


def find_index(shards: Sequence[Shard], folder: str | Path | None = None) -> ShardIndex:
    """As it is, be the shards changed or not; FileNotFoundError where there is none."""
    for place in (places := index_places(shards, folder)):
        if place.is_dir():
            return ShardIndex(place, shards)
    raise FileNotFoundError(
        f"{places[0].parent}: no index of these shards; run spatext-index build"
    )
