"""Measures pictures of the shapes world, without a network: what was painted, and where.

Pixels are told apart by hue (nearest palette colour in OKLab), joined into components, and each
component is named by the ideal silhouette it covers best over all rotations. The judge takes only
the palette and the names of the classes from the world, and draws its silhouettes itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from skimage.filters import gaussian
from skimage.measure import label, regionprops
from skimage.morphology import closing, disk, remove_small_holes
from skimage.transform import AffineTransform, warp

from spatext.tools.shapes_world import CLASSES, PALETTE

# All our choice, set on the world's own drawings at 64 pixels; areas are shares of the image.
CHROMA = 0.075  # stuff stays below 0.06 in OKLab, things in their palest tone above 0.08
LEAST_AREA = 0.005
LEAST_HOLE = 0.0025
CANVAS = 32  # side of a normalised silhouette, two root areas wide
TURN = 10  # degrees between the rotations tried
LEAST_IOU = 0.5  # from which a region counts as painted in its place


@dataclass(frozen=True)
class Component:
    mask: Bool[np.ndarray, "h w"]
    colour: str
    shape: str


@dataclass(frozen=True)
class RegionScore:
    """`matched`: colour and class are right and the IoU is at least LEAST_IOU."""

    iou: float
    colour_ok: bool
    class_ok: bool
    matched: bool


def oklab(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """sRGB to OKLab (Ottosson, 2020, "A perceptual color space for image processing")."""
    c = image / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_lms.T) @ to_lab.T


@lru_cache(maxsize=1)
def _hues() -> np.ndarray:
    """Unit vectors [colours, 2] of the palette in OKLab's (a, b) plane."""
    palette = np.array([list(PALETTE.values())], np.uint8)
    ab = oklab(palette)[0, :, 1:]
    return ab / np.linalg.norm(ab, axis=1, keepdims=True)


def colour_map(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """0 where the picture is too gray to be a thing, else 1 + the place in the palette."""
    scale = len(image) / 64
    smooth = gaussian(image, 0.6 * scale, channel_axis=2, preserve_range=True)
    ab = oklab(np.round(smooth).astype(np.uint8))[..., 1:]
    nearest = 1 + (ab @ _hues().T).argmax(-1)
    found = np.where(np.hypot(*np.moveaxis(ab, -1, 0)) >= CHROMA, nearest, 0)
    # A vote among neighbours removes the mixed colours that edges show between two things.
    votes = [gaussian(found == i, 0.7 * scale) for i in range(len(PALETTE) + 1)]
    return np.argmax(votes, axis=0).astype(np.uint8)


def _ideal(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in the ideal silhouette, of any size and place, within the unit square."""
    r, angle = np.hypot(x, y), np.arctan2(x, -y)
    inside = {
        "circle": r <= 0.8,
        "square": np.maximum(abs(x), abs(y)) <= 0.8,
        "triangle": (y <= 0.45) & (abs(x) <= (y + 0.9) / np.sqrt(3)),
        "star": r * np.cos(abs((angle + 0.2 * np.pi) % (0.4 * np.pi) - 0.2 * np.pi) - 0.92) <= 0.55,
        "ring": (r >= 0.42) & (r <= 0.8),
        "cross": (np.maximum(abs(x), abs(y)) <= 0.9) & (np.minimum(abs(x), abs(y)) <= 0.32),
        "heart": ((1.6 * x) ** 2 + (1.6 * y) ** 2 - 1) ** 3 + (1.6 * x) ** 2 * (1.6 * y) ** 3 <= 0,
        "crescent": (r <= 0.9) & (np.hypot(x - 0.47, y) >= 0.7),
    }
    return inside[name]


def _normalise(mask: np.ndarray, degrees: float = 0.0) -> np.ndarray:
    """The silhouette on the canvas: centred, of one area, turned; holes and all."""
    rows, columns = np.nonzero(mask)
    step = 2 * np.sqrt(rows.size) / CANVAS
    middle = (CANVAS - 1) / 2
    to_mask = (
        AffineTransform(translation=(-middle, -middle))
        + AffineTransform(scale=step, rotation=np.deg2rad(degrees))
        + AffineTransform(translation=(columns.mean(), rows.mean()))
    )
    return warp(mask.astype(np.float32), to_mask, output_shape=(CANVAS, CANVAS), order=1).ravel()


@lru_cache(maxsize=1)
def _templates() -> np.ndarray:
    """[classes, rotations, CANVAS ** 2], drawn large and normalised like what they are held to."""
    line = np.linspace(-1, 1, 128)
    ideals = [_ideal(name, line[None, :], line[:, None]) for name in CLASSES]
    angles = np.arange(0.0, 360.0, TURN)
    return np.array([[_normalise(ideal, angle) for angle in angles] for ideal in ideals])


def classify(mask: Bool[np.ndarray, "h w"]) -> str:
    """The class whose ideal silhouette has the best IoU with `mask` over rotations."""
    silhouette, templates = _normalise(mask), _templates()
    common = np.minimum(templates, silhouette).sum(-1)
    either = np.maximum(templates, silhouette).sum(-1)
    return CLASSES[int((common / either).max(-1).argmax())]


def segment(image: UInt8[np.ndarray, "h w 3"]) -> list[Component]:
    """The things seen in a picture, largest first."""
    colours = colour_map(image)
    size = colours.size
    around = disk(round(1.2 * len(image) / 64))
    components = []
    for i, name in enumerate(PALETTE, start=1):
        if (colours == i).sum() < LEAST_AREA * size:
            continue
        # Joins what stripes and dots tear apart, but takes no pixel of another colour.
        joined = closing(colours == i, around) & ((colours == i) | (colours == 0))
        joined = remove_small_holes(joined, max_size=int(LEAST_HOLE * size))
        labels = label(joined, connectivity=1)
        for region in regionprops(labels):
            if region.area >= LEAST_AREA * size:
                mask = labels == region.label
                components.append(Component(mask, name, classify(mask)))
    return sorted(components, key=lambda component: -int(component.mask.sum()))


def judge(
    image: UInt8[np.ndarray, "h w 3"],
    ids: UInt8[np.ndarray, "rows columns"],
    regions: Sequence[tuple[str, str]],
) -> list[RegionScore]:
    """Scores region k of `ids` (1..len(regions)) by what lies there; `regions` holds the wanted
    (colour, shape) of each.

    Colour and class are those of the component that overlaps the region most, chosen by place
    alone. The IoU, as the paper's local IoU with a segmentation network, is that of the component
    *of the wanted colour* that overlaps it most: something else in the right place counts nothing.
    Raises ValueError if image and ids differ in size.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"ids: found {ids.shape}, expected the image's {image.shape[:2]}")
    components = segment(image)
    scores = []
    for k, (colour, shape) in enumerate(regions, start=1):
        there = _most_overlap(components, ids == k)
        wanted = _most_overlap([c for c in components if c.colour == colour], ids == k)
        iou = _iou(wanted.mask, ids == k) if wanted else 0.0
        colour_ok = there is not None and there.colour == colour
        class_ok = there is not None and there.shape == shape
        matched = iou >= LEAST_IOU and colour_ok and class_ok
        scores.append(RegionScore(iou, colour_ok, class_ok, matched))
    return scores


def _most_overlap(components: Sequence[Component], region: np.ndarray) -> Component | None:
    best = max(components, key=lambda c: int((c.mask & region).sum()), default=None)
    return best if best is not None and (best.mask & region).any() else None


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return int((a & b).sum()) / int((a | b).sum())


def shuffled_iou(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    ids: Sequence[UInt8[np.ndarray, "h w"]],
    regions: Sequence[Sequence[tuple[str, str]]],
) -> float:
    """Mean IoU of each picture's own things with the regions of the next layout: what no obedience
    to places would score."""
    scores = [
        score.iou
        for image, other, things in zip(images, [*ids[1:], *ids[:1]], regions, strict=True)
        for score in judge(image, other, things[: int(other.max())])
    ]
    return float(np.mean(scores))


def summary(scores: Sequence[RegionScore]) -> dict[str, float]:
    """Means over regions: local IoU, the shares of right colour and class, and of both in place."""
    return {
        "local_iou": float(np.mean([score.iou for score in scores])),
        "colour": float(np.mean([score.colour_ok for score in scores])),
        "class": float(np.mean([score.class_ok for score in scores])),
        "matched": float(np.mean([score.matched for score in scores])),
    }
