"""The shapes world: scenes of coloured things on muted stuff, drawn from (seed, split, index).

A scene has 3 to 6 segments: one or two of stuff, then two to four things in depth order. The world
is our own; it exists so that training, sampling and its measurement run anywhere, from no download.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from spatext.tools.shapes_language import (
    Mention,
    caption_text,
    pick,
    prompt_text,
    stuff_text,
    thing_text,
)
from spatext.tools.shapes_outline import OUTLINES, TURNS, coverage
from spatext.tools.shapes_texture import SURFACES, background, grid, rgb, shade, tone

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (218, 40, 50),
    "orange": (246, 136, 24),
    "yellow": (248, 212, 40),
    "green": (48, 168, 72),
    "cyan": (20, 190, 204),
    "blue": (44, 92, 226),
    "purple": (144, 60, 200),
    "pink": (246, 104, 178),
}
CLASSES = tuple(OUTLINES)


@dataclass(frozen=True)
class Segment:
    """One region of the id map; `label` is the shape of a thing or the kind of a stuff."""

    id: int
    text: str
    label: str
    isthing: bool
    area: int
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """`prompt` tells of the background alone; `ids` gives every pixel to one segment, 1..n."""

    image: UInt8[np.ndarray, "h w 3"]
    ids: UInt8[np.ndarray, "h w"]
    segments: list[Segment]
    caption: str
    prompt: str


@dataclass(frozen=True)
class Layout:
    """A sampling scene: k things to paint, in `ids` 1..k (0 elsewhere), and what each should be.

    `scene` is the world's own drawing of it, the reference for whoever measures samples.
    """

    ids: UInt8[np.ndarray, "h w"]
    texts: list[str]
    labels: list[str]
    colours: list[str]
    prompt: str
    scene: Scene


@dataclass(frozen=True)
class Rules:
    """How many things, their share of the image, and how much of each must stay visible."""

    num_things: tuple[int, ...] = (2, 3, 3, 4)
    areas: tuple[float, float] = (0.07, 0.20)
    small: float = 0.25
    min_visible: float = 0.6
    repeat: float = 0.2  # how often a thing may have the colour of another


@dataclass
class _Thing:
    shape: str
    colour: str
    texture: str
    area: int  # pixels, before anything covers it
    covers: int | None


def stream(seed: int, split: str, index: int, purpose: int = 0) -> np.random.Generator:
    """An independent generator for each (seed, split, index, purpose)."""
    key = np.array([seed, zlib.crc32(split.encode())], np.uint64)
    counter = np.array([0, 0, purpose, index], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def _allowed(ids: np.ndarray, mask: np.ndarray, things: list[_Thing], min_visible: float) -> bool:
    num_stuff = int(ids.max()) - len(things)
    left = np.bincount(ids[~mask], minlength=int(ids.max()) + 1)[1:]
    floors = [0.04 * mask.size] * num_stuff + [min_visible * thing.area for thing in things]
    return bool((left >= floors).all())


def _paint(
    rng: np.random.Generator,
    image: np.ndarray,
    inside: np.ndarray,
    rim: np.ndarray,
    centre: np.ndarray,
    thing: _Thing,
) -> np.ndarray:
    size = len(inside)
    shadow = Image.fromarray((inside * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(size / 40)
    )
    shift = round(size / 32)
    dark = np.roll(np.asarray(shadow, np.float32) / 255, (shift, shift), (0, 1))
    dark[:shift], dark[:, :shift] = 0, 0
    image = image * (1 - 0.28 * dark)
    u, v = grid(size)
    angle = rng.uniform(-0.5, 0.5) if thing.texture == "shaded" else rng.uniform(0, np.pi)
    x, y = u - centre[0], v - centre[1]
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    tones = tone(thing.texture, x, y, period=rng.uniform(0.09, 0.12))
    base = rgb(*PALETTE[thing.colour]) * np.float32(rng.uniform(0.93, 1.03))
    surface = shade(np.minimum(base, 255), tones.astype(np.float32)) * (1 - 0.35 * rim)
    return image + inside * (surface - image)


def _add_thing(
    rng: np.random.Generator,
    image: np.ndarray,
    ids: np.ndarray,
    things: list[_Thing],
    rules: Rules,
) -> np.ndarray | None:
    """Paints one more thing in front, into `ids` and `things` too; None where nothing fitted."""
    size = len(ids)
    shape = pick(rng, CLASSES)
    taken = set() if rng.random() < rules.repeat else {thing.colour for thing in things}
    colour = pick(rng, [name for name in PALETTE if name not in taken])
    texture = pick(rng, SURFACES)
    area = rng.uniform(*((0.018, 0.045) if rng.random() < rules.small else rules.areas))
    visible = max(rules.min_visible, pick(rng, (0.6, 0.9, 0.97)))
    turn = TURNS.get(shape, np.pi)
    angle, scale = rng.uniform(-turn, turn), np.sqrt(area)
    corners = OUTLINES[shape][0]
    reach = scale * np.abs(corners @ [[np.cos(angle)], [np.sin(angle)]]).max()
    reach = max(reach, scale * np.abs(corners @ [[-np.sin(angle)], [np.cos(angle)]]).max())
    margin = min(reach + 0.015, 0.49)
    middle = 0.5 + rng.uniform(-0.5, 0.5, 2) / size
    body = coverage(shape, middle, size, angle, scale)
    for _ in range(8):
        spread = np.sin(rng.uniform(-np.pi / 2, np.pi / 2, 2))  # more often towards the borders
        shift = np.round(spread * (0.5 - margin) * size).astype(int)
        inside = np.roll(body, shift[::-1], (0, 1))
        mask = inside >= 0.5
        if not _allowed(ids, mask, things, visible):
            continue
        num_stuff = int(ids.max()) - len(things)
        hidden = np.bincount(ids[mask], minlength=int(ids.max()) + 1)[num_stuff + 1 :]
        covers = int(hidden.argmax()) if hidden.size and hidden.max() > 0.03 * mask.sum() else None
        things.append(_Thing(shape, colour, texture, int(mask.sum()), covers))
        ids[mask] = ids.max() + 1
        rim = np.roll(coverage(shape, middle, size, angle, scale, rim=True), shift[::-1], (0, 1))
        centre = middle + shift / size
        return _paint(rng, image, inside, np.minimum(inside, rim), centre, things[-1])
    return None


def _describe(
    rng: np.random.Generator, ids: np.ndarray, kinds: list[str], things: list[_Thing]
) -> tuple[list[Segment], list[Mention]]:
    areas = np.bincount(ids.ravel(), minlength=len(kinds) + len(things) + 1)
    segments, mentions = [], []
    for i, kind in enumerate(kinds, start=1):
        segments.append(Segment(i, stuff_text(rng, kind), kind, False, int(areas[i])))
    for i, thing in enumerate(things, start=len(kinds) + 1):
        share = areas[i] / ids.size
        size_word = "big" if share > 0.12 else "small" if share < 0.05 else ""
        text = thing_text(rng, thing.shape, thing.colour, thing.texture, size_word)
        attributes = {"colour": thing.colour, "texture": thing.texture, "shape": thing.shape}
        segments.append(Segment(i, text, thing.shape, True, int(areas[i]), attributes))
        row, column = (float(x.mean()) for x in np.nonzero(ids == i))
        mentions.append(
            Mention(
                thing.shape, thing.colour, thing.texture, size_word, (row, column), thing.covers
            )
        )
    return segments, mentions


def _compose(rng: np.random.Generator, size: int, rules: Rules) -> Scene:
    while True:
        image, ids, kinds = background(rng, size)
        things: list[_Thing] = []
        for _ in range(pick(rng, rules.num_things)):
            painted = _add_thing(rng, image, ids, things, rules)
            image = image if painted is None else painted
        if len(things) in rules.num_things:
            break
    segments, mentions = _describe(rng, ids, kinds, things)
    pixels = np.clip(np.round(image), 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
    caption = caption_text(rng, kinds, mentions)
    return Scene(pixels, ids, segments, caption, prompt_text(rng, kinds))


def draw_scene(seed: int, split: str, index: int, size: int = 64) -> Scene:
    """The scene at `index` of a split; it depends on nothing but these arguments."""
    return _compose(stream(seed, split, index), size, Rules())


def heldout_layouts(
    seed: int, num: int, size: int = 64, num_regions: tuple[int, ...] = (2, 3)
) -> list[Layout]:
    """Sampling scenes of split "test": things of different colours, 10 to 20 % of the image each.

    Hardly any of a thing is hidden (4 % at most), so that what is painted can be told apart.
    """
    layouts = []
    for index in range(num):
        # The number first: where many large things have no room, few would be the rule.
        wanted = (num_regions[index % len(num_regions)],)
        rules = Rules(wanted, (0.1, 0.2), 0.0, 0.96, repeat=0.0)
        scene = _compose(stream(seed, "test", index, purpose=1), size, rules)
        things = [segment for segment in scene.segments if segment.isthing]
        first = things[0].id
        ids = np.where(scene.ids >= first, scene.ids - (first - 1), 0).astype(np.uint8)
        layouts.append(
            Layout(
                ids,
                [thing.text for thing in things],
                [thing.label for thing in things],
                [thing.attributes["colour"] for thing in things],
                scene.prompt,
                scene,
            )
        )
    return layouts
