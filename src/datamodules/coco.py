"""COCO annotations -> segments of one image: panoptic maps, polygons, run-length codes.

Documents are COCO's json files as read, {"images", "annotations", "categories"}. Crowds
("iscrowd") are left out, being no single thing. Every mistake is a ValueError of one line.
Compressed codes are read here, so that no compiled package is needed. A polygon holds the pixels
whose centres are inside, which may differ from pycocotools by the pixels on its border.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from .documents import brief, is_int
from .rasters import MAX_COORDINATE, by, polygon_pixels

# What COCO's names of stuff say of its bookkeeping and not of the world: "sky-other-merged".
NO_WORDS = ("merged", "other", "stuff")


class Segments(NamedTuple):
    """Disjoint: 0 = nothing, otherwise a key of `texts`."""

    ids: Int32[np.ndarray, "h w"]
    texts: dict[int, str]


def is_panoptic(document: Any) -> bool:
    return "segments_info" in next(iter(_entries(document, "annotations")), {})


def panoptic_name(document: Any, image_id: int) -> str:
    """File name of the image's map, a PNG."""
    return str(_get(_panoptic(document, image_id), "file_name", image_id))


def panoptic_segments(document: Any, image_id: int, pixels: UInt8[np.ndarray, "h w 3"]) -> Segments:
    """Texts are the names of categories."""
    _check_size(pixels.shape[:2], image_size(document, image_id), image_id)
    ids = panoptic_ids(pixels)
    names = _names(document)
    infos = _get(_panoptic(document, image_id), "segments_info", image_id)
    known = {int(_get(info, "id", image_id)): info for info in infos}
    unknown = sorted(set(np.unique(ids).tolist()) - set(known) - {0})
    if unknown:
        raise ValueError(
            f"image {image_id}: found id {unknown[0]} in its map, expected those of segments_info "
            f"({len(unknown)} unknown in all)"
        )
    texts = {i: _name(names, info) for i, info in known.items() if not info.get("iscrowd")}
    ids[~np.isin(ids, list(texts))] = 0
    return Segments(ids, texts)


def panoptic_ids(pixels: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
    """R + 256 G + 256^2 B of a map's pixels."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red + 256 * green + 256**2 * blue


def instance_segments(document: Any, image_id: int) -> Segments:
    """Numbered from 1 by falling area, smaller ones on top of larger ones."""
    size = image_size(document, image_id)
    names = _names(document)
    found = [
        (segmentation_mask(_get(entry, "segmentation", image_id), size), _name(names, entry))
        for entry in _entries(document, "annotations")
        if entry.get("image_id") == image_id and not entry.get("iscrowd")
    ]
    if not found:
        raise ValueError(f"image {image_id}: found no annotation that is not a crowd")
    found.sort(key=lambda pair: -int(pair[0].sum()))
    ids = np.zeros(size, dtype=np.int32)
    for k, (mask, _) in enumerate(found, start=1):
        ids[mask] = k
    return Segments(ids, {k: text for k, (_, text) in enumerate(found, start=1)})


def caption(document: Any, image_id: int) -> str:
    """Of several the one with the lowest id."""
    found = [e for e in _entries(document, "annotations") if e.get("image_id") == image_id]
    if not found:
        raise ValueError(f"captions: found none of image {image_id}")
    text = _get(min(found, key=lambda entry: entry.get("id", 0)), "caption", image_id)
    return " ".join(str(text).split())


def image_size(document: Any, image_id: int) -> tuple[int, int]:
    for entry in _entries(document, "images"):
        if entry.get("id") == image_id:
            return int(_get(entry, "height", image_id)), int(_get(entry, "width", image_id))
    raise ValueError(f"annotations: found no image with id {image_id}")


def segmentation_mask(value: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The union of polygons [[x0, y0, x1, y1, ...], ...], or runs {"size": [h, w], "counts"}."""
    if isinstance(value, Mapping):
        counts = value.get("counts")
        if value.get("size") != list(size):
            raise ValueError(
                f"segmentation.size: found {brief(value.get('size'))}, expected {list(size)}"
            )
        return runs_mask(decode_counts(counts) if isinstance(counts, str) else counts, size)
    mask = np.zeros(size, dtype=np.bool_)
    if not isinstance(value, list) or not value or not all(map(_is_ring, value)):
        raise ValueError(
            "segmentation: expected lists of three or more x, y or run lengths, found "
            f"{brief(value)}"
        )
    for ring in value:
        mask |= polygon_pixels(list(zip(ring[::2], ring[1::2], strict=True)), size)
    return mask


def runs_mask(counts: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Lengths of runs down the columns, first outside, then inside, in turn."""
    valid = isinstance(counts, list) and all(is_int(n) and n >= 0 for n in counts)
    if not valid or sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"segmentation.counts: found {brief(counts)}, expected runs that fill {by(size)}"
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size[::-1]).T.copy()


def decode_counts(text: str) -> list[int]:
    """COCO's compressed runs: five bits a letter from "0", lowest first, bit 5 says that more
    follow, two's complement; from the fourth on, differences to the run before the last."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError(f"segmentation.counts: found {brief(text)}, expected COCO's encoding")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def spoken(name: str) -> str:
    """ "sky-other-merged" -> "sky", "floor-wood" -> "floor wood"."""
    words = [word for word in name.split("-") if word not in NO_WORDS]
    return " ".join(words) or name


def _panoptic(document: Any, image_id: int) -> Mapping[str, Any]:
    for entry in _entries(document, "annotations"):
        if entry.get("image_id") == image_id:
            return entry
    raise ValueError(f"annotations: found none of image {image_id}")


def _names(document: Any) -> dict[Any, str]:
    return {entry.get("id"): str(entry.get("name")) for entry in _entries(document, "categories")}


def _name(names: dict[Any, str], entry: Mapping[str, Any]) -> str:
    category = entry.get("category_id")
    if category not in names:
        raise ValueError(f"annotations: found category_id {category}, expected one of categories")
    return spoken(names[category])


def _entries(document: Any, key: str) -> Sequence[Mapping[str, Any]]:
    entries = document.get(key) if isinstance(document, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"{key}: found {brief(entries)}, expected COCO's list of objects")
    return entries


def _get(entry: Mapping[str, Any], key: str, image_id: int) -> Any:
    if key not in entry:
        raise ValueError(f"image {image_id}: {key}: missing, found {', '.join(entry)}")
    return entry[key]


def _check_size(found: tuple[int, ...], expected: tuple[int, int], image_id: int) -> None:
    if found != expected:
        raise ValueError(f"image {image_id}: its map is {by(found)}, expected {by(expected)}")


def _is_ring(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 6
        and len(value) % 2 == 0
        and all(is_int(v) or isinstance(v, float) for v in value)
        and all(abs(v) <= MAX_COORDINATE for v in value)
    )
