"""Segments, and if wanted embeddings of them, for batches of images: what annotating calls."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float16, Int, Int32, UInt8
from torch import Tensor
from torch.nn import functional as F

from . import segments
from .device_crops import crop_segments
from .images import resize_ids
from .pair_files import to_half
from .segmenters import DeviceSegmenter, Segmenter

CROPS_PER_SIDE = 4  # a square segment of 5 % has 0.22 of the side: what its crop can use


@runtime_checkable
class Embedder(Protocol):
    """CLIP, as far as it is needed here: square crops, 0..255, to rows of `width`."""

    crop_size: int

    def __call__(self, crops: UInt8[Tensor, "n 3 c c"]) -> Tensor: ...


class Frame(NamedTuple):
    """One image, decoded. `whole`: it on black, with its longer side `Engine.whole_size`, and
    `whole_size` = (h, w) of it; `ids`: what a `Segmenter` has found at the image's own size."""

    number: int
    key: str
    crc32: int
    whole: UInt8[np.ndarray, "s s 3"] | None
    whole_size: tuple[int, int]
    ids: Int32[np.ndarray, "h w"] | None


class Found(NamedTuple):
    """`entries`: "segments" of the json; row i of `embeds` belongs to that with "embed": i."""

    frame: Frame
    ids: Int32[np.ndarray, "h w"]
    entries: list[dict[str, Any]]
    embeds: Float16[np.ndarray, "n d"] | None


@dataclass(frozen=True)
class Engine:
    """A segmenter, and with `embedder` what embeds the crops of the `max_regions` largest segments
    that `eligible` (see `segments.eligible_areas`) lets pass.

    The crops are cut from what the segmenter sees: the image with its longer side `whole_size`.
    """

    segmenter: Segmenter | DeviceSegmenter
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    embedder: Embedder | None = None
    max_regions: int = 8
    eligible: dict[str, Any] = field(default_factory=dict)

    @property
    def whole_size(self) -> int | None:
        if isinstance(self.segmenter, DeviceSegmenter):
            return self.segmenter.input_size
        return None if self.embedder is None else CROPS_PER_SIDE * self.embedder.crop_size

    @torch.no_grad()
    def find(self, frames: Sequence[Frame]) -> list[Found]:
        """What is found in an image depends on no other of the batch."""
        if self.whole_size is None:
            return [found_pixels(frame) for frame in frames]
        pixels = torch.from_numpy(np.stack([f.whole for f in frames if f.whole is not None]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        found, canvas = self._segment(pixels, frames)
        return found if self.embedder is None else self._embed(pixels, found, canvas)

    def _segment(
        self, pixels: UInt8[Tensor, "b 3 s s"], frames: Sequence[Frame]
    ) -> tuple[list[Found], Int[Tensor, "b h w"]]:
        """And the ids on the device, in the frame of `pixels`, as far as there are any."""
        if not isinstance(self.segmenter, DeviceSegmenter):
            return self._lay_out(frames)
        ids, infos = self.segmenter.segment(pixels, [frame.whole_size for frame in frames])
        maps = ids.cpu().numpy()
        found = []
        for frame, of_image, info in zip(frames, maps, infos, strict=True):
            h, w = frame.whole_size
            entries = [{"id": i, **info[i]} for i in sorted(info)]
            found.append(Found(frame, np.ascontiguousarray(of_image[:h, :w]), entries, None))
        return found, ids

    def _lay_out(self, frames: Sequence[Frame]) -> tuple[list[Found], Int[Tensor, "b h w"]]:
        """What was found in the images' own pixels."""
        found = [found_pixels(frame) for frame in frames]
        size = self.whole_size
        assert size is not None
        canvas = np.zeros((len(frames), size, size), dtype=np.int32)
        for row, one in zip(canvas, found, strict=True):
            h, w = one.frame.whole_size
            row[:h, :w] = resize_ids(one.ids, (h, w))
        return found, torch.from_numpy(canvas).to(self.device)

    def _embed(
        self, pixels: UInt8[Tensor, "b 3 s s"], found: list[Found], ids: Int[Tensor, "b h w"]
    ) -> list[Found]:
        assert self.embedder is not None
        size = pixels.shape[-1]
        ids = F.pad(ids, (0, size - ids.shape[2], 0, size - ids.shape[1]))
        chosen = [self.choose(one) for one in found]
        image = torch.tensor([i for i, row in enumerate(chosen) for _ in row], dtype=torch.int64)
        number = torch.tensor([k for row in chosen for k in row], dtype=torch.int64)
        if not len(image):
            return found
        crops = crop_segments(
            pixels, ids, image.to(self.device), number.to(self.device), self.embedder.crop_size
        )
        keys = [f"{found[i].frame.key}#{k}" for i, k in zip(image, number, strict=True)]
        embeds = to_half(self.embedder(crops).float().cpu().numpy(), keys)
        ends = np.cumsum([len(row) for row in chosen])[:-1]
        parts = np.split(embeds, ends)
        return [
            one._replace(entries=numbered(one.entries, row), embeds=part) if row else one
            for one, row, part in zip(found, chosen, parts, strict=True)
        ]

    def choose(self, found: Found) -> list[int]:
        """The largest segments, of equal ones the first, by rising id."""
        areas = segments.segment_areas(found.ids)
        info = {entry["id"]: entry for entry in found.entries}
        eligible = segments.eligible_areas(areas, found.ids.size, info, **self.eligible)
        return sorted(sorted(eligible, key=lambda i: -areas[i])[: self.max_regions])


def found_pixels(frame: Frame) -> Found:
    assert frame.ids is not None
    areas = segments.segment_areas(frame.ids)
    return Found(frame, frame.ids, [{"id": i, "area": n} for i, n in areas.items()], None)


def numbered(entries: list[dict[str, Any]], chosen: list[int]) -> list[dict[str, Any]]:
    """With the row of the embedding, where there is one."""
    row = {i: place for place, i in enumerate(chosen)}
    return [e | {"embed": row[e["id"]]} if e["id"] in row else e for e in entries]
