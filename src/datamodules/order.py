"""Order of the data: a pure function of (seed, epoch, position), so that its state is one number.

Each epoch Philox permutes the shards, then the samples inside windows of some shards, so that what
is read at a time lies in few files. Permutations sort raw Philox words, which NumPy keeps stable
across versions, unlike `Generator.permutation`.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from jaxtyping import Int64

ORDER_VERSION = 2
WINDOW_SHARDS = 16  # shards of a window


class Purpose(IntEnum):
    """What random numbers are for; never renumber, a run's data depends on it."""

    ORDER = 0
    CROP = 1
    SEGMENTS = 2
    REPLACEMENT = 3
    SHARDS = 4
    WINDOW = 5
    STREAMING = 6
    BUCKET = 7
    BATCHES = 8


def philox(seed: int, purpose: Purpose, address: int, sub: int = 0) -> np.random.Philox:
    """Philox 4x64 with key (seed, purpose) and the counter's high words (address, sub)."""
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, sub, address], dtype=np.uint64))


def permutation(
    num: int, seed: int, purpose: Purpose, address: int, sub: int = 0
) -> Int64[np.ndarray, " n"]:
    words = philox(seed, purpose, address, sub).random_raw(num)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def epoch_order(
    num_samples: int, seed: int, epoch: int, shuffle: bool = True
) -> Int64[np.ndarray, " n"]:
    """Sample ids of one epoch, each once, all of them permuted at once."""
    if not shuffle:
        return np.arange(num_samples, dtype=np.int64)
    return permutation(num_samples, seed, Purpose.ORDER, epoch)


class Order:
    """Which sample stands at a position of an epoch; samples are numbered through the shards.

    With `window_shards` None an epoch permutes all samples at once, 8 bytes each; otherwise no
    more than the window asked for is ever computed. Unshuffled, samples stand in their own order.
    """

    def __init__(
        self,
        shard_sizes: int | Sequence[int] | Int64[np.ndarray, " n"],
        seed: int = 0,
        *,
        window_shards: int | None = None,
        shuffle: bool = True,
    ) -> None:
        sizes = np.atleast_1d(np.asarray(shard_sizes, dtype=np.int64))
        if window_shards is not None and window_shards < 1:
            raise ValueError(
                f"datamodule.window_shards is {window_shards}, expected 1 or more, or null"
            )
        self.sizes, self.firsts = sizes, np.cumsum(sizes) - sizes
        self.num_samples = int(sizes.sum())
        self.seed, self.shuffle = seed, shuffle
        self.window_shards = window_shards
        num = len(sizes)
        self.step = window_shards or num  # shards of a window
        # of each window its last shard, in an epoch's order of them
        self.lasts = np.minimum(np.arange(self.step, num + self.step, self.step), num) - 1
        self._shards: tuple[int, np.ndarray, np.ndarray] = (-1, sizes, sizes)
        self._window: tuple[tuple[int, int], np.ndarray] = ((-1, -1), sizes)

    def of(self, shard_sizes: Int64[np.ndarray, " n"]) -> "Order":
        """As this one, of other shards."""
        return Order(shard_sizes, self.seed, window_shards=self.window_shards, shuffle=self.shuffle)

    def samples(self, epoch: int, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """Sample ids of the positions [start, stop)."""
        assert 0 <= start <= stop <= self.num_samples
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            number, first = self.find(epoch, start)
            part = self._permuted(epoch, number)[start - first : stop - first]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def replacement(self, epoch: int, position: int, address: int, attempt: int) -> int:
        """Sample id that stands in for an unusable one: a draw from its window, addressed."""
        word = int(philox(self.seed, Purpose.REPLACEMENT, address, attempt).random_raw())
        shards = self.window(epoch, self.find(epoch, position)[0])
        ends = np.cumsum(self.sizes[shards])
        place = word % int(ends[-1])
        shard = int(np.searchsorted(ends, place, side="right"))
        before = int(ends[shard] - self.sizes[shards[shard]])
        return int(self.firsts[shards[shard]]) + place - before

    def shards(self, epoch: int) -> Int64[np.ndarray, " k"]:
        """All of them, as they stand in an epoch."""
        return self._layout(epoch)[1]

    def window(self, epoch: int, number: int) -> Int64[np.ndarray, " k"]:
        """Its shards."""
        return self.shards(epoch)[number * self.step : (number + 1) * self.step]

    def find(self, epoch: int, position: int) -> tuple[int, int]:
        """The window that holds the position, and its first position."""
        _, _, ends = self._layout(epoch)
        number = int(np.searchsorted(ends, position, side="right"))
        return number, int(ends[number - 1]) if number else 0

    def _layout(self, epoch: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(epoch, its order of shards, the end of each window)."""
        if self._shards[0] != epoch:
            shards = np.arange(len(self.sizes), dtype=np.int64)
            if self.shuffle and self.window_shards is not None:
                shards = permutation(len(shards), self.seed, Purpose.SHARDS, epoch)
            self._shards = (epoch, shards, np.cumsum(self.sizes[shards])[self.lasts])
        return self._shards

    def _permuted(self, epoch: int, number: int) -> Int64[np.ndarray, " n"]:
        if self._window[0] != (epoch, number):
            if self.window_shards is None:
                ids = epoch_order(self.num_samples, self.seed, epoch)
            else:
                shards = self.window(epoch, number)
                spans = zip(self.firsts[shards], self.sizes[shards], strict=True)
                ids = np.concatenate([np.arange(first, first + size) for first, size in spans])
                ids = ids[permutation(len(ids), self.seed, Purpose.WINDOW, epoch, number)]
            self._window = ((epoch, number), ids)
        return self._window[1]
