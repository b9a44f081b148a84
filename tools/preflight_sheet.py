"""The contact sheet of spatext-preflight: samples as the model sees them, for people to look at."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatext.datamodules.drawing import PAPER, colour, enlarge, grid, legend_strip, overlay
from spatext.datamodules.images import resize_ids

Pixels = UInt8[np.ndarray, "_ _ 3"]

SIDE = 256  # of an image on the sheet
PAD, FRAME, LETTERS = 6, 4, 13
COLUMNS = 2
ALPHA = 0.4
LINE = 190  # gray
MAX_CAPTION = 400  # letters


def card(batch: Mapping[str, Any], i: int, shard: str) -> Pixels:
    """Of row i of a batch: the training image, its chosen segments over it, their crops; below,
    caption and texts."""
    image = ((batch["image"][i].float() + 1) * 127.5).round().clamp(0, 255).byte()
    pixels = image.permute(1, 2, 0).cpu().numpy()
    ids, valid = batch["ids"][i].cpu().numpy(), batch["valid"][i].tolist()
    texts = [text for text, is_valid in zip(batch["texts"][i], valid, strict=True) if is_valid]
    crops = batch["crops"][i][: len(texts)].permute(0, 2, 3, 1).cpu().numpy()
    pixels, ids = fitted(pixels, ids)
    names = [text or f"segment {k}" for k, text in enumerate(texts, start=1)]
    painted = overlay(pixels, ids, names, alpha=ALPHA, legend=False, scale=1)
    pictures = grid([[framed(pixels), framed(painted), crop_block(crops)]], pad=PAD)
    caption = batch["caption"][i] or "(no caption)"
    if len(caption) > MAX_CAPTION:
        caption = f"{caption[:MAX_CAPTION]} ..."
    if not texts:
        caption += "   (no segment)"
    shares = [f"{name}, {np.mean(ids == k):.0%}" for k, name in enumerate(names, start=1)]
    width = pictures.shape[1]
    head = legend_strip(width, f"{batch['key'][i]}   of {shard}", [], size=LETTERS - 1)
    strip = legend_strip(width, caption, shares, size=LETTERS)
    return np.concatenate([head, pictures, strip])


def fitted(
    pixels: UInt8[np.ndarray, "h w 3"], ids: UInt8[np.ndarray, "h w"]
) -> tuple[Pixels, UInt8[np.ndarray, "_ _"]]:
    """Both with the larger side SIDE: smaller ones enlarged without smoothing."""
    h, w = ids.shape
    scale = SIDE / max(h, w)
    if scale >= 2:
        times = int(scale)
        return enlarge(pixels, w * times), ids.repeat(times, axis=0).repeat(times, axis=1)
    size = (max(1, round(h * scale)), max(1, round(w * scale)))
    small = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(small), resize_ids(ids.astype(np.int32), size).astype(np.uint8)


def framed(picture: UInt8[np.ndarray, "h w 3"]) -> Pixels:
    """A thin line around what may be as white as the sheet."""
    gray = np.full((picture.shape[0] + 2, picture.shape[1] + 2, 3), LINE, dtype=np.uint8)
    gray[1:-1, 1:-1] = picture
    return gray


def crop_block(crops: UInt8[np.ndarray, "k c c 3"]) -> Pixels:
    """SIDE wide and at most as high, each in a frame of its segment's colour."""
    per_side = max(1, math.ceil(math.sqrt(len(crops))))
    cell = SIDE // per_side
    height = cell * math.ceil(len(crops) / per_side)
    block = np.full((max(1, height), SIDE, 3), PAPER, dtype=np.uint8)
    for k, crop in enumerate(crops):
        top, left = cell * (k // per_side), cell * (k % per_side)
        inner = cell - 2 * FRAME
        small = Image.fromarray(crop).resize((inner, inner), Image.Resampling.LANCZOS)
        block[top : top + cell, left : left + cell] = colour(k + 1)
        rows, cols = (slice(at + FRAME, at + FRAME + inner) for at in (top, left))
        block[rows, cols] = np.asarray(small)
    return block


def sheet(found: Sequence[Pixels], title: str) -> Pixels:
    """Cards side by side under a title."""
    rows = [found[k : k + COLUMNS] for k in range(0, len(found), COLUMNS)]
    body = grid(rows, pad=3 * PAD)
    return np.concatenate([legend_strip(body.shape[1], title, [], size=LETTERS + 3), body])
