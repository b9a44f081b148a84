"""Pictures for people: regions over an image with their texts, grids, and PNG files.

Pixels are uint8 RGB [h, w, 3]; ids as everywhere, 0 = nothing, k = k-th region.
"""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from .documents import atomic_path
from .lettering import font_of, line_height, wrap, write

Pixels = UInt8[np.ndarray, "h w 3"]
Colour = tuple[int, int, int]

# Okabe and Ito's colours for the colour-blind without black, neighbours far apart, then the two
# of Tableau 10 that they lack.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (140, 86, 75),
    (127, 127, 127),
)
PAPER: Colour = (255, 255, 255)
MIN_SIDE = 256  # below this side the texts in the picture cannot be read


def colour(k: int) -> Colour:
    """Of region k >= 1; all of 1 .. 255 differ. After the palette, hues by the golden ratio."""
    assert k >= 1, k
    if k <= len(PALETTE):
        return PALETTE[k - 1]
    red, green, blue = colorsys.hsv_to_rgb(k * 0.618034 % 1, 0.55 + 0.4 * (k % 2), 0.9 - k / 900)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    image: Pixels | None,
    ids: UInt8[np.ndarray, "h w"],
    texts: Sequence[str],
    *,
    prompt: str = "",
    alpha: float = 0.55,
    legend: bool = True,
    scale: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Regions over `image` (None: over a light chequer), each text inside its region, and below
    them, with `legend`, the prompt and all texts in full.

    The picture is enlarged `scale` times without smoothing; None takes the smallest whole number
    that makes the shorter side at least MIN_SIDE."""
    if scale is None:
        scale = max(1, math.ceil(MIN_SIDE / min(ids.shape)))
    large = ids.repeat(scale, axis=0).repeat(scale, axis=1)
    if image is None:
        base = _chequer(large.shape[0], large.shape[1])
    else:
        base = image.repeat(scale, axis=0).repeat(scale, axis=1)
    lut = np.array([(0, 0, 0), *(colour(k) for k in range(1, 256))], dtype=np.float32)
    paint = lut[large]
    strength = np.where(large > 0, np.float32(alpha), np.float32(0))[..., None]
    mixed = base * (1 - strength) + paint * strength
    mixed = np.where(_borders(large)[..., None], paint * 0.6, mixed)
    picture = Image.fromarray(np.rint(mixed).astype(np.uint8))
    _write_labels(picture, ids, texts, scale)
    if not legend:
        return np.asarray(picture).copy()
    strip = legend_strip(picture.width, prompt, texts)
    return np.concatenate([np.asarray(picture), strip])


def grid(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]],
    *,
    pad: int = 8,
    labels: Sequence[str] | None = None,
    background: Colour = PAPER,
) -> UInt8[np.ndarray, "H W 3"]:
    """Cells at the top left of their places; a column is as wide and a row as high as its largest
    cell, with `pad` pixels around each. `labels` are titles over the columns, wrapped to them."""
    columns = max(len(row) for row in rows)
    widths = [max(row[j].shape[1] for row in rows if j < len(row)) for j in range(columns)]
    heights = [max((cell.shape[0] for cell in row), default=0) for row in rows]
    size = max(11, min(widths) // 20)
    titles = [wrap(text, size, width) for text, width in zip(labels or (), widths, strict=False)]
    head = max(map(len, titles), default=0) * line_height(size) + (pad if labels else 0)
    left = [pad + sum(widths[:j]) + pad * j for j in range(columns)]
    total = head + pad + sum(heights) + pad * len(rows), left[-1] + widths[-1] + pad
    canvas = Image.new("RGB", total[::-1], background)
    draw = ImageDraw.Draw(canvas)
    for x, lines in zip(left, titles, strict=False):
        write(draw, (x, pad), lines, size)
    top = head + pad
    for row, height in zip(rows, heights, strict=True):
        for x, cell in zip(left, row, strict=False):
            canvas.paste(Image.fromarray(cell), (x, top))
        top += height + pad
    return np.asarray(canvas).copy()


def enlarge(image: UInt8[np.ndarray, "h w 3"], width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Each pixel repeated, to as much of `width` as whole repetitions fill."""
    times = max(1, width // image.shape[1])
    return image.repeat(times, axis=0).repeat(times, axis=1)


def save_png(
    path: Path | str,
    image: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write RGB or gray, whole or not at all. Pillow reads `metadata` back as `picture.text`."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: expected a .png file")
    info = PngInfo()
    for key, text in (metadata or {}).items():
        info.add_itxt(key, text)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=info)


def _chequer(height: int, width: int, cell: int = 8) -> Pixels:
    rows, columns = np.arange(height)[:, None] // cell, np.arange(width) // cell
    gray = np.where((rows + columns) % 2, 236, 248).astype(np.uint8)
    return gray[..., None].repeat(3, axis=2)


def _borders(ids: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The outermost pixels of each region, on its inner side; the frame is no border."""
    edge = np.zeros(ids.shape, dtype=np.bool_)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:-1] |= ids[:-1] != ids[1:]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    return edge & (ids > 0)


def _write_labels(
    picture: Image.Image, ids: UInt8[np.ndarray, "h w"], texts: Sequence[str], scale: int
) -> None:
    """Each text on a plate in the deepest part of its region, moved up or down off the others."""
    size = max(11, min(picture.size) // 22)
    draw = ImageDraw.Draw(picture, "RGBA")
    taken: list[tuple[int, int, int, int]] = []
    for k, text in enumerate(texts, start=1):
        mask = ids == k
        if not text.strip() or not mask.any():
            continue
        extent = int(np.ptp(np.flatnonzero(mask.any(axis=0)))) * scale
        lines = wrap(text, size, min(picture.width - 12, max(extent, picture.width // 3)))
        lines = [*lines[:2], lines[2] + " ..."] if len(lines) > 3 else lines
        width = math.ceil(max(font_of(size).getlength(line) for line in lines)) + 8
        height = len(lines) * line_height(size) + 4
        row, column = _deepest(mask)
        x = round(min(max((column + 0.5) * scale - width / 2, 2), picture.width - width - 2))
        others = [(top, low) for left, top, right, low in taken if left <= x + width and x <= right]
        y = _free((row + 0.5) * scale - height / 2, height, picture.height, others)
        taken.append((x, y, x + width, y + height))
        draw.rounded_rectangle(taken[-1], 4, (*PAPER, 215), (*colour(k), 255))
        write(draw, (x + 4, y + 1), lines, size)


def _free(wanted: float, height: int, limit: int, others: list[tuple[int, int]]) -> int:
    """The y nearest to the wanted one that keeps off the spans of `others`, or the wanted one."""
    last = max(limit - height - 2, 0)
    wanted = min(max(wanted, 2), last)
    for y in sorted(range(last + 1), key=lambda y: abs(y - wanted)):
        if all(bottom < y or y + height < top for top, bottom in others):
            return y
    return round(wanted)


def _deepest(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """(row, column) inside the region and farthest from its border, by peeling it."""
    step = max(1, max(mask.shape) // 128)  # a place for a text needs no more precision
    core = mask[::step, ::step]
    if not core.any():
        step, core = 1, mask
    peeled = core
    while peeled.any():
        core = peeled
        p = np.pad(core, 1)
        peeled = core & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    places = np.argwhere(core)
    nearest = np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()
    return int(places[nearest][0]) * step, int(places[nearest][1]) * step


def legend_strip(
    width: int, prompt: str, texts: Sequence[str], *, size: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The prompt, then each text beside the colour of its region; empty ones are left out.

    `size` of the letters; None: by the width."""
    size, pad = size or max(12, width // 22), 6
    line, swatch = line_height(size), size - 2
    indent = pad + swatch + 6
    entries: list[tuple[int, list[str]]] = []
    if prompt.strip():
        entries.append((0, wrap(prompt, size, width - 2 * pad)))
    for k, text in enumerate(texts, start=1):
        if text.strip():
            entries.append((k, wrap(text, size, width - indent - pad)))
    height = sum(len(lines) * line + 3 for _, lines in entries) + 2 * pad
    strip = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    y = pad
    for k, lines in entries:
        if k:
            place = (pad, y + 2, pad + swatch, y + 2 + swatch)
            draw.rectangle(place, colour(k))
        write(draw, (indent if k else pad, y), lines, size)
        y += len(lines) * line + 3
    return np.asarray(strip)
