"""What the order of buckets wants to know of an index, without shards."""

from collections.abc import Sequence

import numpy as np


class Sized:
    """`shards`: samples of each; `sizes`: (h, w) of all images."""

    def __init__(self, shards: Sequence[int], sizes: Sequence[Sequence[int]]) -> None:
        assert sum(shards) == len(sizes)
        self.sizes = np.array(shards, dtype=np.int64)
        self.height, self.width = np.array(sizes, dtype=np.uint16).reshape(-1, 2).T

    def column(self, name: str) -> np.ndarray:
        return {"height": self.height, "width": self.width}[name]
