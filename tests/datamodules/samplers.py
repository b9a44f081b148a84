"""Batches as a loader takes them from a sampler."""

from typing import Any

import numpy as np


def take(sampler: Any, num: int) -> list[np.ndarray]:
    """The next `num`, over as many epochs as they need; each is counted as handed out."""
    found: list[np.ndarray] = []
    while len(found) < num:
        for batch in sampler:
            sampler.num_handed_out += 1
            found.append(batch)
            if len(found) == num:
                break
    return found
