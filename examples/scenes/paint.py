"""Draws the painted layouts of this folder anew: `python examples/scenes/paint.py`."""

from pathlib import Path

import numpy as np

from spatext.datamodules.drawing import PALETTE, PAPER, save_png
from spatext.datamodules.rasters import polygon_pixels

SIZE = (512, 512)
ORANGE, _, GREEN, PINK, SKY, RED, _, BROWN, _ = PALETTE

Shape = list[list[int]] | tuple[int, int, int, int]  # a polygon, or an ellipse: centre, radii

WAVES = [[64 * i, (340, 328, 340, 352)[i % 4]] for i in range(8)]
LIGHTHOUSE: list[tuple[tuple[int, int, int], Shape]] = [
    (SKY, [*WAVES, [512, 340], [512, 512], [0, 512]]),
    (RED, [[296, 120], [356, 120], [380, 372], [272, 372]]),
    (RED, [[304, 72], [348, 72], [348, 120], [304, 120]]),
    (RED, [[294, 76], [326, 40], [358, 76]]),
    (GREEN, [[56, 404], [236, 404], [206, 452], [90, 452]]),
]
MARKET_STALL: list[tuple[tuple[int, int, int], Shape]] = [
    *((ORANGE, (x, 250, 30, 30)) for x in range(70, 230, 38)),
    *((ORANGE, (x, 212, 30, 30)) for x in range(90, 212, 38)),
    *((ORANGE, (x, 176, 30, 30)) for x in range(110, 192, 38)),
    (ORANGE, (148, 144, 28, 28)),
    *((PINK, (x, 230, 22, 52)) for x in range(300, 480, 42)),
    (BROWN, (200, 440, 110, 44)),
    (BROWN, (314, 452, 44, 34)),
    (BROWN, [[300, 430], [322, 404], [340, 432]]),
    (BROWN, [[96, 440], [60, 400], [70, 392], [116, 424]]),
]


def paint(shapes: list[tuple[tuple[int, int, int], Shape]]) -> np.ndarray:
    """Later shapes lie on top; no soft edges, so that every pixel has a listed colour."""
    pixels = np.full((*SIZE, 3), PAPER, dtype=np.uint8)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    for colour, shape in shapes:
        if isinstance(shape, tuple):
            column, row, width, height = shape
            mask = ((x - column) / width) ** 2 + ((y - row) / height) ** 2 <= 1
        else:
            mask = polygon_pixels(shape, SIZE)
        pixels[mask] = colour
    return pixels


PAINTINGS = {"lighthouse.png": LIGHTHOUSE, "market_stall.png": MARKET_STALL}

if __name__ == "__main__":
    for name, shapes in PAINTINGS.items():
        save_png(Path(__file__).parent / name, paint(shapes))
