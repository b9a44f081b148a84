"""One sample of the training stream, from its bytes to arrays, and their collation to a batch."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from . import captions, crops, images, segments, shards
from .online import OnlineFrame, collate_frames, online_frame
from .order import Order, Purpose, philox
from .segmenters import Segmenter
from .shards import BadSample, RawSample, Shard

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 100  # draws of a replacement before the shards count as unusable
CROPS_PER_SIDE = 4  # of the window; see `SegmentDataset.read_window`


class Batch(TypedDict):
    """What a training or validation step receives.

    image    float32 [b, 3, h, w]     RGB in [-1, 1]
    caption  b strings                "" where the data has none
    key      b strings                "<shard stem>/<key>"
    index    int64 [b]                place in the training stream, epoch * epoch_size + position;
                                      for validation the sample's number
    ids      uint8 [b, h, w]          k where the k-th chosen segment lies (1..K), 0 elsewhere
    valid    bool [b, K]              which of the K = k_max slots hold a segment
    crops    uint8 [b, K, 3, c, c]    RGB 0..255, black outside of the segment; zeros if not valid
    texts    b lists of K strings     text of each segment where the data has it, "" otherwise
    """

    image: Float32[Tensor, "b 3 h w"]
    caption: list[str]
    key: list[str]
    index: Int64[Tensor, " b"]
    ids: UInt8[Tensor, "b h w"]
    valid: Bool[Tensor, "b k"]
    crops: UInt8[Tensor, "b k 3 c c"]
    texts: list[list[str]]


class Sample(TypedDict):
    """One row of a batch, before collation; `bad` holds the reasons of the samples it replaces,
    `crops` those of the valid slots alone.

    `online`: what the device needs to find the segments, where it is to do that."""

    image: UInt8[np.ndarray, "h w 3"]
    caption: str
    key: str
    index: int
    ids: UInt8[np.ndarray, "h w"]
    valid: Bool[np.ndarray, " k"]
    crops: UInt8[np.ndarray, "n 3 c c"]
    texts: list[str]
    bad: list[str]
    online: NotRequired[OnlineFrame]


@runtime_checkable
class Record(Protocol):
    """Where a sample lies; its `name` may be known only once it is read."""

    @property
    def shard(self) -> Shard: ...

    @property
    def name(self) -> str: ...

    def read(self) -> RawSample: ...


class SegmentDataset(Dataset[Sample]):
    """(stream_index, sample_id) -> Sample; its randomness is addressed by (seed, stream_index).

    `online_size`: side of the input of a `DeviceSegmenter`, for which frames are delivered.
    `replace`: (stream_index, attempt) -> the sample_id that stands in for one that cannot be used;
    by default a draw from all."""

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
    ) -> None:
        self.records = records
        self.replace = replace or partial(Order(len(records), seed).replacement, 0, 0)
        self.image_size = image_size
        self.crop_size = crop_size
        self.segmenter = segmenter
        self.k_min, self.k_max = k_min, k_max
        self.eligible: dict[str, Any] = {"min_area": min_area, "things": things, "stuff": stuff}
        self.window: dict[str, Any] = {"random_crop": random_crop, "flip": flip}
        self.seed = seed
        self.max_pixels = max_pixels
        self.online_size = online_size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, address: Sequence[int] | Int64[np.ndarray, "2"]) -> Sample:
        stream_index, sample_id = map(int, address)
        bad: list[str] = []
        while True:
            record = self.records[sample_id]
            try:
                return self.load(record, stream_index, bad)
            except BadSample as reason:
                log.debug("%s: %s", record.name, reason)
                bad.append(f"{record.shard.stem}: {reason}")
            if len(bad) == MAX_ATTEMPTS:
                raise RuntimeError(f"{MAX_ATTEMPTS} bad samples in a row, the last {record.name}")
            sample_id = self.replace(stream_index, len(bad))

    def load(self, record: Record, stream_index: int, bad: list[str]) -> Sample:
        """BadSample where the sample cannot be used."""
        name, members = record.read()
        meta = captions.read_meta(members)
        image, window = self.read_window(members, self.rng(Purpose.CROP, stream_index))
        pixels = images.cut(np.asarray(image), window)
        size = (image.height, image.width)
        labels, parts, texts = self.find_segments(members, meta, size, window, pixels, stream_index)
        sample = Sample(
            image=images.resize_pixels(pixels, self.image_size),
            caption=captions.read_caption(members, meta),
            key=name,
            index=stream_index,
            ids=labels,
            valid=np.arange(self.k_max) < len(texts),
            crops=parts,
            texts=texts + [""] * (self.k_max - len(texts)),
            bad=bad,
        )
        if self.online_size is not None:
            sample["online"] = online_frame(
                image,
                pixels,
                window,
                whole_size=self.online_size,
                window_size=CROPS_PER_SIDE * self.crop_size,
                image_size=self.image_size,
            )
        return sample

    def read_window(
        self, members: dict[str, bytes], rng: np.random.Generator
    ) -> tuple[Image.Image, images.Window]:
        """The image, and the part of it that is trained on, at the image's own resolution.

        CLIP's crops come from there and not from the training image, which may be far smaller. A
        square segment of 5 % has 0.22 of the side, so 4 crops per side are as much as they can use.
        """
        suffix = next(s for s in shards.IMAGE_SUFFIXES if s in members)
        least = max(self.image_size, CROPS_PER_SIDE * self.crop_size, self.online_size or 0)
        image = images.decode_image(members[suffix], self.max_pixels, least)
        return image, images.draw_window((image.height, image.width), rng, **self.window)

    def find_segments(
        self,
        members: dict[str, bytes],
        meta: dict[str, Any],
        size: tuple[int, int],
        window: images.Window,
        pixels: UInt8[np.ndarray, "s s 3"],
        stream_index: int,
    ) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "n 3 c c"], list[str]]:
        """Labels, crops and texts of those chosen; none where the device is to find them."""
        shape, crop_shape = (self.image_size, self.image_size), (3, self.crop_size, self.crop_size)
        if self.segmenter is None:
            return np.zeros(shape, dtype=np.uint8), np.empty((0, *crop_shape), dtype=np.uint8), []
        ids = self.find_ids(members, size, window, pixels)
        info = captions.read_segments_info(meta) if self.segmenter == "stored" else {}
        small = images.resize_ids(ids, shape)
        eligible = segments.eligible_segments(small, info, **self.eligible)
        rng = self.rng(Purpose.SEGMENTS, stream_index)
        chosen = segments.choose_segments(eligible, rng, k_min=self.k_min, k_max=self.k_max)
        parts = np.empty((len(chosen), *crop_shape), dtype=np.uint8)
        for part, i in zip(parts, chosen, strict=True):
            part[:] = crops.crop_segment(pixels, ids == i, self.crop_size).transpose(2, 0, 1)
        texts = [captions.segment_text(info.get(i, {})) for i in chosen]
        return segments.relabel(small, chosen), parts, texts

    def find_ids(
        self,
        members: dict[str, bytes],
        size: tuple[int, int],
        window: images.Window,
        pixels: UInt8[np.ndarray, "s s 3"],
    ) -> Int32[np.ndarray, "s s"]:
        """Of the window of an image of `size`."""
        if self.segmenter is None:
            return np.zeros(pixels.shape[:2], dtype=np.int32)
        if isinstance(self.segmenter, str):  # "stored"
            if shards.PANOPTIC_SUFFIX not in members:
                raise BadSample(f"no {shards.PANOPTIC_SUFFIX}")
            stored = images.decode_ids(members[shards.PANOPTIC_SUFFIX], self.max_pixels, size)
            return images.cut(stored, window)
        return self.segmenter(pixels)

    def rng(self, purpose: Purpose, stream_index: int) -> np.random.Generator:
        return np.random.Generator(philox(self.seed, purpose, stream_index))


def collate(samples: list[Sample]) -> dict[str, Any]:
    """A Batch, and `bad`: the reasons of all replaced samples, which the loader takes out."""

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([sample[name] for sample in samples]))  # type: ignore[literal-required]

    image = stack("image").permute(0, 3, 1, 2)
    image = image.to(torch.float32, memory_format=torch.contiguous_format)
    valid = stack("valid")
    stacked = torch.zeros(*valid.shape, *samples[0]["crops"].shape[1:], dtype=torch.uint8)
    for row, sample in zip(stacked, samples, strict=True):
        row[: len(sample["crops"])] = torch.from_numpy(sample["crops"])
    frames = [sample["online"] for sample in samples if "online" in sample]
    return {
        "image": image.div_(127.5).sub_(1.0),
        "caption": [sample["caption"] for sample in samples],
        "key": [sample["key"] for sample in samples],
        "index": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        "ids": stack("ids"),
        "valid": valid,
        "crops": stacked,
        "texts": [sample["texts"] for sample in samples],
        "bad": [reason for sample in samples for reason in sample["bad"]],
        **({"online": collate_frames(frames)} if frames else {}),
    }
