"""From what a scene says about a region (box, polygon, mask file, painting) to its pixels.

Conventions and format: see scenes.py. `key` names the value in messages; all mistakes are a
ValueError or FileNotFoundError of one line that starts with it. Sizes are (height, width).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from .documents import brief, is_int
from .images import INVALID, decode_image
from .settings import MAX_SIDE
from .shards import BadSample

MAX_COORDINATE = 10**6  # our choice, far beyond any picture


def box_mask(key: str, value: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_int, value)):
        raise ValueError(f"{key}: expected whole pixels [x0, y0, x1, y1], found {brief(value)}")
    x0, y0, x1, y1 = value
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"{key}: expected x0 < x1 and y0 < y1, found {value}")
    if x0 < 0 or y0 < 0 or x1 > size[1] or y1 > size[0]:
        raise ValueError(f"{key}: {value} is not inside [0, 0, {size[1]}, {size[0]}]")
    mask = np.zeros(size, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def polygon_mask(key: str, value: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    if not isinstance(value, list) or len(value) < 3 or not all(map(_is_point, value)):
        raise ValueError(f"{key}: expected three or more points [x, y], found {brief(value)}")
    mask = polygon_pixels(value, size)
    if not mask.any():
        raise ValueError(f"{key}: holds no pixel centre of the {by(size)} picture")
    return mask


def polygon_pixels(
    points: Sequence[Sequence[float | int]], size: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """The pixels whose centres are inside, by the even-odd rule; perhaps none."""
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0])[:, None] + 0.5
    mask = np.zeros(size, dtype=np.bool_)
    for (xa, ya), (xb, yb) in zip(points, [*points[1:], points[0]], strict=True):
        if ya != yb:  # toggle what lies right of the edge, in the rows that the edge spans
            mask ^= ((ya <= y) != (yb <= y)) & (x >= xa + (y - ya) * (xb - xa) / (yb - ya))
    return mask


def file_mask(key: str, value: Any, size: tuple[int, int], folder: Path) -> Bool[np.ndarray, "h w"]:
    picture = _picture(key, value, size, folder)
    if picture.mode.startswith("I"):  # gray of 16 bits
        level, half = np.asarray(picture), 2**15
    else:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        level = alpha if (alpha < 255).any() else np.asarray(picture.convert("L"))
        half = 128
    if not (level >= half).any():
        raise ValueError(
            f"{key}: {value!r} is empty, its highest level is {level.max()}, inside is >= {half}"
        )
    return level >= half


def file_pixels(
    key: str, value: Any, size: tuple[int, int], folder: Path
) -> UInt8[np.ndarray, "h w 3"]:
    """A photo as people see it: turned as its EXIF says, what is transparent white."""
    try:
        picture = decode_image(picture_path(key, value, folder).read_bytes(), MAX_SIDE**2)
    except BadSample as error:
        raise ValueError(f"{key}: {value!r} is unusable: {error}") from None
    if picture.size != size[::-1]:
        found = by(picture.size[::-1])
        raise ValueError(f"{key}: {value!r} is {found}, expected {by(size)}")
    return np.asarray(picture)


def colour_table(colours: Any) -> dict[int, str]:
    """{0xrrggbb: as the file writes it}, in its order."""
    if not isinstance(colours, dict) or not colours:
        raise ValueError(f"colours: expected '#rrggbb': text pairs, found {brief(colours)}")
    table: dict[int, str] = {}
    for name in colours:
        if not isinstance(name, str) or not re.fullmatch("#[0-9a-fA-F]{6}", name):
            raise ValueError(f"colours: expected a quoted '#rrggbb', found {brief(name)}")
        if int(name[1:], 16) in table:
            raise ValueError(f"colours.{name}: given twice")
        table[int(name[1:], 16)] = name
    return table


def painting_masks(
    painting: Any, table: dict[int, str], size: tuple[int, int], folder: Path
) -> list[Bool[np.ndarray, "h w"]]:
    """The mask of each colour, in the order of the table."""
    rgba = np.asarray(_picture("painting", painting, size, folder).convert("RGBA")).astype(int)
    code = rgba[..., 0] << 16 | rgba[..., 1] << 8 | rgba[..., 2]
    code[rgba[..., 3] < 128] = -1
    found = dict(zip(*(a.tolist() for a in np.unique(code, return_counts=True)), strict=True))
    background = {-1, 0x000000, 0xFFFFFF}
    unlisted = [(n, c) for c, n in found.items() if c not in table and c not in background]
    if unlisted:
        count, colour = max(unlisted)
        raise ValueError(
            f"painting: colour #{colour:06x} ({count} pixels) of {painting!r} is not in colours "
            f"({len(unlisted)} such colours in all; paint without soft edges)"
        )
    for colour, key in table.items():
        if colour not in found:
            raise ValueError(f"colours.{key}: no pixel of {painting!r} has this colour")
    return [code == colour for colour in table]


def by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} (height x width)"


def picture_path(key: str, value: Any, folder: Path) -> Path:
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected a file name, found {brief(value)}")
    if not (folder / value).is_file():
        raise FileNotFoundError(f"{key}: file {value!r} not found (looked in {folder.resolve()})")
    return folder / value


def _picture(key: str, value: Any, size: tuple[int, int], folder: Path) -> Image.Image:
    path = picture_path(key, value, folder)
    try:
        with Image.open(path) as picture:
            if picture.size == size[::-1]:
                return picture.copy()
            found = by(picture.size[::-1])  # refused before its pixels are decoded
    except INVALID:
        raise ValueError(f"{key}: {value!r} is not a readable picture") from None
    raise ValueError(f"{key}: {value!r} is {found}, expected {by(size)}")


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(is_int(v) or isinstance(v, float) for v in value)
        and all(abs(v) <= MAX_COORDINATE for v in value)
    )
