"""The regions that a scene's file lists, or paints. Format: see scenes.py."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from .documents import brief, check_keys, check_text
from .layouts import MAX_REGIONS, Region
from .rasters import (
    box_mask,
    by,
    colour_table,
    file_mask,
    painting_masks,
    polygon_mask,
)
from .settings import check_number

MAX_MASKS = 2**30  # pixels of all masks of a scene, a byte each; our choice
SHAPES = ("mask", "box", "polygon")
SETTINGS = ("strength", "variation")


def read_regions(document: dict[str, Any], folder: Path, size: tuple[int, int]) -> list[Region]:
    if ("regions" in document) == ("painting" in document):
        found = "both" if "regions" in document else "neither"
        raise ValueError(f"regions: expected either regions or painting, found {found}")
    if ("painting" in document) != ("colours" in document):
        raise ValueError("colours: expected together with painting, found only one of the two")
    if "painting" in document:
        return _painted(document["painting"], document["colours"], folder, size)
    entries = document["regions"]
    if not isinstance(entries, list):
        raise ValueError(f"regions: expected a list, found {brief(entries)}")
    _check_count(len(entries), size)
    return [_region(f"regions[{i}]", entry, folder, size) for i, entry in enumerate(entries)]


def _check_count(num: int, size: tuple[int, int]) -> None:
    """Before any mask is made."""
    if num > MAX_REGIONS:
        raise ValueError(f"regions: found {num}, expected at most {MAX_REGIONS}")
    if num * size[0] * size[1] > MAX_MASKS:
        raise ValueError(
            f"regions: found {num} of {by(size)}, expected a smaller size or fewer regions"
        )


def _painted(painting: Any, colours: Any, folder: Path, size: tuple[int, int]) -> list[Region]:
    table = colour_table(colours)
    _check_count(len(table), size)
    entries = {f"colours.{key}": colours[key] for key in table.values()}
    for where, entry in entries.items():  # before the picture is read
        if isinstance(entry, dict):
            check_keys(where, entry, ("text", *SETTINGS), required=("text",))
            check_text(f"{where}.text", entry["text"])
        else:
            check_text(where, entry)
    masks = painting_masks(painting, table, size, folder)
    return [
        _make(where, entry if isinstance(entry, dict) else {"text": entry}, mask)
        for (where, entry), mask in zip(entries.items(), masks, strict=True)
    ]


def _region(where: str, entry: Any, folder: Path, size: tuple[int, int]) -> Region:
    check_keys(where, entry, ("text", *SHAPES, *SETTINGS), required=("text",))
    check_text(f"{where}.text", entry["text"])
    shapes = [shape for shape in SHAPES if shape in entry]
    if len(shapes) != 1:
        found = " and ".join(shapes) or "none"
        raise ValueError(f"{where}: expected exactly one of mask, box, polygon, found {found}")
    key, value = f"{where}.{shapes[0]}", entry[shapes[0]]
    if shapes[0] == "box":
        return _make(where, entry, box_mask(key, value, size))
    if shapes[0] == "polygon":
        return _make(where, entry, polygon_mask(key, value, size))
    return _make(where, entry, file_mask(key, value, size, folder))


def _make(where: str, entry: dict[str, Any], mask: Bool[np.ndarray, "h w"]) -> Region:
    strength = check_number(f"{where}.strength", entry.get("strength", Region.strength))
    variation = check_number(
        f"{where}.variation", entry.get("variation", Region.variation), most=1.0
    )
    return Region(entry["text"].strip(), mask, strength, variation)
