"""One sample of the training stream, from its bytes to arrays."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from PIL import Image
from torch.utils.data import Dataset

from . import captions, crops, images, segments, shards
from .collation import Sample
from .device_crops import Uncut
from .encodings import Encodings
from .images import black
from .online import online_frame
from .order import Order, Purpose, philox
from .ranges import RANGE_GAP
from .segmenters import Segmenter
from .shard_index import IndexedSample
from .shards import BadSample, RawSample, Shard

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 100  # draws of a replacement before the shards count as unusable
CROPS_PER_SIDE = 4  # of the window; see `SegmentDataset.read_window`


@runtime_checkable
class Record(Protocol):
    """Where a sample lies; its `name` may be known only once it is read."""

    @property
    def shard(self) -> Shard: ...

    @property
    def name(self) -> str: ...

    def read(self) -> RawSample: ...


class Found(NamedTuple):
    """The chosen segments of an image; `uncut`: what the device is to cut the crops from."""

    labels: UInt8[np.ndarray, "h w"]
    crops: UInt8[np.ndarray, "n 3 c c"]
    texts: list[str]
    chosen: list[int]
    uncut: Uncut | None


class SegmentDataset(Dataset[Sample]):
    """(stream_index, sample_id) -> Sample; its randomness is addressed by (seed, stream_index).

    `online_size`: side of the input of a `DeviceSegmenter`, for which frames are delivered.
    `replace`: (stream_index, attempt) -> the sample_id that stands in for one that cannot be used;
    by default a draw from all. `shape_of`: sample_id -> (h, w) of the training image, which a
    stand-in takes over; by default all are squares of `image_size`. `range_gap`: see `ranges`.
    `cut_crops`: false leaves that to `crop_batch` where the window is no larger than it needs to be
    for the crops. `encodings`: those of the index, which are delivered, too."""

    def __init__(
        self,
        records: Sequence[Record],
        *,
        image_size: int,
        crop_size: int,
        segmenter: Segmenter | str | None,
        k_min: int = segments.K_MIN,
        k_max: int = segments.K_MAX,
        min_area: float = segments.MIN_AREA,
        things: bool = True,
        stuff: bool = True,
        random_crop: bool = True,
        flip: bool = True,
        seed: int = 0,
        max_pixels: int = 64_000_000,
        online_size: int | None = None,
        replace: Callable[[int, int], int] | None = None,
        range_gap: int = RANGE_GAP,
        cut_crops: bool = True,
        shape_of: Callable[[int], tuple[int, int]] | None = None,
        encodings: Encodings | None = None,
    ) -> None:
        self.records = records
        self.replace = replace or partial(Order(len(records), seed).replacement, 0, 0)
        self.shape_of = shape_of
        self.image_size = image_size
        self.crop_size = crop_size
        self.segmenter = segmenter
        self.k_min, self.k_max = k_min, k_max
        self.eligible: dict[str, Any] = {"min_area": min_area, "things": things, "stuff": stuff}
        self.window: dict[str, Any] = {"random_crop": random_crop, "flip": flip}
        self.seed = seed
        self.max_pixels = max_pixels
        self.online_size = online_size
        self.range_gap, self.cut_crops = range_gap, cut_crops
        self.encodings = encodings
        self.seen = encodings is None or encodings.images  # else black

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, address: Sequence[int] | Int64[np.ndarray, "2"]) -> Sample:
        stream_index, sample_id = map(int, address)
        bad: list[str] = []
        record = self.records[sample_id]
        shape = None if self.shape_of is None else self.shape_of(sample_id)
        while True:
            try:
                return self.load(record, stream_index, bad, shape)
            except BadSample as reason:
                log.debug("%s: %s", record.name, reason)
                bad.append(f"{record.shard.stem}: {reason}")
            if len(bad) == MAX_ATTEMPTS:
                raise RuntimeError(f"{MAX_ATTEMPTS} bad samples in a row, the last {record.name}")
            record = self.records[self.replace(stream_index, len(bad))]

    def __getitems__(self, addresses: Sequence[Sequence[int]]) -> list[Sample]:
        """Of a batch, whose bytes are asked for together."""
        records = [self.records[int(sample_id)] for _, sample_id in addresses]
        indexed = [record for record in records if isinstance(record, IndexedSample)]
        if not indexed:
            return [self[address] for address in addresses]
        numbers = [record.number for record in indexed]
        with indexed[0].source.ahead(numbers, self.range_gap):
            return [self[address] for address in addresses]

    def load(
        self,
        record: Record,
        stream_index: int,
        bad: list[str],
        shape: tuple[int, int] | None = None,
    ) -> Sample:
        """With an image of the `shape` (h, w), by default the square; BadSample where the sample
        cannot be used."""
        shape = shape or (self.image_size, self.image_size)
        name, members = record.read()
        meta = captions.read_meta(members)
        image, window = self.read_window(members, self.rng(Purpose.CROP, stream_index), shape)
        pixels = images.cut(images.rgbx(image), window) if self.seen else black(0, 0, 4)
        found = self.find_segments(members, meta, image, window, pixels, stream_index, shape)
        sample = Sample(
            image=images.resize_planes(pixels, shape) if self.seen else black(3, *shape),
            caption=captions.read_caption(members, meta),
            key=name,
            index=stream_index,
            ids=found.labels,
            valid=np.arange(self.k_max) < len(found.texts),
            crops=found.crops,
            texts=found.texts + [""] * (self.k_max - len(found.texts)),
            bad=bad,
        )
        if found.uncut is not None:
            sample["uncut"] = found.uncut
        if self.encodings is not None:
            assert isinstance(record, IndexedSample)
            view: dict[str, Any] = {"flip": window.flip, "chosen": found.chosen}
            view |= {"num_slots": self.k_max, "shape": shape}
            caption = sample["caption"]
            sample["encoded"] = self.encodings.read(record.number, members, caption, **view)
        if self.online_size is not None:
            sample["online"] = online_frame(
                image,
                pixels,
                window,
                whole_size=self.online_size,
                window_size=CROPS_PER_SIDE * self.crop_size,
                shape=shape,
            )
        return sample

    def read_window(
        self,
        members: dict[str, bytes],
        rng: np.random.Generator,
        shape: tuple[int, int] | None = None,
    ) -> tuple[Image.Image, images.Window]:
        """The image, and the part of it that is trained on, at the image's own resolution.

        CLIP's crops come from there and not from the training image, which may be far smaller. A
        square segment of 5 % has 0.22 of the side, so 4 crops per side are as much as they can use.
        """
        suffix = next(s for s in shards.IMAGE_SUFFIXES if s in members)
        shape = shape or (self.image_size, self.image_size)
        least = max(*shape, CROPS_PER_SIDE * self.crop_size, self.online_size or 0)
        read = images.decode_image if self.seen else images.blank_image
        image = read(members[suffix], self.max_pixels, least)
        size = (image.height, image.width)
        return image, images.draw_window(size, rng, shape=shape, **self.window)

    def find_segments(
        self,
        members: dict[str, bytes],
        meta: dict[str, Any],
        image: Image.Image,
        window: images.Window,
        pixels: UInt8[np.ndarray, "s t 4"],
        stream_index: int,
        shape: tuple[int, int],
    ) -> Found:
        """Those chosen, none where the device is to find them."""
        crop_shape = (3, self.crop_size, self.crop_size)
        none = black(0, *crop_shape)
        if self.segmenter is None:
            return Found(black(*shape), none, [], [], None)
        ids = self.find_ids(members, image, window)
        info = captions.read_segments_info(meta) if self.segmenter == "stored" else {}
        small = images.resize_ids(ids, shape)
        eligible = segments.eligible_segments(small, info, **self.eligible)
        rng = self.rng(Purpose.SEGMENTS, stream_index)
        chosen = segments.choose_segments(eligible, rng, k_min=self.k_min, k_max=self.k_max)
        labels = segments.relabel(small, chosen)
        texts = [captions.segment_text(info.get(i, {})) for i in chosen]
        if not self.seen:
            return Found(labels, black(len(chosen), *crop_shape), texts, chosen, None)
        # a larger window would be more to move than its crops are to cut
        if not self.cut_crops and max(pixels.shape) <= CROPS_PER_SIDE * self.crop_size:
            uncut = Uncut(pixels, segments.relabel(ids, chosen), len(chosen))
            return Found(labels, none, texts, chosen, uncut)
        parts = np.empty((len(chosen), *crop_shape), dtype=np.uint8)
        for part, i in zip(parts, chosen, strict=True):
            part[:] = crops.crop_planes(pixels, ids == i, self.crop_size)
        return Found(labels, parts, texts, chosen, None)

    def find_ids(
        self,
        members: dict[str, bytes],
        image: Image.Image,
        window: images.Window,
    ) -> Integer[np.ndarray, "s t"]:
        """Of the window. A segmenter sees the whole image, as annotating does."""
        if self.segmenter is None:
            return np.zeros((window.height, window.width), dtype=np.int32)
        if isinstance(self.segmenter, str):  # "stored"
            if shards.PANOPTIC_SUFFIX not in members:
                raise BadSample(f"no {shards.PANOPTIC_SUFFIX}")
            data, size = members[shards.PANOPTIC_SUFFIX], (image.height, image.width)
            return images.decode_window_ids(data, self.max_pixels, size, window)
        return images.cut(self.segmenter(np.asarray(image)), window)

    def rng(self, purpose: Purpose, stream_index: int) -> np.random.Generator:
        return np.random.Generator(philox(self.seed, purpose, stream_index))
