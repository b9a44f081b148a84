"""What frozen encoders are shown of a sample when they are cached: what training will show them.

The centre of the image, as it is and perhaps mirrored, its caption, and the crop of each segment
that training may choose there, by the functions that training calls.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import Dataset

from . import captions, crops, images, segments
from .buckets import Buckets
from .encoding_files import checksums
from .order import Purpose
from .samples import CROPS_PER_SIDE, Record, SegmentDataset
from .shard_index import IndexedSample
from .shards import BadSample

ELIGIBLE = ("min_area", "things", "stuff")


class View(NamedTuple):
    """`number`: of the sample among the records; `ids[i]` is the segment of `crops[i]`."""

    number: int
    flip: bool
    image: UInt8[np.ndarray, "3 h w"] | None
    caption: str
    ids: list[int]
    crops: UInt8[np.ndarray, "n 3 c c"]
    made_of: dict[str, int]


def views_of(
    options: Mapping[str, Any], buckets: Buckets | None = None
) -> dict[str, dict[str, Any]]:
    """{kind: what decides it besides the encoder and the shard}, of the options of a SegmentDataset
    that takes the centre, squares or images of these buckets. A JPEG may be decoded smaller, no
    side under `min_side` and those of its image."""
    sides = options["image_size"], CROPS_PER_SIDE * options["crop_size"]
    image: dict[str, Any] = {
        "image_size": sides[0],
        "min_side": max(*sides, options.get("online_size") or 0),
    }
    if buckets is not None:
        image["buckets"] = buckets.facts
    crop = {name: options[name] for name in ("crop_size", *ELIGIBLE)}
    return {"moments": image, "text": {}, "embeds": image | crop}


class ViewDataset(Dataset[View | str]):
    """All views of the samples, or why there is none; `num_flips` of each sample in a row.

    `kinds`: what they are for; only those of text do without the image, of embeds without crops.
    `shape_of`: (h, w) of the image of a sample of the index; by default they are squares."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        num_flips: int,
        kinds: Sequence[str],
        shape_of: Callable[[int], tuple[int, int]] | None = None,
        **options: Any,
    ) -> None:
        self.source = SegmentDataset(records, random_crop=False, flip=False, **options)
        self.num_flips, self.kinds, self.shape_of = num_flips, kinds, shape_of

    def __len__(self) -> int:
        return len(self.source) * self.num_flips

    def __getitem__(self, place: int) -> View | str:
        number, flip = divmod(place, self.num_flips)
        try:
            return self.load(number, bool(flip))
        except BadSample as reason:
            return str(reason)

    def load(self, number: int, flip: bool) -> View:
        source, record = self.source, self.source.records[number]
        shape = (source.image_size, source.image_size)
        if self.shape_of is not None:
            assert isinstance(record, IndexedSample)
            shape = self.shape_of(record.number)
        _, members = record.read()
        meta = captions.read_meta(members)
        caption = captions.read_caption(members, meta)
        made_of = checksums(members, caption)
        ids: list[int] = []
        parts = np.empty((0, 3, source.crop_size, source.crop_size), dtype=np.uint8)
        if not {"moments", "embeds"} & set(self.kinds):
            return View(number, flip, None, caption, ids, parts, made_of)
        image, window = source.read_window(members, source.rng(Purpose.CROP, 0), shape)
        window = window._replace(flip=flip)
        pixels = images.cut(images.rgbx(image), window)
        if "embeds" in self.kinds:
            found = source.find_ids(members, image, window)
            small = images.resize_ids(found, shape)
            info = captions.read_segments_info(meta)
            ids = segments.eligible_segments(small, info, **source.eligible)
            cut = [crops.crop_planes(pixels, found == i, source.crop_size) for i in ids]
            parts = np.stack(cut) if cut else parts
        planes = images.resize_planes(pixels, shape)
        return View(number, flip, planes, caption, ids, parts, made_of)


def collate_views(views: list[View | str]) -> dict[str, Any]:
    """`image` has those of each size together, and `places` which views they are of. `index` and
    `bad` are what the loader's share of bad samples is counted by."""
    found = [view for view in views if isinstance(view, View)]
    sizes: dict[tuple[int, ...], dict[int, np.ndarray]] = {}
    for i, view in enumerate(found):
        if view.image is not None:
            sizes.setdefault(view.image.shape, {})[i] = view.image
    none = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return {
        "number": [view.number for view in found],
        "flip": [view.flip for view in found],
        "caption": [view.caption for view in found],
        "ids": [view.ids for view in found],
        "made_of": [view.made_of for view in found],
        "places": [[*planes] for planes in sizes.values()],
        "image": [torch.from_numpy(np.stack([*planes.values()])) for planes in sizes.values()],
        "crops": torch.cat([torch.from_numpy(view.crops) for view in found]) if found else none,
        "index": torch.arange(len(views)),
        "bad": [view for view in views if isinstance(view, str)],
    }
