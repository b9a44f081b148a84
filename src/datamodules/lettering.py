"""Text in pictures, in Pillow's own font, which no machine lacks."""

import math
from functools import cache

from PIL import ImageDraw, ImageFont

INK = (32, 32, 32)


def wrap(text: str, size: int, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider alone is cut."""
    font = font_of(size)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def write(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str], size: int) -> None:
    for i, line in enumerate(lines):
        draw.text((place[0], place[1] + i * line_height(size)), line, INK, font_of(size))


def line_height(size: int) -> int:
    return math.ceil(size * 1.25)


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; letters that it lacks become boxes."""
    return ImageFont.load_default(size)
