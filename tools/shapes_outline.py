"""Silhouettes of the shapes world as polygons of unit area, and their antialiased coverage."""

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLE = 4


def _arc(radius: float, start: float, stop: float, centre: float = 0.0) -> np.ndarray:
    angles = np.linspace(start, stop, 48)
    return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], axis=1)


def _crescent(inner: float = 0.78, offset: float = 0.52) -> np.ndarray:
    x = (1 - inner**2 + offset**2) / (2 * offset)
    y = np.sqrt(1 - x**2)
    outer_angle, inner_angle = np.arctan2(y, x), np.arctan2(y, x - offset)
    outer = _arc(1.0, outer_angle, 2 * np.pi - outer_angle)
    return np.concatenate([outer, _arc(inner, 2 * np.pi - inner_angle, inner_angle, offset)])


def _cross(w: float = 0.36) -> np.ndarray:
    corner = np.array([[w, -1], [w, -w], [1, -w]])
    turns = [corner, corner[::-1] * [1, -1], -corner, corner[::-1] * [-1, 1]]
    return np.concatenate(turns)


def _area(contour: np.ndarray) -> float:
    x, y = contour.T
    return 0.5 * abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)))


def _unit(*contours: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scales the contours (outline, then holes) to unit area about the middle of their box."""
    middle = (contours[0].min(0) + contours[0].max(0)) / 2
    area = _area(contours[0]) - sum(_area(hole) for hole in contours[1:])
    return tuple((contour - middle) / np.sqrt(area) for contour in contours)


OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": _unit(_arc(1.0, 0.0, 2 * np.pi)),
    "square": _unit(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])),
    "triangle": _unit(np.array([[0, -1.0], [0.866, 0.5], [-0.866, 0.5]])),
    "star": _unit(_star()),
    "ring": _unit(_arc(1.0, 0.0, 2 * np.pi), _arc(0.52, 0.0, 2 * np.pi)),
    "cross": _unit(_cross()),
    "heart": _unit(_heart()),
    "crescent": _unit(_crescent()),
}
TURNS = {"heart": 0.4, "square": 0.6, "cross": 0.8}  # radians to either side; pi otherwise


def coverage(
    shape: str, centre: np.ndarray, size: int, angle: float, scale: float, rim: bool = False
) -> np.ndarray:
    """Antialiased coverage [size, size] in [0, 1] of a shape, or of a line along its outline.

    `centre` (x, y) and `scale`, the square root of the area, are fractions of the image; the line
    reaches one 64th of the image to either side.
    """
    large = size * OVERSAMPLE
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", (large, large))
    draw = ImageDraw.Draw(canvas)
    for i, contour in enumerate(OUTLINES[shape]):
        points = ((contour @ turn * scale + centre) * large).ravel().tolist()
        if rim:
            draw.line(points + points[:4], fill=255, width=max(1, large // 32))
        else:
            draw.polygon(points, fill=0 if i else 255)
    return np.asarray(canvas.reduce(OVERSAMPLE), np.float32) / 255
