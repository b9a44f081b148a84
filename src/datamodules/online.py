"""Segments found on the device: what workers deliver for that, and what a batch becomes there.

The segmenter sees the whole image as annotating does, before crop and flip, so that its map is the
one that annotated shards store. Crop, flip and size are then applied to the map by index vectors,
the same as for a stored map: both ways choose the same segments and paint the same ids.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, UInt8
from PIL import Image
from torch import Tensor

from . import captions, images, segments
from .device_crops import crop_segments
from .images import Window
from .order import Purpose, philox
from .segmenters import DeviceSegmenter


class OnlineFrame(TypedDict):
    """Of one image; a batch has them stacked, channels first.

    whole         the image with its longer side s, at the top left of black
    whole_size    (h, w) of it
    window        what the training image shows, at its own resolution or smaller; in a batch at the
                  top left of black, as large as the largest
    rows, cols    of the whole, for each of the training image's
    window_rows, window_cols    the same for the window's; in a batch -1 where it has ended
    """

    whole: UInt8[np.ndarray, "s s 3"]
    whole_size: tuple[int, int]
    window: UInt8[np.ndarray, "3 p q"]
    rows: Int64[np.ndarray, " h"]
    cols: Int64[np.ndarray, " w"]
    window_rows: Int64[np.ndarray, " p"]
    window_cols: Int64[np.ndarray, " q"]


def fit_whole(image: Image.Image, size: int) -> tuple[UInt8[np.ndarray, "s s 3"], tuple[int, int]]:
    """(the image with its longer side `size` on black, (h, w) of it), as panoptic models see it.

    Bilinear with antialiasing, which is the resampling of their own processors."""
    scale = size / max(image.size)
    height, width = (max(1, round(side * scale)) for side in (image.height, image.width))
    whole = np.zeros((size, size, 3), dtype=np.uint8)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    whole[:height, :width] = np.asarray(image)
    return whole, (height, width)


def online_frame(
    image: Image.Image,
    pixels: UInt8[np.ndarray, "t u 4"],
    window: Window,
    *,
    whole_size: int,
    window_size: int,
    shape: tuple[int, int],
) -> OnlineFrame:
    """`pixels`: the window of `image`, cut and perhaps mirrored; of about `window_size` squared
    pixels at most in what is delivered of it. `shape`: (h, w) of the training image."""
    whole, (height, width) = fit_whole(image, whole_size)
    rows = images.nearest(image.height, height)[window.top : window.top + window.height]
    cols = images.nearest(image.width, width)[window.left : window.left + window.width]
    if window.flip:
        cols = cols[::-1]
    aspect = math.sqrt(shape[0] / shape[1])
    p = min(window.height, round(window_size * aspect))
    q = min(window.width, round(window_size / aspect))
    return OnlineFrame(
        whole=whole,
        whole_size=(height, width),
        window=images.resize_planes(pixels, (p, q)),
        rows=rows[images.nearest(shape[0], window.height)],
        cols=cols[images.nearest(shape[1], window.width)],
        window_rows=rows[images.nearest(p, window.height)],
        window_cols=cols[images.nearest(q, window.width)],
    )


def collate_frames(frames: Sequence[OnlineFrame]) -> dict[str, Any]:
    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([frame[name] for frame in frames]))  # type: ignore[literal-required]

    height, width = (max(frame["window"].shape[axis] for frame in frames) for axis in (1, 2))
    windows = torch.zeros(len(frames), 3, height, width, dtype=torch.uint8)
    window_rows = torch.full((len(frames), height), -1)
    window_cols = torch.full((len(frames), width), -1)
    for i, frame in enumerate(frames):
        p, q = frame["window"].shape[1:]
        windows[i, :, :p, :q] = torch.from_numpy(frame["window"])
        window_rows[i, :p] = torch.from_numpy(frame["window_rows"])
        window_cols[i, :q] = torch.from_numpy(frame["window_cols"])
    return {
        "whole": stack("whole").permute(0, 3, 1, 2).contiguous(),
        "whole_size": [frame["whole_size"] for frame in frames],
        "window": windows,
        "window_rows": window_rows,
        "window_cols": window_cols,
        "rows": stack("rows"),
        "cols": stack("cols"),
    }


class OnlineSegments:
    """Finds, chooses and crops the segments of a batch where it lies."""

    def __init__(
        self,
        segmenter: DeviceSegmenter,
        *,
        crop_size: int,
        k_min: int,
        k_max: int,
        seed: int,
        **eligible: Any,
    ) -> None:
        self.segmenter = segmenter
        self.crop_size = crop_size
        self.k_min, self.k_max = k_min, k_max
        self.seed = seed
        self.eligible = eligible

    @torch.no_grad()
    def complete(self, batch: dict[str, Any], frames: dict[str, Any]) -> dict[str, Any]:
        """The batch with ids, valid, crops and texts of what `frames` show."""
        sizes = [(h, w) for h, w in frames["whole_size"]]  # pinning makes lists of tuples
        ids, infos = self.segmenter.segment(frames["whole"], sizes)
        small = take(ids, frames["rows"], frames["cols"])
        chosen = self.choose(small, infos, batch["index"].tolist())
        table = slots(chosen, 1 + max((max(info, default=0) for info in infos), default=0))
        table = table.to(ids.device)
        image = torch.tensor([i for i, row in enumerate(chosen) for _ in row], dtype=torch.int64)
        slot = torch.tensor([k for row in chosen for k in range(len(row))], dtype=torch.int64)
        image, slot = image.to(ids.device), slot.to(ids.device)
        shape = (len(ids), self.k_max, 3, self.crop_size, self.crop_size)
        stack = torch.zeros(shape, dtype=torch.uint8, device=ids.device)
        large = relabel(take(ids, frames["window_rows"], frames["window_cols"]), table)
        stack[image, slot] = crop_segments(frames["window"], large, image, slot + 1, self.crop_size)
        texts = [
            [captions.segment_text(info[i]) for i in row]
            for info, row in zip(infos, chosen, strict=True)
        ]
        count = torch.tensor([len(row) for row in chosen], device=ids.device)
        return batch | {
            "ids": relabel(small, table),
            "valid": torch.arange(self.k_max, device=ids.device) < count[:, None],
            "crops": stack,
            "texts": [row + [""] * (self.k_max - len(row)) for row in texts],
        }

    def choose(
        self,
        ids: Int[Tensor, "b h w"],
        infos: Sequence[dict[int, dict[str, Any]]],
        indices: Sequence[int],
    ) -> list[list[int]]:
        """As for stored segments: by (seed, index) alone."""
        num = 1 + max((max(info, default=0) for info in infos), default=0)
        counts = torch.zeros(len(ids), num, dtype=torch.int64, device=ids.device)
        flat = ids.flatten(1).long()
        counts.scatter_add_(1, flat, torch.ones_like(flat))
        chosen = []
        for areas, info, index in zip(counts.tolist(), infos, indices, strict=True):
            eligible = segments.eligible_areas(
                {i: area for i, area in enumerate(areas) if i and area},
                flat.shape[1],
                info,
                **self.eligible,
            )
            rng = np.random.Generator(philox(self.seed, Purpose.SEGMENTS, index))
            chosen.append(
                segments.choose_segments(eligible, rng, k_min=self.k_min, k_max=self.k_max)
            )
        return chosen


class SegmentCounts:
    """Training images of this process that had no segment (null ST), of all that it has seen.

    Counted where the batches lie, so that nobody waits for it."""

    def __init__(self) -> None:
        self.num_images = 0
        self.without: Tensor | None = None

    def add(self, valid: Bool[Tensor, "b k"]) -> None:
        empty = (~valid.any(dim=1)).sum()
        self.num_images += len(valid)
        self.without = empty if self.without is None else self.without + empty

    @property
    def num_without(self) -> int:
        return 0 if self.without is None else int(self.without)


def take(
    ids: Int[Tensor, "b h w"], rows: Int64[Tensor, "b r"], cols: Int64[Tensor, "b c"]
) -> Int[Tensor, "b r c"]:
    """ids[i, rows[i], cols[i]], 0 where an index is negative."""
    image = torch.arange(len(ids), device=ids.device)[:, None, None]
    taken = ids[image, rows.clamp(min=0)[:, :, None], cols.clamp(min=0)[:, None, :]]
    return taken * ((rows >= 0)[:, :, None] & (cols >= 0)[:, None, :])


def slots(chosen: Sequence[Sequence[int]], num_ids: int) -> UInt8[Tensor, "b i"]:
    """k where the k-th chosen segment of an image has that id, from 1; 0 elsewhere."""
    table = torch.zeros(len(chosen), num_ids, dtype=torch.uint8)
    for i, row in enumerate(chosen):
        for k, which in enumerate(row, start=1):
            table[i, which] = k
    return table


def relabel(ids: Int[Tensor, "b h w"], table: UInt8[Tensor, "b i"]) -> UInt8[Tensor, "b h w"]:
    return table.gather(1, ids.flatten(1).long()).view(ids.shape)
