"""What CLIP sees of a sample of the shards, for embedding: the image, and each of its segments.

As validation reads it: the centre of the image, unmirrored, every segment that training could have
chosen there, by the same functions.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from torch.utils.data import Dataset

from . import captions, crops, images, segments
from .order import Purpose
from .samples import Record, SegmentDataset
from .shards import BadSample

REGIONS = ("text", "all", "none")


class PairSample(TypedDict):
    """`pixels`: the image, then its regions; `bad`: why there are none."""

    pixels: UInt8[np.ndarray, "n 3 c c"]
    texts: list[str]
    keys: list[str]
    bad: list[str]


class PairSampleDataset(Dataset[PairSample]):
    """The pairs of a sample, before CLIP.

    `regions`: "text" takes the segments that have a text of their own (the stored ones of a data
    set with texts or labels), "all" those without one too, whose text is "", "none" only whole
    images. The other options are those of SegmentDataset; k_max is the most regions of an image,
    the largest first.
    """

    def __init__(self, records: Sequence[Record], *, regions: str, **options: Any) -> None:
        if regions == "none":
            options["segmenter"] = None
        self.source = SegmentDataset(records, random_crop=False, flip=False, **options)
        self.regions = regions

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> PairSample:
        record = self.source.records[number]
        try:
            return self.load(record)
        except BadSample as reason:
            size = self.source.crop_size
            none = np.empty((0, 3, size, size), dtype=np.uint8)
            return PairSample(pixels=none, texts=[], keys=[], bad=[str(reason)])

    def load(self, record: Record) -> PairSample:
        source, size = self.source, self.source.crop_size
        name, members = record.read()
        meta = captions.read_meta(members)
        image, window = source.read_window(members, source.rng(Purpose.CROP, 0))
        pixels = images.cut(images.rgbx(image), window)
        ids = source.find_ids(members, image, window)
        info = captions.read_segments_info(meta) if source.segmenter == "stored" else {}
        small = images.resize_ids(ids, (source.image_size, source.image_size))
        texts = {
            i: captions.segment_text(info.get(i, {}))
            for i in segments.eligible_segments(small, info, **source.eligible)
        }
        if self.regions == "text":
            texts = {i: text for i, text in texts.items() if text}
        chosen = largest(small, list(texts), source.k_max)
        views = [images.resize_planes(pixels, size)]
        views += [crops.crop_planes(pixels, ids == i, size) for i in chosen]
        return PairSample(
            pixels=np.stack(views),
            texts=[captions.read_caption(members, meta), *(texts[i] for i in chosen)],
            keys=[name, *(f"{name}#{i}" for i in chosen)],
            bad=[],
        )


def largest(ids: Integer[np.ndarray, "h w"], among: list[int], num: int) -> list[int]:
    """At most `num` of them, in the order given; of equal areas the first."""
    areas = segments.segment_areas(ids)
    kept = sorted(among, key=lambda i: -areas[i])[:num]
    return [i for i in among if i in kept]


def collate_pairs(samples: list[PairSample]) -> dict[str, Any]:
    """Rows of all samples under one another; `index` has one entry a sample, for the loader's
    share of bad ones."""
    return {
        "pixels": torch.from_numpy(np.concatenate([sample["pixels"] for sample in samples])),
        "texts": [text for sample in samples for text in sample["texts"]],
        "keys": [key for sample in samples for key in sample["keys"]],
        "is_region": [row > 0 for sample in samples for row in range(len(sample["keys"]))],
        "index": torch.arange(len(samples)),
        "bad": [reason for sample in samples for reason in sample["bad"]],
    }
