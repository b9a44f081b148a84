"""Aspect-ratio buckets: the sizes that training images may have, and which of them a sample gets.

The sizes follow the rule that NovelAI published ("Aspect Ratio Bucketing", 2022): to each width,
a multiple of `step`, belongs the largest such height with at most `area` pixels; the same with the
sides exchanged; and a square. NovelAI has an area of 512 x 768, steps of 64 and sides from 256 to
1024, and gives an image the size whose w / h differs least from its own. Our choice: the area is
that of the square image, so that no batch needs more memory than it, aspects rather than sides are
bounded, what differs least is the logarithm, which treats high images as wide ones, and no image is
left out for its aspect: the outermost sizes take what lies beyond them, and crop it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, Integer

from .documents import brief, is_int

OPTIONS = {"step", "area", "max_aspect"}
STEP, MAX_ASPECT = 64, 2.0
MAX_BUCKETS = 256


@runtime_checkable
class Sizes(Protocol):
    """An index of shards, of which the sizes of the images are read; 0 where one is not known."""

    sizes: Int64[np.ndarray, " n"]  # samples of the shards

    def column(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Buckets:
    """Sizes (h, w) by ascending w / h. A sample of unknown size is taken for a square."""

    step: int
    area: int
    max_aspect: float

    @property
    def facts(self) -> dict[str, Any]:
        return {"step": self.step, "area": self.area, "max_aspect": self.max_aspect}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return sorted(set(self._sizes()), key=lambda size: size[1] / size[0])

    def _sizes(self) -> Iterator[tuple[int, int]]:
        side = math.isqrt(self.area) // self.step * self.step
        yield side, side
        for long in range(side, self.area // self.step + 1, self.step):
            short = self.area // long // self.step * self.step
            if long > self.max_aspect * short:
                return
            yield from ((long, short), (short, long))

    @property
    def bounds(self) -> Float32[np.ndarray, " n"]:
        """The bucket k has the w / h in (bounds[k], bounds[k + 1]]: from one geometric mean of
        neighbours to the next."""
        aspects = [width / height for height, width in self.sizes]
        means = [math.sqrt(one * other) for one, other in pairwise(aspects)]
        return np.array([-math.inf, *means, math.inf], dtype=np.float32)


def make_buckets(options: Mapping[str, Any], image_size: int) -> Buckets:
    """Of `datamodule.buckets`; `area` null is that of the square image."""
    if unknown := sorted(set(options) - OPTIONS):
        raise ValueError(
            f"datamodule.buckets.{unknown[0]}: unknown, expected {', '.join(sorted(OPTIONS))}"
        )
    step, area = options.get("step", STEP), options.get("area")
    area = image_size**2 if area is None else area
    max_aspect = options.get("max_aspect", MAX_ASPECT)
    if not is_int(step) or step < 1:
        raise ValueError(f"datamodule.buckets.step is {brief(step)}, expected a number of pixels")
    if not is_int(area) or area < step**2:
        raise ValueError(
            f"datamodule.buckets.area is {brief(area)}, expected at least {step**2} pixels, the "
            "square of datamodule.buckets.step"
        )
    if not (is_int(max_aspect) or isinstance(max_aspect, float)) or not 1 <= max_aspect < math.inf:
        raise ValueError(
            f"datamodule.buckets.max_aspect is {brief(max_aspect)}, expected 1 or more: the longer "
            "side over the shorter one"
        )
    buckets = Buckets(step, area, float(max_aspect))
    # A side alone of so many steps makes as many sizes, which need not be counted.
    if area > step**2 * MAX_BUCKETS**2 or len(buckets.sizes) > MAX_BUCKETS:
        raise ValueError(
            f"datamodule.buckets: a step of {step} makes more than {MAX_BUCKETS} sizes of an area "
            f"of {area}; raise datamodule.buckets.step"
        )
    return buckets


class SampleBuckets:
    """The bucket of each sample of an index, by the size noted there: nothing is decoded, and no
    more of the index is looked at than what is asked for, but for one pass to count."""

    def __init__(self, buckets: Buckets, records: Sizes) -> None:
        self.buckets, self.records = buckets, records
        self.shapes, self.bounds = buckets.sizes, buckets.bounds
        self._columns: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_columns": None}  # another process maps them again

    def aspects(self, first: int, last: int) -> Float32[np.ndarray, " n"]:
        """w / h of the samples [first, last)."""
        if self._columns is None:
            self._columns = (self.records.column("width"), self.records.column("height"))
        width, height = (np.maximum(column[first:last], 1) for column in self._columns)
        return np.divide(width, height, dtype=np.float32)

    def members(self, bucket: int, first: int, last: int) -> Int64[np.ndarray, " n"]:
        """Which of the samples [first, last) are of a bucket."""
        low, high = self.bounds[bucket : bucket + 2]
        aspects = self.aspects(first, last)
        return first + np.flatnonzero((aspects > low) & (aspects <= high))

    def shape_of(self, number: int) -> tuple[int, int]:
        """(h, w) of the training image of a sample."""
        (aspect,) = self.aspects(number, number + 1)
        return self.shapes[int(np.searchsorted(self.bounds[1:-1], aspect))]

    def count(self) -> Int64[np.ndarray, "shards buckets"]:
        """Samples of each shard in each bucket."""
        found = np.empty((len(self.records.sizes), len(self)), dtype=np.int64)
        lasts = np.cumsum(self.records.sizes)
        for row, size, last in zip(found, self.records.sizes, lasts, strict=True):
            row[:] = self._histogram(self.aspects(int(last - size), int(last)))
        return found

    def _histogram(self, aspects: Float32[np.ndarray, " n"]) -> Integer[np.ndarray, " b"]:
        """A comparison with each bound takes less time than a search among all."""
        over = [np.count_nonzero(aspects > bound) for bound in self.bounds[1:-1]]
        return -np.diff(np.array([len(aspects), *over, 0]))
