"""Where segments come from when the shards do not store them."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8
from PIL import Image
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb
from torch import Tensor

from .images import resize_ids


@runtime_checkable
class Segmenter(Protocol):
    """A deterministic map from pixels to disjoint segments: ids from 1, 0 = no segment."""

    def __call__(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]: ...


@runtime_checkable
class DeviceSegmenter(Protocol):
    """A deterministic map from a batch of images to disjoint segments, on the batch's device.

    `input_size` is the side s of the squares; sizes[i] = (h, w) is what of `pixels[i]` is image, at
    its top left and with the longer side s. What is found in an image depends on no other.
    Returns ids (0 = no segment; as large as the largest of `sizes`), and for each image
    {id: what is known of it} with every id: entries as in "segments" of a stored sample's json.
    """

    input_size: int

    def segment(
        self, pixels: UInt8[Tensor, "b 3 s s"], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Int32[Tensor, "b h w"], list[dict[int, dict[str, Any]]]]: ...


class GraphSegmenter:
    """Class-agnostic segments without any weights: graph-based segmentation, then region merging.

    Felzenszwalb and Huttenlocher (IJCV 2004) on an image of `work_size` pixels on its longer side;
    then segments below the share `min_area` join the adjacent one of most similar mean colour and,
    while more than `max_segments` remain, the adjacent pair whose union raises the variance of
    colour least (Ward). No names, so no things and stuff: the defaults are our choice by eye.
    """

    def __init__(
        self,
        *,
        scale: float = 200.0,
        sigma: float = 0.8,
        min_size: int = 20,
        min_area: float = 0.03,
        max_segments: int = 6,
        work_size: int = 96,
    ) -> None:
        self.scale = scale
        self.sigma = sigma
        self.min_size = min_size
        self.min_area = min_area
        self.max_segments = max_segments
        self.work_size = work_size

    def __call__(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
        h, w = pixels.shape[:2]
        factor = min(1.0, self.work_size / max(h, w))
        size = (max(1, round(w * factor)), max(1, round(h * factor)))
        small = pixels
        if factor < 1.0:
            small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
        labels = felzenszwalb(small, scale=self.scale, sigma=self.sigma, min_size=self.min_size)
        merged = merge_regions(labels.astype(np.int64), small, self.min_area, self.max_segments)
        return resize_ids(merged + np.int32(1), (h, w))


def merge_regions(
    labels: Int64[np.ndarray, "h w"],
    pixels: UInt8[np.ndarray, "h w 3"],
    min_area: float,
    max_segments: int,
) -> Int32[np.ndarray, "h w"]:
    """Labels 0..n-1 after merging by mean CIELAB; `labels` must be 0..m-1 without gaps.

    Against `min_area` counts a region's interior: the blurred seams between two colours come out
    as long and thin regions and must not pass for segments. Ward: joining a and b raises the sum
    of squares by |a| |b| / (|a| + |b|) times the squared distance of their means.
    """
    num = int(labels.max()) + 1
    cores = np.bincount(labels[interior(labels)], minlength=num).astype(np.float64)
    areas = np.bincount(labels.ravel(), minlength=num).astype(np.float64)
    sums = [np.bincount(labels.ravel(), pixels[..., c].ravel(), num) for c in range(3)]
    means = rgb2lab(np.stack(sums, axis=1) / areas[:, None] / 255)
    adjacent = adjacency(labels, num)
    parent = np.arange(num)
    for remaining in range(num, 1, -1):
        a = int(cores.argmin())
        if cores[a] < min_area * labels.size:
            gap = ((means - means[a]) ** 2).sum(axis=1)
            b = int(np.where(adjacent[a], gap, np.inf).argmin())
        elif remaining > max_segments:
            weights = 1 / np.minimum(areas, labels.size)  # finite for the gone ones, too
            gap = ((means[:, None] - means) ** 2).sum(axis=2) / (weights[:, None] + weights)
            a, b = divmod(int(np.where(adjacent, gap, np.inf).argmin()), num)
        else:
            break
        means[b] = (areas[a] * means[a] + areas[b] * means[b]) / (areas[a] + areas[b])
        areas[b] += areas[a]
        cores[b] += cores[a]
        areas[a] = cores[a] = np.inf  # gone
        parent[parent == a] = b
        adjacent[b] |= adjacent[a]
        adjacent[:, b] = adjacent[b]
        adjacent[a] = False
        adjacent[:, a] = False
        adjacent[b, b] = False
    return np.unique(parent[labels], return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def interior(labels: Int64[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose four neighbours have their label; the image's border counts as the same."""
    p = np.pad(labels, 1, mode="edge")
    same = (p[:-2, 1:-1] == labels) & (p[2:, 1:-1] == labels)
    return same & (p[1:-1, :-2] == labels) & (p[1:-1, 2:] == labels)


def adjacency(labels: Int64[np.ndarray, "h w"], num: int) -> Bool[np.ndarray, "n n"]:
    """Which labels share an edge of a pixel."""
    adjacent = np.zeros((num, num), dtype=bool)
    adjacent[labels[1:], labels[:-1]] = True
    adjacent[labels[:, 1:], labels[:, :-1]] = True
    adjacent |= adjacent.T
    np.fill_diagonal(adjacent, False)
    return adjacent
