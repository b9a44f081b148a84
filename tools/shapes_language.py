"""English for the shapes world: texts of segments, prompts of backgrounds, captions of scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "crimson", "scarlet", "ruby red"),
    "orange": ("orange", "orange", "tangerine", "bright orange"),
    "yellow": ("yellow", "yellow", "lemon yellow", "golden yellow"),
    "green": ("green", "green", "emerald", "leaf green"),
    "cyan": ("cyan", "turquoise", "aqua", "cyan"),
    "blue": ("blue", "blue", "azure", "cobalt blue", "royal blue"),
    "purple": ("purple", "purple", "violet", "deep purple"),
    "pink": ("pink", "pink", "rose pink", "hot pink"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "block"),
    "triangle": ("triangle",),
    "star": ("star", "star", "five-pointed star"),
    "ring": ("ring", "ring", "hoop", "donut"),
    "cross": ("cross", "cross", "plus sign"),
    "heart": ("heart", "heart", "love heart"),
    "crescent": ("crescent", "crescent", "crescent moon"),
}
# texture -> (adjectives, phrases that follow "with")
TEXTURE_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (("plain", "solid"), ("a plain surface", "a flat colour")),
    "shaded": (("shaded", "glossy"), ("soft shading", "a smooth gradient")),
    "striped": (("striped", "stripy"), ("stripes", "bold stripes")),
    "dotted": (("dotted", "spotted"), ("dots", "polka dots")),
    "checkered": (("checkered", "chequered"), ("a checkered pattern", "checks")),
}
STUFF_WORDS: dict[str, tuple[str, ...]] = {
    "sky": ("a pale blue sky", "a sky with soft clouds", "a cloudy sky", "a calm daytime sky"),
    "dusk sky": ("a dusk sky", "a sky at dusk", "a soft sunset sky", "a hazy evening sky"),
    "night sky": ("a night sky", "a starry night sky", "a dark sky full of stars"),
    "sand": ("a sandy beach", "pale sand", "sand with ripples", "dry desert sand"),
    "grass": ("a grass field", "a muted green meadow", "a lawn of grass", "a grassy meadow"),
    "sea": ("a calm sea", "sea water with waves", "a gray blue sea", "the open sea"),
    "snow": ("a snow field", "white snow", "fresh snow", "a snowy plain"),
    "brick wall": ("a brick wall", "a wall of old bricks", "a wall of bricks"),
    "wallpaper": ("a papered wall", "pale wallpaper", "a wall with faint wallpaper"),
    "wood": ("wooden planks", "a surface of wooden boards", "a plank of pale wood", "wood boards"),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MAX_WORDS = 39


@dataclass(frozen=True)
class Mention:
    """What a caption may say of one thing; `centre` is (row, column), `covers` a hidden thing."""

    shape: str
    colour: str
    texture: str
    size_word: str
    centre: tuple[float, float]
    covers: int | None = None


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def thing_text(
    rng: np.random.Generator, shape: str, colour: str, texture: str, size_word: str = ""
) -> str:
    """A free text that always names colour and shape, often the texture, sometimes the size."""
    noun = pick(rng, SHAPE_WORDS[shape])
    hue = pick(rng, COLOUR_WORDS[colour])
    adjectives, phrases = TEXTURE_WORDS[texture]
    adjective, phrase = pick(rng, adjectives), pick(rng, phrases)
    size = f"{size_word} " if size_word and rng.random() < 0.3 else ""
    forms = (
        article(f"{size}{hue} {adjective} {noun}"),
        article(f"{size}{hue} {adjective} {noun}"),
        article(f"{size}{hue} {noun} with {phrase}"),
        article(f"{size}{adjective} {hue} {noun}"),
        article(f"{size}{hue} {noun}"),
        article(f"{size}{noun} in {hue} with {phrase}"),
        f"{noun}, {hue}, {adjective}",
        f"{size}{hue} {noun}",
    )
    return pick(rng, forms)


def stuff_text(rng: np.random.Generator, kind: str) -> str:
    return pick(rng, STUFF_WORDS[kind])


def prompt_text(rng: np.random.Generator, kinds: Sequence[str]) -> str:
    """A short global prompt for a background of one kind, or of two (upper, lower)."""
    words = [stuff_text(rng, kind) for kind in kinds]
    if len(words) == 1:
        return words[0]
    upper, lower = words
    forms: tuple[str, ...]
    if kinds[0] in ("brick wall", "wallpaper"):
        forms = (f"{lower} in front of {upper}", f"{upper} above {lower}")
    else:
        forms = (f"{lower} under {upper}", f"{upper} over {lower}", f"{lower} and {upper}")
    return pick(rng, forms)


def _noun_phrase(rng: np.random.Generator, thing: Mention) -> str:
    noun = pick(rng, SHAPE_WORDS[thing.shape])
    hue = pick(rng, COLOUR_WORDS[thing.colour])
    kind = rng.random()
    if kind < 0.15:
        return article(f"{hue} {noun}") if kind < 0.1 else article(noun)
    if kind < 0.6:
        return article(f"{hue} {noun}")
    if kind < 0.75 and thing.size_word:
        return article(f"{thing.size_word} {hue} {noun}")
    return article(f"{hue} {pick(rng, TEXTURE_WORDS[thing.texture][0])} {noun}")


def _enumerate(phrases: Sequence[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _relation(rng: np.random.Generator, first: Mention, second: Mention) -> str:
    rows = first.centre[0] - second.centre[0]
    columns = first.centre[1] - second.centre[1]
    if abs(columns) > abs(rows):
        return pick(rng, ("left of", "to the left of") if columns < 0 else ("right of", "beside"))
    return pick(rng, ("above", "over") if rows < 0 else ("below", "under"))


def _relational(rng: np.random.Generator, things: Sequence[Mention], scene: str) -> str:
    covering = [i for i, thing in enumerate(things) if thing.covers is not None]
    if covering and rng.random() < 0.6:
        i = pick(rng, covering)
        j, words = things[i].covers or 0, "in front of"
    else:
        i, j = (int(n) for n in rng.permutation(len(things))[:2])
        words = _relation(rng, things[i], things[j])
    pair = f"{_noun_phrase(rng, things[i])} {words} {_noun_phrase(rng, things[j])}"
    others = [_noun_phrase(rng, thing) for n, thing in enumerate(things) if n not in (i, j)]
    if others and rng.random() < 0.6:
        pair = f"{pair}, with {_enumerate(others)}"
    return pick(rng, (f"{pair}, on {scene}", f"{scene}: {pair}", pair))


def caption_text(rng: np.random.Generator, kinds: Sequence[str], things: Sequence[Mention]) -> str:
    """One line of fewer than 40 words; it may leave out details, things or the background."""
    scene = prompt_text(rng, kinds)
    form = int(rng.integers(6))
    if form <= 1 and len(things) > 1:
        text = _relational(rng, things, scene)
    else:
        order = [things[int(n)] for n in rng.permutation(len(things))]
        listed = _enumerate([_noun_phrase(rng, thing) for thing in order])
        count = NUMBERS[len(things)]
        forms = (
            f"{scene} with {listed}",
            f"{listed} against {scene}",
            f"{count} shapes on {scene}: {listed}",
            f"a picture of {listed}",
            f"{count} colourful shapes, among them {_noun_phrase(rng, order[0])}, on {scene}",
            f"{_noun_phrase(rng, order[0])} and other shapes on {scene}",
        )
        text = pick(rng, forms)
    return text if len(text.split()) <= MAX_WORDS else scene
