"""Choice of K disjoint segments of an image, on the map of ids that training sees.

SpaText chooses K disjoint segments at random (notes on the paper). K in 1..3 and the least share
of 5 % of the image are recalled for its training and confirmed only through the protocols of
later work that follows it (ZestGuide, sec. 4.1: "between one and three segments, each covering
at least 5% of the image"). The share counts after the crop.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, UInt8

K_MIN, K_MAX = 1, 3
MIN_AREA = 0.05
MAX_COUNTED = 2**16  # ids of which each has a place in a table of counts


def segment_areas(ids: Integer[np.ndarray, "h w"]) -> dict[int, int]:
    """{id: number of pixels}, without void (0)."""
    if ids.size and int(ids.max()) >= MAX_COUNTED:
        values, counts = np.unique(ids, return_counts=True)
    else:
        ids = np.require(ids, np.uint8 if ids.dtype == np.uint8 else np.int64, ["C", "W"])
        every = torch.bincount(torch.from_numpy(ids).flatten()).numpy()
        values = np.flatnonzero(every)
        counts = every[values]
    return {i: n for i, n in zip(values.tolist(), counts.tolist(), strict=True) if i != 0}


def eligible_segments(
    ids: Integer[np.ndarray, "h w"],
    info: Mapping[int, Mapping[str, Any]] | None = None,
    *,
    min_area: float = MIN_AREA,
    things: bool = True,
    stuff: bool = True,
) -> list[int]:
    """Ids covering at least the share `min_area`, ascending, without crowds.

    With `things` or `stuff` off, only those whose entry in `info` says that they are the other.
    """
    return eligible_areas(
        segment_areas(ids), ids.size, info, min_area=min_area, things=things, stuff=stuff
    )


def eligible_areas(
    areas: Mapping[int, int],
    num_pixels: int,
    info: Mapping[int, Mapping[str, Any]] | None = None,
    *,
    min_area: float = MIN_AREA,
    things: bool = True,
    stuff: bool = True,
) -> list[int]:
    """`eligible_segments` of a map that is known by its areas."""

    def wanted(i: int) -> bool:
        entry = (info or {}).get(i, {})
        if entry.get("iscrowd"):
            return False
        if things and stuff:
            return True
        is_thing = entry.get("isthing")
        return is_thing is not None and (things if is_thing else stuff)

    least = min_area * num_pixels
    return [i for i, area in sorted(areas.items()) if area >= least and wanted(i)]


def choose_segments(
    eligible: list[int], rng: np.random.Generator, *, k_min: int = K_MIN, k_max: int = K_MAX
) -> list[int]:
    """K of them in random order, K uniform in [k_min, k_max] or all where there are fewer."""
    k = int(rng.integers(k_min, k_max + 1))
    return [eligible[i] for i in rng.permutation(len(eligible))[:k]]


def relabel(ids: Integer[np.ndarray, "h w"], chosen: list[int]) -> UInt8[np.ndarray, "h w"]:
    """k where the k-th chosen segment lies (from 1), 0 elsewhere."""
    labels = np.zeros(ids.shape, dtype=np.uint8)
    for k, i in enumerate(chosen, start=1):
        labels += (ids == i) * np.uint8(k)
    return labels
