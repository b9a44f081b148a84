"""What the index says of a set of shards, without reading any of them."""

from collections import Counter
from typing import Any

import numpy as np

from spatext.datamodules.buckets import Buckets, SampleBuckets
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.shard_records import Flag
from spatext.datamodules.skip_list import KeptSamples, whole_index

QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "95 %": 0.95}
QUANTILES |= {"max": 1.0}
# width : height, each bin from this ratio on
ASPECTS = {
    "under 1:3": 0.0,
    "1:3 to 1:2": 1 / 3,
    "1:2 to 2:3": 1 / 2,
    "2:3 to 4:5": 2 / 3,
    "4:5 to 5:4": 4 / 5,
    "5:4 to 3:2": 5 / 4,
    "3:2 to 2:1": 3 / 2,
    "2:1 to 3:1": 2.0,
    "3:1 and over": 3.0,
}


def look_at_index(
    records: ShardIndex | KeptSamples, image_size: int, max_pixels: int, buckets: Buckets | None
) -> dict[str, Any]:
    """Sizes are of the images whose header tells them; faults those that the index was made
    with. `num_enlarged`: images smaller than what is made of them."""
    whole = whole_index(records)
    columns = {name: records.column(name) for name in ("height", "width", "flags")}
    known = columns["height"] > 0
    heights, widths = columns["height"][known], columns["width"][known]
    shorter = np.minimum(heights, widths)
    faults = Counter[str]()
    for entry in whole.entries:
        faults.update({kind: num for kind, num, _ in entry["faults"]})
    stems = Counter(whole.stems)
    return {
        "index": str(whole.folder),
        "num_shards": len(whole.shards),
        "num_samples": len(records),
        "num_left_out": len(whole) - len(records),
        "bytes": sum(entry["bytes"] for entry in whole.entries),
        "samples_per_shard": quantiles(whole.sizes),
        "num_empty_shards": int((whole.sizes == 0).sum()),
        "num_of_unknown_size": int((~known).sum()),
        "height": quantiles(heights),
        "width": quantiles(widths),
        "shorter_side": quantiles(shorter),
        "num_enlarged": num_enlarged(heights, widths, image_size, buckets),
        "num_over_max_pixels": int((heights.astype(np.int64) * widths > max_pixels).sum()),
        "aspects": aspects(heights, widths),
        "buckets": None if buckets is None else bucket_counts(records, buckets),
        "num_without_caption": lacking(columns["flags"], Flag.CAPTION),
        "num_without_stored_segments": lacking(columns["flags"], Flag.PANOPTIC),
        "annotated": whole.annotations is not None,
        "faults": dict(faults),
        "repeated_shard_names": {name: num for name, num in stems.items() if num > 1},
    }


def num_enlarged(
    heights: np.ndarray, widths: np.ndarray, image_size: int, buckets: Buckets | None
) -> int:
    if buckets is None:
        return int((np.minimum(heights, widths) < image_size).sum())
    return int((heights.astype(np.int64) * widths < buckets.area).sum())


def bucket_counts(records: ShardIndex | KeptSamples, buckets: Buckets) -> dict[str, int]:
    """Samples by the size, height x width, that is made of them."""
    counts = SampleBuckets(buckets, records).count().sum(axis=0).tolist()
    return {f"{h}x{w}": num for (h, w), num in zip(buckets.sizes, counts, strict=True)}


def lacking(flags: np.ndarray, flag: Flag) -> int:
    return int(((flags & np.uint8(flag)) == 0).sum())


def aspects(heights: np.ndarray, widths: np.ndarray) -> dict[str, int]:
    """How many images have a width : height from each bin's ratio to that of the next."""
    ratios = widths / np.maximum(heights, 1)
    # a hair below, so that 640 : 480 is not under 4 : 3 by its rounding
    bins = np.searchsorted(np.array(list(ASPECTS.values())) - 1e-9, ratios, side="right") - 1
    counts = np.bincount(bins, minlength=len(ASPECTS))
    return dict(zip(ASPECTS, counts.tolist(), strict=True))


def quantiles(values: np.ndarray) -> dict[str, int | float]:
    """Of values that occur; empty where there is none."""
    if not len(values):
        return {}
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return dict(zip(QUANTILES, found.tolist(), strict=True))
