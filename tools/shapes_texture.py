"""Surfaces of the shapes world: muted painters for stuff, tones of one hue for things."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from PIL import Image

from spatext.tools.shapes_language import pick

Grid = tuple[np.ndarray, np.ndarray]
Painter = Callable[[np.random.Generator, Grid], np.ndarray]


@lru_cache(maxsize=4)
def grid(size: int) -> Grid:
    """Pixel centres (u, v) in (0, 1): columns [1, size], rows [size, 1]."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    line.flags.writeable = False
    return line[None, :], line[:, None]


def rgb(*levels: int) -> np.ndarray:
    """A colour [3, 1, 1]: images are planar here, which broadcasts several times faster."""
    return np.array(levels, np.float32).reshape(3, 1, 1)


def cloud(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise in [-1, 1]: a small random grid, resized; the draw is the same at any size."""
    values = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC))


def blend(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return low + np.clip(weight, 0, 1) * (high - low)


def ramp(top: np.ndarray, bottom: np.ndarray, points: Grid) -> np.ndarray:
    u, v = points
    return blend(top, bottom, v + 0 * u)


def _sky(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, v = points
    base = ramp(rgb(160, 190, 215), rgb(208, 222, 232), points)
    puffs = 1.5 * cloud(rng, u.size, 8, 4) - 0.25
    return blend(base, rgb(240, 243, 245), puffs * (1.1 - v))


def _dusk(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, v = points
    base = blend(rgb(140, 138, 166), rgb(226, 192, 180), v * 1.3 + 0 * u)
    return blend(base, rgb(236, 214, 204), 0.9 * cloud(rng, u.size, 11, 3))


def _night(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, v = points
    base = ramp(rgb(28, 31, 48), rgb(62, 64, 84), points)
    stars = rng.random((14, 3)).astype(np.float32)
    rows = np.exp(-(((v - stars[:, 1]) * 90) ** 2))
    columns = np.exp(-(((u.T - stars[:, 0]) * 90) ** 2))
    light = (rows * (0.35 + 0.65 * stars[:, 2])) @ columns.T
    return blend(base, rgb(244, 240, 226), light)


def _sand(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, v = points
    drift = cloud(rng, u.size, 4, 4)
    ripples = np.sin(2 * np.pi * (9 * v + 0.6 * drift + rng.random()))
    return blend(rgb(208, 195, 168), rgb(228, 217, 194), 0.5 + 0.25 * ripples + 0.3 * drift)


def _grass(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, _ = points
    blades = cloud(rng, u.size, 12, 30)
    patches = cloud(rng, u.size, 4, 4)
    return blend(rgb(124, 141, 110), rgb(162, 177, 145), 0.5 + 0.4 * blades + 0.35 * patches)


def _sea(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, v = points
    drift = cloud(rng, u.size, 5, 5)
    waves = np.sin(2 * np.pi * (11 * v + 0.35 * np.sin(2 * np.pi * (2 * u + 0.3 * drift))))
    return blend(rgb(104, 132, 150), rgb(160, 182, 194), 0.4 + 0.3 * waves + 0.25 * drift)


def _snow(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, _ = points
    drift = cloud(rng, u.size, 5, 3)
    return blend(rgb(214, 222, 232), rgb(247, 248, 250), 0.65 + 0.6 * drift)


def _brick(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, v = points
    row = np.floor(v * 9)
    column = np.floor(u * 4.5 + 0.5 * (row % 2))
    tones = rng.random((10, 6)).astype(np.float32)
    base = blend(rgb(158, 127, 116), rgb(188, 160, 148), tones[row.astype(int), column.astype(int)])
    edge = np.minimum(_to_line(v * 9) / 9, _to_line(u * 4.5 + 0.5 * (row % 2)) / 4.5)
    return blend(rgb(208, 200, 192), base, (edge * 64 - 0.2) * 1.2)


def _wallpaper(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, v = points
    tint = rgb(216, 208, 204) + rng.uniform(-8, 8, (3, 1, 1)).astype(np.float32)
    bloom = np.cos(2 * np.pi * 5 * (u + v)) * np.cos(2 * np.pi * 5 * (u - v))
    return blend(tint, tint - 24, bloom * 1.4 - 0.3)


def _wood(rng: np.random.Generator, points: Grid) -> np.ndarray:
    u, v = points
    board = np.floor(v * 7).astype(int)
    tones = rng.random(8).astype(np.float32)[board]
    grain = cloud(rng, u.size, 40, 4)
    base = blend(rgb(150, 128, 104), rgb(184, 163, 138), 0.6 * tones + 0.2 + 0.3 * grain)
    return blend(rgb(112, 96, 80), base, (_to_line(v * 7) / 7 * 64 - 0.1) + 0 * u)


def _to_line(x: np.ndarray) -> np.ndarray:
    """Distance to the nearest integer."""
    return np.abs(x - np.round(x))


STUFF: dict[str, Painter] = {
    "sky": _sky,
    "dusk sky": _dusk,
    "night sky": _night,
    "sand": _sand,
    "grass": _grass,
    "sea": _sea,
    "snow": _snow,
    "brick wall": _brick,
    "wallpaper": _wallpaper,
    "wood": _wood,
}
UPPER = ("sky", "dusk sky", "night sky")
LOWER = ("sand", "grass", "sea", "snow")
WALLS = ("brick wall", "wallpaper")
SURFACES = ("plain", "shaded", "striped", "dotted", "checkered")


def background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Image float [3, size, size], ids [size, size] and the kinds of one or two pieces of stuff."""
    points = u, v = grid(size)
    choice = rng.random()
    if choice < 0.2:
        kind = pick(rng, tuple(STUFF))
        return STUFF[kind](rng, points), np.ones((size, size), np.uint8), [kind]
    kinds = [pick(rng, UPPER), pick(rng, LOWER)] if choice < 0.8 else [pick(rng, WALLS), "wood"]
    slope, wave, phase = 0.0, 0.0, rng.random()
    if choice < 0.8 and kinds[1] != "sea":
        slope, wave = rng.choice([[0.0, 0.0], [float(rng.uniform(-0.3, 0.3)), 0.0], [0.0, 0.05]])
    edge = rng.uniform(0.35, 0.68) + slope * (u - 0.5)
    edge = edge + wave * np.sin(2 * np.pi * (1.3 * u + phase))
    cover = np.clip((v - edge) * size + 0.5, 0, 1).astype(np.float32)
    upper, lower = (STUFF[kind](rng, points) for kind in kinds)
    image = upper + cover * (lower - upper)
    return image, np.where(cover >= 0.5, 2, 1).astype(np.uint8), kinds


def tone(name: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Tone in [-1, 1] (dark to light) at offsets (x, y) from the centre, in fractions of the image.

    `period` is that of the pattern; `shaded` ignores it and runs over the whole thing.
    """
    if name == "shaded":
        return np.clip(-4.5 * y, -1, 1)
    k = 2 * np.pi / period
    if name == "striped":
        return np.clip(2 * np.sin(k * x), -1, 1) + 0 * y
    if name == "dotted":
        return np.clip(2.2 * (np.cos(k * x) + np.cos(k * y)) - 1.4, -0.4, 1)
    if name == "checkered":
        return np.clip(3 * np.sin(0.7 * k * x) * np.sin(0.7 * k * y), -1, 1)
    return 0 * (x + y)


def shade(
    colour: Float[np.ndarray, "3 1 1"], tones: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "3 h w"]:
    """`colour` in the given tones: -1 is two thirds as bright, +1 is 40 % on the way to white."""
    light, dark = np.maximum(tones, 0), np.minimum(tones, 0)
    return colour + light * (0.4 * (255 - colour)) + dark * (0.34 * colour)
